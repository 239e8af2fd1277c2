"""`promptrollout gateway`: the serving pod's process. The operator's Deployment sets everything by environment."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
import uvloop
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from promptrollout.api.names import ENV_BIND_ADDRESS
from promptrollout.api.pod_settings import PodSettings, bounds, variable
from promptrollout.cluster import ClusterError, namespace
from promptrollout.gateway.process import Settings, run


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """One flag for each setting of a pod."""
    for name, field in reversed(PodSettings.model_fields.items()):
        shown = not field.is_required() and field.default not in ("", [], None)
        command = click.option(
            _flag(name),
            name,
            envvar=variable(name),
            type=_type(field),
            required=field.is_required(),
            default=field.default if shown else None,
            show_default=shown,
            help=field.description,
        )(command)
    return command


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _type(field: FieldInfo) -> click.ParamType[Any] | type:
    least, greatest = bounds(field)
    if least is not None or greatest is not None:
        return click.IntRange(min=least, max=greatest)
    if field.annotation is Path:
        return click.Path(file_okay=False, path_type=Path)
    choices = [each for each in get_args(field.annotation) if isinstance(each, str)]
    return click.Choice(choices) if choices else str


@click.command("gateway")
@_options
def gateway(**values: Any) -> None:
    """Serve the rollouts of one PromptGateway."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    found = {name: value for name, value in values.items() if value is not None}
    try:
        found["namespace"] = found.get("namespace") or namespace()
        found.setdefault("pod_name", socket.gethostname())
        pod = PodSettings.model_validate(found)
        settings = Settings.of(pod, os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get(ENV_BIND_ADDRESS, ""))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise click.ClickException(
            f"{_flag(str(problem['loc'][0]))}: {problem['msg'].removeprefix('Value error, ')}"
        ) from error
    except ClusterError as error:
        raise click.ClickException(str(error)) from error
