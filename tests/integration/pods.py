"""Manifests of small pods that say of themselves what the tests want to know."""

from __future__ import annotations

from typing import Any

Manifest = dict[str, Any]

IMAGE = "registry.example/promptrollout:test"

SERVE = """
import http.server, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("asked to stop"), sys.exit(0)))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        broken = os.path.exists(os.environ["TMPDIR"] + "/broken" + self.path.replace("/", "-"))
        body = (os.environ["HOSTNAME"] if self.path == "/who" else "test_up 1\\n").encode()
        self.send_response(500 if broken else 200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
print("listening")
http.server.ThreadingHTTPServer((os.environ["PROMPTROLLOUT_BIND_ADDRESS"], 8080), Handler).serve_forever()
"""


def container(code: str, **fields: Any) -> Manifest:
    """A container that runs Python code and passes the restricted Pod Security Standard."""
    return {
        "name": "main",
        "image": IMAGE,
        "command": ["python3", "-c", code],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        **fields,
    }


def pod_spec(code: str, *, spec: Manifest | None = None, **fields: Any) -> Manifest:
    return {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": 5,
        "containers": [container(code, **fields)],
        **(spec or {}),
    }


def pod(
    name: str,
    code: str,
    *,
    spec: Manifest | None = None,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    **fields: Any,
) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}, "annotations": annotations or {}},
        "spec": pod_spec(code, spec=spec, **fields),
    }
