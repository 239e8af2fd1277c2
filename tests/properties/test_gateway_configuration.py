"""Whatever stands in a delivery, it is served or refused with a reason, and what served before serves on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.properties.gateway import JSON_VALUES, Lab, lab
from tests.unit.gateway.kit import CANARY, SCHEMA, arm, delivery, request

NOWHERE = "http://127.0.0.1:1/v1"
# only addresses on this machine, or none at all: nobody else is to be asked
ADDRESSES = (
    *("", "x", "http://", "http://[::1", "ftp://127.0.0.1/", "http://127.0.0.1:99999/", "http://127.0.0.1:1\r\nx: y"),
    *("//127.0.0.1", "http://127.0.0.1:1?a=b#c", "http://u:p@127.0.0.1:1", "http://\x00", "file:///x"),
)
TEMPLATES = st.sampled_from(
    ["{{", "{% if %}", "{{ x.y.z }}", "{% for a in b %}{{ a }}{% endfor %}", "{{ 1/0 }}", "{{ x | nope }}", "{% raw %}"]
) | st.sampled_from(
    ["{% include 'x' %}", "{{ ''.__class__ }}", "{{ 'a' * 10000000 }}", "{{ range(10**9) }}", "{#", "\x00"]
)
SCHEMAS = st.sampled_from(
    [{"type": 5}, {"$ref": "http://127.0.0.1:1/"}, {"$ref": "#"}, {"pattern": "("}, {"properties": []}, {"enum": []}]
) | st.sampled_from(
    [{"$ref": "#/a/b"}, {"allOf": [{"$ref": "#"}]}, {"type": "object", "required": [1]}, {"minimum": "x"}]
)
VALUES = (
    JSON_VALUES
    | st.sampled_from(ADDRESSES)
    | TEMPLATES
    | SCHEMAS
    | st.sampled_from([-1, 0, 2**53 + 1, 1e308, "1e999", "-1", "NaN"])
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("gateway")) as made:
        yield made


def whole(url: str) -> dict[str, Any]:
    """A delivery with something in every field."""
    made = arm(
        CANARY,
        url,
        parameters={"temperature": "0.2", "maxTokens": 10, "stop": ["x"], "extra": {"a": 1}},
        messages=[{"role": "system", "content": "Of {{ name | default('x') }}."}, {"placeholder": "history"}],
        tools=[{"type": "function", "function": {"name": "f"}}],
        outputSchema=SCHEMA,
        callerSystemMessage="Append",
        provider_timeouts={"connectSeconds": 1, "firstByteSeconds": 2, "totalSeconds": 3},
        provider_maxRetries=0,
    )
    return delivery(
        weight=50,
        stable=arm(url=url, provider_maxRetries=0),
        canary=made,
        stickiness={"by": "User"},
        audience={"include": [{"header": "x-plan", "values": ["free"]}], "exclude": []},
        latencyEdgesSeconds=["0.5", "2"],
        shardMetrics=["promptrollout_shard_requests_total"],
        memory={"revision": 1, "stable": None},
    )


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(found for name, one in inner for found in paths(one, (*path, name)))]


PATHS = [path for path in paths(whole(NOWHERE)) if path[-1] != "sequence"]


def edited(raw: dict[str, Any], edits: list[tuple[tuple[Any, ...], Any]]) -> dict[str, Any]:
    """With other values at some places, as far as the places are still there."""
    made = copy.deepcopy(raw)
    for path, value in edits:
        at: Any = made
        try:
            for name in path[:-1]:
                at = at[name]
            if isinstance(at, list) != isinstance(path[-1], int):
                continue  # something else stands there by now
            if isinstance(value, _Gone):
                del at[path[-1]]
            elif path[-1] != "baseURL" or value in ADDRESSES:
                at[path[-1]] = copy.deepcopy(value)
        except (LookupError, TypeError):
            continue
    return made


class _Gone:
    def __repr__(self) -> str:
        return "gone"


EDITS = st.lists(st.tuples(st.sampled_from(PATHS), VALUES | st.builds(_Gone)), min_size=1, max_size=3)


@settings(max_examples=300)
@given(EDITS)
@example([(("stable", "provider", "baseURL"), "http://127.0.0.1:99999/")])
@example([(("stable", "provider", "baseURL"), "http://127.0.0.1:1\r\nx: y")])
@example([(("salt",), "\ud800")])
@example([(("canary", "prompt", "outputSchema"), {"$ref": "#"})])
@example([(("unknown",), 10**30)])
def test_a_delivery_that_is_nearly_right_is_served_or_refused(
    world: Lab, edits: list[tuple[tuple[Any, ...], Any]]
) -> None:
    good = whole(world.provider.url)
    world.sequence += 1
    world.apply("support", {**good, "sequence": world.sequence})
    before = world.gateway.registry.find("support")
    assert before is not None
    world.sequence += 1
    world.apply("support", edited({**good, "sequence": world.sequence}, edits))
    serving = world.gateway.registry.find("support")
    assert serving is not None
    (report,) = world.gateway.reporter.report(["support"]).rollouts
    assert report.sequence == world.sequence or report.problem, "neither served nor refused with a reason"
    told = world.ask(request(), {"x-plan": "free"})
    if serving is before:
        assert told.answered.status == 200, "the last good one serves on"


@settings(max_examples=200)
@given(
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=10), JSON_VALUES, max_size=5)
    | st.dictionaries(
        st.sampled_from(["formatVersion", "sequence", "stable", "canary", "weight", "salt"]), JSON_VALUES
    ),
)
def test_a_delivery_of_anything_is_refused_and_takes_nothing_down(world: Lab, name: str, raw: dict[str, Any]) -> None:
    if world.gateway.registry.find("good") is None:
        world.apply("good", delivery(rolloutUID="uid-good", stable=arm(url=world.provider.url)))
    world.apply(name, raw)
    assert world.gateway.registry.names() in (["good"], ["good", "support"])
    assert world.ask(request(model="good")).answered.status == 200
