"""Last step of a request: it is counted, whatever becomes of it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from promptrollout.gateway.http.errors import ClientGone
from promptrollout.gateway.http.exchange import Reply
from promptrollout.gateway.pipeline.request import Prepared
from promptrollout.llm.errors import CallerError


class Accounted:
    """No request leaves without being counted: neither by a fault of ours nor by its caller's hanging up."""

    def __init__(self, prepared: Prepared, reply: Reply) -> None:
        self._prepared = prepared
        self._reply = reply

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        prepared = self._prepared
        if prepared.accounted:
            return
        if isinstance(error, Exception) and not isinstance(error, CallerError | ClientGone):
            # a fault of ours that only one version provokes must not look like a version that is not asked
            prepared.outcome.error_type = prepared.outcome.error_type or "internal"
            prepared.account(self._reply)
        elif self._reply.gone:
            prepared.outcome.abandoned = True
            prepared.account(self._reply)
