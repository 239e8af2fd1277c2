"""Startup, readiness and liveness probes: HTTP, TCP and exec."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from promptrollout.sandbox.node.podspec import ConfigError, Object, named_port, rewrite_argument
from promptrollout.sandbox.processes import signal_group

_OUTPUT_LIMIT = 512


@dataclass(frozen=True)
class ProbeTarget:
    """Where a container's probes go."""

    address: str
    containers: list[Object]
    env: Mapping[str, str]
    mounts: Mapping[str, Path]
    cwd: Path
    session: aiohttp.ClientSession


class ProbeFailure(Exception):
    """One attempt failed; the message goes into the Unhealthy event."""


async def attempt(probe: Object, target: ProbeTarget) -> None:
    """Run a probe once; returns if it succeeded, else raises ProbeFailure."""
    timeout = float(probe.get("timeoutSeconds") or 1)
    try:
        async with asyncio.timeout(timeout):
            if "httpGet" in probe:
                await _http(probe["httpGet"], target)
            elif "tcpSocket" in probe:
                await _tcp(probe["tcpSocket"], target)
            elif "exec" in probe:
                await _exec(probe["exec"], target)
            else:
                raise ProbeFailure("the sandbox supports httpGet, tcpSocket and exec probes only")
    except TimeoutError as error:
        raise ProbeFailure(f"timed out after {timeout:g} s") from error
    except ConfigError as error:
        raise ProbeFailure(str(error)) from error


async def _http(action: Object, target: ProbeTarget) -> None:
    port = named_port(target.containers, action["port"])
    scheme = str(action.get("scheme") or "HTTP").lower()
    host = action.get("host") or target.address
    path = action.get("path") or "/"
    url = f"{scheme}://{host}:{port}{path if path.startswith('/') else '/' + path}"
    headers = {"User-Agent": "kube-probe/1.36", "Connection": "close"}
    headers |= {header["name"]: header["value"] for header in action.get("httpHeaders") or []}
    # as a kubelet: a probe does not verify certificates
    verify = scheme != "https"
    try:
        async with target.session.get(url, headers=headers, ssl=verify, allow_redirects=False) as response:
            if not 200 <= response.status < 400:
                body = (await response.content.read(_OUTPUT_LIMIT)).decode(errors="replace")
                raise ProbeFailure(f"HTTP probe failed with statuscode: {response.status} {body}".strip())
    except (aiohttp.ClientError, OSError) as error:
        raise ProbeFailure(f'Get "{url}": {error}') from error


async def _tcp(action: Object, target: ProbeTarget) -> None:
    host, port = action.get("host") or target.address, named_port(target.containers, action["port"])
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        raise ProbeFailure(f"dial tcp {host}:{port}: {error.strerror or error}") from error
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _exec(action: Object, target: ProbeTarget) -> None:
    command = [rewrite_argument(part, target.mounts) for part in action.get("command") or []]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(target.env),
            cwd=target.cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise ProbeFailure(f"exec {command[:1]}: {error}") from error
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:  # cancelled by the timeout
            signal_group(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        raise ProbeFailure(
            f"command exited with {process.returncode}: {output[:_OUTPUT_LIMIT].decode(errors='replace').strip()}"
        )


async def watch(
    probe: Object,
    target: ProbeTarget,
    on_success: Callable[[], None],
    on_failure: Callable[[str], None],
    on_attempt_failed: Callable[[str], None],
) -> None:
    """Probe for ever; the callbacks hear when a threshold is reached (and again at each later attempt)."""
    await asyncio.sleep(float(probe.get("initialDelaySeconds") or 0))
    period = float(probe.get("periodSeconds") or 10)
    successes = failures = 0
    while True:
        try:
            await attempt(probe, target)
        except ProbeFailure as failure:
            successes, failures = 0, failures + 1
            on_attempt_failed(str(failure))
            if failures >= int(probe.get("failureThreshold") or 3):
                on_failure(str(failure))
        else:
            successes, failures = successes + 1, 0
            if successes >= int(probe.get("successThreshold") or 1):
                on_success()
        await asyncio.sleep(period)
