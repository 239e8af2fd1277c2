"""The chart and the quickstart on a real node, in the order in which somebody would meet them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from promptrollout.sandbox.settings import OPERATOR_NAMESPACE
from tests.node.cluster import GATEWAY_PODS, QUICKSTART, ROLLOUT, NodeKubectl, NodeUsers
from tests.node.node import Node
from tests.users import eventually, stats_after

OPERATOR = "deployment/promptrollout-operator"
MODEL = "deployment/simulated-model"

#: What a process of the image sees of itself.
WHO = """
import json, os, pwd
def refused(place):
    try:
        open(place + "/probe", "w").close()
    except OSError as error:
        return error.strerror
try:
    name = pwd.getpwuid(os.getuid()).pw_name
except KeyError:
    name = None
token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
print(json.dumps({"uid": os.getuid(), "name": name, "root": refused("/opt"), "tmp": refused("/tmp"),
                  "token": len(open(token).read())}))
"""


@pytest.mark.parametrize(
    "namespace_and_pod", [(OPERATOR_NAMESPACE, OPERATOR), ("support", "deployment/default-gateway")]
)
def test_pods_run_as_a_user_without_a_name_on_a_read_only_root(
    installed: None, node: Node, namespace_and_pod: tuple[str, str]
) -> None:
    namespace, pod = namespace_and_pod
    done = NodeKubectl(node, namespace).python(pod, WHO)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["uid"], seen["name"]) == (65532, None)
    assert (seen["root"], seen["tmp"]) == ("Read-only file system", None)
    assert seen["token"] > 100


def test_command_of_the_image_works_in_a_pod(installed: None, system: NodeKubectl) -> None:
    done = system.run("exec", OPERATOR, "--", "promptrollout", "status", ROLLOUT, "-n", "support")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Healthy" in done.stdout


def test_services_have_names(installed: None, system: NodeKubectl) -> None:
    script = "import socket; print(socket.gethostbyname('prometheus.monitoring.svc'))"
    done = system.python(OPERATOR, script)
    assert done.stdout.startswith("10.96."), done.stderr


def test_good_change_reaches_everybody(users: NodeUsers, kubectl: NodeKubectl) -> None:
    before = kubectl.rollout("Healthy")
    kubectl("apply", "-f", str(QUICKSTART / "changes" / "good-change.yaml"))
    after = kubectl.rollout("Healthy")
    assert after["stable"]["version"] != before["stable"]["version"]
    assert after["previous"]["version"] == before["stable"]["version"]
    assert "RolloutCompleted" in reasons(kubectl)
    assert_nothing_lost(users)


def test_bad_change_is_rolled_back(users: NodeUsers, kubectl: NodeKubectl) -> None:
    before = kubectl.rollout("Healthy")
    kubectl("apply", "-f", str(QUICKSTART / "changes" / "bad-change.yaml"))
    after = kubectl.rollout("Degraded")
    assert after["stable"]["version"] == before["stable"]["version"]
    assert len(after["rejected"]) == 1
    assert "ObjectiveBreached" in reasons(kubectl)
    assert_nothing_lost(users)


def test_deleted_gateway_pod_answers_what_it_has(users: NodeUsers, kubectl: NodeKubectl) -> None:
    victim = kubectl.names("pods", "-l", GATEWAY_PODS)[0]
    kubectl("delete", "pod", victim)
    kubectl("rollout", "status", "deployment/default-gateway", "--timeout=90s")
    assert victim not in kubectl.names("pods", "-l", GATEWAY_PODS)
    assert_nothing_lost(users)


def test_drained_node_keeps_one_gateway_pod(users: NodeUsers, kubectl: NodeKubectl) -> None:
    before = set(kubectl.names("pods", "-l", GATEWAY_PODS))
    drain = ("drain", "node", f"--pod-selector={GATEWAY_PODS}", "--ignore-daemonsets", "--delete-emptydir-data")
    done = kubectl.run(*drain, "--timeout=15s")
    # there is no second node for the evicted pod's successor, so the budget protects the other one
    assert done.returncode != 0
    assert "disruption budget" in done.stderr
    ready = kubectl.json("get", "deployment", "default-gateway")["status"]["readyReplicas"]
    left = before & set(kubectl.names("pods", "-l", GATEWAY_PODS))
    assert (ready, len(left)) == (1, 1)
    kubectl("uncordon", "node")
    kubectl("rollout", "status", "deployment/default-gateway", "--timeout=90s")
    assert_nothing_lost(users)


def test_evictions_come_one_at_a_time(users: NodeUsers, kubectl: NodeKubectl) -> None:
    pods = kubectl.names("pods", "-l", GATEWAY_PODS)
    eventually(
        lambda: kubectl.json("get", "pdb", "default-gateway")["status"].get("disruptionsAllowed"),
        "no disruption is allowed",
    )
    first, second = (evict(kubectl, pod) for pod in pods)
    assert (first, second) == ("", "TooManyRequests")
    kubectl("rollout", "status", "deployment/default-gateway", "--timeout=90s")
    assert_nothing_lost(users)


@pytest.mark.skipif(not Path("/proc/sys/net/bridge").is_dir(), reason="the kernel's br_netfilter is not loaded")
def test_network_policies_open_the_documented_ports_only(
    users: NodeUsers, kubectl: NodeKubectl, system: NodeKubectl
) -> None:
    pods = kubectl.json("get", "pods", "-l", GATEWAY_PODS)["items"]
    # a pod that was evicted before may still be on its way out
    gateway = next(p["metadata"]["name"] for p in pods if not p["metadata"].get("deletionTimestamp"))
    gateway_ip = kubectl.json("get", "pod", gateway)["status"]["podIP"]
    (operator,) = system.names("pods", "-l", "app.kubernetes.io/component=operator")
    operator_ip = system.json("get", "pod", operator)["status"]["podIP"]
    (model,) = kubectl.names("pods", "-l", "app=simulated-model")
    model_ip = kubectl.json("get", "pod", model)["status"]["podIP"]
    for place, pod in ((kubectl, gateway), (system, operator), (kubectl, model)):
        listen(place, pod, 7777)
    reached = {
        "gateway, serving": connects(kubectl, model, gateway_ip, 8080),
        "gateway, admin": connects(system, operator, gateway_ip, 9090),
        "gateway, other": connects(kubectl, model, gateway_ip, 7777),
        "operator, admin": connects(kubectl, model, operator_ip, 9090),
        "operator, other": connects(kubectl, model, operator_ip, 7777),
        "no policy": connects(kubectl, gateway, model_ip, 7777),
    }
    assert {name for name, open_ in reached.items() if not open_} == {"gateway, other", "operator, other"}


def test_nothing_ended_by_itself(users: NodeUsers, node: Node, kubectl: NodeKubectl) -> None:
    assert node.dead() == []
    pods = kubectl.json("get", "pods", "-A")["items"]
    restarts = {
        pod["metadata"]["name"]: status["restartCount"]
        for pod in pods
        for status in pod["status"].get("containerStatuses") or []
        if status["restartCount"]
    }
    assert restarts == {}


def test_uninstalling_leaves_nothing(users: NodeUsers, node: Node, kubectl: NodeKubectl, system: NodeKubectl) -> None:
    kubectl("delete", "pod", "users", "--grace-period=1")
    kubectl(
        "delete",
        "--ignore-not-found",
        "-f",
        str(QUICKSTART / "20-gateway.yaml"),
        "-f",
        str(QUICKSTART / "30-rollout.yaml"),
    )
    eventually(lambda: not kubectl.names("pods", "-l", GATEWAY_PODS), "the gateway's pods are still there")
    done = node.run("helm", "uninstall", "promptrollout", "--namespace", OPERATOR_NAMESPACE, "--wait")
    assert done.returncode == 0, done.stderr
    kinds = (
        *("clusterroles", "clusterrolebindings", "roles", "rolebindings", "serviceaccounts"),
        *("deployments", "replicasets", "pods", "services", "configmaps", "networkpolicies"),
    )
    ours = ("-A", "-l", "app.kubernetes.io/name in (promptrollout,promptrollout-gateway)")
    eventually(lambda: not system.names(",".join(kinds), *ours), "the release left something", 60)
    # they stay on purpose (crds.keep), with every object of theirs
    crds = [name for name in system.names("crds") if name.endswith(".promptrollout.dev")]
    assert crds
    system("delete", "crd", *crds, "--timeout=60s")
    system("delete", "namespace", "support", OPERATOR_NAMESPACE, "--timeout=90s")


def assert_nothing_lost(users: NodeUsers) -> None:
    """Every request of the session so far was answered, and some were since whatever happened just now."""
    stats = stats_after(users, 120)
    seen = f"{stats.statuses}, {stats.failures}, {stats.skipped} skipped; the gateway's pods say\n{users.complaints()}"
    assert (stats.failures, stats.skipped, set(stats.statuses)) == ({}, 0, {200}), seen


def reasons(kubectl: NodeKubectl) -> set[str]:
    """Of the rollout's Events."""
    events = kubectl.json("get", "events", "--field-selector", f"involvedObject.name={ROLLOUT}")
    return {event["reason"] for event in events["items"]}


def evict(kubectl: NodeKubectl, pod: str) -> str:
    """The API server's reason to refuse the eviction; empty if it did not."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "support"}}
    path = f"/api/v1/namespaces/support/pods/{pod}/eviction"
    done = kubectl.run("create", "--raw", path, "-f", "-", stdin=json.dumps(body))
    return "" if done.returncode == 0 else done.stderr.partition("(")[2].partition(")")[0]


def listen(kubectl: NodeKubectl, pod: str, port: int) -> None:
    """A server in the pod that nobody knows of, for two minutes."""
    server = f"import socket, time; s = socket.create_server(('0.0.0.0', {port})); time.sleep(120)"
    done = kubectl.python(
        pod, f"import subprocess; subprocess.Popen(['python', '-c', {server!r}], stdout=-3, stderr=-3, stdin=-3)"
    )
    assert done.returncode == 0, done.stderr
    probe = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1).close()"
    eventually(lambda: kubectl.python(pod, probe).returncode == 0, f"{pod} does not listen on {port}", 15)


def connects(kubectl: NodeKubectl, pod: str, address: str, port: int) -> bool:
    script = f"import socket; socket.create_connection(({address!r}, {port}), 3).close()"
    return kubectl.python(pod, script).returncode == 0
