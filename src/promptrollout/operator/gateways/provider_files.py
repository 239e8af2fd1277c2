"""Which files of providers a gateway's pods mount, and from where.

Each file is in the folder of its reference, <provider>/<source>/…: the delivery names the source, so a pod that mounts
what a ModelProvider of the same name meant before sends no key of that to the URL of this one. Gateways of a release
before look in <provider>/…, where the files are too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from promptrollout.api.meta import ConfigMapKeyRef, SecretKeyRef
from promptrollout.api.pod_settings import CA_FILE, HOSTS_FILE, KEY_FILE
from promptrollout.api.provider import ProviderSpec

Ref = SecretKeyRef | ConfigMapKeyRef
Files = Mapping[str, Ref]
"""Where each file comes from, by its path below PROVIDER_KEYS_DIR."""


def source_of(ref: Ref) -> str:
    """The name of the reference's folder. Too long for an intended collision with another Secret."""
    kind = "Secret" if isinstance(ref, SecretKeyRef) else "ConfigMap"
    return hashlib.sha256(f"{kind}/{ref.name}/{ref.key}".encode()).hexdigest()[:20]


def key_source(spec: ProviderSpec) -> str | None:
    return None if spec.api_key_secret_ref is None else source_of(spec.api_key_secret_ref)


def ca_source(spec: ProviderSpec) -> str | None:
    ref = _ca_ref(spec)
    return None if ref is None else source_of(ref)


def _ca_ref(spec: ProviderSpec) -> Ref | None:
    return (spec.tls.ca_config_map_ref or spec.tls.ca_secret_ref) if spec.tls else None


def files_of(name: str, spec: ProviderSpec) -> dict[str, Ref]:
    """What a ModelProvider needs."""
    found: dict[str, Ref] = {}
    if (key := spec.api_key_secret_ref) is not None:
        hosts = SecretKeyRef(name=key.name, key=HOSTS_FILE)
        for folder in (name, f"{name}/{source_of(key)}"):
            found |= {f"{folder}/{KEY_FILE}": key, f"{folder}/{HOSTS_FILE}": hosts}
    if (ca := _ca_ref(spec)) is not None:
        found |= {f"{folder}/{CA_FILE}": ca for folder in (name, f"{name}/{source_of(ca)}")}
    return found


def without_late(files: Files, mounted: Files) -> dict[str, Ref]:
    """Without what pods have in the form of a release before: a key or CA by the provider's name alone, a key without
    `hosts`. They are not replaced for the new form alone."""
    return {path: ref for path, ref in files.items() if not _is_late(path, files, mounted)}


def _is_late(path: str, files: Files, mounted: Files) -> bool:
    if path in mounted:
        return False
    folder, _, file = path.rpartition("/")
    if file == HOSTS_FILE:
        key = f"{folder}/{KEY_FILE}"
        return key in files and (mounted.get(key) == files[key] or _is_late(key, files, mounted))
    return mounted.get(f"{provider_of(path)}/{file}") == files[path]


def kept(mounted: Files, sources: Iterable[tuple[str, str]]) -> dict[str, Ref]:
    """What is mounted in these folders, each by provider and source."""
    folders = {f"{name}/{source}" for name, source in sources}
    return {path: ref for path, ref in mounted.items() if path.rpartition("/")[0] in folders}


def provider_of(path: str) -> str:
    """The provider of a file."""
    return path.partition("/")[0]
