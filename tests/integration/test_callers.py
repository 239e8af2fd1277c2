"""Who may call, with a real API server: it reviews tokens of ServiceAccounts and checks specs."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from promptrollout.sandbox.sandbox import Sandbox
from tests.integration.api import ApiKubectl
from tests.integration.cluster import Kubectl

ROOT = Path(__file__).parents[2]
Eventually = Callable[..., Any]
KEY = "a-callers-key"


@pytest.fixture(scope="module")
def crds(sandbox: Sandbox) -> None:
    kubectl = ApiKubectl(sandbox.kubeconfig)
    kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    kubectl.until_established()


@pytest.fixture
def address(
    sandbox: Sandbox, namespace: str, kubectl: Kubectl, tmp_path: Path, crds: None, eventually: Eventually
) -> Iterator[str]:
    """A gateway that is, to the API server, its own ServiceAccount with what the chart gives it, and not more."""
    account = f"system:serviceaccount:{namespace}:default-gateway"
    kubectl("create", "serviceaccount", "default-gateway")
    kubectl("create", "role", "gateway", "--verb=get,list,watch", "--resource=promptdeliveries.promptrollout.dev")
    kubectl("create", "rolebinding", "gateway", "--role=gateway", f"--serviceaccount={namespace}:default-gateway")
    reviews = f"reviews-{namespace}"
    kubectl("create", "clusterrole", reviews, "--verb=create", "--resource=tokenreviews.authentication.k8s.io")
    kubectl("create", "clusterrolebinding", reviews, f"--clusterrole={reviews}", f"--user={account}")
    config = yaml.safe_load(Path(sandbox.kubeconfig).read_text())
    config["users"] = [{"name": "pod", "user": {"token": kubectl("create", "token", "default-gateway").strip()}}]
    config["contexts"][0]["context"]["user"] = "pod"
    config["current-context"] = config["contexts"][0]["name"]
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    (tmp_path / "callers").mkdir()
    (tmp_path / "callers" / "shop").write_text(f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}")
    made = f"127.87.{random.randrange(1, 250)}.{random.randrange(1, 250)}"
    environment = {
        **os.environ,
        "KUBECONFIG": str(tmp_path / "kubeconfig"),
        "POD_NAMESPACE": namespace,
        "PROMPTROLLOUT_GATEWAY": "default",
        "PROMPTROLLOUT_BIND_ADDRESS": made,
        "PROMPTROLLOUT_STATE_DIR": str(tmp_path / "state"),
        "PROMPTROLLOUT_AUTH_MODE": "KeysAndServiceAccounts",
        "PROMPTROLLOUT_CALLER_KEYS_DIR": str(tmp_path / "callers"),
    }
    process = subprocess.Popen([sys.executable, "-m", "promptrollout", "gateway"], env=environment)
    try:
        eventually(lambda: ask(made, None) == 401)
        yield made
    finally:
        process.kill()
        process.wait()
        kubectl("delete", "clusterrolebinding,clusterrole", reviews)


def ask(address: str, credential: str | None) -> int:
    headers = {"authorization": f"Bearer {credential}"} if credential else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://{address}:8080/v1/models", headers=headers), timeout=10
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def test_tokens_are_reviewed_by_the_api_server(address: str, kubectl: Kubectl, namespace: str) -> None:
    kubectl("create", "serviceaccount", "shop")

    def token(*arguments: str) -> str:
        return kubectl("create", "token", *arguments).strip()

    good = token("shop", "--audience=promptrollout")
    assert ask(address, good) == 200
    assert ask(address, KEY) == 200
    assert ask(address, token("shop")) == 401  # for the API server, not for us
    assert ask(address, token("shop", "--audience=somebody-else")) == 401
    assert ask(address, token("default", "--namespace=kube-system", "--audience=promptrollout")) == 401
    assert ask(address, good[:-8] + "AAAAAAAA") == 401
    assert ask(address, "another-key") == 401


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"auth": {"mode": "Keys"}}, "keysSecretRef"),
        ({"auth": {"mode": "KeysAndServiceAccounts"}}, "keysSecretRef"),
        ({"limits": {"requestsPerMinutePerKey": 60}}, "needs auth.mode"),
        ({"limits": {"requestsPerMinutePerKey": 60}, "auth": {"mode": "ServiceAccounts"}}, ""),
        ({"auth": {"mode": "Keys", "keysSecretRef": {"name": "callers"}}}, ""),
        ({}, ""),
    ],
)
def test_what_a_gateway_may_say_of_its_callers(
    kubectl: Kubectl, crds: None, spec: dict[str, Any], message: str
) -> None:
    body = {
        "apiVersion": "promptrollout.dev/v1alpha1",
        "kind": "PromptGateway",
        "metadata": {"name": "default"},
        "spec": spec,
    }
    done = kubectl.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(body))
    assert (done.returncode == 0) is (not message)
    assert message in done.stderr
