"""The gateway's own process against a real API server and the simulated model: delivery, outage, override, drain."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from promptrollout.api.names import LABEL_GATEWAY, LABEL_OVERRIDE, OVERRIDES_NAME
from promptrollout.sandbox.sandbox import Sandbox
from tests.integration.cluster import Kubectl

pytestmark = pytest.mark.usefixtures("no_operator")

ROOT = Path(__file__).parents[2]
Eventually = Callable[..., Any]


class Pod:
    """One gateway process on an address of its own, as the node would run it."""

    def __init__(self, kubeconfig: str, namespace: str, folder: Path) -> None:
        self.address = f"127.88.{random.randrange(1, 250)}.{random.randrange(1, 250)}"
        self._environment = {
            **os.environ,
            "KUBECONFIG": kubeconfig,
            "POD_NAMESPACE": namespace,
            "POD_NAME": "gateway-test",
            "PROMPTROLLOUT_GATEWAY": "default",
            "PROMPTROLLOUT_BIND_ADDRESS": self.address,
            "PROMPTROLLOUT_STATE_DIR": str(folder / "state"),
            "PROMPTROLLOUT_PROVIDER_KEYS_DIR": str(folder / "keys"),
            "PROMPTROLLOUT_DRAIN_SECONDS": "20",
            "PROMPTROLLOUT_ALLOWED_PROVIDER_NETWORKS": "127.0.0.0/8",
        }
        self._log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "promptrollout", "gateway"], env=self._environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def admin(self, path: str) -> tuple[int, bytes]:
        """Status and body; status 0 where nobody listens."""
        try:
            with urllib.request.urlopen(f"http://{self.address}:9090{path}", timeout=5) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except OSError:
            return 0, b""

    @property
    def ready(self) -> bool:
        return self.admin("/readyz")[0] == 200

    def report(self) -> dict[str, Any]:
        """Of the only rollout; empty without one."""
        status, body = self.admin("/rollouts?name=support")
        rollouts = json.loads(body)["rollouts"] if status == 200 else []
        return rollouts[0] if rollouts else {}

    def ask(self, **changes: Any) -> tuple[int, dict[str, str], bytes]:
        body = {"model": "support", "user": "u1", "messages": [{"role": "user", "content": "Hello"}], **changes}
        request = urllib.request.Request(
            f"http://{self.address}:8080/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, {k.lower(): v for k, v in response.headers.items()}, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


@pytest.fixture
def pod(sandbox: Sandbox, namespace: str, kubectl: Kubectl, tmp_path: Path) -> Iterator[Pod]:
    for kind in ("promptdeliveries", "promptsigningkeys"):
        kubectl("apply", "--server-side", "-f", str(ROOT / "crds" / f"{kind}.promptrollout.dev.yaml"))
    kubectl.until_established()
    made = Pod(sandbox.kubeconfig, namespace, tmp_path)
    made.start()
    yield made
    made.kill()


def delivery(sandbox: Sandbox, sequence: int, weight: int = 0) -> dict[str, Any]:
    def arm(digit: str) -> dict[str, Any]:
        return {
            "version": f"support-{digit * 10}",
            "digest": f"sha256:{digit * 64}",
            "prompt": {
                "providerRef": {"name": "simulated"},
                "model": "simulated",
                "messages": [{"role": "system", "content": f"Version {digit}"}],
            },
            "provider": {"name": "simulated", "baseURL": f"{sandbox.model_url.removesuffix('/v1')}/v1"},
        }

    return {
        "apiVersion": "promptrollout.dev/v1alpha1",
        "kind": "PromptDelivery",
        "metadata": {"name": "support", "labels": {LABEL_GATEWAY: "default"}},
        "spec": {
            "formatVersion": 1,
            "gateway": "default",
            "rolloutUID": "uid-1",
            "sequence": sequence,
            "weight": weight,
            "salt": "salt",
            "stable": arm("a"),
            "canary": arm("b"),
        },
    }


def test_a_delivery_is_served_at_once_and_an_older_one_is_not(
    sandbox: Sandbox, kubectl: Kubectl, pod: Pod, eventually: Eventually
) -> None:
    eventually(lambda: pod.ready)
    kubectl.apply(delivery(sandbox, 1))
    eventually(lambda: pod.report().get("sequence") == 1)
    assert pod.ask()[1]["x-promptrollout-variant"] == "stable"
    kubectl.apply(delivery(sandbox, 2, weight=100))
    # a watchdog: whoever does not watch, but lists from time to time, takes minutes
    eventually(lambda: pod.report().get("sequence") == 2, every=0.02, seconds=20)
    status, headers, _ = pod.ask()
    assert (status, headers["x-promptrollout-variant"]) == (200, "canary")
    kubectl.apply(delivery(sandbox, 1))
    eventually(lambda: pod.report().get("problemSequence") == 1)
    assert pod.report()["sequence"] == 2


def test_the_emergency_override_needs_only_a_configmap(
    sandbox: Sandbox, kubectl: Kubectl, pod: Pod, eventually: Eventually
) -> None:
    kubectl.apply(delivery(sandbox, 1, weight=100))
    eventually(lambda: pod.report().get("sequence") == 1)
    override = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": OVERRIDES_NAME, "labels": {LABEL_OVERRIDE: "true"}},
        "data": {"support": "stable"},
    }
    kubectl.apply(override)
    eventually(lambda: pod.report().get("overridden"))
    assert pod.ask()[1]["x-promptrollout-variant"] == "stable"
    kubectl("delete", "configmap", OVERRIDES_NAME)
    eventually(lambda: not pod.report()["overridden"])
    assert pod.ask()[1]["x-promptrollout-variant"] == "canary"


def test_an_outage_of_the_api_server_changes_nothing_not_even_for_a_pod_that_restarts(
    sandbox: Sandbox, kubectl: Kubectl, pod: Pod, eventually: Eventually
) -> None:
    kubectl.apply(delivery(sandbox, 3, weight=100))
    eventually(lambda: pod.report().get("sequence") == 3)
    sandbox.stop_apiserver()
    try:
        assert (pod.ready, pod.ask()[0]) == (True, 200)
        pod.kill()
        pod.start()
        eventually(lambda: pod.ready)
        assert pod.report()["sequence"] == 3
        assert pod.ask()[1]["x-promptrollout-variant"] == "canary"
    finally:
        sandbox.start_apiserver()
    kubectl.apply(delivery(sandbox, 4))
    eventually(lambda: pod.report().get("sequence") == 4)


def test_a_deleted_delivery_is_served_on(sandbox: Sandbox, kubectl: Kubectl, pod: Pod, eventually: Eventually) -> None:
    kubectl.apply(delivery(sandbox, 1))
    eventually(lambda: pod.report().get("sequence") == 1)
    kubectl("delete", "promptdelivery", "support")
    time.sleep(1)
    assert pod.ask()[0] == 200


def test_a_pod_that_is_asked_to_stop_finishes_what_it_took(
    sandbox: Sandbox, kubectl: Kubectl, pod: Pod, eventually: Eventually
) -> None:
    kubectl.apply(delivery(sandbox, 1))
    eventually(lambda: pod.report().get("sequence") == 1)
    slow = [{"name": "slow", "match": {"promptContains": "Version a"}, "latency": {"fixedMs": 5000}}]
    _put(f"{sandbox.model_url.removesuffix('/v1')}/control/behaviours", slow)
    answers: list[int] = []
    try:
        asking = threading.Thread(target=lambda: answers.append(pod.ask()[0]))
        asking.start()
        eventually(lambda: b"promptrollout_gateway_in_flight_requests 1" in pod.admin("/metrics")[1])
        assert pod.process is not None
        pod.process.send_signal(signal.SIGTERM)
        eventually(lambda: pod.admin("/readyz")[0] == 503, every=0.02)
        asking.join(30)
        assert answers == [200]
        assert pod.process.wait(30) == 0
    finally:
        _put(f"{sandbox.model_url.removesuffix('/v1')}/control/behaviours", [])


def _put(url: str, body: Any) -> None:
    request = urllib.request.Request(url, data=json.dumps(body).encode(), method="PUT")
    with urllib.request.urlopen(request, timeout=10) as response:
        response.read()
