"""Streams are read on the side, however their bytes are cut, and go on as they came."""

import pytest

from promptrollout.llm.answers.streams import StreamError, _payload
from promptrollout.llm.answers.usage import Usage
from promptrollout.llm.protocols.chat import ChatReader
from tests.unit.gateway.kit import DONE, USAGE_CHUNK, chunk

STREAM = chunk("{") + b": keep-alive\n\n" + chunk('"a":1}') + chunk(None, "stop") + USAGE_CHUNK + DONE


def reader(forward_usage: bool = False) -> ChatReader:
    return ChatReader(forward_usage=forward_usage, collect_content=True)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100_000])
def test_any_cut_of_the_bytes_reads_the_same(size: int) -> None:
    read = reader()
    forwarded = b"".join(read.feed(STREAM[at : at + size]) for at in range(0, len(STREAM), size)) + read.finish()
    assert forwarded == STREAM.replace(USAGE_CHUNK, b"")
    assert read.usage == Usage(100, 0, 10)
    assert [(choice.content, choice.finish_reason) for choice in read.choices()] == [('{"a":1}', "stop")]
    assert read.complete


def test_usage_goes_on_to_callers_who_asked_for_it() -> None:
    assert reader(forward_usage=True).feed(STREAM) == STREAM


def test_usage_beside_choices_is_read_and_stays() -> None:
    event = chunk("x", usage={"prompt_tokens": 3, "completion_tokens": 1})
    read = reader()
    assert read.feed(event) == event
    assert read.usage == Usage(3, 0, 1)


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_other_line_ends(end: bytes) -> None:
    stream = STREAM.replace(b"\n", end)
    read = reader()
    assert read.feed(stream) == stream.replace(USAGE_CHUNK.replace(b"\n", end), b"")
    assert read.complete


@pytest.mark.parametrize("size", [1, 5, 100_000])
def test_line_ends_of_all_kinds_in_one_stream_and_events_of_several_lines(size: int) -> None:
    event = b'event: chunk\r\ndata: {"choices":[{"index":0,\ndata: "delta":{"content":"a"}}]}\n\n'
    stream = chunk("x") + event + chunk("y").replace(b"\n", b"\r\n") + chunk("z", "stop")
    read = reader()
    forwarded = b"".join(read.feed(stream[at : at + size]) for at in range(0, len(stream), size))
    assert forwarded == stream
    assert read.events == 4
    assert [choice.content for choice in read.choices()] == ["xayz"]


@pytest.mark.parametrize(
    ("stream", "complete"),
    [
        (b"", False),
        (chunk("x"), False),
        (chunk("x") + DONE, True),
        (chunk("x", "stop"), True),
        (chunk("x", "length"), True),
        (b": only a comment\n\n", False),
    ],
)
def test_complete_means_said_so(stream: bytes, complete: bool) -> None:
    read = reader()
    read.feed(stream)
    assert read.complete is complete


def test_a_last_event_without_its_blank_line_counts() -> None:
    read = reader()
    assert read.feed(chunk("x") + b"data: [DONE]") == chunk("x")
    assert read.finish() == b"data: [DONE]\n\n"
    assert read.done


def test_an_error_in_the_stream_is_noted_and_goes_on() -> None:
    event = b'data: {"error": {"message": "overloaded"}}\n\n'
    read = reader()
    assert read.feed(event) == event
    assert read.error == "overloaded"


@pytest.mark.parametrize("garbage", [b"data: <html>\n\n", b"data: [1]\n\n", b"data: x" * 200_000])
def test_garbage_is_an_error(garbage: bytes) -> None:
    with pytest.raises(StreamError):
        reader().feed(garbage)


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:   x \n\n", b"  x "),
        (b"event: e\ndata: x\n\n", b"x"),
        (b"event: e\nid: 1\ndata: x\n\n", b"x"),
        (b"data: x\nid: 1\n\n", b"x"),
        (b"data: x\ndata: y\n\n", b"x\ny"),
        (b"event: e\ndata: x\ndata: y\n\n", b"x\ny"),
        (b"data: x\r\n\r\n", b"x"),
        (b"data: x\rdata: y\r\r", b"x\ny"),
        (b"event: e\r\ndata: x\r\n\r\n", b"x"),
        (b": data: x\n\n", b""),
        (b"event: data: x\n\n", b""),
        (b"\ndata: x\n\n", b"x"),
        (b"data: \n\n", b""),
        (b"\n\n", b""),
    ],
)
def test_an_event_carries_its_data_lines(event: bytes, payload: bytes) -> None:
    assert _payload(event) == payload
