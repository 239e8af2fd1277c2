"""A gateway's objects: restricted, stable, and written only when something of ours is missing."""

import copy
from typing import Any

import pytest

from promptrollout.api.gateway import GatewaySpec
from promptrollout.api.meta import SecretKeyRef
from promptrollout.operator.gateway_objects import gateway_objects, mounted_keys
from promptrollout.operator.gateways import GatewayReconciler, covers
from promptrollout.operator.queue import Key
from tests.unit.operator.world import an_object, store_with

GATEWAY = an_object("PromptGateway", "default", {"replicas": 3})
KEY = Key("PromptGateway", "ns", "default")
REF = SecretKeyRef(name="openai", key="token")


def objects(**changes: Any) -> dict[str, dict[str, Any]]:
    spec = GatewaySpec.model_validate({"replicas": 3} | changes)
    return dict(gateway_objects(GATEWAY, spec, "image:1", {"model": REF}))


def test_everything_belongs_to_the_gateway() -> None:
    found = objects()
    kinds = {"ServiceAccount", "RoleBinding", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    assert set(found) == kinds
    for item in found.values():
        (owner,) = item["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == ("PromptGateway-default", True, True)
        assert item["metadata"]["name"] == "default-gateway"
    assert found["RoleBinding"]["roleRef"]["name"] == "promptrollout-gateway"


def test_pods_are_restricted() -> None:
    spec = objects()["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert spec["terminationGracePeriodSeconds"] == 40


def test_keys_are_files_and_optional() -> None:
    deployment = objects()["Deployment"]
    volume = deployment["spec"]["template"]["spec"]["volumes"][2]
    secret = {"name": "openai", "items": [{"key": "token", "path": "model/api-key"}], "optional": True}
    assert volume["projected"]["sources"] == [{"secret": secret}]
    assert mounted_keys(deployment) == {"model": REF}


@pytest.mark.parametrize(
    ("live", "wanted", "covered"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": [{"x": 1, "defaulted": 2}]}, {"a": [{"x": 1}]}, True),
        ({}, {"emptyDir": {}}, True),
        ({"sources": None}, {"sources": []}, True),
        ({}, {"a": False}, False),
        ({"a": None}, {"a": {"b": 1}}, False),
    ],
)
def test_covers(live: Any, wanted: Any, covered: bool) -> None:
    assert covers(live, wanted) is covered


class FakeApi:
    """Remembers what is applied and answers as a server that fills in defaults would."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.writes: list[str] = []

    async def list(self, kind: str, namespace: str) -> list[Any]:
        return []

    async def get(self, kind: str, namespace: str, name: str) -> Any:
        return copy.deepcopy(self.objects.get((kind, name)))

    async def apply(self, kind: str, namespace: str, name: str, body: Any) -> Any:
        self.writes.append(kind)
        item = copy.deepcopy(body)
        item["metadata"] |= {"uid": f"{kind}-{name}", "resourceVersion": str(100 + len(self.writes))}
        if kind == "Deployment":
            # written in another way than it was sent
            item["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "0.25"
        self.objects[kind, name] = item
        return copy.deepcopy(item)

    async def apply_status(self, kind: str, item: Any, status: Any) -> Any:
        self.writes.append(f"{kind}/status")
        version = str(int(item["metadata"]["resourceVersion"]) + 1)
        return {**item, "metadata": item["metadata"] | {"resourceVersion": version}, "status": status}


async def reconcile(reconciler: GatewayReconciler) -> None:
    item = reconciler._store.get(*KEY)
    assert item is not None
    await reconciler.reconcile(KEY, item)


async def test_what_is_there_is_not_written_again() -> None:
    store, api = store_with(), FakeApi()
    reconciler = GatewayReconciler(api, store, "image:1", {"default"})  # type: ignore[arg-type]
    await reconcile(reconciler)
    assert api.writes[-1] == "PromptGateway/status"
    api.writes.clear()
    await reconcile(reconciler)
    assert api.writes == []
    del api.objects["Service", "default-gateway"]
    await reconcile(reconciler)
    assert api.writes == ["Service"]


async def test_a_foreign_object_in_the_way_is_left_alone() -> None:
    store, api = store_with(), FakeApi()
    api.objects["Service", "default-gateway"] = an_object("Service", "default-gateway", {})
    reconciler = GatewayReconciler(api, store, "image:1", {"default"})  # type: ignore[arg-type]
    await reconcile(reconciler)
    assert "Service" not in api.writes


@pytest.mark.parametrize(("stage", "image"), [("Stepping", "image:1"), ("Baking", "image:1"), ("Idle", "image:2")])
async def test_a_new_release_restarts_no_gateway_in_mid_canary(stage: str, image: str) -> None:
    store, api = store_with(), FakeApi()
    await reconcile(GatewayReconciler(api, store, "image:1", {"default"}))  # type: ignore[arg-type]
    rollout = an_object("PromptRollout", "app", {"gatewayRef": {"name": "default"}})
    rollout["status"] = {"stage": stage}
    store.put("PromptRollout", rollout)
    await reconcile(GatewayReconciler(api, store, "image:2", {"default"}))  # type: ignore[arg-type]
    deployment = api.objects["Deployment", "default-gateway"]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == image


async def test_the_key_of_a_deleted_provider_stays_while_it_serves() -> None:
    store, api = store_with(), FakeApi()
    provider = {"baseURL": "http://model/v1", "apiKeySecretRef": {"name": "openai", "key": "token"}}
    store.put("ModelProvider", an_object("ModelProvider", "model", provider, resourceVersion="8"))
    reconciler = GatewayReconciler(api, store, "image:1", {"default"})  # type: ignore[arg-type]
    await reconcile(reconciler)
    arm = {"provider": {"name": "model"}}
    store.put("PromptDelivery", an_object("PromptDelivery", "app", {"gateway": "default", "stable": arm}))
    store.remove("ModelProvider", "ns", "model", "ModelProvider-model")
    await reconcile(reconciler)
    assert mounted_keys(api.objects["Deployment", "default-gateway"]) == {"model": REF}
    store.remove("PromptDelivery", "ns", "app", "PromptDelivery-app")
    await reconcile(reconciler)
    assert mounted_keys(api.objects["Deployment", "default-gateway"]) == {}


async def test_an_unknown_metrics_source_is_said() -> None:
    store, api = store_with(), FakeApi()
    await reconcile(GatewayReconciler(api, store, "image:1", {"mimir"}))  # type: ignore[arg-type]
    item = store.get(*KEY)
    assert item is not None
    (condition,) = item["status"]["conditions"]
    assert (condition["status"], condition["reason"]) == ("False", "UnknownMetricsSource")
    assert "it has: mimir" in condition["message"]
