"""`promptrollout simulate` and `plan`: every example runs, at 80 columns, and mistakes are told with their fix."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from pydantic.alias_generators import to_camel

from promptrollout.cli import inputs
from promptrollout.cli.main import main
from promptrollout.simulation import unattended
from promptrollout.simulation.recorded import RecordedArm, RecordedInterval
from promptrollout.simulation.scenario import Scenario

EXAMPLES = Path(__file__).parents[3] / "examples"
FOLDER = EXAMPLES / "simulate"
ROLLOUT = str(FOLDER / "rollout.yaml")
ARGUMENTS = {
    "simulate": ["-f", ROLLOUT, "--scenario", str(FOLDER / "good.yaml")],
    "plan": ["-f", ROLLOUT, "--requests-per-minute", "600"],
    "demo": [],
    "sandbox": ["status"],
}
SCENARIOS = sorted(path for path in FOLDER.glob("*.yaml") if "apiVersion" not in yaml.safe_load(path.read_text()))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def good(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def simulated(*arguments: str) -> str:
    return good("simulate", "-f", ROLLOUT, *arguments)


@pytest.fixture(autouse=True)
def few_sticky_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many of them get through is tested beside the code; here it is one sentence among others."""
    monkeypatch.setattr(unattended, "RUNS", 3)
    monkeypatch.setattr(unattended, "REMEDY_RUNS", 1)


def test_there_are_scenarios() -> None:
    assert {path.stem for path in SCENARIOS} >= {"good", "regression", "outage"}


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_runs_at_80_columns(path: Path) -> None:
    text = simulated("--scenario", str(path))
    assert "would" in text
    assert "RolloutStarted" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_same_seed_tells_the_same_story() -> None:
    arguments = ("--scenario", str(FOLDER / "regression.yaml"), "--seed", "3")
    assert simulated(*arguments) == simulated(*arguments)
    assert simulated(*arguments) != simulated(*arguments[:-1], "4")


def test_a_regression_is_rolled_back_behind_its_onset() -> None:
    found = json.loads(simulated("--scenario", str(FOLDER / "regression.yaml"), "--seed", "2", "-o", "json"))
    assert found["outcome"] == "RolledBack"
    assert found["seconds"] > 50 * 30
    assert found["tolls"]["errors"]["excess"] > 0
    assert [moment["reason"] for moment in found["timeline"]][-2:] == ["ObjectiveBreached", "RollbackCompleted"]


def test_many_runs_are_chances() -> None:
    text = simulated("--scenario", str(FOLDER / "good.yaml"), "--runs", "8")
    assert re.search(r"^promoted +\d+(\.\d)? %", text, re.M)
    assert "8 runs" in text
    assert max(map(len, text.splitlines())) <= 80
    found = json.loads(simulated("--scenario", str(FOLDER / "good.yaml"), "--runs", "8", "-o", "json"))
    assert sum(found["chances"][outcome]["count"] for outcome in found["chances"]) == 8


def test_a_person_may_end_a_pause() -> None:
    arguments = ("simulate", "-f", str(EXAMPLES / "pause-gate"), "--scenario", str(FOLDER / "good.yaml"))
    waiting = good(*arguments)
    assert "would still be held" in waiting
    assert "PauseCompleted" in good(*arguments, "--promote-after-seconds", "600")


def test_without_analysis_only_time_passes(tmp_path: Path) -> None:
    body = yaml.safe_load(Path(ROLLOUT).read_text())
    body["spec"]["analysis"] = {"mode": "None"}
    path = tmp_path / "rollout.yaml"
    path.write_text(yaml.safe_dump(body))
    text = good("simulate", "-f", str(path), "--scenario", str(FOLDER / "regression.yaml"))
    assert "would be promoted after 0:40:00" in text
    assert "mode None" in good("plan", "-f", str(path), "--requests-per-minute", "60")


def test_a_recording_is_replayed() -> None:
    text = simulated("--recorded", str(FOLDER / "recorded.jsonl"))
    assert "would be rolled back after" in text
    assert "warning" not in text


