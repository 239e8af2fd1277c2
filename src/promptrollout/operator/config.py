"""The operator's configuration: one YAML file, read once at start, and the pod's environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from promptrollout import __version__
from promptrollout.api.invalid import first_problem
from promptrollout.api.meta import HeaderName, Name
from promptrollout.api.names import ENV_BIND_ADDRESS
from promptrollout.api.networks import CIDR
from promptrollout.api.pod_settings import PORT_ADMIN, variable

FilePath = Annotated[str, Field(pattern=r"^/", max_length=1024)]


class ConfigError(Exception):
    """The configuration cannot be used; the message names the field and the fix."""


class _Section(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class BasicAuth(_Section):
    username: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^:\x00-\x1f]+$")]
    password_file: FilePath
    """Read anew for each query."""


ParameterName = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_\[\]]*$", max_length=64)]
OWN_PARAMETERS = {"query", "time", "start", "end", "step", "timeout"}


class MetricsSource(_Section):
    """A Prometheus-compatible store. A gateway names one; only this file says where queries go."""

    name: Name
    url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$", max_length=1024)]
    headers: dict[HeaderName, Annotated[str, Field(pattern=r"^[\x20-\x7e]*$", max_length=1024)]] = {}
    """Sent with every query, such as X-Scope-OrgID. Not for secrets: they stand in a ConfigMap."""
    bearer_token_file: FilePath | None = None
    """Its content is sent as `Authorization: Bearer`; read anew for each query."""
    basic_auth: BasicAuth | None = None
    ca_file: FilePath | None = None
    """Certificates to trust for this source, in place of the system's."""
    client_certificate_file: FilePath | None = None
    """Shown to the source; read anew for each new connection."""
    client_key_file: FilePath | None = None
    """The certificate's private key."""
    query_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    """How long an answer is waited for. What takes longer is an outage: rollouts hold."""
    query_parameters: Annotated[
        dict[ParameterName, Annotated[str, Field(pattern=r"^[\x20-\x7e]*$", max_length=1024)]], Field(max_length=20)
    ] = {}
    """Sent with every query, such as partial_response (Thanos) or deny_partial_response (VictoriaMetrics)."""
    namespace_label: Annotated[str, Field(pattern=r"^([a-zA-Z_][a-zA-Z0-9_]*)?$", max_length=128)] = "namespace"
    """The label that the store attaches to say where a pod was scraped. Empty: it attaches none, and pods of any
    namespace are trusted."""

    @model_validator(mode="after")
    def _one_authorization(self) -> MetricsSource:
        authorizations = {
            "the header Authorization": any(name.lower() == "authorization" for name in self.headers),
            "bearerTokenFile": self.bearer_token_file,
            "basicAuth": self.basic_auth,
        }
        if len(several := [name for name, value in authorizations.items() if value]) > 1:
            raise ValueError(f"give {several[0]} or {several[1]}, not both")
        return self

    @model_validator(mode="after")
    def _certificate_with_key(self) -> MetricsSource:
        if (self.client_certificate_file is None) != (self.client_key_file is None):
            raise ValueError("clientCertificateFile and clientKeyFile go together: give both or neither")
        return self

    @property
    def client_certificate(self) -> tuple[str, str] | None:
        """Files of the certificate and of its key."""
        if self.client_certificate_file is None or self.client_key_file is None:
            return None
        return self.client_certificate_file, self.client_key_file

    @field_validator("query_parameters")
    @classmethod
    def _ours(cls, parameters: dict[str, str]) -> dict[str, str]:
        if taken := sorted(parameters.keys() & OWN_PARAMETERS):
            raise ValueError(f"{taken[0]} is set by the operator: remove it")
        return parameters


class Config(_Section):
    metrics_sources: list[MetricsSource] = []
    watch_namespaces: list[Name] = []
    """Empty: all namespaces."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    gateway_image: str = f"ghcr.io/promptrollout/promptrollout:{__version__}"
    """Of serving pods whose PromptGateway names none."""
    gateway_cluster_role: Annotated[str, Field(min_length=1, max_length=253)] = "promptrollout-gateway"
    """Bound for the ServiceAccount of each PromptGateway in its namespace."""
    allowed_provider_networks: Annotated[list[CIDR], Field(max_length=64)] = []
    """Networks that gateways may connect to although they are refused by default, such as loopback."""
    refused_provider_networks: Annotated[list[CIDR], Field(max_length=64)] = []
    """Further networks that they may not connect to."""
    settle_seconds: Annotated[float, Field(ge=0, le=60)] = 2.0
    """Time to wait for an interval's last scrapes; never more than a quarter of the interval."""

    @property
    def gateway_environment(self) -> dict[str, str]:
        """Variables of gateway pods; none by default, so that an upgrade does not replace pods."""
        networks = {
            "allowed_provider_networks": self.allowed_provider_networks,
            "refused_provider_networks": self.refused_provider_networks,
        }
        return {variable(name): ",".join(found) for name, found in networks.items() if found}

    @field_validator("metrics_sources")
    @classmethod
    def _names_are_unique(cls, sources: list[MetricsSource]) -> list[MetricsSource]:
        names = [source.name for source in sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the name {twice[0]} is used twice: each metrics source needs its own")
        return sources

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, level: object) -> object:
        return level.lower() if isinstance(level, str) else level


@dataclass(frozen=True, slots=True)
class PodEnvironment:
    """From the variables of the operator's own pod."""

    pod: str
    namespace: str
    bind_address: str
    """Empty: all."""
    port: int


def pod_environment(environ: Mapping[str, str] | None = None) -> PodEnvironment:
    environ = os.environ if environ is None else environ
    return PodEnvironment(
        pod=environ.get("POD_NAME") or environ.get("HOSTNAME") or "operator",
        namespace=environ.get("POD_NAMESPACE", ""),
        bind_address=environ.get(ENV_BIND_ADDRESS, ""),
        port=PORT_ADMIN,
    )


def load(path: Path) -> Config:
    """Raises ConfigError naming the file, the field and what is wrong with it."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the file with --config") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        fields = ", ".join(str(field.alias) for field in Config.model_fields.values())
        raise ConfigError(f"{path}: must be a mapping with {fields}")
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}") from error
