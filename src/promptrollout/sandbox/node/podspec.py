"""What a container is to run: image to command, variables, and mount paths turned into paths of the host.

Pure functions over the pod's manifest. Processes share the host's file system, so the node stands in for a mount
namespace by rewriting what points into a declared volume.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Object = dict[str, Any]

#: Reads an object's data by (kind, name): None if the object does not exist. Values are decoded.
Lookup = Callable[[str, str], Mapping[str, bytes] | None]

SERVICE_ACCOUNT_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.\-][A-Za-z0-9_.\-]*)\)")
_SUBSCRIPT = re.compile(r"(metadata\.(?:labels|annotations))\['(.+)'\]")
_QUANTITY = re.compile(r"([0-9.]+(?:[eE][+-]?\d+)?)([A-Za-z]{0,2})")
_FACTORS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_FACTORS |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "u": 1e-6, "n": 1e-9}


class ConfigError(Exception):
    """The container cannot be created as things are (a kubelet's CreateContainerConfigError)."""


class ImageError(Exception):
    """The sandbox cannot run this image (a kubelet's ErrImagePull)."""


def image_repository(image: str) -> str:
    """The image without registry port confusion, tag and digest."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def image_entrypoint(image: str) -> list[str]:
    """What the image's own entrypoint would be, as a command of this Python."""
    repository = image_repository(image)
    last = repository.rpartition("/")[2]
    if last == "promptrollout":
        return [sys.executable, "-m", "promptrollout"]
    if last == "simulated-model":
        return [sys.executable, "-m", "promptrollout.sandbox.model"]
    raise ImageError(
        f'Failed to pull image "{image}": the sandbox runs only images named'
        " .../promptrollout or .../simulated-model. Use `make kind-demo` for others"
    )


def container_command(container: Object, variables: Mapping[str, str], mounts: Mapping[str, Path]) -> list[str]:
    """The full command line, with $(VAR) expanded and mount paths rewritten."""
    entrypoint = image_entrypoint(container["image"])  # also with a command: the image must be ours
    command = [expand(part, variables) for part in container.get("command") or []]
    arguments = [expand(part, variables) for part in container.get("args") or []]
    rewritten = [rewrite_argument(part, mounts) for part in (*command, *arguments)]
    return rewritten if command else [*entrypoint, *rewritten]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace $(NAME) by its value as Kubernetes does: unknown names stay, $$ is a literal dollar sign."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


def rewrite_path(text: str, mounts: Mapping[str, Path]) -> str:
    """The host's path if `text` is a declared mount path or lies below one."""
    for mount in sorted(mounts, key=len, reverse=True):  # the innermost mount wins
        prefix = mount.rstrip("/")
        if text == prefix or text.startswith(prefix + "/"):
            return str(mounts[mount]) + text[len(prefix) :]
    return text


def rewrite_argument(text: str, mounts: Mapping[str, Path]) -> str:
    """Like rewrite_path, also for the value of `--flag=/path`."""
    flag, equals, value = text.partition("=")
    if equals and flag.startswith("-"):
        return flag + equals + rewrite_path(value, mounts)
    return rewrite_path(text, mounts)


def container_mounts(container: Object, volumes: Mapping[str, Path]) -> dict[str, Path]:
    """Mount path in the container -> path on the host."""
    mounts = {}
    for mount in container.get("volumeMounts") or []:
        volume = volumes.get(mount["name"])
        if volume is None:
            raise ConfigError(f'volume "{mount["name"]}" of container "{container["name"]}" is not mounted')
        sub_path = mount.get("subPath") or ""
        if sub_path.startswith("/") or ".." in Path(sub_path).parts:
            raise ConfigError(f"volumeMounts: subPath {sub_path!r} must stay inside the volume")
        mounts[mount["mountPath"].rstrip("/") or "/"] = volume / sub_path if sub_path else volume
    return mounts


def container_variables(pod: Object, container: Object, lookup: Lookup, context: Mapping[str, str]) -> dict[str, str]:
    """`envFrom` and `env` resolved in order; `context` holds podIP, hostIP and nodeName."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        kind, reference = (
            ("ConfigMap", source["configMapRef"])
            if "configMapRef" in source
            else (
                "Secret",
                source["secretRef"],
            )
        )
        found = lookup(kind, reference["name"])
        if found is None:
            if reference.get("optional"):
                continue
            raise ConfigError(_not_found(kind, reference["name"]))
        for key, content in found.items():
            variables[(source.get("prefix") or "") + key] = content.decode()
    for entry in container.get("env") or []:
        if "valueFrom" in entry:
            value = _value_from(entry["valueFrom"], pod, container, lookup, context)
            if value is None:
                continue
        else:
            value = expand(entry.get("value") or "", variables)
        variables[entry["name"]] = value
    return variables


def _value_from(
    source: Object, pod: Object, container: Object, lookup: Lookup, context: Mapping[str, str]
) -> str | None:
    if "fieldRef" in source:
        return field_value(pod, source["fieldRef"]["fieldPath"], context)
    if "resourceFieldRef" in source:
        return resource_value(pod, container, source["resourceFieldRef"])
    for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
        if field not in source:
            continue
        reference = source[field]
        found = lookup(kind, reference["name"])
        if found is not None and reference["key"] in found:
            return found[reference["key"]].decode()
        if reference.get("optional"):
            return None
        if found is None:
            raise ConfigError(_not_found(kind, reference["name"]))
        raise ConfigError(f"couldn't find key {reference['key']} in {kind} {reference['name']}")
    raise ConfigError(f"env valueFrom {sorted(source)} is not supported by the sandbox")


def _not_found(kind: str, name: str) -> str:
    return f'{kind.lower()} "{name}" not found'


def field_value(pod: Object, path: str, context: Mapping[str, str]) -> str:
    """A downward API field."""
    metadata, spec = pod["metadata"], pod["spec"]
    if match := _SUBSCRIPT.fullmatch(path):
        return str((metadata.get(match[1].partition(".")[2]) or {}).get(match[2], ""))
    fields = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": context["nodeName"],
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": context["podIP"],
        "status.podIPs": context["podIP"],
        "status.hostIP": context["hostIP"],
        "status.hostIPs": context["hostIP"],
    }
    if path in fields:
        return str(fields[path])
    if path in ("metadata.labels", "metadata.annotations"):
        pairs = metadata.get(path.partition(".")[2]) or {}
        return "\n".join(f'{key}="{_escape(pairs[key])}"' for key in sorted(pairs))
    raise ConfigError(f"fieldRef: unsupported fieldPath {path!r}")


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def resource_value(pod: Object, container: Object, reference: Object) -> str:
    """A limit or request in units of the divisor, rounded up; without a limit, what the node has."""
    name = reference.get("containerName") or container.get("name")
    owner = next((c for c in pod["spec"]["containers"] if c["name"] == name), container)
    group, _, resource = str(reference["resource"]).partition(".")
    resources = owner.get("resources") or {}
    quantity = (resources.get(group) or {}).get(resource)
    if quantity is None and group == "limits":
        quantity = {"cpu": "4", "memory": "8Gi"}.get(resource)
    divisor = parse_quantity(str(reference.get("divisor") or "1")) or 1.0
    amount = parse_quantity(str(quantity or "0")) / divisor
    return str(-int(-amount // 1))


def parse_quantity(text: str) -> float:
    """The number a Kubernetes quantity such as `250m` or `64Mi` stands for."""
    match = _QUANTITY.fullmatch(text)
    if not match or match[2] not in _FACTORS:
        raise ConfigError(f"{text!r} is not a quantity")
    return float(match[1]) * _FACTORS[match[2]]


def named_port(containers: Iterable[Object], port: int | str) -> int:
    """A port number; names are looked up among the containers' ports."""
    if isinstance(port, int) or port.isdigit():
        return int(port)
    for container in containers:
        for declared in container.get("ports") or []:
            if declared.get("name") == port:
                return int(declared["containerPort"])
    raise ConfigError(f"no container port is named {port!r}")