def test_a_recording_under_other_weights_says_so(tmp_path: Path) -> None:
    other = tmp_path / "rollout.yaml"
    other.write_text(Path(ROLLOUT).read_text().replace("weight: 10", "weight: 25"))
    text = good("simulate", "-f", str(other), "--recorded", str(FOLDER / "recorded.jsonl"))
    assert "25 %, but 10 %" in " ".join(text.split())


def test_objectives_that_a_scenario_knows_nothing_of_are_left_out_aloud(tmp_path: Path) -> None:
    scenario = tmp_path / "errors.yaml"
    scenario.write_text("name: errors-only\nerrors: {rate: 0.01}\n")
    text = " ".join(simulated("--scenario", str(scenario)).split())
    assert "has no CostPerRequest: the objective cost is left out" in text


@pytest.mark.parametrize("suffix", ["png", "html"])
def test_plots_are_files_of_their_own(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out.{suffix}"
    simulated("--scenario", str(FOLDER / "regression.yaml"), "--seed", "2", "--runs", "3", "--plot", str(out))
    content = out.read_bytes()
    if suffix == "png":
        assert content.startswith(b"\x89PNG")
        return
    page = content.decode()
    for text in (
        "ObjectiveBreached",
        "rolled back above this line",
        "proven above this line",
        "errors: canary minus stable, 95 % interval",
        "When 3 runs ended",
        "minutes since the canary's first users",
    ):
        assert text in page
    assert not re.search(r'(?:src|href)="(?!#)(?!http://www.w3.org)', page), "nothing is fetched"
    assert "<script" not in page


def test_a_plot_at_a_glance_is_small_and_the_same_each_time(tmp_path: Path) -> None:
    drawn = []
    for name in ("one.svg", "two.svg"):
        out = tmp_path / name
        simulated("--scenario", str(FOLDER / "regression.yaml"), "--seed", "2", "--plot", str(out))
        drawn.append(out.read_bytes())
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith(b"<?xml")
    assert len(drawn[0]) < 150_000


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "exactly one of --scenario"),
        (("--recorded", str(FOLDER / "recorded.jsonl"), "--runs", "2"), "--runs needs --scenario"),
        (("--prometheus", "http://127.0.0.1:9"), "--prometheus needs --from, --to, --uid, --stable, --canary"),
        (("--scenario", ROLLOUT), "name: required: add it"),
        (("--recorded", ROLLOUT), "rollout.yaml:1"),
        (("--scenario", str(FOLDER / "good.yaml"), "--plot", "out.gif"), "ends in .html, .png or .svg"),
        (("--scenario", str(FOLDER / "good.yaml"), "--name", "other"), "no PromptRollout other"),
        (("--prometheus", "x", "--from", "noon"), "'noon' is not a time"),
    ],
)
def test_mistakes_are_told(arguments: tuple[str, ...], reason: str) -> None:
    result = run("simulate", "-f", ROLLOUT, *arguments)
    assert result.exit_code in (1, 2)
    assert reason in result.output


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: x\ndescription: " + "[" * 5000, "nested more than 100 levels deep"),
        ("a: &a [1, *a]", "an alias refers to a value that contains it"),
    ],
)
def test_hostile_yaml_is_refused_as_scenario_and_as_manifest(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    for arguments in (
        ("simulate", "-f", ROLLOUT, "--scenario", str(path)),
        ("simulate", "-f", str(path), "--scenario", str(FOLDER / "good.yaml")),
        ("plan", "-f", str(path), "--requests-per-minute", "600"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert reason in result.output


def test_a_plot_into_a_directory_that_is_not_there_is_refused_before_the_run(tmp_path: Path) -> None:
    plot = tmp_path / "missing" / "out.html"
    result = run("simulate", "-f", ROLLOUT, "--scenario", str(FOLDER / "good.yaml"), "--plot", str(plot))
    assert result.exit_code == 1
    assert result.output == f"Error: --plot {plot}: directory {plot.parent} does not exist; create it\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_what_takes_its_time_says_so_on_a_terminal(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    with inputs.working("runs", 3) as one_more:
        one_more()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert ("1/3" in shown.err) == terminal


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "numpy", None)
    result = run("simulate", "-f", ROLLOUT, "--scenario", str(FOLDER / "good.yaml"))
    assert result.exit_code == 1
    assert "pip install '.[simulate]'" in result.output
    with pytest.raises(inputs.click.ClickException):
        inputs.require("numpy")


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("numpy", "simulate", "simulate"),
        ("numpy", "plan", "simulate"),
        ("cryptography", "demo", "sandbox"),
        ("cryptography", "sandbox", "sandbox"),
    ],
)
def test_a_command_without_its_packages_says_so_in_one_line(package: str, command: str, extra: str) -> None:
    script = (
        f"import sys; sys.modules[{package!r}] = None; from promptrollout.cli.main import main; "
        f"sys.argv = ['promptrollout', {command!r}, *{ARGUMENTS[command]!r}]; main()"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr == f"Error: this needs {package}, which is not installed: pip install '.[{extra}]'\n"


@pytest.mark.parametrize("arguments", [("demo",), ("sandbox", "up")], ids=["demo", "sandbox"])
def test_without_kubectl_nothing_is_started(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("promptrollout.sandbox.assets.inventory.shutil.which", lambda *_, **__: None)
    result = run(*arguments, "--dir", str(tmp_path / "box"))
    assert result.exit_code == 1
    assert result.output == "Error: kubectl is missing: pip install '.[sandbox]', or put one on PATH\n"
    assert not (tmp_path / "box").exists()


def test_the_page_on_it_shows_what_is_read() -> None:
    text = (EXAMPLES.parent / "docs" / "how-to" / "simulate.md").read_text()
    (scenario,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    assert Scenario.model_validate(yaml.safe_load(scenario)).errors.onset == 50
    (line,) = re.findall(r"```json\n(.*?)```", text, re.S)
    assert RecordedInterval.model_validate_json(line).strata()["errors"][0].canary.n == 30
    fields = {*RecordedInterval.model_fields, *RecordedArm.model_fields}
    assert {name for name in fields if f"`{name}`" not in text} == set()
    parts = {to_camel(name) for name in Scenario.model_fields}
    assert {name for name in parts if name not in text} == set()


# ---------------------------------------------------------------- rules


def test_what_the_rollout_names_must_be_given(tmp_path: Path) -> None:
    shared = EXAMPLES / "shared-slo" / "rollouts.yaml"
    body = [each for each in yaml.safe_load_all(shared.read_text()) if each["kind"] == "PromptRollout"]
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(body[0]))
    result = run("plan", "-f", str(tmp_path / "alone.yaml"), "--requests-per-minute", "60")
    assert result.exit_code == 1
    assert "there is no PromptSLO" in result.output
    assert "in the given files: add it" in result.output
    assert "choose one with --name" in run("plan", "-f", str(shared), "--requests-per-minute", "60").output


# ---------------------------------------------------------------- plan


def test_a_plan_at_80_columns() -> None:
    text = good("plan", "-f", ROLLOUT, "--requests-per-minute", "600", "--error-rate", "0.02", "--cost-cv", "0.5")
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"errors +2 %", text)
    assert "standard deviation of 0.5 times" in text
    assert "(median)" in text


@pytest.mark.parametrize(
    "command",
    [
        ("plan", "--requests-per-minute", "600"),
        ("simulate", "--scenario", str(FOLDER / "good.yaml")),
        ("simulate", "--scenario", str(FOLDER / "good.yaml"), "--runs", "2"),
    ],
)
def test_the_margin_is_never_printed_without_the_bound_for_rollback(command: tuple[str, ...]) -> None:
    text = " ".join(good(command[0], "-f", ROLLOUT, *command[1:]).split())
    assert "errors promotion below +50 %, rollback above +10 %" in text
    assert "cost promotion below +20 %, rollback above +10 %" in text


def test_lint_warns_with_the_words_of_plan(tmp_path: Path) -> None:
    body = yaml.safe_load(Path(ROLLOUT).read_text())
    body["spec"]["strategy"]["canary"]["maxDurationSeconds"] = 3600
    del body["spec"]["analysis"]["objectives"][1:]
    path = str(tmp_path / "rollout.yaml")
    Path(path).write_text(yaml.safe_dump(body))
    text = " ".join(good("plan", "-f", path, "--requests-per-minute", "30").split())
    doubts = re.findall(r"objectives\[\d\]: (objective .*)", good("lint", path, "--requests-per-minute", "30"))
    assert len(doubts) == 2
    for doubt in doubts:
        assert " ".join(doubt.split()) in text
    assert "onInsufficientTraffic applies" not in good("lint", path)


@pytest.mark.parametrize("place", ["own", "slo"])
def test_what_no_gateway_exports_is_refused_by_plan_and_lint_with_the_operators_words(
    tmp_path: Path, place: str
) -> None:
    body = yaml.safe_load(Path(ROLLOUT).read_text())
    judge = {"name": "judge", "signal": "JudgeScore", "dimension": "tone", "min": "4"}
    slo = {"apiVersion": body["apiVersion"], "kind": "PromptSLO", "metadata": {"name": "quality"}}
    slo["spec"] = {"objectives": [judge]}
    objectives = body["spec"]["analysis"]["objectives"]
    if place == "own":
        objectives.append(judge)
        path = f"spec.analysis.objectives[{len(objectives) - 1}].signal: "
    else:
        body["spec"]["analysis"]["sloRefs"] = [{"name": "quality"}]
        path = "spec.analysis.sloRefs[0] (PromptSLO quality): spec.objectives[0].signal: "
    file = tmp_path / "rollout.yaml"
    file.write_text(yaml.safe_dump_all([body] if place == "own" else [body, slo]))
    plan = run("plan", "-f", str(file), "--requests-per-minute", "600")
    reason = (
        "objective judge: gateways of this release do not export JudgeScore: remove it, or export your own metrics and "
        "use signal Custom"
    )
    assert (plan.exit_code, path + reason in plan.output) == (1, True), plan.output
    lint = run("lint", str(file))
    assert (lint.exit_code, reason in lint.output) == (1, True), lint.output
    assert "warning" not in next(line for line in lint.output.splitlines() if reason in line)


def test_lint_warns_of_what_no_traffic_decides(tmp_path: Path) -> None:
    never = tmp_path / "rollout.yaml"
    never.write_text(Path(ROLLOUT).read_text().replace("{maxIncreasePercent: 20}", "{maxIncreasePercent: 0}"))
    (line,) = [line for line in good("lint", str(never)).splitlines() if "margin of 0 %" in line]
    assert line.startswith(
        f"warning: {never}:25: PromptRollout/summarizer: spec.analysis.objectives[1]: objective cost"
    )


def test_a_plan_from_recorded_metrics() -> None:
    found = json.loads(good("plan", "-f", ROLLOUT, "--recorded", str(FOLDER / "recorded.jsonl"), "-o", "json"))
    assert found["assumed"]["requests_per_minute"] == pytest.approx(600, rel=0.05)
    assert found["assumed"]["baselines"]["errors"]["value"] == pytest.approx(0.01, rel=0.3)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "give --requests-per-minute, or --recorded"),
        (("--requests-per-minute", "0"), "0"),
        (("--requests-per-minute", "9", "--assume", "cost=cheap"), "write OBJECTIVE=VALUE"),
        (("--requests-per-minute", "9", "--assume", "cost=1,sampled=0"), "sampled is a share"),
        (("--requests-per-minute", "9", "--assume", "colour=1"), "no objective colour"),
    ],
)
def test_a_plan_without_sense_is_refused(arguments: tuple[str, ...], reason: str) -> None:
    result = run("plan", "-f", ROLLOUT, *arguments)
    assert result.exit_code in (1, 2)
    assert reason in result.output
