"""The sandbox's node behaves as a kubelet does, as far as our pods can tell."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptrollout.sandbox.sandbox import Sandbox
from promptrollout.sandbox.settings import SandboxError
from tests.integration.cluster import Kubectl
from tests.integration.pods import IMAGE, SERVE, pod, pod_spec

Eventually = Callable[..., Any]

REPORT = """
import json, os, sys, time
def tree(path):
    found = {}
    for folder, _, files in os.walk(path, followlinks=True):
        for name in files:
            if "/.." not in folder:
                full = os.path.join(folder, name)
                found[os.path.relpath(full, path)] = open(full).read()
    for name in os.listdir(path):
        full = os.path.join(path, name)
        if os.path.isfile(full):
            found[name] = open(full).read()
    return found
volumes = {name: tree(path) for name, path in os.environ.items() if name.startswith("VOLUME_")}
print(json.dumps({"env": dict(os.environ), "arguments": sys.argv[1:], "volumes": volumes}))
time.sleep(600)
"""


def phase(kubectl: Kubectl, name: str) -> str:
    return str(kubectl.json("get", "pod", name)["status"].get("phase"))


def container_status(kubectl: Kubectl, name: str) -> dict[str, Any]:
    statuses = kubectl.json("get", "pod", name)["status"].get("containerStatuses") or [{}]
    return dict(statuses[0])


def waiting_reason(kubectl: Kubectl, name: str) -> str:
    return str(container_status(kubectl, name).get("state", {}).get("waiting", {}).get("reason"))


def events(kubectl: Kubectl) -> str:
    """A line each."""
    return "\n".join(f"{each['reason']}: {each['message']}" for each in kubectl.json("get", "events")["items"])


def is_ready(kubectl: Kubectl, name: str) -> bool:
    conditions = kubectl.json("get", "pod", name)["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def running_pid(sandbox: Sandbox, namespace: str, name: str) -> int | None:
    try:
        return sandbox.pid(namespace, name)
    except SandboxError:  # between two runs
        return None


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return str(response.read().decode())


def test_env_and_volumes_of_every_kind_reach_the_process(kubectl: Kubectl, eventually: Eventually) -> None:
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"}, "data": {"a": "1", "b": "2"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "sec"}, "stringData": {"key": "hidden"}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}},
        pod(
            "report",
            REPORT,
            labels={"app": "report"},
            annotations={"note": "hello"},
            args=["--config=/volumes/cm/a", "/volumes/empty/sub", "$(POD)-$(MISSING)-$$(POD)", "/volumes/cmx"],
            env=[
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "PLAIN", "value": "is $(POD)"},
                {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "ACCOUNT", "valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}}},
                {
                    "name": "MEMORY",
                    "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}},
                },
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "key"}}},
                {"name": "OPTIONAL", "valueFrom": {"secretKeyRef": {"name": "no", "key": "x", "optional": True}}},
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "a"}}},
                *({"name": f"VOLUME_{n}", "value": f"/volumes/{n}"} for n in ("cm", "sec", "empty", "projected")),
            ],
            envFrom=[{"configMapRef": {"name": "cm"}, "prefix": "CM_"}],
            resources={"limits": {"memory": "64Mi"}},
            volumeMounts=[{"name": n, "mountPath": f"/volumes/{n}"} for n in ("cm", "sec", "empty", "projected")],
            spec={
                "serviceAccountName": "robot",
                "volumes": [
                    {"name": "cm", "configMap": {"name": "cm", "items": [{"key": "a", "path": "deep/a.txt"}]}},
                    {"name": "sec", "secret": {"secretName": "sec"}},
                    {"name": "empty", "emptyDir": {}},
                    {
                        "name": "projected",
                        "projected": {
                            "sources": [
                                {"serviceAccountToken": {"path": "token", "audience": "us", "expirationSeconds": 600}},
                                {"configMap": {"name": "cm", "items": [{"key": "b", "path": "b"}]}},
                                {
                                    "downwardAPI": {
                                        "items": [
                                            {
                                                "path": "note",
                                                "fieldRef": {"fieldPath": "metadata.annotations['note']"},
                                            }
                                        ]
                                    }
                                },
                            ]
                        },
                    },
                ],
            },
        ),
    )
    report = json.loads(eventually(lambda: kubectl.log("report")))
    env, volumes = report["env"], report["volumes"]
    status = kubectl.json("get", "pod", "report")["status"]
    assert env["POD"] == "report"
    assert env["PLAIN"] == "is report"
    assert env["LABEL"] == "report"
    assert env["IP"] == status["podIP"] == env["PROMPTROLLOUT_BIND_ADDRESS"]
    assert status["podIP"].startswith("127.64.")
    assert (env["NODE"], env["ACCOUNT"], env["MEMORY"]) == ("sandbox", "robot", "64")
    assert (env["KEY"], env["A"], env["CM_a"], env["CM_b"]) == ("hidden", "1", "1", "2")
    assert "OPTIONAL" not in env
    assert volumes["VOLUME_cm"] == {"deep/a.txt": "1"}
    assert volumes["VOLUME_sec"] == {"key": "hidden"}
    assert volumes["VOLUME_empty"] == {}
    assert volumes["VOLUME_projected"]["b"] == "2"
    assert volumes["VOLUME_projected"]["note"] == "hello"
    assert volumes["VOLUME_projected"]["token"].count(".") == 2
    config, below, expanded, other = report["arguments"]
    assert config.startswith("--config=")
    assert config.endswith("/volumes/cm/a")
    assert Path(config.removeprefix("--config=")).is_absolute()
    assert below.endswith("/volumes/empty/sub")
    assert below != "/volumes/empty/sub"
    assert (expanded, other) == ("report-$(MISSING)-$(POD)", "/volumes/cmx")
    # nothing of the environment that started the tests
    assert "PYTEST_CURRENT_TEST" not in env


def test_pods_run_as_the_images_user(kubectl: Kubectl, eventually: Eventually) -> None:
    """A UID without a name, no home, and of the environment nothing but the pod's own."""
    code = """
import json, os, pathlib, pwd, time
def outcome(ask):
    try:
        return str(ask())
    except Exception as error:
        return type(error).__name__
print(json.dumps({"uid": os.getuid(), "gid": os.getgid(), "name": outcome(lambda: pwd.getpwuid(os.getuid())),
    "home": outcome(pathlib.Path.home), "env": sorted(os.environ)}))
time.sleep(600)
"""
    kubectl.apply(pod("user", code))
    report = json.loads(eventually(lambda: kubectl.log("user").strip()))
    assert (report["uid"], report["gid"], report["name"], report["home"]) == (65532, 65532, "KeyError", "RuntimeError")
    assert {"HOME", "USER", "LOGNAME", "LANG"}.isdisjoint(report["env"])


