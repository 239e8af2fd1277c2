"""A kind cluster for one test session: image built and loaded, chart and quickstart installed, deleted at the end."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from promptrollout.sandbox.assets.inventory import find_kubectl
from tests.progress import Progress

ROOT = Path(__file__).parents[2]
IMAGE = "promptrollout.local/promptrollout:demo"
"""The one that examples/kind/install sets in the chart."""
_TOOLS = ("docker", "kind", "helm", "bash")


def unavailable() -> str:
    """Why this machine cannot run a kind cluster; empty if it can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"make kind-e2e needs {', '.join(missing)} on PATH"
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=30, check=False)
    return "" if done.returncode == 0 else f"make kind-e2e needs a Docker that answers: {done.stderr.strip()[-200:]}"


@contextlib.contextmanager
def kind_cluster(folder: Path, progress: Progress) -> Iterator[Path]:
    """Its kubeconfig, which lies in `folder`: no other kubeconfig of the user is read or written."""
    name = f"promptrollout-e2e-{secrets.token_hex(3)}"
    kubeconfig = folder / "kubeconfig"
    path = os.pathsep.join([str(find_kubectl(os.environ).parent), os.environ["PATH"]])
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "PATH": path}

    def run(*command: str, seconds: float) -> None:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
        output = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == 0, f"{' '.join(command)} ended with exit code {done.returncode}:\n{output}"

    progress("building the image")
    run("docker", "build", "--tag", IMAGE, ".", seconds=1200)
    try:
        progress(f"creating the kind cluster {name}")
        run("kind", "create", "cluster", "--name", name, "--kubeconfig", str(kubeconfig), "--wait", "120s", seconds=600)
        run("kind", "load", "docker-image", "--name", name, IMAGE, seconds=300)
        progress("installing Prometheus, the chart and the quickstart")
        run("bash", "examples/kind/install", seconds=900)
        yield kubeconfig
    finally:
        progress(f"deleting the kind cluster {name}")
        run("kind", "delete", "cluster", "--name", name, "--kubeconfig", str(kubeconfig), seconds=300)
