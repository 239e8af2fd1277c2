"""A gateway's objects: restricted, stable, and written only when something of ours is missing."""

import copy
import json
from typing import Any

import pytest

from promptrollout.api.gateway import GatewaySpec
from promptrollout.api.meta import SecretKeyRef
from promptrollout.api.pod_settings import CALLER_KEYS_DIR
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.gateways.conditions import Reported
from promptrollout.operator.gateways.objects import gateway_objects, mounted_files
from promptrollout.operator.gateways.provider_files import source_of
from promptrollout.operator.gateways.reconcile import GatewayReconciler, covers
from tests.unit.operator.world import an_object, store_with

GATEWAY = an_object("PromptGateway", "default", {"replicas": 3})
KEY = Key("PromptGateway", "ns", "default")
REF = SecretKeyRef(name="openai", key="token")


def objects(**changes: Any) -> dict[str, dict[str, Any]]:
    spec = GatewaySpec.model_validate({"replicas": 3} | changes)
    return dict(gateway_objects(GATEWAY, spec, "image:1", {"model/api-key": REF}, "the-role"))


def test_everything_belongs_to_the_gateway() -> None:
    found = objects()
    kinds = {"ServiceAccount", "RoleBinding", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    assert set(found) == kinds
    for item in found.values():
        (owner,) = item["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == ("PromptGateway-default", True, True)
        assert item["metadata"]["name"] == "default-gateway"
    assert found["RoleBinding"]["roleRef"]["name"] == "the-role"


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
    assert mounted_files(deployment) == {"model/api-key": REF}


def container_of(found: dict[str, dict[str, Any]]) -> tuple[dict[str, str], dict[str, Any]]:
    """A gateway's settings, and its pods' volumes by name."""
    spec = found["Deployment"]["spec"]["template"]["spec"]
    env = {one["name"].removeprefix("PROMPTROLLOUT_"): one.get("value", "") for one in spec["containers"][0]["env"]}
    return env, {volume["name"]: volume for volume in spec["volumes"]}


def test_limits_reach_the_pods() -> None:
    limits = {"maxConcurrentRequests": 7, "maxQueuedRequests": 0, "maxQueueMilliseconds": 100}
    env, _ = container_of(objects(limits=limits))
    assert (env["MAX_CONCURRENT_REQUESTS"], env["MAX_QUEUED_REQUESTS"], env["MAX_QUEUE_MILLISECONDS"]) == (
        "7",
        "0",
        "100",
    )
    assert "BURST_PER_KEY" not in env
    env, _ = container_of(objects(limits={"requestsPerMinutePerKey": 60}, auth={"mode": "ServiceAccounts"}))
    assert (env["REQUESTS_PER_MINUTE_PER_KEY"], env["BURST_PER_KEY"]) == ("60", "60")


def test_callers_keys_are_files_of_their_secret() -> None:
    env, volumes = container_of(objects())
    assert "AUTH_MODE" not in env
    assert "caller-keys" not in volumes
    found = objects(auth={"mode": "Keys", "keysSecretRef": {"name": "callers"}})
    env, volumes = container_of(found)
    assert (env["AUTH_MODE"], "AUTH_AUDIENCE" in env) == ("Keys", False)
    assert volumes["caller-keys"]["secret"] == {"secretName": "callers", "optional": True}
    mounts = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "caller-keys", "mountPath": CALLER_KEYS_DIR, "readOnly": True} in mounts
    assert mounted_files(found["Deployment"]) == mounted_files(objects()["Deployment"])
    rules = [{"namespace": "shop", "rollouts": ["support"]}]
    env, volumes = container_of(objects(auth={"mode": "ServiceAccounts", "audience": "a", "serviceAccounts": rules}))
    assert (env["AUTH_AUDIENCE"], json.loads(env["AUTH_SERVICE_ACCOUNTS"])) == ("a", rules)
    assert "caller-keys" not in volumes


def test_pods_know_where_they_are() -> None:
    container = objects()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    (found,) = [each for each in container["env"] if each["name"] == "POD_IP"]
    assert found["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}


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
        ({"limits": {"cpu": 1, "memory": 2}}, {"limits": {"memory": 2}}, False),
        ({"resources": {"limits": {}, "requests": {}}}, {"resources": {"requests": {}}}, False),
        ({"selector": {"a": "1", "b": "2"}}, {"selector": {"a": "1"}}, False),
        ({"resources": None}, {"resources": {}}, True),
    ],
)
def test_covers(live: Any, wanted: Any, covered: bool) -> None:
    assert covers(live, wanted) is covered