def test_changed_objects_and_tokens_reach_a_running_pod(kubectl: Kubectl, eventually: Eventually) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"}}
    code = """
import os, time
seen = None
while True:
    now = (open(os.environ["FILE"]).read(), open(os.environ["PROMPTROLLOUT_SERVICEACCOUNT_DIR"] + "/token").read()[-8:])
    if now != seen:
        seen = now
        print(*now)
    time.sleep(0.1)
"""
    kubectl.apply(
        {**config, "data": {"text": "old"}},
        pod(
            "watcher",
            code,
            env=[{"name": "FILE", "value": "/config/text"}],
            volumeMounts=[{"name": "cm", "mountPath": "/config"}],
            spec={"volumes": [{"name": "cm", "configMap": {"name": "cm"}}]},
        ),
    )
    eventually(lambda: "old" in kubectl.log("watcher"))
    kubectl.apply({**config, "data": {"text": "new"}})
    lines = eventually(lambda: "new" in (out := kubectl.log("watcher")) and out.split())
    assert lines[0] == "old"
    # the test session's sandbox renews tokens after 5 s
    eventually(lambda: len(set(kubectl.log("watcher").split()) - {"old", "new"}) >= 2)
    assert container_status(kubectl, "watcher")["restartCount"] == 0


def test_token_is_the_service_accounts_and_rbac_limits_it(kubectl: Kubectl, eventually: Eventually) -> None:
    code = """
import os, ssl, time, urllib.request, urllib.error
account = os.environ["PROMPTROLLOUT_SERVICEACCOUNT_DIR"]
context = ssl.create_default_context(cafile=account + "/ca.crt")
url = "https://%s:%s/api/v1/namespaces/%s/" % (
    os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"], open(account + "/namespace").read())
while True:
    found = []
    for resource in ("configmaps", "secrets"):
        headers = {"Authorization": "Bearer " + open(account + "/token").read()}
        try:
            with urllib.request.urlopen(urllib.request.Request(url + resource, headers=headers), context=context) as r:
                found.append(r.status)
        except urllib.error.HTTPError as error:
            found.append(error.code)
    print(*found)
    time.sleep(0.2)
"""
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}},
        pod("caller", code, spec={"serviceAccountName": "robot"}),
    )
    eventually(lambda: "403 403" in kubectl.log("caller"))
    kubectl("create", "role", "reader", "--verb=list", "--resource=configmaps")
    kubectl("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={kubectl.namespace}:robot")
    eventually(lambda: "200 403" in kubectl.log("caller"))


