"""LangChain and LlamaIndex as they are, pointed at the gateway."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from tests.clients.kit import ABSENT, World
from tests.unit.gateway.kit import completion, counted, says

langchain = pytest.importorskip("langchain_openai", reason=ABSENT)
llama_index = pytest.importorskip("llama_index.llms.openai_like", reason=ABSENT)
llms = pytest.importorskip("llama_index.core.llms", reason=ABSENT)

USER = {"x-user-id": "u1"}


class Place(BaseModel):
    """Where a parcel is."""

    city: str


def parcel(number: str) -> str:
    """Where the parcel of this number is."""
    return number


CALL: Any = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "parcel", "arguments": '{"number":"47"}'}}
    ],
}
CALLS = completion(choices=[{"index": 0, "message": CALL, "finish_reason": "tool_calls"}])


def chain(world: World, **changes: Any) -> Any:
    options = {"base_url": world.url, "api_key": "unused", "max_retries": 0, "timeout": 10, "default_headers": USER}
    return langchain.ChatOpenAI(model="support", **{**options, **changes})


def test_langchain_asks_and_streams(world: World) -> None:
    world.serve({"answer": "The parcel is in Ulm."})
    answer = chain(world).invoke("Where is my parcel?")
    assert answer.content == "The parcel is in Ulm."
    assert answer.usage_metadata["input_tokens"] > 0
    pieces = list(chain(world, stream_usage=True).stream("Where is my parcel?"))
    assert "".join(piece.content for piece in pieces) == "The parcel is in Ulm."
    assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) > 0
    assert counted(world.gateway) == {"stable": (2, 0)}


async def test_langchain_asks_and_streams_asynchronously(world: World) -> None:
    world.serve({"answer": "The parcel is in Ulm."})
    assert (await chain(world).ainvoke("Where?")).content == "The parcel is in Ulm."
    pieces = [piece.content async for piece in chain(world).astream("Where?")]
    assert "".join(pieces) == "The parcel is in Ulm."


def test_langchain_gets_an_object_of_the_shape_it_wants(world: World) -> None:
    world.serve({})
    shaped = chain(world).with_structured_output(Place, method="json_schema")
    assert isinstance(shaped.invoke("Where is my parcel?"), Place)


def test_langchain_calls_tools(world: World) -> None:
    world.script(says(body=CALLS))
    answer = chain(world).bind_tools([parcel]).invoke("Where is 47?")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("parcel", {"number": "47"})]
    assert world.provider.requests[0]["tools"][0]["function"]["name"] == "parcel"


def test_langchain_raises_what_the_gateway_says(world: World) -> None:
    world.serve({}, messages=[{"role": "system", "content": "You are of {{ company }}."}])
    openai = pytest.importorskip("openai", reason=ABSENT)
    with pytest.raises(openai.BadRequestError) as failed:
        chain(world).invoke("Where is my parcel?")
    assert failed.value.code == "prompt_variable_missing"
    filled = chain(world, extra_body={"prompt_variables": {"company": "ACME"}}).invoke("Where is my parcel?")
    assert filled.content


def index(world: World) -> Any:
    return llama_index.OpenAILike(
        model="support",
        api_base=world.url,
        api_key="unused",
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=8000,
        max_retries=0,
        timeout=10,
        default_headers=USER,
    )


def test_llama_index_chats_completes_and_streams(world: World) -> None:
    world.serve({"answer": "The parcel is in Ulm."})
    model, asked = index(world), [llms.ChatMessage(role="user", content="Where is my parcel?")]
    assert model.chat(asked).message.content == "The parcel is in Ulm."
    assert model.complete("Where is my parcel?").text == "The parcel is in Ulm."
    *_, last = model.stream_chat(asked)
    assert last.message.content == "The parcel is in Ulm."
    assert counted(world.gateway) == {"stable": (3, 0)}


async def test_llama_index_chats_and_streams_asynchronously(world: World) -> None:
    world.serve({"answer": "The parcel is in Ulm."})
    model, asked = index(world), [llms.ChatMessage(role="user", content="Where is my parcel?")]
    assert (await model.achat(asked)).message.content == "The parcel is in Ulm."
    pieces = [piece.delta async for piece in await model.astream_chat(asked)]
    assert "".join(piece or "" for piece in pieces) == "The parcel is in Ulm."


def test_llama_index_calls_tools(world: World) -> None:
    tools = pytest.importorskip("llama_index.core.tools", reason=ABSENT)
    world.script(says(body=CALLS))
    model = index(world)
    answer = model.chat_with_tools([tools.FunctionTool.from_defaults(parcel)], user_msg="Where is 47?")
    (call,) = model.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("parcel", {"number": "47"})
