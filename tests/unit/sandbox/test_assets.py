"""Where the sandbox's binaries come from, and in which order."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from promptrollout.sandbox.assets import build, download, inventory
from promptrollout.sandbox.assets.download import Archive
from promptrollout.sandbox.settings import SandboxError


def executable(path: Path, content: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)
    return path


def test_kubebuilder_assets_come_before_the_cache(tmp_path: Path) -> None:
    cached = executable(inventory.cached_path("etcd", tmp_path / "cache"))
    given = executable(tmp_path / "given" / "etcd")
    environ = {"KUBEBUILDER_ASSETS": str(given.parent)}
    assert inventory.find("etcd", tmp_path / "cache", environ) == given
    given.unlink()
    assert inventory.find("etcd", tmp_path / "cache", environ) == cached
    cached.chmod(0o644)
    assert inventory.find("etcd", tmp_path / "cache", environ) is None


def test_the_cache_names_version_and_system(tmp_path: Path) -> None:
    name = inventory.cached_path("kube-apiserver", tmp_path).name
    assert name.startswith("kube-apiserver-1.36.3-linux-")
    assert inventory.cache_dir({"XDG_CACHE_HOME": "/c"}) == Path("/c/promptrollout")
    assert inventory.cache_dir({"HOME": "/home/me"}) == Path("/home/me/.cache/promptrollout")


@pytest.mark.parametrize(
    ("version", "accepted"), [("v3.13.9", False), ("v3.14.0", True), ("v4.0.1+gabc", True), ("what", False)]
)
def test_helm_on_path_must_be_recent(tmp_path: Path, version: str, accepted: bool) -> None:
    helm = executable(tmp_path / "bin" / "helm", f"#!/bin/sh\necho {version}\n")
    found = inventory.find("helm", tmp_path / "cache", {"PATH": str(helm.parent)})
    assert found == (helm if accepted else None)


def test_everything_given_needs_no_set_up(tmp_path: Path) -> None:
    for name in (*inventory.VERSIONS, "kubectl"):
        executable(tmp_path / name)
    said: list[str] = []
    binaries = inventory.ensure(
        said.append, {"KUBEBUILDER_ASSETS": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "c")}
    )
    assert binaries.kube_controller_manager == tmp_path / "kube-controller-manager"
    assert said == []
    assert not (tmp_path / "c").exists()


class PublishedFiles(SimpleHTTPRequestHandler):
    """Answers below /latest/ with a redirect, as the pages of releases do."""

    def do_GET(self) -> None:
        if not self.path.startswith("/latest/"):
            return super().do_GET()
        self.send_response(302)
        self.send_header("Location", self.path.removeprefix("/latest"))
        self.end_headers()
        return None

    def log_message(self, format: str, *args: object) -> None:
        """Not into the tests' output."""


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[str]:
    """The URL below which the files of `tmp_path` are published."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(PublishedFiles, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/latest"
        server.shutdown()


def archive(publisher: str, tmp_path: Path, member: str, content: bytes, digest: str | None = None) -> Archive:
    path = tmp_path / "published.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(member)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    return Archive(f"{publisher}/{path.name}", "sha256", digest or actual, {"pack/helm": "helm"})


def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: Archive) -> tuple[list[str], list[str]]:
    monkeypatch.setattr(download, "archives", lambda _system: [published])
    (tmp_path / "cache" / "bin").mkdir(parents=True)
    said: list[str] = []
    missing = download.download(
        ["etcd", "helm"], tmp_path / "cache", inventory.cached_path, ("linux", "amd64"), said.append
    )
    return missing, said


def test_a_download_is_installed_if_its_checksum_is_the_pinned_one(
    publisher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing, said = downloaded(tmp_path, monkeypatch, archive(publisher, tmp_path, "pack/helm", b"binary"))
    assert (missing, said) == (["etcd"], [])
    installed = inventory.cached_path("helm", tmp_path / "cache")
    assert installed.read_bytes() == b"binary"
    assert installed.stat().st_mode & 0o111


@pytest.mark.parametrize("fault", ["checksum", "member", "missing", "network"])
def test_a_download_that_fails_is_left_to_the_build(
    publisher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    published = archive(
        publisher,
        tmp_path,
        "other/helm" if fault == "member" else "pack/helm",
        b"binary",
        "0" * 64 if fault == "checksum" else None,
    )
    if fault == "missing":
        Path(tmp_path / "published.tar.gz").unlink()
    if fault == "network":
        published = replace(published, url="http://127.0.0.1:1/published.tar.gz")
    missing, said = downloaded(tmp_path, monkeypatch, published)
    assert missing == ["etcd", "helm"]
    assert len(said) == 1
    assert said[0].startswith("no download of helm (http://")
    assert said[0].endswith("; building instead")
    assert [p.name for p in (tmp_path / "cache" / "bin").iterdir()] == []


def test_every_binary_has_a_way_to_be_built() -> None:
    built = {name for job in build.BUILDS for name in job.names} | {"helm"}
    assert built == set(inventory.VERSIONS)
    for job in build.BUILDS:
        folder = Path(build.__file__).parent / "gomodules" / job.module
        assert (folder / "go.sum").is_file()


def test_a_build_that_fails_says_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go = executable(
        tmp_path / "go",
        '#!/bin/sh\n[ "$1" = version ] && echo go version go1.26.1 linux/amd64 && exit\n'
        '[ "$1" = list ] && exit\necho "no such module" >&2; exit 3\n',
    )
    monkeypatch.setenv("PATH", str(go.parent), prepend=":")
    (tmp_path / "cache" / "bin").mkdir(parents=True)
    with pytest.raises(SandboxError, match=r"building prometheus failed: .* ended with exit code 3"):
        build.build(["prometheus"], tmp_path / "cache", inventory.cached_path, lambda _message: None)
    assert "no such module" in capsys.readouterr().err
    assert list((tmp_path / "cache" / "bin").iterdir()) == []


def test_an_unknown_processor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(SandboxError, match="riscv64"):
        inventory.system()
