"""Ask one gateway pod for its report: GET /rollouts on its admin port."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import aiohttp
from pydantic import ValidationError

from promptrollout.api.delivery import PodReport
from promptrollout.api.pod_settings import PORT_ADMIN

Object = dict[str, Any]

POD_TIMEOUT_SECONDS = 1.0
CONNECTIONS = 64
NAMES_IN_QUERY = 20
"""Up to so many rollouts are named in the query; beyond that a pod is asked for all of them."""


class PodReports:
    """One HTTP session for all pods."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, pod: Object, rollouts: Collection[str]) -> PodReport | str:
        """The pod's report, or why there is none."""
        address = pod["status"]["podIP"]
        host = f"[{address}]" if ":" in address else address
        names = sorted(rollouts) if len(rollouts) <= NAMES_IN_QUERY else []
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=POD_TIMEOUT_SECONDS),
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
            )
        try:
            async with self._session.get(
                f"http://{host}:{PORT_ADMIN}/rollouts", params=[("name", name) for name in names]
            ) as response:
                body = await response.read()
                if response.status != 200:
                    return f"its admin port answers HTTP {response.status}"
            return PodReport.model_validate_json(body)
        except TimeoutError:
            return f"no answer within {POD_TIMEOUT_SECONDS:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return f"cannot be reached: {type(error).__name__}"
        except ValidationError:
            return "its report cannot be read: it may run another release"