class FakeApi:
    """Remembers what is applied and answers as a server that fills in defaults would."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.writes: list[str] = []
        self.events: list[Any] = []

    async def list(self, kind: str, namespace: str) -> list[Any]:
        return []

    async def get(self, kind: str, namespace: str, name: str) -> Any:
        return copy.deepcopy(self.objects.get((kind, name)))

    async def apply(self, kind: str, namespace: str, name: str, body: Any) -> Any:
        self.writes.append(kind)
        before = self.objects.get((kind, name)) or {}
        item = copy.deepcopy(body) | ({"status": before["status"]} if "status" in before else {})
        item["metadata"] |= {"uid": f"{kind}-{name}", "resourceVersion": str(100 + len(self.writes))}
        if kind == "Deployment":
            # written in another way than it was sent
            item["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "0.25"
            item["spec"]["template"]["spec"] |= {"dnsPolicy": "ClusterFirst"}
        self.objects[kind, name] = item
        return copy.deepcopy(item)

    async def merge(self, kind: str, namespace: str, name: str, body: Any) -> Any:
        self.writes.append(f"{kind}/merge")
        item = self.objects[kind, name]
        merge(item, body)
        item["metadata"]["resourceVersion"] = str(100 + len(self.writes))
        return copy.deepcopy(item)

    async def delete(self, kind: str, subject: Any) -> None:
        self.writes.append(f"{kind}/delete")
        del self.objects[kind, subject["metadata"]["name"]]

    async def create(self, kind: str, namespace: str, body: Any) -> Any:
        self.events.append(body)
        return body

    async def apply_status(self, kind: str, item: Any, status: Any) -> Any:
        self.writes.append(f"{kind}/status")
        version = str(int(item["metadata"]["resourceVersion"]) + 1)
        return {**item, "metadata": item["metadata"] | {"resourceVersion": version}, "status": status}


def merge(item: dict[str, Any], patch: dict[str, Any]) -> None:
    """RFC 7386."""
    for name, value in patch.items():
        if isinstance(value, dict):
            merge(item.setdefault(name, {}), value)
        elif value is None:
            item.pop(name, None)
        else:
            item[name] = copy.deepcopy(value)


def ready(store: Store, api: FakeApi, **status: Any) -> None:
    """The Deployment's pods are ready."""
    deployment = api.objects["Deployment", "default-gateway"]
    deployment["status"] = {"readyReplicas": 3} | status
    deployment["metadata"]["resourceVersion"] = str(int(deployment["metadata"]["resourceVersion"]) + 1000)
    store.put("Deployment", copy.deepcopy(deployment))


def rollout(store: Store, stage: str) -> None:
    item = an_object("PromptRollout", "app", {"gatewayRef": {"name": "default"}})
    store.put("PromptRollout", item | {"status": {"stage": stage}}, even_older=True)


def provide(store: Store, name: str, secret: str, url: str = "http://model/v1") -> None:
    spec = {"baseURL": url, "apiKeySecretRef": {"name": secret, "key": "token"}}
    store.put("ModelProvider", an_object("ModelProvider", name, spec), even_older=True)


def both_forms(name: str, ref: SecretKeyRef) -> dict[str, SecretKeyRef]:
    """For gateways of this release and the one before."""
    return {f"{name}/api-key": ref, f"{name}/hosts": hosts_of(ref)} | bound(name, ref)


def bound(name: str, ref: SecretKeyRef) -> dict[str, SecretKeyRef]:
    folder = f"{name}/{source_of(ref)}"
    return {f"{folder}/api-key": ref, f"{folder}/hosts": hosts_of(ref)}


def hosts_of(ref: SecretKeyRef) -> SecretKeyRef:
    return SecretKeyRef(name=ref.name, key="hosts")


