"""What happens around a rollout in progress: its deliveries, its provider, its metrics, the gateway's pods."""

from promptrollout.api.decisions import DecisionReason
from promptrollout.engine.lifecycle.analysis import WATCHED
from promptrollout.engine.lifecycle.draft import ACTIVE, Draft
from promptrollout.engine.lifecycle.facts import PodFailure
from promptrollout.engine.lifecycle.messages import version_name
from promptrollout.engine.lifecycle.moves import EnterStep, Move, Record, Withdraw

UNREACHABLE_SECONDS = 900
"""How long stable answers for a canary whose provider alone is down before the weight goes to 0."""
SKIPPED_SECONDS = 3600
"""One Event an hour, however often metrics cannot be read."""
SUSPECT_SECONDS = 900
"""A canary is suspected when pods fail within this time after it met its first, or more, users."""
FAILURES = 2
"""This many within SUSPECT_SECONDS are no accident."""
TRIAL_SECONDS = 300
"""A canary on trial is cleared when no pod has failed for this long while it served users."""
TURN_SECONDS = 600
"""A canary that serves no users for this long in its trial (it is paused, say) loses its turn for a while."""
NEXT_TURN_SECONDS = 1800


def watch_delivery(draft: Draft) -> None:
    """Note when the present configuration was first confirmed by every ready pod; later pods reset nothing.

    Applications that call the model themselves may use a prompt that they keep for a while longer, and what they never
    report is known later still: until then, what counts is of the configuration before."""
    if draft.clock.acknowledged_at is None and draft.status.stage is not None and draft.delivered():
        reporting = draft.status.snapshot.reporting if draft.status.snapshot else None
        lag_seconds = reporting.cache_seconds + reporting.settle_seconds if reporting else 0
        draft.set_clock(acknowledged_at=draft.now + lag_seconds)


def watch_provider(draft: Draft) -> Move | None:
    """Only the canary's provider is down: no verdict, and weight 0 after a while, without rejecting the version."""
    delivered, since = draft.facts.delivered, draft.clock.unreachable_since
    if delivered is None or delivered.canary_provider_unreachable is None:
        return None  # no pod was asked, so nothing is known
    if not delivered.canary_provider_unreachable:
        if since is not None:
            draft.set_clock(unreachable_since=None)
        return None
    if draft.status.stage not in ACTIVE and not draft.holds_back:
        return None
    if since is None:
        draft.set_clock(unreachable_since=draft.now)
        draft.record(
            DecisionReason.CANARY_PROVIDER_UNREACHABLE,
            "only the canary's provider fails: stable answers its users, and nothing is judged",
        )
    elif draft.now - since >= UNREACHABLE_SECONDS and draft.status.stage in ("Stepping", "Promoting"):
        text = f"only the canary's provider could not be reached for {draft.now - since} s: weight 0, not rejected"
        return Withdraw(DecisionReason.PROVIDER_UNREACHABLE, text, reject=False)
    return None


def watch_metrics(draft: Draft) -> Move | None:
    """A canary serves users while its metrics cannot be read: after a while an Event says so, and `onMetricsLoss` says
    what happens. It is never rejected for it. A source that answers and has no samples (a quiet night) is no loss."""
    s, clock, snapshot, lost = draft.status, draft.clock, draft.status.snapshot, draft.facts.evidence.lost
    meets_users = s.stage in WATCHED and snapshot is not None and snapshot.analyse
    waits = s.stage in ("Withdrawing", "Loading") and clock.metrics_lost_told  # withdrawn until metrics are back
    if not lost or not (meets_users or waits):
        if clock.metrics_lost_since is not None:
            if clock.metrics_lost_told and not lost:
                draft.record(DecisionReason.METRICS_RECOVERED, "the metrics source can be read again")
            draft.set_clock(metrics_lost_since=None, metrics_lost_told=False)
        return None
    if snapshot is None or not meets_users:
        return None
    if clock.metrics_lost_since is None:
        draft.set_clock(metrics_lost_since=draft.now)
        return None
    seconds = draft.now - clock.metrics_lost_since
    if clock.metrics_lost_told or seconds < snapshot.metrics_loss_seconds:
        return None
    draft.set_clock(metrics_lost_told=True)
    text = f"no metrics for {seconds} s ({draft.facts.evidence.problem})"
    first = next((i for i, step in enumerate(snapshot.steps) if step.weight is not None), 0)
    if s.stage == "Baking" or s.direct or snapshot.on_metrics_loss == "Hold":
        text += f": {version_name(s.canary or s.stable)} stays at {s.weight} %, unwatched"
        return Record(DecisionReason.METRICS_LOST, text)
    if snapshot.on_metrics_loss == "Withdraw":
        text += ": weight 0, not rejected; the canary starts over when metrics are back"
        return Withdraw(DecisionReason.METRICS_LOST, text, reject=False)
    if s.weight > (snapshot.steps[first].weight or 0):
        return EnterStep(first, DecisionReason.METRICS_LOST, f"{text}: back to {snapshot.steps[first].weight} %")
    return Record(DecisionReason.METRICS_LOST, f"{text}: the canary stays at its first weight")


