"""What the node needs of this machine: root, namespaces, and Debian packages that it installs where apt can."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from promptrollout.sandbox.assets.build import Progress
from tests.node.steps import run

#: What must be there, and the Debian package that brings it.
PACKAGES = {
    "buildah": "buildah",
    "conntrack": "conntrack",
    "containerd": "containerd",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "ipset": "ipset",
    "iptables": "iptables",
    "nft": "nftables",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
_NAMESPACES = ("--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--mount-proc")


class Unavailable(Exception):
    """The node cannot run here; the message says why, and is the reason of the skipped tests."""


def prepare(progress: Progress, log: Path) -> None:
    """Install what is missing. Raises Unavailable where this machine cannot run the node."""
    if sys.platform != "linux":
        raise Unavailable("the node needs Linux")
    if os.geteuid() != 0:
        raise Unavailable("the node needs root: sudo make node-test")
    for program in ("unshare", "nsenter", "setpriv"):
        if shutil.which(program) is None:
            raise Unavailable(f"the node needs {program} (util-linux)")
    refused = subprocess.run(["unshare", *_NAMESPACES, "true"], capture_output=True, text=True, check=False)
    if refused.returncode:
        raise Unavailable(f"this machine refuses namespaces: {refused.stderr.strip()}")
    if pods := _other_pods():
        raise Unavailable(f"a kubelet runs on this machine already ({pods})")
    _install(progress, log)


def _install(progress: Progress, log: Path) -> None:
    missing = sorted({package for file, package in PACKAGES.items() if shutil.which(file) is None})
    if not missing:
        return
    names = " ".join(missing)
    if shutil.which("apt-get") is None:
        raise Unavailable(f"the node needs these Debian packages, and there is no apt-get: {names}")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        run(["apt-get", "update"], "apt-get update", log, progress)
        install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
        run(install, f"apt-get install {names}", log, progress, environment)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"apt-get could not install {names}; see {log}") from error


def cgroups() -> list[Path]:
    """Where a kubelet keeps its pods' cgroups, in each hierarchy, if there are any."""
    root = Path("/sys/fs/cgroup")
    return [path for path in (*root.glob("*/kubepods"), root / "kubepods") if path.is_dir()]


def favour_pods() -> None:
    """Other work on this machine leaves pods most of the processor: what starves shows nothing but that."""
    for file, share in (("cpu.shares", "8192"), ("cpu.weight", "800")):
        for setting in (top / file for top in cgroups()):
            if setting.exists():
                setting.write_text(share)


def _other_pods() -> Path | None:
    for top in cgroups():
        for processes in top.rglob("cgroup.procs"):
            if processes.read_text().strip():
                return processes.parent
    return None


def remove_cgroups() -> None:
    """Those that a node left behind: empty ones."""
    for top in cgroups():
        for folder in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
            folder.rmdir()
        top.rmdir()
