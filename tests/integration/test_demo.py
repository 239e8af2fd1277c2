"""The demo as a person runs it: a process of its own, with its own sandbox."""

import re
import subprocess
import sys
from pathlib import Path

DEMO_SECONDS = 600


def test_the_good_change_reaches_everybody_and_the_bad_one_is_rolled_back(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    command = [sys.executable, "-m", "promptrollout", "demo", "--dir", str(directory)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=DEMO_SECONDS, check=False)
    story = ran.stdout
    assert ran.returncode == 0, f"{story}\n{ran.stderr}"

    good, bad = re.split(r"Decision record of the (?:good|bad) change", story)[1:3]
    assert good.index("RolloutStarted") < good.index("StepCompleted") < good.index("RolloutCompleted")
    assert bad.index("RolloutStarted") < bad.index("ObjectiveBreached") < bad.index("RollbackCompleted")
    assert "step 1/2, weight 10 %" in bad
    assert "BREACH" in bad
    # what kubectl itself shows
    assert re.search(r"^Kind:\s+PromptRollout$", bad, re.MULTILINE)
    assert re.search(r"^\s+Phase:\s+Degraded$", bad, re.MULTILINE)
    assert "bad change applied -> last pod back on stable" in bad

    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(directory).encode() in _read(p)]
    assert left == []


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
