"""What callers, templates and providers may try to slip in: code, headers, events, depth. Where secrets never are."""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from promptrollout.gateway.auth.authenticate import Auth
from promptrollout.gateway.process import Gateway, Settings
from promptrollout.gateway.server.app import Limits
from promptrollout.llm.prompts.bounds import RenderError
from promptrollout.llm.prompts.templates import MissingVariable, compile_renderer
from tests.unit.gateway.kit import (
    DONE,
    LOOPBACK,
    USAGE_CHUNK,
    Caller,
    Provider,
    arm,
    chunk,
    counted,
    delivery,
    request,
    says,
    series,
    streams,
)
from tests.unit.gateway.live import listening, say

# ------------------------------------------------------------ templates

USER_TEXTS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ config }} {{ self }} {{ request }}",
    "{% for x in range(10**9) %}{% endfor %}",
    "{% import 'os' as os %}{{ os.popen('id').read() }}",
    "{# a comment #}{% raw %}{{ 1 }}{% endraw %}",
    "{{ 7 * 7 }} ${7*7} #{7*7} <%= 7*7 %> {{=49}}",
    "{0.__class__} {company.__init__.__globals__} %(company)s %s %n",
    "{{ company }}{{ company|attr('format') }}",
    "{{" * 5000,
    "}}%}#}",
    'data: [DONE]\n\ndata: {"choices":[]}\n\n',
    "\u2028\u2029\u0085\x0b\x0c\ufeff\u202e\u200b\x00",
    "\r\nSet-Cookie: a=b\r\n\r\nHTTP/1.1 200 OK",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 z\u0351\u036b\u0343 \u0130\u0131",
]


@pytest.mark.parametrize("text", USER_TEXTS, ids=range(len(USER_TEXTS)))
async def test_text_of_a_request_is_only_ever_a_value(
    text: str, gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    """In a variable, in a message, in a name, in a list: it arrives at the model as it was sent."""
    messages = [
        {"role": "system", "content": "For {{ company }}: {{ items|join(', ') }} {{ deep.inner }}"},
        {"placeholder": "history"},
    ]
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url, messages=messages)))
    variables = {"company": text, "items": [text, text], "deep": {"inner": text, text: "key"}}
    asked = request(user=text, prompt_variables=variables, messages=[{"role": "user", "content": text, "name": text}])
    answer = await caller.post(asked)
    assert answer.status == 200
    (sent,) = provider.requests
    assert sent["messages"][0]["content"] == f"For {text}: {text}, {text} {text}"
    assert sent["messages"][1] == {"role": "user", "content": text, "name": text}


WATCHDOG_CPU_SECONDS = 20.0
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ x['__class__'] }}",
    "{{ x|attr('__class__') }}",
    "{{ x|attr('__cl' ~ 'ass__') }}",
    "{{ [x]|map(attribute='__class__')|list }}",
    "{{ [x]|map('attr', '__class__')|list }}",
    "{{ [x]|groupby('__class__') }}",
    "{{ [x]|selectattr('__class__')|list }}",
    "{{ [x]|sort(attribute='__class__.__name__') }}",
    "{{ x.format.__func__ }}",
    "{{ '{0.__class__}'.format(x) }}",
    "{{ '{0.__class__}'.format_map({'0': x}) }}",
    "{{ '%s'|format(x) }}",
    "{{ '%99999999d' % 1 }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__ }}",
    "{{ url_for.__globals__ }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ range.__class__ }}",
    "{{ (x for x in ()).gi_frame }}",
    "{{ caller.__globals__ }}",
    "{{ loop.__init__ }}",
    "{% for a in [1] %}{{ loop.__class__ }}{% endfor %}",
    "{% import 'os' as os %}",
    "{% include '/etc/passwd' %}",
    "{% extends '/etc/passwd' %}",
    "{% from 'os' import popen %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% call x() %}{% endcall %}",
    "{% set ns = namespace() %}{% set ns.x = 1 %}",
    "{% do x.append(1) %}",
    "{{ xs.append(xs) }}",
    "{{ d.update({}) }}",
    "{{ d.__setitem__('a', 1) }}",
    "{{ xs.sort() }}",
    "{{ range(999999999)|list }}",
    "{{ range(99999)|list * 99999 }}",
    "{{ 'a' * 999999999 }}",
    "{{ 9 ** 9 ** 9 ** 9 }}",
    "{{ 'x'|center(999999999) }}",
    "{{ 'x'|indent(999999999) }}",
    "{{ 'x'.ljust(999999999) }}",
    "{{ 'x'.zfill(999999999) }}",
    "{{ x|pprint }}",
    "{{ x|xmlattr }}",
    "{{ x|urlize }}",
    "{{ x|random }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in xs recursive %}{{ loop(xs) }}{% endfor %}",
    "{% filter upper %}{{ ''.__class__ }}{% endfilter %}",
    "{% debug %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "-" * 50_000 + "1 }}",
    "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
]


