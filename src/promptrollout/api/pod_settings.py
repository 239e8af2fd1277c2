"""The settings of a gateway pod: names, types, defaults, paths and ports.

The operator writes them into the Deployment, the command line reads them from environment or flags, and the process
gets them as values. The order of the fields is that of the variables in the Deployment: another order changes the pod
template, and restarts gateways when the operator is upgraded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter
from pydantic.fields import FieldInfo

from promptrollout.api.gateway import Auth, AuthMode, GatewaySpec, Limits, ServiceAccountCallers
from promptrollout.api.networks import CIDR

PORT_HTTP: Final = 8080
"""Callers' port."""
PORT_ADMIN: Final = 9090
"""Probes, metrics and reports, also the operator's own; it stays outside service meshes."""
PROVIDER_KEYS_DIR: Final = "/var/run/promptrollout/providers"
"""Provider keys: <this>/<ModelProvider name>/<hash of the reference>/api-key."""
KEY_FILE: Final = "api-key"
HOSTS_FILE: Final = "hosts"
"""Beside the key: the hosts that it may be sent to."""
CA_FILE: Final = "ca.crt"
CALLER_KEYS_DIR: Final = "/var/run/promptrollout/callers"
"""Hashes of callers' keys: <this>/<caller's name>."""
STATE_DIR: Final = "/var/lib/promptrollout"

_CALLERS: Final = TypeAdapter(list[ServiceAccountCallers])


@dataclass(frozen=True, slots=True)
class FromPod:
    """The variable of a setting whose value Kubernetes fills in from a field of the pod."""

    variable: str
    field_path: str


def _commas(value: object) -> object:
    return [each.strip() for each in value.split(",") if each.strip()] if isinstance(value, str) else value


def _json(value: object) -> object:
    return _CALLERS.validate_json(value) if isinstance(value, str) else value


def _like(model: type[BaseModel], name: str) -> Any:
    """Bounds, default and description of a field of the PromptGateway."""
    field = model.model_fields[name]
    found: Any = Field(default=field.default, description=field.description)
    found.metadata += _constraints(field)
    return found


def _constraints(field: FieldInfo) -> list[Any]:
    """Also of a field that may be absent."""
    found = list(field.metadata)
    for each in get_args(field.annotation):
        for constraint in getattr(each, "__metadata__", ()):
            found += getattr(constraint, "metadata", [constraint])
    return found


class PodSettings(BaseModel):
    """A description is also the help of the command line's flag."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    gateway: str
    """Name of the PromptGateway."""
    pod_name: Annotated[str, FromPod("POD_NAME", "metadata.name")] = ""
    """Name of this pod in reports. Default: the host's name."""
    namespace: Annotated[str, FromPod("POD_NAMESPACE", "metadata.namespace")] = ""
    """Namespace of the PromptDeliveries. Default: the pod's."""
    pod_ip: Annotated[str, FromPod("POD_IP", "status.podIP")] = ""
    """Address at which the gateway's other pods reach this one."""
    state_dir: Path = Path(STATE_DIR)
    """Where the last good configuration is kept."""
    provider_keys_dir: Path = Path(PROVIDER_KEYS_DIR)
    """Provider keys are read from <this>/<ModelProvider>/<keySource>/api-key."""
    max_request_bytes: int = _like(Limits, "max_request_bytes")
    max_concurrent_requests: int = _like(Limits, "max_concurrent_requests")
    max_queued_requests: int = _like(Limits, "max_queued_requests")
    max_queue_milliseconds: int = _like(Limits, "max_queue_milliseconds")
    requests_per_minute_per_key: int | None = _like(Limits, "requests_per_minute_per_key")
    burst_per_key: int = _like(Limits, "burst_per_key")
    drain_seconds: int = _like(GatewaySpec, "drain_seconds")
    auth_mode: AuthMode = _like(Auth, "mode")
    caller_keys_dir: Path = Path(CALLER_KEYS_DIR)
    """Hashes of callers' keys are read from <this>/<caller>."""
    auth_audience: str = _like(Auth, "audience")
    auth_service_accounts: Annotated[list[ServiceAccountCallers], BeforeValidator(_json)] = []
    """Who may call with a token: JSON, as in spec.auth.serviceAccounts of a PromptGateway."""
    allowed_provider_networks: Annotated[list[CIDR], BeforeValidator(_commas)] = []
    """CIDRs, separated by commas, of providers that are refused by default, such as 127.0.0.0/8."""
    refused_provider_networks: Annotated[list[CIDR], BeforeValidator(_commas)] = []
    """CIDRs, separated by commas, that are refused as well as loopback, link-local and the like."""

    def environment(self) -> dict[str, str]:
        """Variables and values of what was set, in the order of the fields; a default is not written."""
        return {variable(name): self._text(name) for name in type(self).model_fields if name in self.model_fields_set}

    def _text(self, name: str) -> str:
        value = getattr(self, name)
        if name == "auth_service_accounts":
            return json.dumps([callers.dump() for callers in value], sort_keys=True)
        return ",".join(value) if isinstance(value, list) else str(value)

    @property
    def limits(self) -> Limits:
        return Limits.model_validate({name: getattr(self, name) for name in Limits.model_fields})


def variable(name: str) -> str:
    """The environment variable of a setting."""
    source = from_pod(PodSettings.model_fields[name])
    return source.variable if source is not None else f"PROMPTROLLOUT_{name.upper()}"


def from_pod(field: FieldInfo) -> FromPod | None:
    return next((each for each in field.metadata if isinstance(each, FromPod)), None)


def bounds(field: FieldInfo) -> tuple[int | None, int | None]:
    """The least and greatest value of a number."""
    limits = field.metadata
    least = next((each.ge for each in limits if hasattr(each, "ge")), None)
    greatest = next((each.le for each in limits if hasattr(each, "le")), None)
    return least, greatest
