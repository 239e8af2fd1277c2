"""Backoff, statuses, logs, settings and the gateway URLs: the node's parts that are plain values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from promptrollout.sandbox.controlplane.install import chart_values, find_chart
from promptrollout.sandbox.controlplane.prometheus import configuration
from promptrollout.sandbox.node.container import Backoff
from promptrollout.sandbox.node.kubelet import tail_offset
from promptrollout.sandbox.node.podstatus import ContainerState, phase, pod_status, running, terminated
from promptrollout.sandbox.sandbox import Sandbox
from promptrollout.sandbox.settings import SandboxError, Settings, default_dir, parse_duration


def test_backoff_doubles_up_to_its_maximum() -> None:
    backoff = Backoff(1.0, 30.0)
    assert [backoff.delay(n) for n in (1, 2, 3, 5, 6, 7, 10_000)] == [1, 2, 4, 16, 30, 30, 30]
    assert backoff.forgets_after() == 60


def state(name: str = "main", **fields: Any) -> ContainerState:
    return ContainerState(name=name, image="i", **fields)


def ended(code: int, **fields: Any) -> ContainerState:
    return state(state=terminated(code, 1, 2, "id"), container_id="id", finished=True, **fields)


@pytest.mark.parametrize(
    ("containers", "expected"),
    [
        ([state()], "Pending"),
        ([state(container_id="id", state=running(1)), state()], "Pending"),
        ([state(container_id="id", state=running(1))], "Running"),
        ([ended(0), state(container_id="id", state=running(1))], "Running"),
        ([ended(0), ended(0)], "Succeeded"),
        ([ended(0), ended(1)], "Failed"),
    ],
)
def test_phases(containers: list[ContainerState], expected: str) -> None:
    assert phase(containers, inits_done=True) == expected


def status(pod: dict[str, Any], container: ContainerState, previous: dict[str, Any], now: float) -> dict[str, Any]:
    return pod_status(
        pod,
        containers=[container],
        init_containers=[],
        address="127.64.0.1",
        host_address="127.0.0.1",
        start_time=0,
        previous=previous,
        now=now,
    )


def conditions(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["lastTransitionTime"]) for c in found["conditions"]}


def test_conditions_keep_the_time_of_their_last_transition() -> None:
    pod = {"metadata": {"generation": 2}, "spec": {}}
    first = status(pod, state(container_id="id", state=running(0)), {}, 0)
    assert conditions(first)["Ready"] == ("False", "1970-01-01T00:00:00Z")
    second = status(pod, state(container_id="id", state=running(0), ready=True), first, 60)
    assert conditions(second)["Ready"] == ("True", "1970-01-01T00:01:00Z")
    assert conditions(second)["PodScheduled"] == ("True", "1970-01-01T00:00:00Z")
    third = status(pod, state(container_id="id", state=running(0), ready=True), second, 120)
    assert third == second


def test_readiness_gates_hold_ready_back() -> None:
    ready = state(container_id="id", state=running(0), ready=True)
    pod: dict[str, Any] = {"metadata": {}, "spec": {"readinessGates": [{"conditionType": "example/gate"}]}}
    found = {c["type"]: c for c in status(pod, ready, {}, 0)["conditions"]}
    assert found["ContainersReady"]["status"] == "True"
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("False", "ReadinessGatesNotReady")
    pod["status"] = {"conditions": [{"type": "example/gate", "status": "True"}]}
    assert conditions(status(pod, ready, {}, 0))["Ready"][0] == "True"


@pytest.mark.parametrize(
    ("content", "lines", "tail"),
    [
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\n", 5, b"a\n"),
        (b"a\nb\n", 0, b""),
        (b"", 3, b""),
        (b"x" * 70_000 + b"\nlast\n", 1, b"last\n"),
        (b"\n" * 100_000, 3, b"\n\n\n"),
    ],
)
def test_the_tail_of_a_log(tmp_path: Path, content: bytes, lines: int, tail: bytes) -> None:
    log = tmp_path / "0.log"
    log.write_bytes(content)
    assert content[tail_offset(log, lines) :] == tail


def test_durations_name_their_field() -> None:
    assert [parse_duration(text, "x") for text in ("500ms", "1s", "1.5m")] == [0.5, 1.0, 90.0]
    for wrong in ("", "1", "0s", "-1s", "1h30m"):
        with pytest.raises(SandboxError, match="--scrape-interval"):
            parse_duration(wrong, "--scrape-interval")


def test_settings_survive_the_way_to_the_supervisor() -> None:
    settings = Settings(scrape_interval_seconds=0.5, install_operator=False)
    assert Settings.from_json({**json.loads(json.dumps(settings.to_json())), "unknown": 1}) == settings


def test_the_default_directory_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_dir() == Path("/state/promptrollout/sandbox")


def test_prometheus_scrapes_annotated_pods_only() -> None:
    config = configuration("500ms", "https://127.0.0.1:1", Path("/ca"), Path("/token"))
    (job,) = config["scrape_configs"]
    assert config["global"]["scrape_interval"] == "500ms"
    assert job["honor_labels"] is False
    assert job["kubernetes_sd_configs"][0]["role"] == "pod"
    kept = [rule["source_labels"] for rule in job["relabel_configs"] if rule.get("action") == "keep"]
    assert ["__meta_kubernetes_pod_annotation_prometheus_io_scrape"] in kept
    assert {"namespace", "pod", "gateway"} <= {rule.get("target_label") for rule in job["relabel_configs"]}


def test_the_chart_is_the_checkouts_unless_told_otherwise(tmp_path: Path) -> None:
    assert find_chart({}).parts[-2:] == ("charts", "promptrollout")
    (tmp_path / "Chart.yaml").touch()
    assert find_chart({"PROMPTROLLOUT_CHART": str(tmp_path)}) == tmp_path
    with pytest.raises(SandboxError, match=r"PROMPTROLLOUT_CHART=/none: no Chart\.yaml there"):
        find_chart({"PROMPTROLLOUT_CHART": "/none"})
    assert chart_values("http://p") == {
        "metricsSources": [{"name": "default", "url": "http://p"}],
        # pods and the simulated model are on loopback here
        "gateway": {"allowedProviderNetworks": ["127.0.0.0/8"]},
    }


def test_the_environment_names_each_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Sandbox(tmp_path)
    with pytest.raises(SandboxError, match="no sandbox is running in"):
        box.environment()
    state = {"kubeconfig": "/k", "prometheusUrl": "http://p", "modelUrl": "http://m"}
    monkeypatch.setattr(box, "_ready_state", lambda: state)
    monkeypatch.setattr(box, "gateways", lambda: {"a/x-1.b": "http://1", "b/y": "http://2"})
    assert box.environment() == {
        "KUBECONFIG": "/k",
        "PROMETHEUS_URL": "http://p",
        "SIMULATED_MODEL_URL": "http://m",
        "GATEWAY_URL_A_X_1_B": "http://1",
        "GATEWAY_URL_B_Y": "http://2",
        "GATEWAY_URL": "http://1",
    }
    with pytest.raises(SandboxError, match=r"no Service of a PromptGateway a/z; there are: a/x-1\.b, b/y"):
        box.gateway_url("a", "z")
