"""What happens around a rollout while it goes on: deliveries, its provider, its metrics."""

from promptrollout.engine.analysis import WATCHED
from promptrollout.engine.draft import ACTIVE, Draft
from promptrollout.engine.life import enter_step, named, withdraw

UNREACHABLE_SECONDS = 900
"""How long users of a canary whose provider alone is down are answered by stable before the weight goes to 0."""


def watch_delivery(draft: Draft) -> None:
    """Note when the present configuration was first confirmed by every ready pod; later pods reset nothing.

    Applications that call the model themselves may use a prompt that they keep for a while longer, and what they never
    report is known later still: until then, what counts is of the configuration before."""
    if draft.clock.acknowledged_at is None and draft.status.stage is not None and draft.delivered():
        reporting = draft.status.snapshot.reporting if draft.status.snapshot else None
        lag_seconds = reporting.cache_seconds + reporting.settle_seconds if reporting else 0
        draft.set_clock(acknowledged_at=draft.now + lag_seconds)


def watch_provider(draft: Draft) -> None:
    """Only the canary's provider is down: no verdict, and weight 0 after a while, without rejecting the version."""
    delivered, since = draft.facts.delivered, draft.clock.unreachable_since
    if delivered is None or delivered.canary_provider_unreachable is None:
        return  # nobody was asked: no news
    if not delivered.canary_provider_unreachable:
        if since is not None:
            draft.set_clock(unreachable_since=None)
        return
    if draft.status.stage not in ACTIVE:
        return
    if since is None:
        draft.set_clock(unreachable_since=draft.now)
        draft.record("CanaryProviderUnreachable", "its users are answered by stable; no verdict", warning=True)
    elif draft.now - since >= UNREACHABLE_SECONDS and draft.status.stage in ("Stepping", "Promoting"):
        withdraw(
            draft,
            "ProviderUnreachable",
            f"only the canary's provider has been out of reach for {draft.now - since} s: weight 0, not rejected",
            reject=False,
        )


def watch_metrics(draft: Draft) -> None:
    """A canary that meets users while its metrics cannot be read: after a while somebody is told, and the spec says
    what happens. It is never rejected for it. A source that answers and has no samples (a quiet night) is no loss."""
    s, clock, snapshot = draft.status, draft.clock, draft.status.snapshot
    if s.stage not in WATCHED or snapshot is None or not snapshot.analyse or not draft.facts.evidence.lost:
        if clock.metrics_lost_since is not None:
            if clock.metrics_lost_told:
                draft.record("MetricsRecovered", "the metrics source can be read again")
            draft.set_clock(metrics_lost_since=None, metrics_lost_told=False)
        return
    if clock.metrics_lost_since is None:
        draft.set_clock(metrics_lost_since=draft.now)
        return
    seconds = draft.now - clock.metrics_lost_since
    if clock.metrics_lost_told or seconds < snapshot.metrics_loss_seconds:
        return
    draft.set_clock(metrics_lost_told=True)
    text = f"no metrics for {seconds} s ({draft.facts.evidence.problem})"
    first = next((i for i, step in enumerate(snapshot.steps) if step.weight is not None), 0)
    if s.stage == "Baking" or snapshot.on_metrics_loss == "Hold":
        draft.record(
            "MetricsLost", f"{text}: {named(s.canary or s.stable)} stays at {s.weight} %, unwatched", warning=True
        )
    elif snapshot.on_metrics_loss == "Withdraw":
        withdraw(
            draft, "MetricsLost", f"{text}: weight 0, not rejected; it starts over when they are back", reject=False
        )
    elif s.weight > (snapshot.steps[first].weight or 0):
        draft.record("MetricsLost", f"{text}: back to {snapshot.steps[first].weight} %", warning=True)
        enter_step(draft, first)
    else:
        draft.record("MetricsLost", f"{text}: it is at the first weight already, and stays there", warning=True)
