"""A simulated model on a real socket, for the tests of this folder."""

import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
import uvicorn

from promptrollout.sandbox.model.server import SimulatedModel
from tests.unit.sandbox_model.running_model import RunningModel


@pytest.fixture
async def model() -> AsyncIterator[RunningModel]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        SimulatedModel(seed=1, api_keys=["sk-test-1234"]), lifespan="off", ws="none", log_config=None, http="httptools"
    )
    # startup and shutdown by hand: serve() looks only every 100 ms whether it should end, which adds up over the tests
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    headers = {"authorization": "Bearer sk-test-1234"}
    # A response that is cut makes uvicorn close the socket; a client that pooled it would only find out later.
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(force_close=True)) as client:
        yield RunningModel(f"http://127.0.0.1:{listener.getsockname()[1]}", client)
    await server.shutdown(sockets=[listener])