def record_skipped_metrics(draft: Draft) -> None:
    """Record that intervals could not be read and were skipped, at most once an hour."""
    clock = draft.clock
    due = [i for i in draft.facts.evidence.intervals if i.problem and i.start >= (clock.evaluated_until or 0)]
    if not due or draft.status.stage not in WATCHED:
        return
    if clock.metrics_skipped_at is None or draft.now - clock.metrics_skipped_at >= SKIPPED_SECONDS:
        seconds = due[-1].end - due[0].start
        text = f"the metrics of {seconds} s could not be read and do not count as evidence: {due[-1].problem}"
        draft.record(DecisionReason.METRICS_SKIPPED, text)
        draft.set_clock(metrics_skipped_at=draft.now)


def watch_pods(draft: Draft) -> Move | None:
    """Pods end or hang one after the other soon after users met the canary: it is withdrawn, whatever the metrics say,
    as pods that are gone export none. It may not be the cause: it is not rejected, and is tried again alone. A canary
    is rejected if pods end while it is tried alone, or if a pod was serving it when it ended; before it meets users
    only the latter counts. Going back to what was served before is never stopped by it."""
    update_trial(draft)
    s, clock, failure = draft.status, draft.clock, draft.facts.pods.failure
    if failure is None or not draft.can_go_back or s.direct:
        return None
    if draft.must_not_load and clock.suspected_at is not None:
        begun = clock.suspected_at - SUSPECT_SECONDS  # which version a pod was serving is known when it is back
    else:
        begun = clock.exposed_at or clock.trial_at or clock.stage_since or draft.now
    named_it = failure.named_at is not None and failure.named_at >= begun
    if not named_it and (draft.must_not_load or not is_suspect(draft, failure, begun)):
        return None
    weight, what = s.weight, f"{failure.message}, while {version_name(s.canary or s.stable)} was at {s.weight} %"
    if named_it or (weight > 0 and was_alone(draft, failure, begun)):
        why = "the pod was serving that version" if named_it else "it was tried alone"
        return Withdraw(DecisionReason.PODS_FAILING, f"{what}; {why}: rolled back", reject=True)
    again = NEXT_TURN_SECONDS if clock.trial_at is not None and weight == 0 else 0
    draft.set_clock(suspected_at=draft.now + again, suspected_weight=max(weight, clock.suspected_weight))
    text = f"{what}: withdrawn, not rejected; it is tried again alone"
    return Withdraw(DecisionReason.PODS_FAILING, text, reject=False)


def is_suspect(draft: Draft, failure: PodFailure, begun: int) -> bool:
    """Whether pods failed repeatedly after `begun`, and this canary's weight was raised recently, or no other canary's
    of the gateway was. While it is tried alone with users, one failure is enough."""
    latest = failure.times[-1]
    count = sum(begun <= at and latest - at < SUSPECT_SECONDS for at in failure.times)
    on_trial = draft.clock.trial_at is not None and draft.status.weight > 0
    if count < (1 if on_trial else FAILURES):
        return False
    raised, others = draft.clock.stage_since, draft.facts.pods.raised_at
    recent = raised is not None and latest - raised <= SUSPECT_SECONDS
    return recent or others is None or latest - others > SUSPECT_SECONDS


def was_alone(draft: Draft, failure: PodFailure, begun: int) -> bool:
    """It is on trial, a pod ended, and no other canary of the gateway met more users since its own did."""
    clock, raised_at = draft.clock, draft.facts.pods.raised_at
    ended = failure.ended_at is not None and failure.ended_at >= begun
    last = raised_at is None or clock.stage_since is None or raised_at <= clock.stage_since
    return clock.suspected_at is not None and clock.trial_at is not None and ended and last


def update_trial(draft: Draft) -> None:
    """The trial of a canary under suspicion: its beginning, and its end where nothing happened."""
    s, clock, pods = draft.status, draft.clock, draft.facts.pods
    if clock.suspected_at is None or s.stage == "Withdrawing":
        return
    if clock.trial_at is None:
        its_turn = pods.calm and pods.trial == draft.facts.name and draft.now >= clock.suspected_at
        if s.stage == "Loading" and its_turn:
            draft.set_clock(trial_at=draft.now, stage_since=draft.now, acknowledged_at=None)
    elif clock.exposed_at is not None:
        held_out = draft.now - (clock.stage_since or draft.now) >= TRIAL_SECONDS
        if held_out and s.weight >= clock.suspected_weight:
            draft.set_clock(suspected_at=None, trial_at=None, suspected_weight=0)
    elif draft.now - clock.trial_at >= TURN_SECONDS:
        draft.set_clock(suspected_at=draft.now + NEXT_TURN_SECONDS, trial_at=None, acknowledged_at=None)
