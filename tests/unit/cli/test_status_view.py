"""How `promptrollout status` reads: on a screen of 80 columns and on a wide one. Statuses that the engine made."""

import asyncio
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from rich.console import Console, RenderableType

from promptrollout import cluster
from promptrollout.cli.main import main
from promptrollout.cli.status_view import list_view, rollout_view, view_that_fits
from promptrollout.engine.lifecycle.facts import PodFailure, Pods
from tests.world import ERRORS, INTERVAL, SPEC, World, snapshot, started, version


def printed(view: RenderableType, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(view)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def rollout(world: World, name: str = "support-assistant", namespace: str = "support") -> dict[str, Any]:
    return {
        "apiVersion": "promptrollout.dev/v1alpha1",
        "kind": "PromptRollout",
        "metadata": {"name": name, "namespace": namespace, "uid": world.uid, "resourceVersion": "1"},
        "spec": SPEC.dump(),
        "status": world.status.dump(),
    }


def shown(world: World, width: int, seconds_later: int = 0) -> list[str]:
    now = datetime.fromtimestamp(world.now, UTC) + timedelta(seconds=seconds_later)
    return printed(rollout_view(rollout(world), now), width)


def breached() -> World:
    return started(error_rate={version("v2").digest: 0.5}).tick(3)


@pytest.mark.parametrize("world", [started().tick(), breached()], ids=["progressing", "breached"])
def test_on_80_columns_nothing_is_lost_and_every_sentence_has_the_width_of_the_screen(world: World) -> None:
    lines = shown(world, 80)
    assert max(map(cell_len, lines)) <= 80
    assert "…" not in "".join(lines)
    text = " ".join(" ".join(lines).split())
    for row in world.status.analysis:
        assert f"{row.name} " in text
        assert row.difference in text
        assert row.message in text
    for decision in world.status.history:
        assert decision.reason in text
        assert decision.message in text
    # what belongs together stands in a row, and its sentence below it
    heads = next(n for n, line in enumerate(lines) if line.startswith("OBJECTIVE"))
    assert lines[heads].split() == ["OBJECTIVE", "VERDICT", "CANARY", "STABLE", "SAMPLES", "IN", "STEP"]
    assert lines[heads + 1].startswith("errors")
    assert lines[heads + 2].startswith("    ")
    assert cell_len(lines[heads + 2]) > 60


def lost(choice: str) -> World:
    world = started(snapshot({"weight": 10, "minDurationSeconds": 60}, {"weight": 50}, on_metrics_loss=choice))
    world.tick(4)
    world.metrics_available = False
    return world.tick(23)


def failing(*, again: bool = False) -> World:
    """Gateway pods ended while users met the canary; `again`: and once more when it was tried alone."""
    world = started().tick()
    for _ in range(1 + again):
        text = "gateway pod default-gateway-x ended (exit code 139)"
        failure = PodFailure((world.now - 1, world.now), text, ended_at=world.now)
        world.pods_state = Pods(failure, calm=False)
        world.settle()
        if again and not world.status.rejected:
            world.pods_state = Pods(failure, calm=True, trial="app")
            world.tick(2)
    return world


@pytest.mark.parametrize(
    ("world", "sentences"),
    [
        (
            lost("Hold"),
            [
                "at 50 %, held: metrics are not available: connection refused",
                "no metrics for 600 s (connection refused): app-fb04dcb697 stays at 50 %, unwatched",
            ],
        ),
        (
            lost("ReduceToFirstStep"),
            [
                "at 10 %, held: metrics are not available: connection refused",
                "no metrics for 600 s (connection refused): back to 10 %",
            ],
        ),
        (
            lost("Withdraw"),
            [
                "at 0 %, held: metrics are not available: connection refused",
                "no metrics for 600 s (connection refused): weight 0, not rejected; the canary starts over when "
                "metrics are back",
            ],
        ),
        (
            failing(),
            [
                "at 0 %, held: gateway pods failed while it served users: it is tried again alone once all pods have "
                "been ready for a while",
                "gateway pod default-gateway-x ended (exit code 139), while app-fb04dcb697 was at 10 %: "
                "withdrawn, not rejected; it is tried again alone",
            ],
        ),
        (
            failing(again=True),
            [
                "app-fb04dcb697 was rolled back (PodsFailing); app-3bfc269594 serves. "
                "Fix the prompt, or `promptrollout retry app -n shop`",
                "while app-fb04dcb697 was at 10 %; it was tried alone: rolled back",
                "fb04dcb697 PodsFailing, attempt 1",
            ],
        ),
    ],
    ids=["metrics lost, held", "metrics lost, reduced", "metrics lost, withdrawn", "pods failing", "failing alone"],
)
def test_why_a_canary_was_taken_back_though_nothing_was_measured_is_said_on_80_columns(
    world: World, sentences: list[str]
) -> None:
    lines = shown(world, 80)
    text = " ".join(" ".join(lines).split())
    assert [sentence for sentence in sentences if sentence not in text] == [], "\n".join(lines)
    said = [condition.message for condition in world.status.conditions if condition.type == "Ready"]
    assert sentences[0] in said[0]


def test_on_a_low_screen_that_is_watched_the_rows_go_before_their_sentences() -> None:
    extra = dict.fromkeys(("one", "two", "three"), "errors")
    objectives = [ERRORS, *(ERRORS.model_copy(update={"name": name}) for name in extra)]
    item = rollout(started(snapshot(objectives=objectives), extra=extra).tick())
    assert len(item["status"]["analysis"]) == 4

    def watched(height: int) -> str:
        console = Console(file=io.StringIO(), width=80, height=height)
        console.print(view_that_fits(item, console))
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    high, low = watched(60), watched(24)
    for text in (high, low):
        assert "Message:" in text
        assert "StepCompleted" in text or "RolloutStarted" in text
        assert all(row["name"] in text for row in item["status"]["analysis"])
    assert "the prompt changed: loading" in high
    assert "the prompt changed: loading" not in low
    assert len(low.splitlines()) <= 26 < len(high.splitlines())


def test_on_a_wide_screen_the_sentence_stands_beside_its_row() -> None:
    world = breached()
    line = next(line for line in shown(world, 200) if line.startswith("errors"))
    assert "✖ Breach" in line
    assert world.status.analysis[0].difference in line


def test_it_says_until_when_the_evidence_goes_while_there_is_an_analysis() -> None:
    world = started().tick()
    assert world.status.clock.evaluated_until == world.now
    assert any(line.split() == ["Evidence:", "until", "12s", "ago"] for line in shown(world, 80, 12))
    # a screen that is watched is drawn again each second
    assert any(line.split() == ["Evidence:", "until", "3m", "ago"] for line in shown(world, 80, 180))
    world.metrics_available = False
    world.tick(2)
    age = f"{2 * INTERVAL}s"
    assert any(line.split() == ["Evidence:", "until", age, "ago"] for line in shown(world, 80))
    assert not any("Evidence:" in line for line in shown(breached(), 80))


def test_there_is_no_evidence_before_the_first_interval_with_a_canary() -> None:
    item = rollout(started().tick())
    clock = item["status"]["clock"]
    clock["evaluatedUntil"] = clock["exposedAt"]  # or before it: where the baseline begins
    now = datetime.fromtimestamp(clock["exposedAt"] + 5, UTC)
    assert not any("Evidence:" in line for line in printed(rollout_view(item, now), 80))
    clock["evaluatedUntil"] += INTERVAL
    assert any("Evidence:" in line for line in printed(rollout_view(item, now), 80))


def test_a_clock_that_is_behind_the_metrics_sources_is_no_negative_age() -> None:
    assert any(line.split() == ["Evidence:", "until", "0s", "ago"] for line in shown(started().tick(), 80, -5))


def test_the_list_of_all_namespaces_says_which() -> None:
    items = [rollout(started()), rollout(breached(), "search", "a-namespace-of-a-long-name")]
    assert not printed(list_view(items), 160)[0].startswith("NAMESPACE")
    for width in (80, 160):
        lines = printed(list_view(items, all_namespaces=True), width)
        assert lines[0].split()[:2] == ["NAMESPACE", "NAME"]
        assert max(map(cell_len, lines)) <= width
        starts = [line.split()[:2] for line in lines]
        assert ["support", "support-assistant"] in starts
        assert ["a-namespace-of-a-long-name", "search"] in starts
    assert printed(list_view([], all_namespaces=True), 80) == ["No rollouts in any namespace."]


def test_what_no_operator_has_seen_is_said_to_be_unknown() -> None:
    item = rollout(started())
    del item["status"]
    text = "\n".join(printed(list_view([item]), 80))
    assert "unknown" in text
    assert "no operator has reported on it yet" in text


def test_all_namespaces_asks_for_all_and_takes_no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    asked: list[str] = []

    async def request(_client: object, method: str, path: str, **_: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        asked.append(f"{method} {path}")
        return {"items": [rollout(started())]}

    monkeypatch.setattr(cluster, "request", request)
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(
        "{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}],"
        " clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: a, user: {}}]}"
    )
    run = CliRunner(env={"KUBECONFIG": str(kubeconfig)}).invoke
    done = run(main, ["status", "-A"])
    assert done.exit_code == 0, done.output
    assert asked == ["GET /apis/promptrollout.dev/v1alpha1/promptrollouts"]
    assert "NAMESPACE" in done.output
    refused = run(main, ["status", "app", "-A"])
    assert refused.exit_code == 2
    assert "a name belongs to one namespace" in refused.output


def test_a_bake_shows_who_is_held_back() -> None:
    world = started(snapshot(holdback_percent=5, bake_seconds=3600))
    while world.status.stage != "Baking":
        world.tick()
    text = [" ".join(line.split()) for line in shown(world, 160)]
    one, two = version("v1").version, version("v2").version
    assert "Holdback: 5 % on the version before, until the bake is over" in text
    assert any(f"stable 95 % {two}" in line for line in text)
    assert any(f"previous 5 % {one}" in line for line in text)
    while world.status.stage != "Idle":
        world.tick()
    text = [" ".join(line.split()) for line in shown(world, 160)]
    assert any(f"stable 100 % {two}" in line for line in text)
    assert not any("Holdback" in line for line in text)
