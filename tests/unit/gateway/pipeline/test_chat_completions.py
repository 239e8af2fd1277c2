"""A request's way against a real HTTP provider on loopback: what the caller gets, what is sent on, what is counted."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import pytest
from aiohttp import web

from promptrollout.api.delivery import DeliverySpec
from promptrollout.gateway.pipeline.request import Prepared
from promptrollout.gateway.process import Gateway
from tests.unit.gateway.kit import (
    CANARY,
    DONE,
    SCHEMA,
    USAGE_CHUNK,
    Caller,
    Provider,
    arm,
    chunk,
    completion,
    counted,
    delivery,
    request,
    says,
    series,
    serve,
    serve_both,
    serving,
    streams,
)

NOWHERE = "http://127.0.0.1:1/v1"
GOOD = '{"answer":"yes"}'
CLOSED = {**SCHEMA, "additionalProperties": False}


async def test_an_answer_passes_through_untouched_with_headers_that_say_what_answered(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url)
    body = orjson.dumps(completion(), option=orjson.OPT_INDENT_2)
    provider.script.append(says(200, body, **{"x-request-id": "r1", "set-cookie": "c=1", "openai-organization": "o"}))
    answered = await caller.post(request(extra_field=1))
    assert (answered.status, answered.body) == (200, body)
    assert answered.headers["x-request-id"] == "r1"
    assert answered.headers["x-promptrollout-rollout"] == "support"
    assert answered.headers["x-promptrollout-version"] == "a" * 10
    assert answered.headers["x-promptrollout-variant"] == "stable"
    assert not {"set-cookie", "openai-organization"} & set(answered.headers)
    assert provider.requests[0]["extra_field"] == 1
    assert counted(gateway) == {"stable": (1, 0)}
    assert series(gateway, "stable").total.cost_sum_usd == pytest.approx(100e-6 + 40e-6)


async def test_the_callers_headers_stay_here_but_for_its_trace(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url)
    await caller.post(request(), headers={"authorization": "Bearer caller", "traceparent": "00-1", "x-user-id": "u"})
    assert provider.headers[0]["traceparent"] == "00-1"
    assert not {"authorization", "x-user-id"} & set(provider.headers[0])


# ------------------------------------------------------------------------------------------- streaming


async def test_events_go_on_at_once_and_the_usage_that_only_we_asked_for_stays(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url, outputSchema=SCHEMA)
    seen = asyncio.Event()
    provider.script.append(streams(chunk('{"answer":'), seen, chunk('"yes"}', "stop"), USAGE_CHUNK, DONE))

    async def on_piece(piece: bytes) -> None:
        seen.set()  # the provider sends the second piece only when the caller has the first

    async with asyncio.timeout(5):
        answered = await caller.post(request(stream=True), on_piece=on_piece)
    assert answered.pieces[0] == chunk('{"answer":')
    assert answered.body == chunk('{"answer":') + chunk('"yes"}', "stop") + DONE
    assert answered.headers["content-type"].startswith("text/event-stream")
    assert provider.requests[0]["stream_options"] == {"include_usage": True}
    stable = series(gateway, "stable")
    assert (stable.total.requests, stable.total.contract_checks, stable.total.contract_failures) == (1, 1, 0)
    assert (stable.total.input_tokens, stable.total.cached_input_tokens, stable.output_tokens) == (100, 0, 10)


REFUSED = says(400, {"error": {"message": "Unrecognized request argument supplied: stream_options"}})


async def test_a_provider_that_refuses_stream_options_is_not_asked_for_usage_again(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url)
    plain = streams(chunk("yes", "stop"), DONE)
    provider.script.extend([REFUSED, plain, plain, plain])
    for _ in range(2):
        answered = await caller.post(request(stream=True))
        assert (answered.status, answered.body) == (200, chunk("yes", "stop") + DONE)
    await caller.post(request(stream=True, stream_options={"include_obfuscation": False}))
    options = [sent.get("stream_options") for sent in provider.requests]
    assert options == [{"include_usage": True}, None, None, {"include_obfuscation": False}]
    stable = series(gateway, "stable")
    assert (stable.total.requests, sum(stable.errors.values())) == (3, 0)
    assert (stable.usage_missing, stable.total.cost_count) == (3, 0), "no usage is not no cost"


async def test_who_is_asked_again_without_stream_options_has_what_is_left_of_the_time(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    async def slowly_refused(incoming: web.Request) -> web.StreamResponse:
        await asyncio.sleep(2.8)
        return await REFUSED(incoming)

    await serve(gateway, provider.url, provider_timeouts={"totalSeconds": 3, "firstByteSeconds": 3})
    provider.script.extend([slowly_refused, streams(asyncio.Event())])
    began = time.monotonic()
    assert (await caller.post(request(stream=True))).status == 504
    assert len(provider.requests) == 2
    assert 2.8 <= time.monotonic() - began < 5.5, "with another 3 s for the second it takes 5.8 s"


async def test_stream_options_of_the_callers_own_are_its_own_affair(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url)
    provider.script.append(REFUSED)
    answered = await caller.post(request(stream=True, stream_options={"include_usage": True}))
    assert (answered.status, len(provider.requests)) == (400, 1)
    # refused with and without ours: the provider is not to be remembered as one that does not know the field
    provider.script.extend([REFUSED, REFUSED])
    answered = await caller.post(request(stream=True, stream_options={"odd": 1}))
    assert (answered.status, len(provider.requests)) == (400, 3)
    provider.script.append(streams(chunk("yes", "stop"), USAGE_CHUNK, DONE))
    await caller.post(request(stream=True))
    assert provider.requests[3]["stream_options"] == {"include_usage": True}


async def test_a_broken_contract_in_a_stream_is_counted(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    await serve(gateway, provider.url, outputSchema=SCHEMA)
    provider.script.append(streams(chunk("prose", "stop"), DONE))
    await caller.post(request(stream=True))
    assert series(gateway, "stable").total.contract_failures == 1


@pytest.mark.parametrize("cut", [True, False])
async def test_half_a_stream_ends_in_an_error_event_and_counts_as_broken(
    gateway: Gateway, caller: Caller, provider: Provider, cut: bool
) -> None:
    await serve(gateway, provider.url)
    provider.script.append(streams(chunk("half"), cut=cut))
    answered = await caller.post(request(stream=True))
    assert answered.status == 200
    assert answered.body.startswith(chunk("half"))
    last = orjson.loads(answered.pieces[-1].removeprefix(b"data: "))
    assert last["error"]["code"] == "stream_broken"
    assert series(gateway, "stable").errors["stream_broken"] == 1
    assert len(provider.requests) == 1, "never again after the first byte"


async def test_an_error_inside_the_stream_is_the_arms(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    await serve(gateway, provider.url)
    provider.script.append(streams(chunk("x"), b'data: {"error": {"message": "overloaded"}}\n\n'))
    answered = await caller.post(request(stream=True))
    assert answered.body.count(b'"error"') == 1
    assert series(gateway, "stable").errors["stream_broken"] == 1


async def test_a_stream_that_breaks_before_its_first_event_is_a_plain_error(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url)
    provider.script.append(streams(b"data: <html>\n\n"))
    answered = await caller.post(request(stream=True))
    assert (answered.status, answered.error["code"]) == (502, "provider_bad_response")
    assert series(gateway, "stable").errors["bad_response"] == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_caller_who_hangs_up_stops_the_provider_and_is_counted_as_gone(
    gateway: Gateway, caller: Caller, provider: Provider, stream: bool
) -> None:
    await serve(gateway, provider.url)
    never, gone = asyncio.Event(), asyncio.Event()
    answer = streams(chunk("x") if stream else b"{", never)

    async def hangs(incoming: web.Request) -> web.StreamResponse:
        if not stream:
            gone.set()
        return await answer(incoming)

    provider.script.append(hangs)

    async def on_piece(piece: bytes) -> None:
        gone.set()

    async with asyncio.timeout(5):
        await caller.post(request(stream=stream), hang_up=gone, on_piece=on_piece)
        await provider.cancelled.wait()
    assert counted(gateway) == {"stable": (1, 0)}
    stable = series(gateway, "stable")
    assert (stable.total.abandoned, stable.total.contract_checks, stable.total.cost_count, stable.usage_missing) == (
        1,
        0,
        0,
        1,
    )
    assert gateway.counters.disconnects == 1
    assert gateway.counters.in_flight == 0


async def test_who_gives_up_on_a_canary_that_hangs_is_in_its_latency(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve_both(gateway, provider.url, outputSchema=SCHEMA)
    never, asked, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hangs(incoming: web.Request) -> web.StreamResponse:
        asked.set()
        await never.wait()
        raise AssertionError

    provider.script.append(hangs)
    under_way = asyncio.create_task(caller.post(request(), hang_up=gone))
    async with asyncio.timeout(5):
        await asked.wait()
        await asyncio.sleep(0.05)
        gone.set()
        await under_way
    canary = series(gateway, "canary")
    assert (canary.total.requests, canary.total.abandoned, sum(canary.errors.values())) == (1, 1, 0)
    assert (sum(canary.duration.bins), canary.duration.seconds_sum >= 0.05) == (1, True)
    assert canary.in_flight == 0


async def test_who_hangs_up_with_the_answer_in_hand_is_counted_once(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url)
    provider.script.append(streams(chunk("half")))
    gone = asyncio.Event()

    async def on_piece(piece: bytes) -> None:
        if b'"error"' in piece:  # the request is accounted for already
            gone.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(5):
        await caller.post(request(stream=True), hang_up=gone, on_piece=on_piece)
    assert counted(gateway) == {"stable": (1, 1)}
    assert series(gateway, "stable").total.abandoned == 0


async def test_a_gateway_that_is_stopped_blames_nobody(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    await serve(gateway, provider.url)
    never, asked = asyncio.Event(), asyncio.Event()

    async def hangs(incoming: web.Request) -> web.StreamResponse:
        asked.set()
        await never.wait()
        raise AssertionError

    provider.script.append(hangs)
    under_way = asyncio.create_task(caller.post(request()))
    async with asyncio.timeout(5):
        await asked.wait()
        under_way.cancel()
        await asyncio.gather(under_way, return_exceptions=True)
    assert counted(gateway) == {}


async def test_who_hangs_up_before_the_request_was_whole_counts_for_nobody(gateway: Gateway) -> None:
    await gateway.registry.apply("support", delivery())

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    await gateway.serving_app(scope, receive, send)
    assert counted(gateway) == {}
    assert gateway.counters.disconnects == 1


async def test_the_time_of_a_slow_reader_is_not_the_providers(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url)
    provider.script.append(streams(chunk("x"), chunk("y", "stop"), DONE))

    async def slow(piece: bytes) -> None:
        await asyncio.sleep(0.1)

    await caller.post(request(stream=True), on_piece=slow)
    assert series(gateway, "stable").duration.seconds_sum < 0.1


# ------------------------------------------------------------------------------------------- a provider that fails


@pytest.mark.parametrize(
    ("status", "shown", "error_type", "calls"),
    [
        (400, 400, "provider_4xx", 1),
        (404, 404, "provider_4xx", 1),
        (429, 429, "rate_limited", 3),
        (500, 502, "provider_5xx", 1),
        (502, 502, "provider_5xx", 3),
        (503, 503, "provider_5xx", 3),
        (302, 502, "bad_response", 1),
    ],
)
async def test_the_providers_errors_are_passed_on_in_openais_shape(
    gateway: Gateway, caller: Caller, provider: Provider, status: int, shown: int, error_type: Any, calls: int
) -> None:
    await serve(gateway, provider.url)
    said = {"error": {"message": "because", "type": "t", "param": "p", "code": "c"}}
    provider.script.extend([says(status, said, **{"retry-after": "0"})] * calls)
    answered = await caller.post(request(stream=True))
    assert answered.status == shown
    assert answered.error["message"] == f"provider openai answered {status}: because"
    assert (answered.error["code"], answered.error["param"]) == ("c", "p")
    assert answered.headers["retry-after"] == "0"
    assert answered.headers["x-promptrollout-version"] == "a" * 10
    assert len(provider.requests) == calls
    stable = series(gateway, "stable")
    assert (stable.total.requests, stable.errors[error_type], sum(stable.errors.values())) == (1, 1, 1)
    assert stable.total.cost_count == 1, "a request that failed cost nothing, and that is known"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_of_ours_that_is_refused_does_not_look_like_the_callers(
    status: int, gateway: Gateway, caller: Caller, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    await serve(gateway, provider.url)
    said = {"error": {"message": "Incorrect API key", "type": "t", "param": None, "code": "invalid_api_key"}}
    provider.script.extend([says(status, said)] * 3)
    for _ in range(3):
        answered = await caller.post(request())
        assert (answered.status, answered.error["code"]) == (502, "provider_auth")
        assert answered.error["message"] == (
            f"provider openai answered {status}: Incorrect API key; it rejected the gateway's key: "
            "see apiKeySecretRef of ModelProvider openai"
        )
    assert series(gateway, "stable").errors["provider_4xx"] == 3
    said_once = [each for each in caplog.messages if "see apiKeySecretRef of ModelProvider openai" in each]
    assert len(said_once) == 1


async def test_a_404_says_what_is_likely_wrong_with_the_base_url(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    provider.script.extend([says(404, b""), says(404, b"")])
    await gateway.registry.apply("support", delivery(stable=arm(url=f"{provider.url}/chat/completions")))
    answered = await caller.post(request())
    assert (answered.status, answered.error["message"]) == (
        404,
        "provider openai answered 404; baseURL of ModelProvider openai ends in /chat/completions, and the gateway "
        "appends such paths itself; leave it out",
    )
    await gateway.registry.apply("support", delivery(2, stable=arm(url=provider.url)))
    assert (await caller.post(request())).error["message"] == "provider openai answered 404"


async def test_input_that_a_router_moderated_is_the_callers(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url)
    said = {"code": 403, "message": "flagged", "metadata": {"reasons": ["violence"], "flagged_input": "..."}}
    provider.script.append(says(403, {"error": said}))
    answered = await caller.post(request())
    assert (answered.status, answered.error["code"]) == (403, "provider_4xx")


async def test_errors_that_are_no_json_have_a_message_too(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    await serve(gateway, provider.url)
    provider.script.append(says(500, b"<html>", **{"content-type": "text/html"}))
    answered = await caller.post(request())
    assert answered.error == {
        "message": "provider openai answered 500",
        "type": "server_error",
        "param": None,
        "code": "provider_5xx",
    }


@pytest.mark.parametrize("garbage", [b"<html>Bad Gateway</html>", b"", b"[]", b'{"choices": 1}', b'{"a":'])
async def test_garbage_with_status_200_is_a_502(
    gateway: Gateway, caller: Caller, provider: Provider, garbage: bytes
) -> None:
    await serve(gateway, provider.url)
    provider.script.append(says(200, garbage))
    answered = await caller.post(request())
    assert (answered.status, answered.error["code"]) == (502, "provider_bad_response")
    assert series(gateway, "stable").errors["bad_response"] == 1


async def test_a_second_try_that_succeeds_is_a_success(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    await serve(gateway, provider.url)
    provider.script.extend([says(503, b""), streams(b"", cut=True)])
    answered = await caller.post(request())
    assert answered.status == 200
    assert len(provider.requests) == 3
    assert counted(gateway) == {"stable": (1, 0)}
    assert gateway.providers.retries() == {"openai": 2}


async def test_a_provider_that_asks_for_too_long_a_pause_is_not_waited_for(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url)
    provider.script.append(says(429, b"", **{"retry-after": "3600"}))
    answered = await caller.post(request())
    assert (answered.status, answered.headers["retry-after"]) == (429, "3600")
    assert len(provider.requests) == 1


@pytest.mark.parametrize(
    ("base_url", "said"),
    [
        ("http://nobody.invalid/v1", "provider openai cannot be reached: its host name cannot be resolved"),
        (NOWHERE, "provider openai cannot be reached: Connection refused"),
        ("hangs up", "the connection to provider openai failed: it closed the connection before it answered"),
        ("no TLS", "provider openai cannot be reached: the TLS handshake failed"),
    ],
)
async def test_why_there_is_no_connection_is_said_in_words(
    base_url: str, said: str, gateway: Gateway, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if base_url == "no TLS":
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    scheme = {"hangs up": "http", "no TLS": "https"}.get(base_url)
    url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1" if scheme else base_url
    async with server:
        await gateway.registry.apply("support", delivery(stable=arm(url=url, provider_maxRetries=0)))
        for _ in range(4):
            answered = await caller.post(request())
    assert (answered.status, answered.error["message"]) == (502, said)
    why = f"{urlsplit(url).netloc}: {said.rpartition(': ')[2]}"
    assert gateway.reporter.report().rollouts[0].circuit_failures == {"stable/openai/gpt": why}
    assert caplog.messages.count(f"provider openai at {why}") == 1


async def test_silence_is_a_504(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    await serve(gateway, provider.url, provider_timeouts={"connectSeconds": 5})
    serving = gateway.registry.find("support")
    assert serving is not None
    never = asyncio.Event()
    provider.script.append(streams(never))
    # the API knows whole seconds only
    object.__setattr__(serving.stable.own.config.timeouts, "first_byte_seconds", 0.05)
    answered = await caller.post(request())
    assert (answered.status, answered.error["code"]) == (504, "provider_timeout")
    assert series(gateway, "stable").errors["timeout"] == 1


async def test_no_connection_is_tried_again_and_then_a_502_without_the_address(
    gateway: Gateway, caller: Caller
) -> None:
    await gateway.registry.apply("support", delivery(stable=arm(url=NOWHERE)))
    answered = await caller.post(request())
    assert (answered.status, answered.error["code"]) == (502, "provider_connection")
    assert "127.0.0.1" not in answered.error["message"]
    assert gateway.providers.retries() == {"openai": 2}
    assert series(gateway, "stable").errors["connection"] == 1


# ------------------------------------------------------------------------------------------- only the canary's is down


async def test_while_only_the_canarys_provider_is_down_stable_answers(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    canary = arm(CANARY, NOWHERE, provider_name="other")
    await gateway.registry.apply("support", delivery(weight=100, stable=arm(url=provider.url), canary=canary))
    for n in range(4):
        answered = await caller.post(request(user=f"u{n}"))
        assert (answered.status, answered.headers["x-promptrollout-variant"]) == (200, "stable")
        report = gateway.reporter.report().rollouts[0]
        assert report.canary_provider_unreachable is (n >= 2)
    assert counted(gateway) == {}
    assert gateway.counters.diverted == {("uid-1", "support"): 4}
    serving = gateway.registry.find("support")
    assert serving is not None
    assert serving.canary is not None
    # it comes back: after the next probe, one request finds out
    serving.canary.provider.base_url = provider.url
    serving.canary.circuit.record_probe(await serving.canary.provider.probe(serving.canary.own.config))
    assert (await caller.post(request(user="u9"))).headers["x-promptrollout-variant"] == "canary"
    assert not gateway.reporter.report().rollouts[0].canary_provider_unreachable


async def test_when_both_providers_are_down_it_is_an_error_of_the_assigned_arm(
    gateway: Gateway, caller: Caller
) -> None:
    canary = arm(CANARY, "http://127.0.0.1:2/v1", provider_name="other")
    stable = arm(url=NOWHERE, provider_maxRetries=0)
    await gateway.registry.apply("support", delivery(weight=100, stable=stable, canary=canary))
    for n in range(4):
        assert (await caller.post(request(user=f"u{n}"))).status == 502
    assert counted(gateway) == {"canary": (4, 4)}
    assert not gateway.reporter.report().rollouts[0].canary_provider_unreachable


async def test_a_canary_whose_provider_answers_with_errors_is_not_diverted(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    async with Provider() as other:
        other.script.append(says(500, b""))
        canary = arm(CANARY, other.url, provider_name="other")
        await gateway.registry.apply("support", delivery(weight=100, stable=arm(url=provider.url), canary=canary))
        assert (await caller.post(request())).status == 502
    assert counted(gateway) == {"canary": (1, 1)}


# ------------------------------------------------------------------------------------------- variables


def needs(name: str) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": f"For {{{{ {name} }}}}"}]}


async def test_a_variable_missing_in_both_arms_is_the_callers_fault(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    stable, canary = arm(url=provider.url, **needs("company")), arm(CANARY, provider.url, **needs("company"))
    await gateway.registry.apply("support", delivery(weight=50, stable=stable, canary=canary))
    for n in range(20):
        answered = await caller.post(request(user=f"u{n}"))
        assert (answered.status, answered.error["code"]) == (400, "prompt_variable_missing")
        assert answered.error["param"] == "prompt_variables.company"
        assert "'company'" in answered.error["message"]
    assert counted(gateway) == {}
    assert provider.requests == []


async def test_a_variable_missing_in_the_canary_only_is_answered_by_stable_and_counts_against_the_canary(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve_both(gateway, provider.url, **needs("company"))
    answered = await caller.post(request())
    assert (answered.status, answered.headers["x-promptrollout-variant"]) == (200, "stable")
    assert provider.requests[0]["messages"][0]["content"] == "You are a."
    canary = series(gateway, "canary")
    assert (canary.total.requests, canary.errors["render"], canary.total.cost_count) == (1, 1, 1)
    assert canary.total.cost_sum_usd > 0, "what it took to answer is the canary's cost"


async def test_a_variable_missing_in_stable_only_counts_against_stable(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    stable, canary = arm(url=provider.url, **needs("company")), arm(CANARY, provider.url)
    await gateway.registry.apply("support", delivery(weight=0, stable=stable, canary=canary))
    assert (await caller.post(request())).status == 400
    assert counted(gateway) == {"stable": (1, 1)}


SYSTEM_MESSAGE = request(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])


async def test_a_system_message_that_only_the_canary_refuses_is_answered_by_stable_and_counts_against_the_canary(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve_both(gateway, provider.url, callerSystemMessage="Refuse")
    answered = await caller.post(SYSTEM_MESSAGE)
    assert (answered.status, answered.headers["x-promptrollout-variant"]) == (200, "stable")
    canary = series(gateway, "canary")
    assert (canary.total.requests, canary.errors["system_message"], sum(canary.errors.values())) == (1, 1, 1)
    assert canary.total.cost_sum_usd > 0
    # who sends none is the canary's
    assert (await caller.post(request())).headers["x-promptrollout-variant"] == "canary"


async def test_a_system_message_that_both_arms_refuse_is_the_callers_fault(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    refusing = {"callerSystemMessage": "Refuse"}
    stable, canary = arm(url=provider.url, **refusing), arm(CANARY, provider.url, **refusing)
    for given in (delivery(weight=100, stable=stable, canary=canary), delivery(sequence=2, stable=stable)):
        await gateway.registry.apply("support", given)
        answered = await caller.post(SYSTEM_MESSAGE)
        assert (answered.status, answered.error["code"]) == (400, "system_message_refused")
        assert (answered.error["param"], "leave them out" in answered.error["message"]) == ("messages", True)
    assert counted(gateway) == {}
    assert provider.requests == []


async def test_a_system_message_that_only_stable_refuses_counts_against_stable(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    stable, canary = arm(url=provider.url, callerSystemMessage="Refuse"), arm(CANARY, provider.url)
    await gateway.registry.apply("support", delivery(weight=0, stable=stable, canary=canary))
    assert (await caller.post(SYSTEM_MESSAGE)).error["code"] == "system_message_refused"
    assert counted(gateway) == {"stable": (1, 1)}


async def test_a_template_that_fails_alone_is_an_error_of_its_version(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url, messages=[{"role": "system", "content": "{{ 1 // n }}"}])
    answered = await caller.post(request(prompt_variables={"n": 0}))
    assert (answered.status, answered.error["code"]) == (400, "prompt_render_failed")
    assert series(gateway, "stable").errors["render"] == 1


# ------------------------------------------------------------------------------------------- who is counted


async def test_who_has_no_key_or_is_outside_the_audience_is_no_evidence(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    audience = {"include": [{"header": "x-plan", "values": ["free"]}]}
    stable, canary = arm(url=provider.url), arm(CANARY, provider.url)
    await gateway.registry.apply("support", delivery(weight=100, stable=stable, canary=canary, audience=audience))
    await caller.post(request())
    await caller.post(request(user=None), headers={"x-plan": "free"})
    await caller.post(request(), headers={"x-plan": "free"})
    assert counted(gateway) == {"stable-outside": (2, 0), "canary": (1, 0)}
    assert gateway.counters.unassigned == {("uid-1", "support"): 1}
    assert gateway.reporter.report().rollouts[0].unassigned_share_percent == 34


async def test_the_emergency_override_wins_over_any_weight(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve_both(gateway, provider.url)
    assert (await caller.post(request())).headers["x-promptrollout-variant"] == "canary"
    await gateway.registry.set_overrides({"support"})
    assert (await caller.post(request())).headers["x-promptrollout-variant"] == "stable"
    assert gateway.reporter.report().rollouts[0].overridden
    await gateway.registry.set_overrides(set())
    assert (await caller.post(request())).headers["x-promptrollout-variant"] == "canary"


# ------------------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"not json", 400, "invalid_json"),
        (b"", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b'{"a": NaN}', 400, "invalid_json"),
        pytest.param(b'{"a": [' + b"{}," * 250_000 + b"{}]}", 400, "invalid_json", id="a quarter of a million objects"),
        (b"\xff", 400, "invalid_json"),
        pytest.param(b"[" * 100_000, 400, "invalid_json", id="100,000 brackets"),
        ({"messages": []}, 400, "model_missing"),
        ({"model": 5}, 400, "model_missing"),
        ({"model": "nobody"}, 404, "model_not_found"),
        (request(messages="hi"), 400, "invalid_type"),
        (request(prompt_variables="hi"), 400, "invalid_type"),
        (b'{"model":"support","x":' + b"[" * 500 + b"]" * 500 + b"}", 400, "invalid_json"),
        (request(filler="x" * 10_000_000), 413, "request_too_large"),
    ],
)
async def test_a_bad_request_gets_a_clear_error_and_counts_for_nobody(
    gateway: Gateway, caller: Caller, provider: Provider, body: Any, status: int, code: str
) -> None:
    await serve(gateway, provider.url)
    answered = await caller.post(body)
    assert (answered.status, answered.error["code"]) == (status, code)
    assert answered.error["type"] == "invalid_request_error"
    assert counted(gateway) == {}
    assert gateway.counters.rejected == {code: 1}
    assert (await caller.post(request())).status == 200


async def test_compressed_requests_and_other_urls_are_refused_in_openais_shape(caller: Caller) -> None:
    assert (await caller.post(request(), headers={"content-encoding": "gzip"})).status == 415
    assert (await caller.post(request(), path="/v1/audio/speech")).error["code"] == "unknown_url"
    assert (await caller.get("/v1/chat/completions")).status == 405


async def test_too_many_at_once_are_sent_away_for_a_moment(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url)
    gateway.counters.in_flight = gateway.settings.limits.max_concurrent_requests
    answered = await caller.post(request())
    assert (answered.status, answered.headers["retry-after"]) == (503, "1")
    assert answered.error["code"] == "overloaded"


async def test_models_are_the_rollouts(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    await serve(gateway, provider.url)
    assert [model["id"] for model in (await caller.get("/v1/models")).json["data"]] == ["support"]
    assert (await caller.get("/v1/models/support")).json["id"] == "support"
    assert (await caller.get("/v1/models/nobody")).error["code"] == "model_not_found"


async def test_the_contract_is_checked_on_whole_answers(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    await serve(gateway, provider.url, outputSchema=SCHEMA)
    for content, reason in [(GOOD, "stop"), ("prose", "stop"), ("pro", "length")]:
        provider.script.append(says(200, completion(content, reason)))
        await caller.post(request())
    provider.script.append(says(200, completion("prose")))
    await caller.post(request(response_format={"type": "json_schema", "json_schema": {"name": "mine"}}))
    stable = series(gateway, "stable")
    assert (stable.total.requests, stable.total.contract_checks, stable.total.contract_failures) == (4, 2, 1)


@pytest.mark.parametrize("kind", ["OpenAI", "Anthropic"])
@pytest.mark.parametrize("looser", ["json_object", "text"])
async def test_what_is_judged_by_the_versions_schema_was_asked_for_by_it(
    gateway: Gateway, caller: Caller, provider: Provider, kind: str, looser: str
) -> None:
    await serve(gateway, provider.url, outputSchema=CLOSED, provider_type=kind)
    message = {"type": "message", "content": [{"type": "text", "text": GOOD}], "stop_reason": "end_turn"}
    answers: list[Any] = [message] * 2
    if kind == "OpenAI":
        text = {"type": "message", "content": [{"type": "output_text", "text": GOOD}]}
        answers = [completion(GOOD), {"status": "completed", "output": [text]}]
    provider.script.extend(says(200, answer) for answer in answers)
    assert (await caller.post(request(response_format={"type": looser}))).status == 200
    asked = {"model": "support", "user": "u1", "input": "Hello", "text": {"format": {"type": looser}}}
    assert (await caller.post(asked, "/v1/responses")).status == 200
    chat, response = provider.requests
    if kind == "OpenAI":
        sent = chat["response_format"]["json_schema"]["schema"], response["text"]["format"]["schema"]
    else:
        sent = chat["output_config"]["format"]["schema"], response["output_config"]["format"]["schema"]
    assert sent == (CLOSED, CLOSED)
    total = series(gateway, "stable").total
    assert (total.contract_checks, total.contract_failures) == (2, 0)


async def test_a_head_that_cannot_be_written_is_an_error_and_no_success(
    gateway: Gateway, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await serve(gateway, provider.url)
    provider.script.extend([says(), streams(chunk("Hello"), chunk(None, "stop"), DONE)])
    monkeypatch.setattr(Prepared, "response_headers", lambda *_: {"x-promptrollout-model": "gpt\r\nset-cookie: a=b"})
    async with serving(gateway.serving_app) as url, aiohttp.ClientSession() as session:
        for stream in (False, True):
            async with session.post(f"{url}/v1/chat/completions", json=request(stream=stream)) as answered:
                assert (answered.status, (await answered.json())["error"]["code"]) == (500, "internal")
                assert "set-cookie" not in answered.headers
    stable = series(gateway, "stable")
    assert (stable.total.requests, stable.errors["internal"]) == (2, 2)


@pytest.mark.parametrize("model", ["gpt\n", "gp\x1bt", " gpt", "gpt\x7f", "gpt\u2028x"])
async def test_a_model_that_no_header_can_name_is_not_served(gateway: Gateway, provider: Provider, model: str) -> None:
    for changes in ({"model": model}, {"fallbacks": [{"providerRef": {"name": "other"}, "model": model}]}):
        with pytest.raises(ValueError, match="model"):
            DeliverySpec.model_validate(delivery(stable=arm(url=provider.url, **changes)))
    DeliverySpec.model_validate(delivery(stable=arm(model="arn:aws:bedrock:eu-west-1::m/an thropic.claude-4:0")))


async def test_a_request_of_megabytes_within_the_limit_arrives(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url)
    provider.script.append(says(503, b""))  # and so it does at the second try
    assert (await caller.post(request(filler="x" * 3_000_000))).status == 200
    assert [len(sent["filler"]) for sent in provider.requests] == [3_000_000] * 2