@pytest.mark.parametrize("text", ESCAPES, ids=range(len(ESCAPES)))
def test_no_template_gets_out_of_its_sandbox_or_holds_the_gateway(text: str) -> None:
    """Refused when it is compiled or filled, within the time, or filled with nothing that gives anything away."""
    began = time.process_time()
    try:
        made = compile_renderer(text)({"x": "value", "xs": [1, 2], "d": {"a": 1}})
    except (ValueError, RenderError, MissingVariable) as problem:
        made = str(problem)
    assert time.process_time() - began < WATCHDOG_CPU_SECONDS, "a bound does not hold"
    for leak in ("<class", "<function", "<module", "<frame", "root:", "__globals__': ", "object at 0x"):
        assert leak not in made
    assert len(made) < 2_000_000


# ------------------------------------------------------------ JSON


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    inner = opening * depth + closing * depth
    return orjson.dumps(request())[:-1] + f',"extra":{inner}}}'.encode()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (nested(60), 200),
        (nested(64), 400),
        (nested(250), 400),
        (nested(1000), 400),
        (nested(200_000), 400),
        (nested(30_000, '{"a":', "}").replace(b'{"a":}', b"{}"), 400),
        (orjson.dumps(request(extra=[[]] * 10_000)), 200),
        (orjson.dumps(request(extra=[{"a": [{"b": [1]}]}] * 5000)), 200),
        (orjson.dumps(request())[:-1] + b',"user":"\\ud800"}', 400),
        (orjson.dumps(request())[:-1] + b',"n":' + b"9" * 5000 + b"}", 400),
        (orjson.dumps(request())[:-1] + b',"n":1e999}', 400),
        (orjson.dumps(request())[:-1] + b',"n":NaN}', 400),
        (orjson.dumps(request())[:-1] + b',"n":1}{"model":"support"}', 400),
        (b"\xef\xbb\xbf" + orjson.dumps(request()), 400),
        (orjson.dumps(request()).decode().encode("utf-16"), 400),
        (b"\xff\xfe" + orjson.dumps(request()), 400),
        (orjson.dumps(request())[:-1] + b',"a":"\x00"}', 400),
        (b"[]", 400),
        (b'"support"', 400),
        (b"", 400),
    ],
    ids=range(20),
)
async def test_json_is_bounded_and_strict(
    body: bytes, status: int, gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url)))
    began = time.process_time()
    answer = await caller.post(body)
    assert time.process_time() - began < WATCHDOG_CPU_SECONDS, "a bound does not hold"
    assert (answer.status, len(answer.body) < 2000) == (status, True)
    if status == 400:
        assert answer.error["code"] == "invalid_json"
        assert counted(gateway) == {}


# ------------------------------------------------------------ what providers send


