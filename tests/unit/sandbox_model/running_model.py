"""A simulated model that serves, and the few calls the tests make to it."""

from dataclasses import dataclass, field

import aiohttp


@dataclass
class RunningModel:
    url: str
    client: aiohttp.ClientSession = field(repr=False)

    async def behave(self, *behaviours: dict[str, object]) -> None:
        async with self.client.put(f"{self.url}/control/behaviours", json=list(behaviours)) as answer:
            assert answer.status == 200, await answer.text()

    async def get(self, path: str) -> object:
        async with self.client.get(self.url + path) as answer:
            return await answer.json()

    def chat(self, **changes: object) -> "aiohttp.client._RequestContextManager":
        body = {"model": "m", "messages": [{"role": "system", "content": "v1"}, {"role": "user", "content": "hi"}]}
        return self.client.post(f"{self.url}/v1/chat/completions", json={**body, **changes})
