"""The node's own binaries, built from Go modules into the user's cache as the sandbox's are."""

from __future__ import annotations

from pathlib import Path

from promptrollout.sandbox.assets import build, inventory
from promptrollout.sandbox.assets.build import Build, Progress

_FOLDER = Path(__file__).parent / "gomodules"
_KUBERNETES = inventory.VERSIONS["kube-apiserver"]

#: Versions of the modules; in the names of the cached files. `netpol` is kube-router's NetworkPolicy controller.
VERSIONS = {
    "kubelet": _KUBERNETES,
    "kube-scheduler": _KUBERNETES,
    "kube-proxy": _KUBERNETES,
    "pause": _KUBERNETES,
    "coredns": "1.14.7",
    "netpol": "2.1.0",
}

_KUBERNETES_NAMES = ("kubelet", "kube-scheduler", "kube-proxy", "pause")

BUILDS = (
    Build(
        module="node",
        names=_KUBERNETES_NAMES,
        packages=tuple(f"./cmd/{name}" for name in _KUBERNETES_NAMES),
        ldflags=next(job.ldflags for job in build.BUILDS if job.module == "controlplane"),
        folder=_FOLDER,
    ),
    Build(module="coredns", names=("coredns",), packages=(".",), folder=_FOLDER),
    Build(module="netpol", names=("netpol",), packages=(".",), folder=_FOLDER),
)


def cached_path(name: str, cache: Path) -> Path:
    return cache / "bin" / "-".join((name, VERSIONS[name], *inventory.system()))


def ensure(cache: Path, progress: Progress) -> dict[str, Path]:
    """Paths by name; builds what the cache lacks, which takes minutes the first time."""
    (cache / "bin").mkdir(parents=True, exist_ok=True)
    with inventory.locked(cache / "bin" / ".lock", progress):
        missing = [name for name in VERSIONS if not cached_path(name, cache).is_file()]
        build.build(missing, cache, cached_path, progress, BUILDS)
    return {name: cached_path(name, cache) for name in VERSIONS}
