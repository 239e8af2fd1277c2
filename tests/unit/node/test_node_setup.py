"""What `make node-test` does before it starts a node: where it skips, what it builds, how a build finds packages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from promptrollout.sandbox.assets import inventory
from tests.node import binaries, images, machine

SANDBOX_MODULE = Path(inventory.__file__).parent / "gomodules" / "controlplane" / "go.mod"


@pytest.fixture
def root_with_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that lets us be root, and has no program but what the test puts into the directory."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(machine, "cgroups", list)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("unshare", "nsenter", "setpriv"):
        program(tmp_path / name)
    return tmp_path


def program(path: Path, content: str = "exit 0") -> None:
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o755)


def reason(log: Path) -> str:
    with pytest.raises(machine.Unavailable) as caught:
        machine.prepare(lambda _message: None, log)
    return str(caught.value)


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert reason(tmp_path / "log") == "the node needs root: sudo make node-test"


def test_without_namespaces_it_says_so(root_with_namespaces: Path) -> None:
    program(root_with_namespaces / "unshare", "echo 'unshare failed: Operation not permitted' >&2; exit 1")
    found = reason(root_with_namespaces / "log")
    assert found == "this machine refuses namespaces: unshare failed: Operation not permitted"


def test_without_apt_it_names_what_is_missing(root_with_namespaces: Path) -> None:
    for name in machine.PACKAGES:
        if name not in ("buildah", "runc") and "/" not in name:
            program(root_with_namespaces / name)
    found = reason(root_with_namespaces / "log")
    assert found.startswith("the node needs these Debian packages, and there is no apt-get: buildah")
    assert "runc" in found
    assert "ipset" not in found


def test_apt_that_fails_is_a_reason_and_its_words_are_kept(root_with_namespaces: Path) -> None:
    program(root_with_namespaces / "apt-get", "echo 'Temporary failure resolving' >&2; exit 100")
    log = root_with_namespaces / "log"
    assert reason(log).endswith(f"see {log}")
    assert "Temporary failure resolving" in log.read_text()


def test_another_kubelet_is_left_alone(
    root_with_namespaces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = tmp_path / "kubepods" / "pod-1"
    pod.mkdir(parents=True)
    (pod / "cgroup.procs").write_text("4711\n")
    monkeypatch.setattr(machine, "cgroups", lambda: [tmp_path / "kubepods"])
    assert reason(tmp_path / "log") == f"a kubelet runs on this machine already ({pod})"


def test_node_and_sandbox_are_of_one_kubernetes() -> None:
    wanted = re.findall(r"k8s\.io/kubernetes v(\S+)", SANDBOX_MODULE.read_text())
    for job in binaries.BUILDS:
        assert (job.folder / job.module / "go.sum").is_file()
    module = (binaries.BUILDS[0].folder / "node" / "go.mod").read_text()
    assert re.findall(r"k8s\.io/kubernetes v(\S+)", module) == wanted == [binaries.VERSIONS["kubelet"]]
    assert {name for job in binaries.BUILDS for name in job.names} == set(binaries.VERSIONS)


def test_pip_in_the_build_asks_the_index_that_pip_asks_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "bundle.crt"))
    with images.pip_volumes() as volumes:
        configuration, _, mounted_at = volumes[-1].removesuffix(":ro").partition(":")
        text = Path(configuration).read_text()
    assert mounted_at == "/etc/pip.conf"
    assert "index-url = https://index.example/simple\n" in text
    assert f"{tmp_path / 'bundle.crt'}:/etc/ssl/certs/ca-certificates.crt:ro" in volumes
    assert "cert = /etc/ssl/certs/ca-certificates.crt\n" in text
    assert not Path(configuration).exists()