def test_logs_tail_follow_and_previous(
    kubectl: Kubectl, sandbox: Sandbox, namespace: str, eventually: Eventually
) -> None:
    code = """
import os, time
for i in range(5): print('line', i)
go_on = os.environ["TMPDIR"] + "/go-on"
while not os.path.exists(go_on): time.sleep(0.05)
os.remove(go_on)
print('end')
raise SystemExit(3)
"""
    kubectl.apply(pod("talker", code))
    eventually(lambda: phase(kubectl, "talker") == "Running")
    eventually(lambda: "line 4" in kubectl.log("talker"))
    assert kubectl("logs", "talker", "--tail", "2") == "line 3\nline 4\n"
    with kubectl.start("logs", "talker", "--follow", "--tail", "1") as followed:
        assert followed.stdout is not None
        assert followed.stdout.readline() == "line 4\n"
        (sandbox.layout.pods / f"{namespace}_talker" / "root" / "tmp" / "go-on").touch()
        assert followed.stdout.read() == "end\n"
    eventually(lambda: container_status(kubectl, "talker")["restartCount"] == 1)
    assert kubectl("logs", "talker", "--previous", "--tail", "1") == "end\n"


def test_probes_gate_traffic_and_restart(
    kubectl: Kubectl, sandbox: Sandbox, namespace: str, eventually: Eventually
) -> None:
    def http(path: str) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": "http"}, "periodSeconds": 1, "failureThreshold": 1}

    kubectl.apply(
        pod(
            "probed",
            SERVE,
            ports=[{"name": "http", "containerPort": 8080}],
            startupProbe={**http("/start"), "failureThreshold": 30},
            readinessProbe=http("/ready"),
            livenessProbe=http("/live"),
        )
    )
    eventually(lambda: is_ready(kubectl, "probed"))
    temporary = sandbox.layout.pods / f"{namespace}_probed" / "root" / "tmp"
    (temporary / "broken-ready").touch()
    eventually(lambda: not is_ready(kubectl, "probed"))
    assert container_status(kubectl, "probed")["restartCount"] == 0
    (temporary / "broken-ready").unlink()
    eventually(lambda: is_ready(kubectl, "probed"))
    before = sandbox.pid(namespace, "probed")
    (temporary / "broken-live").touch()
    eventually(lambda: container_status(kubectl, "probed")["restartCount"] >= 1)
    (temporary / "broken-live").unlink()
    eventually(lambda: is_ready(kubectl, "probed"))
    assert sandbox.pid(namespace, "probed") != before
    eventually(lambda: "Unhealthy: Readiness probe failed: HTTP probe failed with statuscode: 500" in events(kubectl))
    eventually(lambda: "Killing: Container main failed liveness probe, will be restarted" in events(kubectl))


def test_pods_end_gracefully_or_by_force(
    kubectl: Kubectl, sandbox: Sandbox, namespace: str, eventually: Eventually
) -> None:
    stubborn = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up')\ntime.sleep(600)"
    kubectl.apply(
        pod("polite", SERVE, spec={"terminationGracePeriodSeconds": 300}),
        pod("stubborn", stubborn, spec={"terminationGracePeriodSeconds": 2}),
    )
    for name, word in (("polite", "listening"), ("stubborn", "up")):
        eventually(lambda name=name, word=word: word in kubectl.log(name))
    pids = [sandbox.pid(namespace, name) for name in ("polite", "stubborn")]
    started = time.monotonic()
    kubectl("delete", "pod", "polite")
    assert time.monotonic() - started < 60, "who ends by itself does not use up its 300 s"
    started = time.monotonic()
    kubectl("delete", "pod", "stubborn")
    assert 1.9 < time.monotonic() - started < 60, "killed after its 2 s"
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    eventually(lambda: not (sandbox.layout.pods / f"{namespace}_polite").exists())