def served_at(store: Store, url: str, ref: SecretKeyRef, **more: Any) -> None:
    """A delivery whose stable arm is at this URL, with this key."""
    provider = {"name": "model", "type": "OpenAI", "baseURL": url, "keySource": source_of(ref)}
    spec = {"gateway": "default", "stable": {"provider": provider}, **more}
    store.put("PromptDelivery", an_object("PromptDelivery", "app", spec), even_older=True)


async def reconcile(reconciler: GatewayReconciler) -> None:
    item = reconciler._store.get(*KEY)
    assert item is not None
    await reconciler.reconcile(KEY, item)


def ready_condition(store: Store) -> dict[str, Any]:
    item = store.get(*KEY)
    assert item is not None
    (condition,) = [one for one in item["status"]["conditions"] if one["type"] == "Ready"]
    return dict(condition)


async def test_what_is_there_is_not_written_again() -> None:
    store, api = store_with(), FakeApi()
    reconciler = GatewayReconciler(api, store, "image:1", {"default"}, "the-role")  # type: ignore[arg-type]
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
    reconciler = GatewayReconciler(api, store, "image:1", {"default"}, "the-role")  # type: ignore[arg-type]
    await reconcile(reconciler)
    assert "Service" not in api.writes
    condition = ready_condition(store)
    assert (condition["status"], condition["reason"]) == ("False", "ObjectInTheWay")
    assert "Service default-gateway" in condition["message"]
    del api.objects["Service", "default-gateway"]
    await reconcile(reconciler)
    assert ready_condition(store)["reason"] != "ObjectInTheWay"


@pytest.mark.parametrize(("stage", "image"), [("Stepping", "image:1"), ("Baking", "image:1"), ("Idle", "image:2")])
async def test_a_new_release_restarts_no_gateway_in_mid_canary(stage: str, image: str) -> None:
    store, api = store_with(), FakeApi()
    await reconcile(GatewayReconciler(api, store, "image:1", {"default"}, "the-role"))  # type: ignore[arg-type]
    ready(store, api)
    rollout(store, stage)
    await reconcile(GatewayReconciler(api, store, "image:2", {"default"}, "the-role"))  # type: ignore[arg-type]
    deployment = api.objects["Deployment", "default-gateway"]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == image


async def test_the_key_of_a_deleted_provider_stays_while_it_serves() -> None:
    store, api = store_with(), FakeApi()
    provider = {"baseURL": "http://model/v1", "apiKeySecretRef": {"name": "openai", "key": "token"}}
    store.put("ModelProvider", an_object("ModelProvider", "model", provider, resourceVersion="8"))
    reconciler = GatewayReconciler(api, store, "image:1", {"default"}, "the-role")  # type: ignore[arg-type]
    await reconcile(reconciler)
    arm = {"provider": {"name": "model"}}
    store.put("PromptDelivery", an_object("PromptDelivery", "app", {"gateway": "default", "stable": arm}))
    store.remove("ModelProvider", "ns", "model", "ModelProvider-model")
    await reconcile(reconciler)
    found = mounted_files(api.objects["Deployment", "default-gateway"])
    assert found == both_forms("model", REF)
    store.remove("PromptDelivery", "ns", "app", "PromptDelivery-app")
    await reconcile(reconciler)
    assert mounted_files(api.objects["Deployment", "default-gateway"]) == {}


async def test_the_files_of_a_fallback_stay_while_it_serves() -> None:
    store, api = store_with(), FakeApi()
    ca = {"tls": {"caSecretRef": {"name": "openai", "key": "token"}}}
    store.put("ModelProvider", an_object("ModelProvider", "spare", {"baseURL": "https://m/v1", **ca}))
    arm = {"provider": {"name": "model"}, "fallbacks": [{"model": "m", "provider": {"name": "spare"}}]}
    store.put("PromptDelivery", an_object("PromptDelivery", "app", {"gateway": "default", "stable": arm}))
    reconciler = GatewayReconciler(api, store, "image:1", {"default"}, "the-role")  # type: ignore[arg-type]
    await reconcile(reconciler)
    store.remove("ModelProvider", "ns", "spare", "ModelProvider-spare")
    await reconcile(reconciler)
    assert mounted_files(api.objects["Deployment", "default-gateway"]) == {
        "spare/ca.crt": REF,
        f"spare/{source_of(REF)}/ca.crt": REF,
    }


