"""The cluster as a person sees it: the real kubectl."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import Any

from promptrollout.sandbox.assets.inventory import find_kubectl

Manifest = dict[str, Any]


class Kubectl:
    """The real kubectl against a cluster; `namespace` is the default for every call."""

    def __init__(self, kubeconfig: str, namespace: str | None = None) -> None:
        self.namespace = namespace
        self._command = [str(find_kubectl(os.environ)), "--kubeconfig", kubeconfig]
        if namespace:
            self._command += ["--namespace", namespace]

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Exit code, output and error output, whatever they are."""
        return subprocess.run(
            [*self._command, *arguments], input=stdin, capture_output=True, text=True, timeout=240, check=False
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A call that goes on, with its output as it comes."""
        return subprocess.Popen([*self._command, *arguments], stdout=subprocess.PIPE, text=True)

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Output of a call that must succeed."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "-o", "json"))

    def find(self, kind: str, name: str) -> Manifest | None:
        """None: it is not there, or the API server does not answer."""
        done = self.run("get", kind, name, "-o", "json")
        found: Manifest | None = None if done.returncode else json.loads(done.stdout)
        return found

    def log(self, pod: str) -> str:
        """What the pod's container has written; empty if there is none."""
        return self.run("logs", pod).stdout

    def apply(self, *manifests: Manifest, arguments: tuple[str, ...] = ()) -> str:
        """`kubectl apply` of plain objects (or of text, by calling it with stdin)."""
        objects = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        return self("apply", *arguments, "-f", "-", stdin=json.dumps(objects))

    def python(self, pod: str, script: str) -> subprocess.CompletedProcess[str]:
        """Run `script` in the pod's first container, by the image's own Python."""
        return self.run("exec", pod, "--", "python", "-c", script)

    def names(self, *arguments: str) -> list[str]:
        return [item["metadata"]["name"] for item in self.json("get", *arguments)["items"]]

    def until_established(self, seconds: float = 30.0) -> None:
        """Every CRD is served. (`kubectl wait` fails on one that is so new that it has no conditions yet.)"""
        deadline = time.monotonic() + seconds
        while True:
            items = self.json("get", "crd")["items"]
            conditions = [{c["type"]: c["status"] for c in i.get("status", {}).get("conditions") or []} for i in items]
            if all(each.get("Established") == "True" for each in conditions):
                return
            assert time.monotonic() < deadline, f"CRDs are not served within {seconds} s"
            time.sleep(0.1)