@asynccontextmanager
async def raw_provider(answer: bytes) -> AsyncIterator[str]:
    """Answers every request with these bytes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()


def answered(*headers: bytes, body: bytes = orjson.dumps({"choices": [{"message": {"content": "a"}}]})) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"content-type: application/json", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    "header",
    [
        b"x-request-id: a\nset-cookie: b=c",
        b"x-request-id: a\rset-cookie: b=c",
        b"x-request-id: a\x00b",
        b"x-request-id: a\x01b",
        b"x-request-id: a\x7fb",
        b"x-request-id: a\r\n folded: b",
        b"x-request-id: \xff\xfe\x80",
        "x-request-id: Zoë \u2028".encode(),
        b"x-bad(name): a",
        b"set-cookie: session=1",
        b"transfer-encoding: chunked",
        b"content-length: 1",
        b"x-promptrollout-variant: canary",
        b"connection: upgrade, x-request-id",
    ],
)
async def test_headers_of_a_provider_never_become_lines_of_ours(header: bytes, gateway: Gateway) -> None:
    """It is answered, or the provider is said to speak no HTTP; whichever, there is one answer, without its tricks."""
    async with raw_provider(answered(header)) as url, listening(gateway.serving_app) as port:
        await gateway.registry.apply("support", delivery(stable=arm(url=url, provider_maxRetries=0)))
        body = orjson.dumps(request())
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        answer, closed = await say(port, head % len(body) + body, seconds=3)
        assert closed
        lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
        assert lines[0].split()[1] in (b"200", b"502")
        assert answer.count(b"HTTP/1.1 ") == 1
        names = [line.partition(b":")[0].lower() for line in lines[1:]]
        assert len(names) == len(set(names))
        assert b"set-cookie" not in names
        assert b"x-promptrollout-variant: stable" in lines
        assert not any(byte in b"\n".join(lines) for byte in (0, 1, 13, 127))
        total = series(gateway, "stable").total.requests
        assert total == 1


@pytest.mark.parametrize("value", ["Zoë \u2028".encode(), "Zoë".encode("latin-1"), b"\xff\xfe\x80", b"a \xc3"])
@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request"])
async def test_a_header_of_a_provider_goes_on_byte_by_byte(value: bytes, status: bytes, gateway: Gateway) -> None:
    """Whatever they mean: nobody but provider and caller knows."""
    said = answered(b"x-request-id: " + value).replace(b"200 OK", status, 1)
    async with raw_provider(said) as url, listening(gateway.serving_app) as port:
        await gateway.registry.apply("support", delivery(stable=arm(url=url, provider_maxRetries=0)))
        body = orjson.dumps(request())
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        answer, _ = await say(port, head % len(body) + body, seconds=3)
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert b"\r\nx-request-id: " + value + b"\r\n" in answer


@pytest.mark.parametrize(("sent", "got"), [("Zoë".encode(), "Zoë"), ("Zoë".encode("latin-1"), "Zo"), (b"a\xffb", "ab")])
@pytest.mark.parametrize("name", ["tracestate", "traceparent", "x-client-request-id"])
async def test_a_header_of_a_caller_goes_on_byte_by_byte_without_what_is_no_text(
    name: str, sent: bytes, got: str, gateway: Gateway, provider: Provider
) -> None:
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url)))
    async with listening(gateway.serving_app) as port:
        body = orjson.dumps(request())
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n"
        line = name.encode() + b": " + sent
        answer, _ = await say(port, head % len(body) + line + b"\r\n\r\n" + body, seconds=3)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert provider.headers[0][name] == got


SAYS = ["data: [DONE]\n\n", "\n\nevent: error\ndata: {}\n\n", "\r\rdata: x", "\u2028data: [DONE]", ": comment\n\n"]


@pytest.mark.parametrize("text", SAYS, ids=range(len(SAYS)))
async def test_an_answer_that_looks_like_events_is_text(
    text: str, gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    pieces = [chunk(text), chunk(text * 3), chunk(finish_reason="stop"), USAGE_CHUNK, DONE]
    provider.script.append(streams(*pieces))
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url)))
    answer = await caller.post(request(stream=True))
    events = [event for event in answer.body.split(b"\n\n") if event]
    assert [event.startswith((b"data: {", b"data: [DONE]")) for event in events] == [True] * 4
    said = [orjson.loads(event[6:])["choices"][0]["delta"].get("content") for event in events[:2]]
    assert said == [text, text * 3]
    assert (series(gateway, "stable").total.requests, counted(gateway)["stable"][1]) == (1, 0)


async def test_an_error_in_mid_stream_stays_one_event(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    """Whatever the provider wrote before it broke: the last event is our error, and no end that it forged."""
    first = asyncio.Event()
    provider.script.append(streams(chunk("Hel"), first, b'data: {"x": "\n\ndata: [DONE]\n\n', DONE))
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url)))

    async def arrived(_: bytes) -> None:
        first.set()

    answer = await caller.post(request(stream=True), on_piece=arrived)
    *_, last = [event for event in answer.body.split(b"\n\n") if event]
    assert last.startswith(b"data: {")
    assert orjson.loads(last[6:])["error"]["code"]
    assert b"[DONE]" not in answer.body
    assert counted(gateway) == {"stable": (1, 1)}


# ------------------------------------------------------------ secrets

PROVIDER_KEY = "sk-provider-4242424242424242"
CALLER_KEY = "pr-caller-7777777777777777"


async def test_keys_are_in_no_log_error_metric_or_file(
    tmp_path: Path, provider: Provider, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a real socket, everything that can go wrong with a request, with all loggers at their most talkative."""
    caplog.set_level(logging.DEBUG)
    keys, callers = tmp_path / "keys", tmp_path / "callers"
    (keys / "openai").mkdir(parents=True)
    callers.mkdir()
    (keys / "openai" / "api-key").write_text(PROVIDER_KEY)
    (callers / "shop").write_text(f"sha256:{hashlib.sha256(CALLER_KEY.encode()).hexdigest()}")
    (callers / "clumsy").write_text(CALLER_KEY)
    gateway = Gateway(
        Settings(
            "default",
            "ns",
            "pod-1",
            networks=LOOPBACK,
            state_dir=tmp_path / "state",
            provider_keys_dir=keys,
            caller_keys_dir=callers,
            auth=Auth("Keys"),
            limits=Limits(max_request_bytes=4096),
        )
    )
    echo = {
        "error": {"message": f"Incorrect API key provided: {PROVIDER_KEY}", "code": PROVIDER_KEY, "param": PROVIDER_KEY}
    }

    async def breaks(incoming: web.Request) -> web.StreamResponse:
        raise ValueError(incoming.headers["authorization"])

    scripts: list[Callable[..., Any]] = [
        says(),
        says(401, echo),
        says(400, echo, **{"x-request-id": PROVIDER_KEY}),
        says(500, f"{PROVIDER_KEY} is broken".encode()),
        says(429, echo, **{"retry-after": "99"}),
        says(200, {"error": PROVIDER_KEY}),
        says(200, b"not JSON"),
        breaks,
        streams(chunk("a"), cut=True),
        streams(b"data: nonsense\n\n"),
    ]
    seen: list[bytes] = []
    url = provider.url
    spec = delivery(stable=arm(url=url, provider_needsKey=True, provider_maxRetries=0))
    try:
        async with (
            listening(gateway.serving_app) as port,
            listening(gateway.admin_app) as admin,
            aiohttp.ClientSession() as client,
        ):
            await gateway.registry.apply("support", spec)
            await gateway.registry.apply(
                "keyless", {**spec, "stable": arm(url=url, provider_needsKey=True, provider_name="no")}
            )
            target = f"http://127.0.0.1:{port}/v1/chat/completions"
            for headers in (
                {"authorization": f"Bearer {CALLER_KEY}"},
                {"x-api-key": CALLER_KEY},
                {"api-key": CALLER_KEY},
            ):
                provider.script.extend(scripts)
                for number in range(len(scripts)):
                    asked = request(stream=number >= len(scripts) - 2)
                    async with client.post(target, json=asked, headers=headers) as answer:
                        seen += [await answer.read(), str(answer.headers).encode()]
                for bad in (b"{", b"x" * 5000, orjson.dumps(request(model=CALLER_KEY))):
                    async with client.post(target, data=io.BytesIO(bad), headers=headers) as answer:
                        body = await answer.read()
                        # what a caller says himself is said back to him alone
                        seen.append(body.replace(CALLER_KEY.encode(), b"") if b"no rollout" in body else body)
                async with client.post(
                    target, json=request(), headers={"authorization": f"Bearer x{CALLER_KEY}"}
                ) as answer:
                    assert answer.status == 401
                    seen.append(await answer.read())
            monkeypatch.setattr(gateway.registry, "find", lambda name: 1 / 0)
            async with client.post(target, json=request(), headers={"x-api-key": CALLER_KEY}) as answer:
                assert answer.status == 500
                seen.append(await answer.read())
            raw = f"GET / HTTP/1.1\r\nHost: a\r\nx-api-key: {CALLER_KEY}\r\nx-api-key : {CALLER_KEY}\r\n\r\n"
            seen.append((await say(port, raw.encode()))[0])
            for path in ("/metrics", "/rollouts", "/readyz"):
                async with client.get(f"http://127.0.0.1:{admin}{path}") as answer:
                    seen.append(await answer.read())
    finally:
        await gateway.providers.close()
    assert len(provider.headers) == 3 * len(scripts)
    assert all(headers["authorization"] == f"Bearer {PROVIDER_KEY}" for headers in provider.headers)
    assert not any(CALLER_KEY in str(headers) for headers in provider.headers)
    on_disk = [path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert on_disk
    # the test's own provider logs what it raised
    logged = "\n".join(
        logging.Formatter().format(record) for record in caplog.records if not record.name.startswith("aiohttp")
    )
    assert "clumsy: line 1" in logged
    for secret in (PROVIDER_KEY, CALLER_KEY):
        for where in (*seen, *on_disk, logged.encode(), repr(gateway.settings).encode()):
            assert secret.encode() not in where
