"""The process' own loops."""

import asyncio
from typing import Any

import pytest

from promptrollout.api.delivery import NO_DIGEST
from promptrollout.operator import app
from promptrollout.operator.app import Operator
from promptrollout.operator.cluster import lists
from promptrollout.operator.cluster.api import WATCHED
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.config import Config, pod_environment
from promptrollout.operator.delivery.confirmations import Expected
from tests.unit.operator.world import an_object


async def test_each_list_has_all_gateways_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of their objects only Deployments are watched."""
    monkeypatch.setattr(lists, "RELIST_SECONDS", 0.001)
    operator = Operator(Config(), pod_environment({}), client=None)  # type: ignore[arg-type]
    operator._store.put("PromptGateway", an_object("PromptGateway", "default", {}), quiet=True)

    async def nothing_new(*_: Any) -> None:
        return None

    monkeypatch.setattr(operator._lists, "list_all", nothing_new)
    task = asyncio.create_task(operator._lists.keep())
    try:
        assert await asyncio.wait_for(operator._queue.get(), 5) == Key("PromptGateway", "ns", "default")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("seen", ["deleted", "made anew"])
async def test_what_pods_of_a_deleted_gateway_said_is_forgotten(seen: str) -> None:
    operator = Operator(Config(), pod_environment({}), client=None)  # type: ignore[arg-type]
    store, asker = operator._store, operator._acknowledger
    store.put("PromptGateway", an_object("PromptGateway", "default", {}))
    asker.ask("ns", "default", "app", Expected(2, "uid", 0, NO_DIGEST), regularly=False, known=(2, 2))
    try:
        store.put("PromptGateway", an_object("PromptGateway", "default", {"replicas": 3}, resourceVersion="8"))
        assert asker.answer("ns", "default", "app", "uid", 2) is not None
        if seen == "deleted":
            store.remove("PromptGateway", "ns", "default", "PromptGateway-default")
        else:
            store.put("PromptGateway", an_object("PromptGateway", "default", {}, uid="other", resourceVersion="9"))
        assert asker.answer("ns", "default", "app", "uid", 2) is None
    finally:
        await asker.close()


async def test_a_task_that_ends_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> None:
        raise OverflowError("intermediate overflow in fsum")

    task = asyncio.create_task(broken(), name="analyses")
    task.add_done_callback(app._log_end)
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert "task analyses ended: OverflowError" in caplog.text
    assert "Traceback" in caplog.text


async def test_each_watched_kind_has_one_row_in_the_table_of_controllers() -> None:
    operator = Operator(Config(), pod_environment({}), client=None)  # type: ignore[arg-type]
    assert set(operator._controllers) == set(WATCHED)
    assert all(kind == controller.kind for kind, controller in operator._controllers.items())
