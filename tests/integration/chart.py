"""The Helm chart rendered, and its objects in the cluster without the operator's pod."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import yaml

from promptrollout.sandbox.assets import inventory
from promptrollout.sandbox.controlplane.install import find_chart
from promptrollout.sandbox.settings import OPERATOR_NAMESPACE
from tests.integration.cluster import Kubectl


def rendered(*values: str) -> list[dict[str, Any]]:
    """Every object of the chart, with some `--set` values."""
    helm = inventory.find("helm", inventory.cache_dir(), os.environ) or inventory.ensure(print).helm
    flags = [flag for value in values for flag in ("--set", value)]
    done = subprocess.run(
        [str(helm), "template", "promptrollout", str(find_chart()), "--namespace", OPERATOR_NAMESPACE, *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [body for body in yaml.safe_load_all(done.stdout) if body]


def install_all_but_the_operator(kubeconfig: str) -> None:
    """CRDs, roles and configuration, as the chart has them; leaves an operator alone that is there already."""
    kubectl = Kubectl(kubeconfig)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE, "labels": labels}}
    # without the ConfigMap too: an operator that runs has one that names the sandbox's Prometheus
    # and with the sandbox's networks, for tests whose providers are on loopback
    values = "gateway.allowedProviderNetworks={127.0.0.0/8}"
    bodies = [body for body in rendered(values) if body["kind"] not in ("Deployment", "ConfigMap")]
    text = yaml.safe_dump_all([namespace, *bodies])
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
    kubectl.until_established()
