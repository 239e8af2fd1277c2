"""The command as an image starts it."""

import subprocess
import sys
from pathlib import Path

import pytest

from promptrollout.sandbox.node import image_user


@pytest.mark.parametrize("command", ["operator", "gateway", "status"])
def test_a_user_without_name_home_and_variables_may_call_it(command: str, tmp_path: Path) -> None:
    """As the image's: what a command imports must not ask who that is."""
    done = subprocess.run(
        [*image_user.launcher(), sys.executable, "-m", "promptrollout", command, "--help"],
        env={},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage:")