async def test_an_unknown_metrics_source_is_said() -> None:
    store, api = store_with(), FakeApi()
    await reconcile(GatewayReconciler(api, store, "image:1", {"mimir"}, "the-role"))  # type: ignore[arg-type]
    condition = ready_condition(store)
    assert (condition["status"], condition["reason"]) == ("False", "UnknownMetricsSource")
    assert "it has: mimir" in condition["message"]


def edit_gateway(store: Store, spec: dict[str, Any]) -> None:
    store.put("PromptGateway", an_object("PromptGateway", "default", spec), even_older=True)


def container(api: FakeApi) -> Any:
    return api.objects["Deployment", "default-gateway"]["spec"]["template"]["spec"]["containers"][0]


async def test_a_limit_that_is_taken_out_goes() -> None:
    store, api = store_with(), FakeApi()
    reconciler = GatewayReconciler(api, store, "image:1", {"default"}, "the-role")  # type: ignore[arg-type]
    requests = {"cpu": "250m"}
    edit_gateway(store, {"resources": {"requests": requests, "limits": {"cpu": "2", "memory": "1Gi"}}})
    await reconcile(reconciler)
    edit_gateway(store, {"resources": {"requests": requests, "limits": {"memory": "1Gi"}}})
    await reconcile(reconciler)
    assert container(api)["resources"]["limits"] == {"memory": "1Gi"}


async def test_what_others_add_to_maps_and_lists_of_ours_goes() -> None:
    store, api = store_with(), FakeApi()
    reconciler = GatewayReconciler(api, store, "image:1", {"default"}, "the-role")  # type: ignore[arg-type]
    await reconcile(reconciler)
    apply = api.apply

    async def apply_and_leave(kind: str, namespace: str, name: str, body: Any) -> Any:
        """A server-side apply leaves alone what other field managers own."""
        body = copy.deepcopy(body)
        if kind == "Deployment":
            theirs = body["spec"]["template"]["spec"]["containers"][0]
            theirs["env"].append({"name": "HTTP_PROXY", "value": "http://elsewhere"})
            theirs["resources"]["limits"] = {"cpu": "1"}
        return await apply(kind, namespace, name, body)

    api.apply = apply_and_leave  # type: ignore[method-assign]
    deployment = api.objects["Deployment", "default-gateway"]
    deployment["metadata"]["resourceVersion"] = "900"
    deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] = {"cpu": "1"}
    store.put("Deployment", copy.deepcopy(deployment))
    await reconcile(reconciler)
    assert "HTTP_PROXY" not in {variable["name"] for variable in container(api)["env"]}
    assert container(api)["resources"].get("limits") == {"memory": "512Mi"}


async def test_a_binding_of_another_role_is_made_anew() -> None:
    store, api = store_with(), FakeApi()
    await reconcile(GatewayReconciler(api, store, "image:1", {"default"}, "the-role"))  # type: ignore[arg-type]
    api.writes.clear()
    await reconcile(GatewayReconciler(api, store, "image:1", {"default"}, "another"))  # type: ignore[arg-type]
    assert [write for write in api.writes if write.startswith("RoleBinding")] == ["RoleBinding/delete", "RoleBinding"]
    assert api.objects["RoleBinding", "default-gateway"]["roleRef"]["name"] == "another"


