"""Whatever a provider streams, its caller gets an answer that ends, and the request counts exactly once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from promptrollout.llm.answers.streams import MAX_EVENT_BYTES, StreamError
from promptrollout.llm.protocols.chat import ChatReader
from tests.properties.gateway import JSON_VALUES, Lab, lab
from tests.unit.gateway.kit import DONE, SCHEMA, USAGE_CHUNK, arm, chunk, delivery, request, says, streams


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("gateway")) as made:
        stable = arm(url=made.provider.url, outputSchema=SCHEMA, provider_maxRetries=0)
        made.apply("support", delivery(stable=stable))
        yield made


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
EVENTS = st.sampled_from([chunk("Hello"), chunk('{"answer":"x"}', "stop"), chunk(None, "stop"), USAGE_CHUNK, DONE])
FAILURES = st.sampled_from(
    [b'data: {"error":{"message":"no"}}\n\n', b'data: {"error":"no"}\n\n', b": comment\n\n", b"event: ping\n\n"]
)
ODD_EVENTS = st.one_of(
    JSON_VALUES.map(lambda value: b"data: " + encoded(value) + b"\n\n"),
    st.fixed_dictionaries(
        {
            "choices": JSON_VALUES
            | st.lists(st.fixed_dictionaries({}, optional={"delta": JSON_VALUES, "index": JSON_VALUES}))
        },
        optional={"usage": JSON_VALUES, "error": JSON_VALUES},
    ).map(lambda value: b"data: " + encoded(value) + b"\n\n"),
    st.fixed_dictionaries(
        {"prompt_tokens": JSON_VALUES},
        optional={"completion_tokens": JSON_VALUES, "prompt_tokens_details": JSON_VALUES},
    ).map(lambda usage: b"data: " + encoded({"choices": [], "usage": usage}) + b"\n\n"),
)
NOISE = st.binary(max_size=30) | st.sampled_from(
    [b"data:", b"data: [DONE]", b"\n\n", b"\r\r", b"\xef\xbb\xbf", b"\x00", b'data: "', b"data: {", b"id: 1\n"]
)
STREAM = st.lists(EVENTS | FAILURES | ODD_EVENTS | NOISE, max_size=8).map(b"".join)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """The same bytes in pieces."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


CUTS = st.lists(st.integers(0, 2000), max_size=12)


@settings(max_examples=250)
@given(STREAM, CUTS, st.booleans())
@example(b"data: " + b"x" * (MAX_EVENT_BYTES + 100_000), [500_000], False)
@example(chunk("Hello") + b"data: " + b"x" * (MAX_EVENT_BYTES + 100_000), [], False)
@example(b"", [], True)
@example(b"data: " + b"[" * 5000 + b"\n\n", [], False)
def test_any_stream_ends_in_an_answer_that_counts_once(world: Lab, data: bytes, cuts: list[int], cut: bool) -> None:
    world.provider.script.clear()
    world.provider.script.append(streams(*split(data, cuts), cut=cut))
    told = world.ask(request(stream=True))
    assert told.requests == 1
    assert sum(told.errors.values()) <= 1
    if told.answered.status != 200:
        assert told.answered.status == 502
        assert told.errors
    elif told.errors["stream_broken"] and b"error" not in data:
        assert b'"error"' in told.answered.body, "a caller must see that its stream broke"
    elif not told.errors:
        assert b'"code":"stream_broken"' not in told.answered.body


@settings(max_examples=150)
@given(st.binary(max_size=200) | JSON_VALUES.map(encoded) | ODD_EVENTS, st.integers(200, 599), st.booleans())
def test_any_answer_as_a_whole_is_passed_on_or_a_bad_gateway(
    world: Lab, body: bytes, status: int, stream: bool
) -> None:
    world.provider.script.clear()
    # a status without a body would leave the provider's own server at odds with HTTP
    status = 200 if status in (204, 205, 304) else status
    world.provider.script.append(says(status, body))
    told = world.ask(request(stream=stream))
    assert told.requests == 1
    assert bool(told.errors) == (told.answered.status != 200)
    if status != 200:
        assert told.answered.status >= 400


@settings(max_examples=300)
@given(STREAM, CUTS, st.booleans())
def test_how_a_stream_is_cut_into_pieces_makes_no_difference(data: bytes, cuts: list[int], usage: bool) -> None:
    assert read([data], usage) == read(split(data, cuts), usage)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=8), LINE_ENDS, LINE_ENDS), min_size=1, max_size=6), CUTS)
def test_line_ends_of_any_kind_and_mix_end_an_event(pieces: list[tuple[str, bytes, bytes]], cuts: list[int]) -> None:
    data = b"".join(
        b"data: " + encoded({"choices": [{"index": 0, "delta": {"content": text}}]}) + first + second
        for text, first, second in pieces
        if first + second != b"\r\n"  # that is one end of a line
    )
    reader = ChatReader(forward_usage=True, collect_content=True)
    forwarded = b"".join(reader.feed(piece) for piece in split(data, cuts)) + reader.finish()
    wanted = "".join(text for text, first, second in pieces if first + second != b"\r\n")
    assert "".join(choice.content for choice in reader.choices()) == wanted
    assert forwarded.rstrip(b"\r\n") == data.rstrip(b"\r\n")


def read(pieces: list[bytes], forward_usage: bool) -> tuple[Any, ...]:
    """All that a reader makes of a stream."""
    reader = ChatReader(forward_usage=forward_usage, collect_content=True)
    forwarded = b""
    broken = False
    try:
        for piece in pieces:
            forwarded += reader.feed(piece)
        forwarded += reader.finish()
    except StreamError:
        broken = True
    if broken:
        return (True,)  # how much went on before the fault depends on the pieces
    said = [(choice.content, choice.finish_reason) for choice in reader.choices()]
    forwarded = forwarded.rstrip(b"\r\n")  # an empty line after the last event may or may not be part of it
    return broken, forwarded, said, reader.usage, reader.done, reader.error, reader.complete
