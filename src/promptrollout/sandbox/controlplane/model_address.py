"""Where the sandbox's model is, for manifests that name its Service: an admission webhook puts its address there.

The sandbox has no cluster DNS, so no pod could find the Service. The API server changes a ModelProvider as it takes it,
so the same files can be applied here and on a cluster, by the demo and by hand. (A MutatingAdmissionPolicy would do
without a server of our own, but refuses objects for some seconds after their CRD has come or changed.)
"""

from __future__ import annotations

import base64
import json
import ssl
from pathlib import Path
from typing import Any

from aiohttp import web
from kubernetes.aio.client import ApiClient

from promptrollout import cluster
from promptrollout.api.names import GROUP

MODEL_SERVICE = "http://simulated-model:8080"
"""The address in the manifests."""

_NAME = "sandbox-simulated-model"
_PATH = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{_NAME}"


class ModelAddress:
    """A webhook on loopback. `model_url`: where the simulated model listens, without /v1."""

    def __init__(self, model_url: str, certificate: tuple[Path, Path], ca_file: Path) -> None:
        self._model_url = model_url
        self._ca_file = ca_file
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(*certificate)
        self._runner: web.AppRunner | None = None

    async def start(self, api: ApiClient) -> None:
        """Serve, and have the API server ask."""
        app = web.Application()
        app.router.add_post("/", self._review)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._context).start()
        await cluster.apply(api, _PATH, self._configuration(self._runner.addresses[0][1]), "promptrollout-sandbox")

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _review(self, request: web.Request) -> web.Response:
        asked = (await request.json())["request"]
        url = asked["object"]["spec"]["baseURL"].replace(MODEL_SERVICE, self._model_url)
        patch = json.dumps([{"op": "replace", "path": "/spec/baseURL", "value": url}]).encode()
        answer = {"uid": asked["uid"], "allowed": True, "patchType": "JSONPatch"}
        return web.json_response(
            {
                "apiVersion": "admission.k8s.io/v1",
                "kind": "AdmissionReview",
                "response": {**answer, "patch": base64.b64encode(patch).decode()},
            }
        )

    def _configuration(self, port: int) -> dict[str, Any]:
        rule = {"apiGroups": [GROUP], "apiVersions": ["*"], "resources": ["modelproviders"]}
        names_it = f"has(object.spec.baseURL) && object.spec.baseURL.startsWith('{MODEL_SERVICE}/')"
        return {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": _NAME},
            "webhooks": [
                {
                    "name": f"simulated-model.sandbox.{GROUP}",
                    "clientConfig": {
                        "url": f"https://127.0.0.1:{port}/",
                        "caBundle": base64.b64encode(self._ca_file.read_bytes()).decode(),
                    },
                    "rules": [{**rule, "operations": ["CREATE", "UPDATE"]}],
                    "matchConditions": [{"name": "names-the-service", "expression": names_it}],
                    "admissionReviewVersions": ["v1"],
                    "sideEffects": "None",
                }
            ],
        }
