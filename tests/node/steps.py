"""Runs one long command of the set-up: its output goes to a log, a line every few seconds says how far it is."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from promptrollout.sandbox.assets.build import Progress

_REPORT_EVERY_SECONDS = 10.0
_LINE_LENGTH = 100


def run(
    command: Sequence[str],
    what: str,
    log: Path,
    progress: Progress,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Raises CalledProcessError with the end of the log as its output."""
    started = time.monotonic()
    progress(what)
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    with process:
        while True:
            try:
                process.wait(_REPORT_EVERY_SECONDS)
                break
            except subprocess.TimeoutExpired:
                progress(f"{what}: {time.monotonic() - started:.0f} s, {_last_line(log)}")
    if process.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
        raise subprocess.CalledProcessError(process.returncode, list(command), end, f"{what} failed; see {log}\n{end}")
    progress(f"{what}: done in {time.monotonic() - started:.0f} s")


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:_LINE_LENGTH] if lines else ""
