"""The images that the node runs: the project's from its Dockerfile, a base that stands in for python's, two binaries.

No image registry is asked. The base is a Debian with the name that the Dockerfile asks for, in a store of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from promptrollout.sandbox.assets.build import Progress
from tests.node.machine import Unavailable
from tests.node.steps import run

ROOT = Path(__file__).parents[2]
PROJECT = "promptrollout.local/promptrollout:demo"
PAUSE = "localhost/pause:node"

#: Debian's release whose python3 is the one that the Dockerfile names.
_RELEASE, _PYTHON = "trixie", "3.13"
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
#: What of Debian the official image lacks too: what only apt, readers and Python's own tests need, and bytecode.
_LEFT_OUT = (
    "etc/resolv.conf",
    "usr/share/doc/*",
    "usr/share/locale/*",
    "usr/share/man/*",
    "var/cache/apt/archives/*.deb",
    "var/lib/apt/lists/*",
)


@dataclass(frozen=True)
class Images:
    """Builds into `directory`, which is in the user's cache; `archives` are what `ctr images import` reads."""

    directory: Path
    log: Path
    progress: Progress

    def archives(self, pause: Path, prometheus: Path) -> list[Path]:
        """All images of the node as files; what is there and unchanged is not built again."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._base()
        return [
            self._project(),
            self._of_binary(PAUSE, pause, "/pause"),
            self._of_binary(_prometheus_name(), prometheus, "/bin/prometheus"),
        ]

    def _buildah(self, *arguments: str) -> list[str]:
        store = ["--root", str(self.directory / "store"), "--runroot", str(self.directory / "store-run")]
        return ["nice", "buildah", *store, *arguments]

    def _output(self, *arguments: str) -> str:
        done = subprocess.run(self._buildah(*arguments), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"buildah {' '.join(arguments)}: {done.stderr}"
        return done.stdout.strip()

    def _has(self, image: str) -> bool:
        command = self._buildah("inspect", "--type", "image", image)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _base(self) -> None:
        """The image that the Dockerfile's FROM names: Debian's Python, with pip and no refusal of it in /usr/local."""
        name = base_name()
        assert name.endswith(f"python:{_PYTHON}-slim"), f"{name}: the stand-in is Debian {_RELEASE}, Python {_PYTHON}"
        if self._has(name):
            return
        base = self.directory / "base"
        shutil.rmtree(base, ignore_errors=True)
        include = "--include=python3,python3-venv,ca-certificates"
        command = ["nice", "debootstrap", "--variant=minbase", include, _RELEASE, str(base)]
        try:
            run(command, f"a Debian {_RELEASE} that stands in for {name}", self.log, self.progress)
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"debootstrap could not fetch Debian's packages; see {self.log}") from error
        run(["chroot", str(base), "python3", "-m", "venv", "/usr/local"], "its pip", self.log, self.progress)
        for path in (path for pattern in _LEFT_OUT for path in base.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for cache in [*base.glob("usr/lib/python3*/**/__pycache__"), *base.glob("usr/local/lib/**/__pycache__")]:
            shutil.rmtree(cache, ignore_errors=True)
        container = self._output("from", "scratch")
        self._output("add", "--quiet", container, str(base), "/")
        self._output("config", "--env", f"PATH={_PATH}", "--env", "LANG=C.UTF-8", "--cmd", "python3", container)
        self._output("commit", "--quiet", "--rm", container, name)
        shutil.rmtree(base)

    def _project(self) -> Path:
        """The unmodified Dockerfile. pip finds this machine's package index by files mounted for the build alone."""
        archive = self.directory / "promptrollout.tar"
        before = self._identity(PROJECT)
        with pip_volumes() as volumes:
            command = ["bud", "--layers", "--pull-never", "--isolation", "chroot", "--network", "host"]
            command += ["--format", "docker", *volumes, "--tag", PROJECT, str(ROOT)]
            run(self._buildah(*command), "the image from the Dockerfile", self.log, self.progress)
        if self._identity(PROJECT) != before or not archive.exists():
            self._save(PROJECT, archive)
            if before:  # its layers that the new one shares stay, and so does what the next build starts from
                subprocess.run(self._buildah("rmi", before), capture_output=True, check=False)
        return archive

    def _of_binary(self, image: str, binary: Path, path: str) -> Path:
        """FROM scratch with one static binary; its archive is named after it."""
        archive = self.directory / f"{binary.name}.tar"
        if not archive.exists():
            self.progress(f"the image {image}")
            container = self._output("from", "scratch")
            self._output("copy", "--quiet", container, str(binary), path)
            self._output("config", "--entrypoint", json.dumps([path]), "--user", "65535:65535", container)
            self._output("commit", "--quiet", "--rm", container, image)
            self._save(image, archive)
        return archive

    def _identity(self, image: str) -> str:
        return self._output("images", "--quiet", "--no-trunc", image) if self._has(image) else ""

    def _save(self, image: str, archive: Path) -> None:
        archive.unlink(missing_ok=True)
        partial = archive.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        self._output("push", "--quiet", image, f"docker-archive:{partial}:{image}")
        partial.rename(archive)


def base_name() -> str:
    (name,) = set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    return f"docker.io/library/{name}"


def _prometheus_name() -> str:
    for body in yaml.safe_load_all((ROOT / "examples/kind/prometheus.yaml").read_text()):
        if body["kind"] == "Deployment":
            return str(body["spec"]["template"]["spec"]["containers"][0]["image"])
    raise AssertionError("examples/kind/prometheus.yaml has no Deployment")


@contextmanager
def pip_volumes() -> Iterator[list[str]]:
    """Mounts by which pip in a build asks the index that pip asks here, and trusts whom it trusts."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = value.strip("'\"").replace("\\n", "\n  ")
    volumes = []
    if bundle := settings.get("cert"):
        volumes += ["--volume", f"{bundle}:{_BUNDLE}:ro"]
        settings["cert"] = _BUNDLE
    kept = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "cert")
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write("[global]\n" + "".join(f"{key} = {settings[key]}\n" for key in kept if key in settings))
        file.flush()
        yield [*volumes, "--volume", f"{file.name}:/etc/pip.conf:ro"]


def bytes_above_base(archive: Path) -> Counter[str]:
    """Size of the image's own layers by part: a package of site-packages, or a directory."""
    parts: Counter[str] = Counter()
    with tarfile.open(archive) as image:
        (manifest,) = json.loads(_member(image, "manifest.json"))
        for layer in manifest["Layers"][1:]:
            stream = image.extractfile(layer)
            assert stream is not None
            with tarfile.open(fileobj=stream) as files:
                for member in files:
                    parts[_part(member.name)] += member.size
    return parts


def _part(path: str) -> str:
    folder, found, inside = path.partition("site-packages/")
    bytecode = " (bytecode)" if path.endswith(".pyc") else ""
    return (inside.split("/")[0] if found else "/".join(folder.split("/")[:4])) + bytecode


def _member(image: tarfile.TarFile, name: str) -> Any:
    file = image.extractfile(name)
    assert file is not None
    return file.read()