async def test_in_mid_canary_only_a_missing_key_replaces_pods() -> None:
    store, api = store_with(), FakeApi()
    reconciler = GatewayReconciler(api, store, "image:1", {"default"}, "the-role")  # type: ignore[arg-type]
    provide(store, "model", "openai")
    await reconcile(reconciler)
    ready(store, api)
    rollout(store, "Stepping")
    before = copy.deepcopy(api.objects["Deployment", "default-gateway"]["spec"]["template"])
    edit_gateway(store, {"image": "image:9", "replicas": 5, "limits": {"maxConcurrentRequests": 7}})
    provide(store, "other", "second")
    await reconcile(reconciler)
    deployment = api.objects["Deployment", "default-gateway"]
    assert (deployment["spec"]["template"], deployment["spec"]["replicas"]) == (before, 5)
    assert "pods are replaced once these rollouts are complete: app" in ready_condition(store)["message"]
    arms = {"stable": {"provider": {"name": "model"}}, "canary": {"provider": {"name": "other"}}}
    store.put("PromptDelivery", an_object("PromptDelivery", "app", {"gateway": "default"} | arms))
    await reconcile(reconciler)
    deployment = api.objects["Deployment", "default-gateway"]
    second = SecretKeyRef(name="second", key="token")
    assert mounted_files(deployment) == both_forms("model", REF) | both_forms("other", second)
    assert container(api)["image"] == "image:1"
    ready(store, api)
    rollout(store, "Idle")
    await reconcile(reconciler)
    assert container(api)["image"] == "image:9"


@pytest.mark.parametrize(
    "status",
    [{"readyReplicas": 0}, {"conditions": [{"type": "Progressing", "status": "False", "reason": "Deadline"}]}],
)
async def test_pods_that_do_not_become_ready_are_not_held(status: dict[str, Any]) -> None:
    """A rollout waits for these pods: the correction must not wait for the rollout."""
    store, api = store_with(), FakeApi()
    reconciler = GatewayReconciler(api, store, "image:1", {"default"}, "the-role")  # type: ignore[arg-type]
    await reconcile(reconciler)
    ready(store, api, **status)
    rollout(store, "Loading")
    edit_gateway(store, {"image": "image:9"})
    await reconcile(reconciler)
    assert container(api)["image"] == "image:9"


@pytest.mark.parametrize(
    ("auth", "status", "reason", "told"),
    [
        ({}, "False", "AuthenticationOff", "anyone who reaches the gateway"),
        ({"mode": "Keys", "keysSecretRef": {"name": "callers"}}, "True", "Keys", "Secret callers"),
        ({"mode": "ServiceAccounts"}, "True", "ServiceAccounts", "the audience promptrollout"),
    ],
)
async def test_whether_callers_must_say_who_they_are(auth: dict[str, Any], status: str, reason: str, told: str) -> None:
    store, api = store_with(), FakeApi()
    edit_gateway(store, {"auth": auth})
    await reconcile(GatewayReconciler(api, store, "image:1", {"default"}, "the-role"))  # type: ignore[arg-type]
    item = store.get(*KEY)
    assert item is not None
    (found,) = [one for one in item["status"]["conditions"] if one["type"] == "Authenticated"]
    assert (found["status"], found["reason"]) == (status, reason)
    assert told in found["message"]


async def test_the_condition_says_what_the_pods_do_and_not_what_they_will() -> None:
    store, api = store_with(), FakeApi()
    reconciler = GatewayReconciler(api, store, "image:1", {"default"}, "the-role")  # type: ignore[arg-type]
    await reconcile(reconciler)
    ready(store, api)
    rollout(store, "Stepping")
    edit_gateway(store, {"auth": {"mode": "ServiceAccounts"}})
    await reconcile(reconciler)
    assert "PROMPTROLLOUT_AUTH_MODE" not in str(container(api))
    item = store.get(*KEY)
    assert item is not None
    (found,) = [one for one in item["status"]["conditions"] if one["type"] == "Authenticated"]
    assert (found["status"], found["reason"]) == ("False", "WaitsForRollout")
    assert "spec.auth.mode is ServiceAccounts, pods still run with None" in found["message"]


def told(store: Store, kind: str) -> tuple[str, str, str] | None:
    item = store.get(*KEY)
    assert item is not None
    found = [one for one in item["status"]["conditions"] if one["type"] == kind]
    return (found[0]["status"], found[0]["reason"], found[0]["message"]) if found else None


