"""Downloads official builds whose checksums are pinned here; anything that fails is left to the build."""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

_TIMEOUT_SECONDS = 5.0
_CHUNK_BYTES = 1 << 20
_REPORT_EVERY_SECONDS = 5.0


@dataclass(frozen=True)
class Archive:
    """A published tar archive and the binaries that we need from it."""

    url: str
    algorithm: str
    digest: str
    #: member's path in the archive -> name of the binary
    members: dict[str, str]


class DownloadFailed(Exception):
    """The archive could not be had, or is not what was published."""


def archives(system: tuple[str, str]) -> list[Archive]:
    """Archives with a pinned checksum for this operating system and processor."""
    return _PINNED.get(system, [])


def _helm(architecture: str, digest: str) -> Archive:
    url = f"https://get.helm.sh/helm-v4.2.4-linux-{architecture}.tar.gz"
    return Archive(url, "sha256", digest, {f"linux-{architecture}/helm": "helm"})


def _prometheus(architecture: str, digest: str) -> Archive:
    folder = f"prometheus-3.15.0.linux-{architecture}"
    url = f"https://github.com/prometheus/prometheus/releases/download/v3.15.0/{folder}.tar.gz"
    return Archive(url, "sha256", digest, {f"{folder}/prometheus": "prometheus"})


# Only what the projects publish beside their releases. etcd and Kubernetes are always built: for the versions we
# build there was no published checksum at hand that we could verify, and unpinned downloads are not allowed.
_PINNED: dict[tuple[str, str], list[Archive]] = {
    ("linux", "amd64"): [
        _prometheus("amd64", "2a542df32eac02ee17b9d844fb2aa1de00dafa5476579ba8a3ba862e9d572ea0"),
        _helm("amd64", "c306b46f719b0a4da32d0f78ee21bf90ce8d602f15b22ab753f0674d1670a7f3"),
    ],
    ("linux", "arm64"): [
        _prometheus("arm64", "f1f90ec08e849d494ca66c611470afc50192f0355f1a61c33f2cbde02d067823"),
        _helm("arm64", "564de2191b881e9f71b5606b25345821ea1682f06ab90499d3ab22b530176da1"),
    ],
}


def download(
    names: list[str],
    cache: Path,
    target: Callable[[str, Path], Path],
    system: tuple[str, str],
    progress: Callable[[str], None],
) -> list[str]:
    """Install what can be downloaded of `names`; returns those that are still missing."""
    missing = list(names)
    for archive in archives(system):
        wanted = {member: name for member, name in archive.members.items() if name in missing}
        if not wanted:
            continue
        try:
            _install(archive, wanted, cache, target, progress)
        except DownloadFailed as error:
            progress(f"no download of {', '.join(wanted.values())} ({error}); building instead")
            continue
        missing = [name for name in missing if name not in wanted.values()]
    return missing


def _install(
    archive: Archive,
    wanted: dict[str, str],
    cache: Path,
    target: Callable[[str, Path], Path],
    progress: Callable[[str], None],
) -> None:
    with tempfile.TemporaryDirectory(dir=cache / "bin", prefix=".download-") as temporary:
        packed = Path(temporary) / "archive"
        digest = _fetch(archive, packed, progress)
        if digest != archive.digest:
            raise DownloadFailed(f"{archive.url}: {archive.algorithm} {digest} is not the published one")
        try:
            with tarfile.open(packed) as tar:
                for member, name in wanted.items():
                    source = tar.extractfile(member)
                    if source is None:
                        raise DownloadFailed(f"{archive.url}: {member} is not a file")
                    unpacked = Path(temporary) / name
                    with source, unpacked.open("wb") as file:
                        while chunk := source.read(_CHUNK_BYTES):
                            file.write(chunk)
                    unpacked.chmod(0o755)
                    os.replace(unpacked, target(name, cache))
        except (tarfile.TarError, KeyError) as error:
            raise DownloadFailed(f"{archive.url}: {error}") from error


def _fetch(archive: Archive, path: Path, progress: Callable[[str], None]) -> str:
    digest = hashlib.new(archive.algorithm)
    started = reported = time.monotonic()
    received = 0
    try:
        # a release's address redirects to where its files are stored
        with httpx.stream("GET", archive.url, timeout=_TIMEOUT_SECONDS, follow_redirects=True) as response:
            response.raise_for_status()
            total = int(response.headers.get("Content-Length") or 0)
            with path.open("wb") as file:
                for chunk in response.iter_raw(_CHUNK_BYTES):
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    if time.monotonic() - reported > _REPORT_EVERY_SECONDS:
                        reported = time.monotonic()
                        progress(
                            f"downloading {archive.url}: {received >> 20} of {total >> 20} MiB,"
                            f" {reported - started:.0f} s"
                        )
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise DownloadFailed(f"{archive.url}: {error}") from error
    return digest.hexdigest()
