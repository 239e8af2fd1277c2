"""Pods run as the image's user: a UID that has no name, no home and no variables but a pod's own.

A user namespace gives a process that UID without root and without another owner of its files.
"""

from __future__ import annotations

import functools
import logging
import shutil
import subprocess

logger = logging.getLogger(__name__)

UID = 65532
"""The Dockerfile's USER."""


@functools.cache
def launcher() -> tuple[str, ...]:
    """What stands before a pod's command; empty where this machine allows no user namespaces, which is logged."""
    unshare = shutil.which("unshare")
    if unshare is None:
        logger.warning("pods run as your own user: `unshare` (util-linux) is not on PATH")
        return ()
    command = (unshare, "--user", f"--map-user={UID}", f"--map-group={UID}", "--")
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        logger.warning(
            "pods run as your own user: %s", tried.stderr.strip() or f"unshare ended with {tried.returncode}"
        )
        return ()
    return command
