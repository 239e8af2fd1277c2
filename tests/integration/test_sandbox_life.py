"""A sandbox of one's own: started, killed, started again, and gone without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from promptrollout.sandbox.processes import leftovers
from promptrollout.sandbox.sandbox import Sandbox
from tests.integration.cluster import Kubectl
from tests.integration.pods import pod


def promptrollout(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "promptrollout", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environ},
    )


def test_a_sandbox_from_start_to_end(tmp_path: Path, eventually: Callable[..., Any]) -> None:
    directory = str(tmp_path / "box")
    assert promptrollout("sandbox", "down", "--dir", directory).stdout == "No sandbox was running.\n"
    refused = promptrollout("sandbox", "env", "--dir", directory)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "promptrollout sandbox up" in refused.stderr

    up = promptrollout("sandbox", "up", "--dir", directory, "--no-operator", "--scrape-interval", "500ms")
    assert up.returncode == 0, up.stderr
    again = promptrollout("sandbox", "up", "--dir", directory, "--no-operator")
    assert again.stdout.startswith("The sandbox is already up.")

    shell = f'eval "$("{sys.executable}" -m promptrollout sandbox env --dir {directory})" && echo "$KUBECONFIG"'
    connected = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60, check=True)
    kubeconfig = connected.stdout.strip()
    box = Sandbox(Path(directory))
    assert kubeconfig == box.kubeconfig
    assert box.model_url.startswith("http://127.0.0.1:")

    kubectl = Kubectl(kubeconfig, "default")
    eventually(lambda: kubectl.run("get", "serviceaccount", "default").returncode == 0)
    # a child in a session of its own does not die with its parent by itself
    code = "import subprocess, time; subprocess.Popen(['sleep', '999'], start_new_session=True); time.sleep(999)"
    kubectl.apply(pod("parent", code))
    eventually(lambda: any(_command(pid) == ["sleep", "999"] for pid in leftovers(Path(directory))))

    supervisor = next(pid for pid in leftovers(Path(directory)) if "promptrollout.sandbox.supervisor" in _command(pid))
    os.kill(supervisor, signal.SIGKILL)
    # a dying process loses its environment, which `leftovers` reads, a moment before it is gone
    eventually(lambda: not box.is_up)
    assert supervisor not in leftovers(Path(directory))
    # only what the kernel could not know of is left; `up` clears that away and starts afresh
    eventually(lambda: [_command(pid) for pid in leftovers(Path(directory))] == [["sleep", "999"]])
    restarted = promptrollout("sandbox", "up", "--dir", directory, "--no-operator")
    assert restarted.returncode == 0, restarted.stderr
    assert not any(_command(pid) == ["sleep", "999"] for pid in leftovers(Path(directory)))
    assert "parent" not in kubectl("get", "pods", "-o", "name")

    assert promptrollout("sandbox", "down", "--dir", directory).stdout == "The sandbox is down.\n"
    assert leftovers(Path(directory)) == []
    assert kubectl.run("get", "pods").returncode != 0


def test_wrong_options_are_named(tmp_path: Path) -> None:
    wrong = promptrollout("sandbox", "up", "--dir", str(tmp_path), "--scrape-interval", "fast")
    assert wrong.returncode == 1
    assert wrong.stderr == "Error: --scrape-interval: 'fast' is not a positive duration: write 500ms, 1s or 2m\n"
    (tmp_path / "values.yaml").write_text("- a list\n")
    for file, reason in (("values.yaml", "values are a mapping"), ("nowhere.yaml", "cannot be read")):
        wrong = promptrollout("sandbox", "up", "--dir", str(tmp_path / "x"), "--values", str(tmp_path / file))
        assert (wrong.returncode, reason in wrong.stderr) == (1, True), wrong.stderr
        assert str(tmp_path / file) in wrong.stderr
    missing = promptrollout("sandbox", "up", "--dir", str(tmp_path / "x"), PROMPTROLLOUT_CHART=str(tmp_path))
    assert missing.returncode == 1
    assert f"PROMPTROLLOUT_CHART={tmp_path}: no Chart.yaml there" in missing.stderr


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    except FileNotFoundError:
        return []