def test_a_forced_deletion_kills_at_once(
    kubectl: Kubectl, sandbox: Sandbox, namespace: str, eventually: Eventually
) -> None:
    stubborn = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up')\ntime.sleep(600)"
    kubectl.apply(pod("stubborn", stubborn, spec={"terminationGracePeriodSeconds": 300}))
    eventually(lambda: kubectl.log("stubborn"))
    first = sandbox.pid(namespace, "stubborn")
    kubectl("delete", "pod", "stubborn", "--wait=false")
    kubectl("delete", "pod", "stubborn", "--force", "--grace-period=0")
    eventually(lambda: not Path(f"/proc/{first}").exists(), seconds=60)
    kubectl.apply(pod("stubborn", stubborn))
    eventually(lambda: running_pid(sandbox, namespace, "stubborn") not in (None, first))


def test_exec_and_tcp_probes(kubectl: Kubectl, sandbox: Sandbox, namespace: str, eventually: Eventually) -> None:
    code = (
        "import os, socket, time\n"
        "listener = socket.create_server((os.environ['PROMPTROLLOUT_BIND_ADDRESS'], 7000))\n"
        "time.sleep(600)"
    )
    kubectl.apply(
        pod(
            "probed",
            code,
            readinessProbe={"exec": {"command": ["test", "-e", "/state/ready"]}, "periodSeconds": 1},
            livenessProbe={"tcpSocket": {"port": 7000}, "initialDelaySeconds": 1, "periodSeconds": 1},
            volumeMounts=[{"name": "state", "mountPath": "/state"}],
            spec={"volumes": [{"name": "state", "emptyDir": {}}]},
        )
    )
    eventually(lambda: "Readiness probe failed: command exited with 1" in events(kubectl))
    assert not is_ready(kubectl, "probed")
    (sandbox.layout.pods / f"{namespace}_probed" / "volumes" / "state" / "ready").touch()
    eventually(lambda: is_ready(kubectl, "probed"))
    assert container_status(kubectl, "probed")["restartCount"] == 0


def test_crashes_back_off(kubectl: Kubectl, eventually: Eventually) -> None:
    kubectl.apply(pod("crasher", "raise SystemExit(7)"))
    eventually(lambda: waiting_reason(kubectl, "crasher") == "CrashLoopBackOff")
    status = eventually(
        lambda: (s := container_status(kubectl, "crasher"))["restartCount"] >= 2 and "waiting" in s["state"] and s
    )
    assert status["lastState"]["terminated"]["exitCode"] == 7
    assert "back-off 4s restarting" in status["state"]["waiting"]["message"]
    assert phase(kubectl, "crasher") == "Running"  # as in a cluster: the pod is, its container is not


def test_pods_that_are_done(kubectl: Kubectl, eventually: Eventually) -> None:
    never = {"restartPolicy": "Never"}
    kubectl.apply(pod("fine", "print('done')", spec=never), pod("bad", "raise SystemExit(2)", spec=never))
    eventually(lambda: phase(kubectl, "fine") == "Succeeded")
    eventually(lambda: phase(kubectl, "bad") == "Failed")
    assert kubectl("logs", "fine") == "done\n"


def test_init_containers_run_first(kubectl: Kubectl, eventually: Eventually) -> None:
    first = pod_spec("import os; open(os.environ['TMPDIR'] + '/made', 'w').write('by init')")["containers"][0]
    code = "import os, time; print(open(os.environ['TMPDIR'] + '/made').read()); time.sleep(600)"
    kubectl.apply(pod("staged", code, spec={"initContainers": [{**first, "name": "first"}]}))
    eventually(lambda: kubectl.log("staged") == "by init\n")


def test_pod_security_refuses_a_privileged_pod(kubectl: Kubectl) -> None:
    privileged = pod("privileged", "pass", securityContext={"privileged": True})
    refused = kubectl.run("apply", "-f", "-", stdin=json.dumps(privileged))
    assert refused.returncode != 0
    assert 'violates PodSecurity "restricted' in refused.stderr