async def test_what_pods_report_becomes_conditions_and_events() -> None:
    store, api = store_with(), FakeApi()
    said: list[Reported | None] = [None]

    def reported(namespace: str, name: str) -> Reported | None:
        assert (namespace, name) == ("ns", "default")
        return said[0]

    async def now(found: Reported | None) -> list[tuple[str, str, str]]:
        said[0] = found
        api.events.clear()
        await reconcile(reconciler)
        return [(event["type"], event["reason"], event["regarding"]["kind"]) for event in api.events]

    edit_gateway(store, {"auth": {"mode": "Keys", "keysSecretRef": {"name": "callers"}}})
    reconciler = GatewayReconciler(
        api,  # type: ignore[arg-type]
        store,
        "image:1",
        {"default"},
        "the-role",
        reported,
    )
    assert await now(None) == [("Warning", "WaitingForPods", "PromptGateway")]
    assert (told(store, "ProvidersAnswer"), (told(store, "Authenticated") or ())[0]) == (None, "True")
    assert await now(Reported(2)) == []
    assert told(store, "ProvidersAnswer") == ("True", "Answering", "")
    trouble = (("NoKeys", "none", 2), ("ProviderDown", "azure", 1), ("ProviderDown", "openai", 2))
    assert await now(Reported(2, trouble)) == [
        ("Warning", "NoKeys", "PromptGateway"),
        ("Warning", "ProviderDown", "PromptGateway"),
    ]
    status, reason, message = told(store, "Authenticated") or ("", "", "")
    assert (status, reason) == ("False", "NoKeys")
    assert message.startswith("2 of 2 pods reject all keys: Secret callers is missing")
    status, reason, message = told(store, "ProvidersAnswer") or ("", "", "")
    assert (status, reason) == ("False", "ProviderDown")
    assert "azure (1 of 2 pods), openai (2 of 2 pods)" in message
    api.writes.clear()
    # the operator begins anew, and nobody was asked yet: what stands there stays
    assert (await now(None), api.writes) == ([], [])
    assert await now(Reported(2)) == [("Normal", "Keys", "PromptGateway"), ("Normal", "Answering", "PromptGateway")]


async def test_forbidden_token_reviews_are_said_with_their_cure() -> None:
    store, api = store_with(), FakeApi()
    edit_gateway(store, {"auth": {"mode": "ServiceAccounts"}})
    said = Reported(1, (("TokenReviewsForbidden", "it may not", 1),))
    reconciler = GatewayReconciler(
        api,  # type: ignore[arg-type]
        store,
        "image:1",
        {"default"},
        "the-role",
        lambda namespace, name: said,
    )
    await reconcile(reconciler)
    status, reason, message = told(store, "Authenticated") or ("", "", "")
    assert (status, reason) == ("False", "TokenReviewsForbidden")
    assert "gateway.tokenReviewers" in message


async def test_hosts_of_keys_are_mounted_with_them_but_replace_no_pods_in_mid_canary() -> None:
    """A release before knew no `hosts`: they come with the pods' next replacement, or with another Secret."""
    store, api = store_with(), FakeApi()
    reconciler = GatewayReconciler(api, store, "image:1", {"default"}, "the-role")  # type: ignore[arg-type]
    provide(store, "model", "openai")
    await reconcile(reconciler)
    ready(store, api)
    old = copy.deepcopy(api.objects["Deployment", "default-gateway"])
    projected = old["spec"]["template"]["spec"]["volumes"][2]["projected"]
    projected["sources"] = [s for s in projected["sources"] if s["secret"]["items"][0]["path"] == "model/api-key"]
    api.objects["Deployment", "default-gateway"] = old
    store.put("Deployment", old | {"metadata": old["metadata"] | {"resourceVersion": "9000"}})
    store.put(
        "PromptDelivery",
        an_object("PromptDelivery", "app", {"gateway": "default", "stable": {"provider": {"name": "model"}}}),
    )
    rollout(store, "Stepping")
    await reconcile(reconciler)
    assert mounted_files(api.objects["Deployment", "default-gateway"]).keys() == {"model/api-key"}
    assert "pods are replaced once these rollouts are complete" in ready_condition(store)["message"]
    rollout(store, "Idle")
    await reconcile(reconciler)
    found = mounted_files(api.objects["Deployment", "default-gateway"])
    assert found == both_forms("model", REF)


