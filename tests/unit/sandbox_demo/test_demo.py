"""How the demo begins where something runs, and how it ends when somebody presses Ctrl-C."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from promptrollout.sandbox.demo import story
from promptrollout.sandbox.sandbox import Sandbox
from promptrollout.sandbox.settings import SandboxError


class FakeSandbox:
    """Comes up at once; `calls` is shared by all."""

    calls: list[str]
    is_up = False
    kubeconfig = model_url = ""

    def __init__(self, directory: Path) -> None:
        self.calls = type(self).calls

    def to_oneself(self, what: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def up(self, _progress: Any) -> None:
        self.calls.append("up")
        self.is_up = True

    def down(self) -> None:
        self.calls.append("down")
        self.is_up = False


@pytest.mark.parametrize("keep", [True, False])
def test_ctrl_c_says_what_still_runs_and_how_to_stop_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, keep: bool
) -> None:
    async def tell(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeSandbox, "calls", [], raising=False)
    monkeypatch.setattr(story, "Sandbox", FakeSandbox)
    monkeypatch.setattr(story, "_tell", tell)
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(KeyboardInterrupt):
        story.run(story.Options(directory=tmp_path, keep=keep), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "interrupted" in text
    assert ("keeps running: control plane, Prometheus, operator, gateway pods" in text) is keep
    assert (f"To stop it: promptrollout sandbox down --dir {tmp_path}" in text) is keep
    assert ("stopping the sandbox" in text) is not keep
    assert FakeSandbox.calls == (["down", "up"] if keep else ["down", "up", "down"])


def test_a_second_demo_leaves_the_first_alone(tmp_path: Path) -> None:
    """It would begin by stopping what runs in its directory."""
    console = Console(file=io.StringIO(), width=200)
    with Sandbox(tmp_path / "box").to_oneself("demo"):
        with pytest.raises(SandboxError, match="another demo is running"):
            story.run(story.Options(directory=tmp_path / "box"), console)
    with Sandbox(tmp_path / "box").to_oneself("demo"):
        pass


def test_a_sandbox_that_an_earlier_demo_left_running_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(FakeSandbox, "calls", [], raising=False)
    monkeypatch.setattr(FakeSandbox, "is_up", True)
    monkeypatch.setattr(story, "Sandbox", FakeSandbox)
    with pytest.raises(SandboxError) as caught:
        story.run(story.Options(directory=tmp_path / "my demo"), Console(file=io.StringIO()))
    assert FakeSandbox.calls == []
    assert "stays as it is" in str(caught.value)
    assert f"promptrollout sandbox down --dir '{tmp_path / 'my demo'}'" in str(caught.value).splitlines()[1]


@pytest.mark.parametrize("width", [20, 80])
def test_the_lines_to_connect_with_can_be_pasted_whatever_the_terminals_width(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, width: int
) -> None:
    async def tell(*_: Any) -> None:
        pass

    monkeypatch.setattr(FakeSandbox, "calls", [], raising=False)
    monkeypatch.setattr(story, "Sandbox", FakeSandbox)
    monkeypatch.setattr(story, "_tell", tell)
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    directory = tmp_path / "a directory with a rather long name" / "demo"
    assert story.run(story.Options(directory=directory, keep=True), console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    (connect,) = [line.strip() for line in lines if "sandbox env" in line]
    assert connect == f"eval \"$(promptrollout sandbox env --dir '{directory}')\""
    (traffic,) = [line.strip() for line in lines if line.strip().startswith("python -m")]
    assert traffic.endswith("--variable company=Example")
    assert f"To stop it: promptrollout sandbox down --dir '{directory}'" in lines