def test_what_is_missing_is_said_and_retried(kubectl: Kubectl, eventually: Eventually) -> None:
    key = {"secretKeyRef": {"name": "late", "key": "key"}}
    kubectl.apply(
        pod("env", SERVE, env=[{"name": "KEY", "valueFrom": key}]),
        pod(
            "volume",
            SERVE,
            volumeMounts=[{"name": "late", "mountPath": "/late"}],
            spec={"volumes": [{"name": "late", "secret": {"secretName": "late"}}]},
        ),
        pod("image", SERVE, image="nginx:1.29"),
    )
    eventually(lambda: waiting_reason(kubectl, "env") == "CreateContainerConfigError")
    eventually(lambda: waiting_reason(kubectl, "image") == "ErrImagePull")
    assert waiting_reason(kubectl, "volume") == "ContainerCreating"
    message = container_status(kubectl, "env")["state"]["waiting"]["message"]
    assert message == 'secret "late" not found'

    eventually(lambda: 'FailedMount: MountVolume.SetUp failed: secret "late" not found' in events(kubectl))
    eventually(lambda: "the sandbox runs only images named" in events(kubectl))
    kubectl("create", "secret", "generic", "late", "--from-literal", "key=1")
    eventually(lambda: phase(kubectl, "env") == phase(kubectl, "volume") == "Running")


def deployment(name: str, replicas: int) -> dict[str, Any]:
    labels = {"app": name, "promptrollout.dev/gateway": name}
    scraped = {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"}
    probe = {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1}
    template = pod_spec(SERVE, ports=[{"name": "http", "containerPort": 8080}], readinessProbe=probe)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": labels, "annotations": scraped}, "spec": template},
        },
    }


def service(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {"promptrollout.dev/gateway": name}},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }


def test_services_share_traffic_among_ready_pods_and_prometheus_finds_them(
    kubectl: Kubectl, sandbox: Sandbox, namespace: str, eventually: Eventually
) -> None:
    kubectl.apply(deployment("web", 2), service("web"))
    kubectl("rollout", "status", "deployment/web", "--timeout=180s")
    url = eventually(lambda: sandbox.gateways().get(f"{namespace}/web"))
    assert sandbox.gateway_url(namespace, "web") == url
    assert len({read(url + "/who") for _ in range(10)}) == 2
    name = f"GATEWAY_URL_{namespace}_web".upper().replace("-", "_")
    assert sandbox.environment()[name] == url
    assert json.loads(sandbox.layout.services.read_text())[f"{namespace}/web"]["http"] == url.removeprefix("http://")

    query = f"{sandbox.prometheus_url}/api/v1/query?query=test_up%7Bnamespace%3D%22{namespace}%22%7D"
    series = eventually(lambda: len(r := json.loads(read(query))["data"]["result"]) == 2 and r)
    assert {s["metric"]["gateway"] for s in series} == {"web"}
    assert all(s["metric"]["pod"].startswith("web-") for s in series)
    sandbox.stop_prometheus()
    with pytest.raises(urllib.error.URLError):
        read(query)
    sandbox.start_prometheus()
    assert len(json.loads(read(query))["data"]["result"]) == 2  # data from before the outage

    kubectl("scale", "deployment/web", "--replicas=0")
    eventually(lambda: not kubectl.json("get", "pods", "-l", "app=web")["items"])
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        read(url)


def test_pods_outlive_an_outage_of_the_api_server(
    kubectl: Kubectl, sandbox: Sandbox, namespace: str, eventually: Eventually
) -> None:
    kubectl.apply(deployment("web", 2), service("web"))
    kubectl("rollout", "status", "deployment/web", "--timeout=180s")
    url = sandbox.gateway_url(namespace, "web")
    first, second = (item["metadata"]["name"] for item in kubectl.json("get", "pods")["items"])
    pids = {name: sandbox.pid(namespace, name) for name in (first, second)}
    sandbox.stop_apiserver()
    try:
        assert kubectl.run("get", "pods").returncode != 0
        subprocess.run(["kill", "-KILL", str(pids[first])], check=True)
        # nobody tells the API server, but the node goes on: the container comes back by itself
        eventually(lambda: running_pid(sandbox, namespace, first) not in (None, pids[first]))
        assert sandbox.pid(namespace, second) == pids[second]
        assert read(url)
    finally:
        sandbox.start_apiserver()
    eventually(lambda: container_status(kubectl, first)["restartCount"] == 1)
    kubectl("rollout", "status", "deployment/web", "--timeout=180s")
    assert sandbox.pid(namespace, second) == pids[second]
    kubectl.apply(deployment("web", 3))
    kubectl("rollout", "status", "deployment/web", "--timeout=180s")


def test_images_other_than_ours_are_refused_even_with_a_command(kubectl: Kubectl, eventually: Eventually) -> None:
    assert IMAGE.endswith("/promptrollout:test")
    kubectl.apply(pod("other", "pass", image="docker.io/library/busybox"))
    eventually(lambda: waiting_reason(kubectl, "other") == "ErrImagePull")