async def test_a_provider_that_is_made_anew_elsewhere_takes_no_folder_of_the_one_before() -> None:
    """The delivery of its URL names the folder of its own key, which no pod has before it mounts that very Secret."""
    store, api = store_with(), FakeApi()
    reconciler = GatewayReconciler(api, store, "image:1", {"default"}, "the-role")  # type: ignore[arg-type]
    provide(store, "model", "openai")
    served_at(store, "http://model/v1", REF)
    await reconcile(reconciler)
    mine = SecretKeyRef(name="mine", key="token")
    provide(store, "model", "mine", "http://evil/v1")
    await reconcile(reconciler)
    found = mounted_files(api.objects["Deployment", "default-gateway"])
    assert found == both_forms("model", mine) | bound("model", REF), "stable is served with its key at its URL"
    store.remove("PromptDelivery", "ns", "app", "PromptDelivery-app")
    await reconcile(reconciler)
    assert mounted_files(api.objects["Deployment", "default-gateway"]) == both_forms("model", mine)


async def test_another_secret_at_the_same_url_replaces_pods_once() -> None:
    store, api = store_with(), FakeApi()
    reconciler = GatewayReconciler(api, store, "image:1", {"default"}, "the-role")  # type: ignore[arg-type]
    provide(store, "model", "openai")
    served_at(store, "http://model/v1", REF)
    await reconcile(reconciler)
    mine = SecretKeyRef(name="mine", key="token")
    provide(store, "model", "mine")
    await reconcile(reconciler)
    assert mounted_files(api.objects["Deployment", "default-gateway"]) == both_forms("model", mine)


async def test_two_providers_may_name_one_secret() -> None:
    store, api = store_with(), FakeApi()
    reconciler = GatewayReconciler(api, store, "image:1", {"default"}, "the-role")  # type: ignore[arg-type]
    provide(store, "model", "openai")
    provide(store, "other", "openai")
    await reconcile(reconciler)
    found = mounted_files(api.objects["Deployment", "default-gateway"])
    assert found == both_forms("model", REF) | both_forms("other", REF)


async def test_keys_that_are_not_bound_to_hosts_and_addresses_that_are_refused_are_conditions() -> None:
    store, api = store_with(), FakeApi()
    said: list[Reported | None] = [None]
    reconciler = GatewayReconciler(
        api,  # type: ignore[arg-type]
        store,
        "image:1",
        {"default"},
        "the-role",
        lambda namespace, name: said[0],
        environment={"PROMPTROLLOUT_ALLOWED_PROVIDER_NETWORKS": "127.0.0.0/8"},
    )

    async def now(*problems: tuple[str, str, int]) -> list[tuple[str, str]]:
        said[0] = Reported(2, problems)
        api.events.clear()
        await reconcile(reconciler)
        return [(event["type"], event["reason"]) for event in api.events]

    await now()
    assert container(api)["env"][-1] == {"name": "PROMPTROLLOUT_ALLOWED_PROVIDER_NETWORKS", "value": "127.0.0.0/8"}
    assert told(store, "ProviderKeysBound") == ("True", "Bound", "")
    assert await now(("ProviderKeyUnbound", "openai", 2)) == [("Warning", "ProviderKeyUnbound")]
    text = "the key's Secret has no data key `hosts`, which a later release requires: openai (2 of 2 pods)"
    assert told(store, "ProviderKeysBound") == ("False", "ProviderKeyUnbound", text)
    assert await now(("ProviderKeyNotBound", "azure", 1), ("ProviderKeyUnbound", "openai", 2)) == [
        ("Warning", "ProviderKeyNotBound")
    ]
    assert "azure (1 of 2 pods)" in (told(store, "ProviderKeysBound") or ("", "", ""))[2]
    assert ("Warning", "ProviderAddressRefused") in await now(("ProviderAddressRefused", "metadata", 2))
    status, reason, message = told(store, "ProvidersAnswer") or ("", "", "")
    assert (status, reason) == ("False", "ProviderAddressRefused")
    assert "metadata (2 of 2 pods)" in message
    said[0] = None
    await reconcile(reconciler)
    assert (told(store, "ProvidersAnswer") or ("",))[0] == "False", "as it stands while nobody answers"
