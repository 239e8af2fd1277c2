"""LiteLLM's proxy in an environment of its own: pinned, its packages' hashes checked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from benchmarks.gateway.run import SERVED_CORE, Served, environment, process
from benchmarks.gateway.served import free_port

KEY = "sk-bench"
CONFIGURATION = """\
model_list:
  - model_name: app-0
    litellm_params: {{model: openai/stub, api_base: "{url}/v1", api_key: none}}
general_settings: {{master_key: sk-bench}}
"""


@contextmanager
def served(provider_url: str, *, wanted: bool) -> Iterator[Served | None]:
    if not wanted:
        yield None
        return
    home, port = environment("litellm"), free_port()
    configuration = home / "config.yaml"
    configuration.write_text(CONFIGURATION.format(url=provider_url))
    command = [str(home / "bin" / "litellm"), "--config", str(configuration), "--port", str(port), "--num_workers", "1"]
    environ = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONUNBUFFERED": "1"}
    with process(["sh", "-c", 'echo; exec "$@" >/dev/null 2>&1', "sh", *command], SERVED_CORE, **environ) as (pid, _):
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"{url}/health/liveliness", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if time.monotonic() > until:
                raise TimeoutError("LiteLLM does not answer")
            time.sleep(0.5)
        yield Served(pid, url)
