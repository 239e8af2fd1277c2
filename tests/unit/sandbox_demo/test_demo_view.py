"""What the demo prints, on statuses that the engine made."""

import io

from rich.console import Console, RenderableType

from promptrollout.api.names import short_digest
from promptrollout.api.rollout import RolloutStatus
from promptrollout.sandbox.demo import view
from promptrollout.sandbox.demo.view import Scene
from promptrollout.sandbox.traffic import TrafficStats
from tests.world import INTERVAL, started, version


def printed(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_live_table_shows_arms_step_evidence_and_the_last_event() -> None:
    world = started()
    world.tick(2)
    traffic = TrafficStats(
        variants={"stable": 5400, "canary": 600},
        users_by_last_variant={"stable": 2700, "canary": 300},
        latency_ms={"canary": {"p50": 20.0, "p95": 81.0, "p99": 120.0}},
    )
    scene = Scene(
        chapter="good change",
        status=world.status,
        traffic=traffic,
        names={short_digest(version("v2").digest): "shorter answers"},
        last_event="RolloutStarted: the prompt changed",
    )
    text = printed(view.live_table(scene))
    assert "Progressing" in text
    assert f"step {world.status.step}" in text
    assert f"{version('v2').version} (shorter answers)" in text
    assert "2,700" in text
    assert "81" in text
    assert "errors" in text
    assert "RolloutStarted: the prompt changed" in text


def test_the_table_stands_before_anything_is_known() -> None:
    assert "not reconciled yet" in printed(view.live_table(Scene(chapter="first version")))


def test_a_line_per_change_and_none_for_samples_alone() -> None:
    world = started()
    before = world.status
    scene = Scene(chapter="good change", status=before)
    line = view.change_line(scene, RolloutStatus())
    assert line is not None
    assert "Progressing" in line
    assert f"weight {before.weight} %" in line
    world.tick()
    assert world.status != before
    scene.status = world.status
    assert view.change_line(scene, before) is None


def test_the_record_carries_each_decision_with_its_evidence() -> None:
    world = started(error_rate={version("v2").digest: 0.5})
    world.tick(3)
    console = Console(file=io.StringIO(), width=160)
    decisions = [d for d in reversed(world.status.history) if d.revision == world.status.revision]
    view.print_record(console, "Decision record", decisions)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.index("RolloutStarted") < text.index("ObjectiveBreached") < text.index("RollbackCompleted")
    assert "BREACH" in text
    assert f"evidence of {INTERVAL} s)" in text
    breach = next(d for d in decisions if d.reason == "ObjectiveBreached")
    (samples,) = {row.canary_samples for row in breach.evidence if row.verdict == "Breach"}
    assert view.result_line(decisions).endswith(f"bad change rolled back after {samples:,} canary requests")


def test_durations_are_listed_in_order() -> None:
    console = Console(file=io.StringIO(), width=160)
    view.print_durations(console, [("sandbox up", 4.04), ("total", 41.26)])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.index("sandbox up") < text.index("total")
    assert "4.0" in text
    assert "41.3" in text
