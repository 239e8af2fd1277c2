"""The Helm chart, rendered: safe defaults, least permissions, values that are checked."""

import os
import re
import subprocess
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from promptrollout.api.crds import KINDS, crd
from promptrollout.api.names import GROUP
from promptrollout.api.networks import REFUSED as DEFAULT_REFUSED
from promptrollout.api.pod_settings import PORT_ADMIN
from promptrollout.gateway.auth.authenticate import Auth
from promptrollout.gateway.process import Gateway, Settings
from promptrollout.gateway.server.metrics_page import exposition
from promptrollout.operator.cluster.api import KINDS as KINDS_BY_NAME
from promptrollout.operator.cluster.api import WATCHED
from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.config import load
from promptrollout.operator.gateways.pods import deployment_name
from promptrollout.sandbox.assets import inventory
from promptrollout.sandbox.controlplane import install
from promptrollout.sandbox.settings import Layout

CHART = Path(__file__).parents[3] / "charts" / "promptrollout"
Manifest = dict[str, Any]
Helm = Callable[..., subprocess.CompletedProcess[str]]
Render = Callable[..., list[Manifest]]
POLICY = "ValidatingAdmissionPolicy"
CLUSTER_SCOPED = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding", POLICY, f"{POLICY}Binding"}
ALL_ON = (
    "podDisruptionBudget.enabled=true",
    "networkPolicy.enabled=true",
    "monitoring.serviceMonitor.enabled=true",
    "monitoring.gatewayPodMonitor.enabled=true",
    "monitoring.prometheusRule.enabled=true",
)


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Helm, found as the sandbox finds it, and set up as the sandbox does where it is missing."""
    binary = inventory.find("helm", inventory.cache_dir(), os.environ) or inventory.ensure(print).helm

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(binary), *arguments], capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture(scope="session")
def template(helm: Helm) -> Helm:
    """`helm template` with some `--set` values."""

    def run(*values: str) -> subprocess.CompletedProcess[str]:
        flags = [flag for value in values for flag in ("--set", value)]
        return helm("template", "promptrollout", str(CHART), "--namespace", "promptrollout-system", *flags)

    return run


@pytest.fixture(scope="session")
def render(template: Helm) -> Render:
    @cache
    def run(*values: str) -> list[Manifest]:
        done = template(*values)
        assert done.returncode == 0, done.stderr
        return [body for body in yaml.load_all(done.stdout, yaml.CSafeLoader) if body]

    return run


def only(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    (found,) = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    return found


def granted(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    """(group, resource, verb) of every rule."""
    return {cell for rule in rules for cell in product(rule["apiGroups"], rule["resources"], rule["verbs"])}


def test_lint(helm: Helm) -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", [(), ALL_ON, ("watchNamespaces={a,b}",)], ids=["default", "all on", "namespaced"])
def test_every_object_is_named_labelled_and_in_its_namespace(render: Render, values: tuple[str, ...]) -> None:
    seen = set()
    for body in render(*values):
        key = (body["kind"], body["metadata"].get("namespace"), body["metadata"]["name"])
        assert key not in seen
        seen.add(key)
        assert body["metadata"]["labels"]["app.kubernetes.io/name"] == "promptrollout"
        assert ("namespace" in body["metadata"]) != (body["kind"] in CLUSTER_SCOPED), key


def test_crds_are_those_of_the_models(render: Render) -> None:
    rendered = {m["metadata"]["name"]: m for m in render() if m["kind"] == "CustomResourceDefinition"}
    assert {name: body["spec"] for name, body in rendered.items()} == {
        f"{kind.plural}.{GROUP}": crd(kind)["spec"] for kind in KINDS
    }
    for body in rendered.values():
        assert body["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_crds_by_choice(render: Render) -> None:
    assert (
        "annotations"
        not in only(render("crds.keep=false"), "CustomResourceDefinition", f"promptslos.{GROUP}")["metadata"]
    )
    assert not [m for m in render("crds.enabled=false") if m["kind"] == "CustomResourceDefinition"]


def test_pod_meets_the_restricted_standard(render: Render) -> None:
    spec = only(render(), "Deployment")["spec"]
    assert spec["strategy"] == {"type": "Recreate"}
    pod = spec["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["args"] == ["operator", "--config", "/etc/promptrollout/config.yaml"]
    assert container["ports"] == [{"name": "admin", "containerPort": PORT_ADMIN}]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "admin"}
    assert "memory" in container["resources"]["limits"]


def test_service_and_budget_select_the_operator_only(render: Render) -> None:
    manifests = render(*ALL_ON)
    labels = only(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/component"] == "operator"
    assert only(manifests, "Service")["spec"]["selector"] == labels
    for kind, field in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        assert only(manifests, kind)["spec"][field]["matchLabels"] == labels


def test_configuration(render: Render) -> None:
    manifests = render("metricsSources[0].name=default", "metricsSources[0].url=http://p:9090", "logLevel=debug")
    config = yaml.safe_load(only(manifests, "ConfigMap")["data"]["config.yaml"])
    assert config == {
        "metricsSources": [{"name": "default", "url": "http://p:9090"}],
        "watchNamespaces": [],
        "logLevel": "debug",
        "settleSeconds": 2,
        "gatewayClusterRole": "promptrollout-gateway",
        "allowedProviderNetworks": [],
        "refusedProviderNetworks": [],
        "gatewayImage": only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"],
    }


def test_operator_reads_the_configuration(render: Render, tmp_path: Path) -> None:
    text = only(render("watchNamespaces={a}", "settleSeconds=5"), "ConfigMap")["data"]["config.yaml"]
    (tmp_path / "config.yaml").write_text(text)
    config = load(tmp_path / "config.yaml")
    assert [source.name for source in config.metrics_sources] == ["default"]
    assert config.watch_namespaces == ["a"]
    assert config.settle_seconds == 5
    assert config.gateway_image == "ghcr.io/promptrollout/promptrollout:0.1.0"


def test_a_source_that_wants_a_token(render: Render, tmp_path: Path) -> None:
    manifests = render(
        "metricsSources[0].name=default",
        "metricsSources[0].url=https://mimir/prometheus",
        "metricsSources[0].headers.X-Scope-OrgID=team",
        "metricsSources[0].bearerTokenFile=/var/run/mimir/token",
        "metricsSources[0].namespaceLabel=kubernetes_namespace",
        "extraVolumes[0].name=mimir",
        "extraVolumes[0].secret.secretName=mimir",
        "extraVolumeMounts[0].name=mimir",
        "extraVolumeMounts[0].mountPath=/var/run/mimir",
    )
    (tmp_path / "config.yaml").write_text(only(manifests, "ConfigMap")["data"]["config.yaml"])
    (source,) = load(tmp_path / "config.yaml").metrics_sources
    assert (source.headers, source.bearer_token_file) == ({"X-Scope-OrgID": "team"}, "/var/run/mimir/token")
    assert source.namespace_label == "kubernetes_namespace"
    pod = only(manifests, "Deployment")["spec"]["template"]["spec"]
    assert pod["volumes"][-1] == {"name": "mimir", "secret": {"secretName": "mimir"}}
    assert pod["containers"][0]["volumeMounts"][-1]["mountPath"] == "/var/run/mimir"


def test_a_sources_secret_is_mounted_and_its_keys_become_paths(render: Render, tmp_path: Path) -> None:
    manifests = render(
        "metricsSources[0].name=plain",
        "metricsSources[0].url=http://prometheus",
        "metricsSources[1].name=thanos",
        "metricsSources[1].url=https://thanos",
        "metricsSources[1].secretName=thanos-access",
        "metricsSources[1].basicAuth.username=rollouts",
        "metricsSources[1].basicAuth.passwordFile=password",
        "metricsSources[1].caFile=/etc/ssl/own.pem",
        "metricsSources[1].clientCertificateFile=tls.crt",
        "metricsSources[1].clientKeyFile=tls.key",
        "metricsSources[1].queryTimeoutSeconds=20",
        "metricsSources[1].queryParameters.dedup=yes",
    )
    (tmp_path / "config.yaml").write_text(only(manifests, "ConfigMap")["data"]["config.yaml"])
    plain, thanos = load(tmp_path / "config.yaml").metrics_sources
    here = "/var/run/promptrollout/sources/thanos"
    assert plain.client_certificate is None
    assert thanos.client_certificate == (f"{here}/tls.crt", f"{here}/tls.key")
    assert thanos.basic_auth is not None
    assert (thanos.basic_auth.username, thanos.basic_auth.password_file) == ("rollouts", f"{here}/password")
    assert thanos.ca_file == "/etc/ssl/own.pem"
    assert (thanos.query_timeout_seconds, thanos.query_parameters) == (20, {"dedup": "yes"})
    pod = only(manifests, "Deployment")["spec"]["template"]["spec"]
    (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"].startswith("source-")]
    assert mount == {"name": "source-thanos", "mountPath": here, "readOnly": True}
    (volume,) = [v for v in pod["volumes"] if v["name"] == "source-thanos"]
    assert volume["secret"] == {"secretName": "thanos-access", "defaultMode": 0o440, "optional": True}


def test_no_source_at_all_is_an_empty_list(helm: Helm) -> None:
    done = helm("template", "r", str(CHART), "--set-json", "metricsSources=[]")
    manifests = [body for body in yaml.load_all(done.stdout, yaml.CSafeLoader) if body]
    assert yaml.safe_load(only(manifests, "ConfigMap")["data"]["config.yaml"])["metricsSources"] == []


async def test_the_sandbox_takes_values_over_its_own(helm: Helm, tmp_path: Path) -> None:
    binary = inventory.find("helm", inventory.cache_dir(), os.environ) or inventory.ensure(print).helm
    binaries = inventory.Binaries(*[Path("unused")] * 4, helm=binary, kubectl=Path("unused"))
    for name, content in (("one", {"logLevel": "debug", "metricsSources": []}), ("two", {"logLevel": "warning"})):
        (tmp_path / name).write_text(yaml.safe_dump(content))
    files = [str(tmp_path / "one"), str(tmp_path / "two")]
    text = await install.render(binaries, Layout(tmp_path), "http://prometheus", files)
    config = yaml.safe_load(
        only([body for body in yaml.load_all(text, yaml.CSafeLoader) if body], "ConfigMap")["data"]["config.yaml"]
    )
    assert (config["metricsSources"], config["logLevel"]) == ([], "warning")


async def test_alerts_are_on_metrics_that_operator_or_gateway_have(render: Render, tmp_path: Path) -> None:
    (group,) = only(render(*ALL_ON), "PrometheusRule")["spec"]["groups"]
    known = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    known |= {f"{family.name}_total" for family in Metrics().registry.collect()}
    known |= {family.name for family in Metrics().registry.collect()}
    pod = Gateway(Settings("g", "ns", "pod", tmp_path, tmp_path, auth=Auth("Keys"), caller_keys_dir=tmp_path))
    page = b"".join([piece async for piece in exposition(pod.counters, pod.state())]).decode()
    known |= set(re.findall(r"# TYPE (\w+)", page))
    for rule in group["rules"]:
        metrics = set(re.findall(r"promptrollout_\w+", rule["expr"]))
        assert metrics, rule["alert"]
        assert metrics <= known, rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description"}
        assert "{{" not in rule["annotations"]["summary"].replace("{{ $labels.", "")


def test_changed_configuration_restarts_the_operator(render: Render) -> None:
    def checksum(*values: str) -> str:
        annotations = only(render(*values), "Deployment")["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["checksum/config"])

    assert checksum() == checksum()
    assert checksum("logLevel=debug") != checksum()


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ((), "ghcr.io/promptrollout/promptrollout:0.1.0"),
        (("image.tag=1.2.3",), "ghcr.io/promptrollout/promptrollout:1.2.3"),
        (
            ("image.repository=r/promptrollout", "image.tag=x", f"image.digest=sha256:{'a' * 64}"),
            f"r/promptrollout@sha256:{'a' * 64}",
        ),
    ],
)
def test_image(render: Render, values: tuple[str, ...], image: str) -> None:
    assert only(render(*values), "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"] == image


def test_permissions_of_the_operator(render: Render) -> None:
    role = only(render(), "ClusterRole", "promptrollout-operator")
    cells = granted(role["rules"])
    assert not {cell for cell in cells if "*" in cell}
    assert not {cell for cell in cells if cell[1] in ("secrets", "namespaces")}
    assert not {cell for cell in cells if cell[2] in ("escalate", "impersonate")}
    # what people declare is theirs: GitOps tools see no write of the operator there
    written = {resource for group, resource, verb in cells if group == GROUP and verb not in ("get", "list", "watch")}
    assert written == {
        "promptversions",
        "promptdeliveries",
        "promptsigningkeys",
        "promptgateways/finalizers",
        *(f"{kind.plural}/status" for kind in KINDS if "status" in kind.model_fields),
    }
    # the only role that it may hand out
    (bind,) = [rule for rule in role["rules"] if "bind" in rule["verbs"]]
    assert bind["resourceNames"] == ["promptrollout-gateway"]
    assert granted([bind]) == {("rbac.authorization.k8s.io", "clusterroles", "bind")}


def test_permissions_without_a_use_are_not_asked_for(render: Render) -> None:
    """Whatever is watched, made or deleted is in KINDS of the operator; gateways' parts are deleted by their owner."""
    cells = granted(only(render(), "ClusterRole", "promptrollout-operator")["rules"])
    assert {resource for _, resource, verb in cells if verb == "watch"} == {KINDS_BY_NAME[k].plural for k in WATCHED}
    deleted = {resource for _, resource, verb in cells if verb == "delete"}
    assert deleted == {"promptversions", "promptdeliveries", "promptsigningkeys", "rolebindings"}
    assert not {cell for cell in cells if cell[1] in ("leases", "replicasets")}
    assert {cell for cell in cells if cell[1] == "events"} == {("events.k8s.io", "events", "create")}


def test_releases_of_other_names_share_a_cluster(helm: Helm) -> None:
    """What is not of a namespace carries the release's name: Helm lets nobody take another release's objects."""
    found: list[set[tuple[str, str]]] = []
    for name in ("team-a", "team-b"):
        flags = ("--set", "crds.enabled=false", "--set", f"watchNamespaces={{{name}}}")
        done = helm("template", name, str(CHART), "--namespace", name, *flags)
        manifests = [m for m in yaml.load_all(done.stdout, yaml.CSafeLoader) if m]
        found.append({(m["kind"], m["metadata"]["name"]) for m in manifests if m["kind"] in CLUSTER_SCOPED})
        config = yaml.safe_load(only(manifests, "ConfigMap")["data"]["config.yaml"])
        role = only(manifests, "ClusterRole", config["gatewayClusterRole"])["metadata"]["name"]
        (bind,) = [r for r in only(manifests, "Role")["rules"] if "bind" in r["verbs"]]
        assert bind["resourceNames"] == [role] == [f"{name}-promptrollout-gateway"]
    assert not found[0] & found[1]


def test_permissions_of_gateways(render: Render) -> None:
    assert granted(only(render(), "ClusterRole", "promptrollout-gateway")["rules"]) == {
        (group, resource, verb)
        for group, resource in ((GROUP, "promptdeliveries"), (GROUP, "promptsigningkeys"), ("", "configmaps"))
        for verb in ("get", "list", "watch")
    }


def test_only_named_gateways_review_tokens(render: Render, template: Helm) -> None:
    manifests = render("gateway.tokenReviewers[0].namespace=support", "gateway.tokenReviewers[0].gateway=default")
    name = "promptrollout-gateway-tokenreviews"
    assert granted(only(manifests, "ClusterRole", name)["rules"]) == {
        ("authentication.k8s.io", "tokenreviews", "create")
    }
    binding = only(manifests, "ClusterRoleBinding", name)
    assert binding["roleRef"]["name"] == name
    account = {"kind": "ServiceAccount", "name": deployment_name("default"), "namespace": "support"}
    assert binding["subjects"] == [account]
    # what the operator may hand out is as it was
    (bind,) = [r for r in only(manifests, "ClusterRole", "promptrollout-operator")["rules"] if "bind" in r["verbs"]]
    assert bind["resourceNames"] == ["promptrollout-gateway"]
    assert not [m for m in render() if "tokenreviews" in str(m)]
    assert template("gateway.tokenReviewers[0].namespace=support").returncode


def test_namespaced_mode_has_the_same_rules_in_roles(render: Render) -> None:
    everywhere = only(render(), "ClusterRole", "promptrollout-operator")["rules"]
    manifests = render("watchNamespaces={a,b}")
    assert not [m for m in manifests if m["kind"] == "ClusterRoleBinding"]
    roles = {m["metadata"]["namespace"]: m for m in manifests if m["kind"] == "Role"}
    assert roles.keys() == {"a", "b"}
    assert roles["a"]["rules"] == roles["b"]["rules"] == everywhere
    config = yaml.safe_load(only(manifests, "ConfigMap")["data"]["config.yaml"])
    assert config["watchNamespaces"] == ["a", "b"]


def test_people_edit_what_they_declare_and_only_read_deliveries(render: Render) -> None:
    manifests = render()
    edit = granted(only(manifests, "ClusterRole", "promptrollout-edit")["rules"])
    view = granted(only(manifests, "ClusterRole", "promptrollout-view")["rules"])
    # whoever reads the keys of response ids can forge votes
    assert {resource for _, resource, _ in view} == {kind.plural for kind in KINDS} - {"promptsigningkeys"}
    assert {resource for _, resource, _ in edit} == {kind.plural for kind in KINDS if not kind.written_by_operator}
    assert {verb for _, _, verb in view} == {"get", "list", "watch"}


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("replicas=3", "replicas"),
        ("image.pullpolicy=Always", "pullpolicy"),
        ("image.digest=latest", "digest"),
        ("logLevel=loud", "logLevel"),
        ("metricsSources[0].url=prometheus:9090", "url"),
        ("metricsSources[0].name=A B", "name"),
        ("metricsSources[0].namespaceLabel=a-b", "namespaceLabel"),
        ("metricsSources[0].bearerTokenFile=a b", "bearerTokenFile"),
        ("metricsSources[0].clientKeyFile=/tls.key", "clientCertificateFile"),
        ("metricsSources[0].queryTimeoutSeconds=0", "queryTimeoutSeconds"),
        ("watchNamespaces={a,a}", "watchNamespaces"),
        ("gateway.allowedProviderNetworks={localhost}", "allowedProviderNetworks"),
        ("serviceAccount.create=false", "serviceAccount.name is needed"),
    ],
)
def test_wrong_value_is_refused_by_name(template: Helm, value: str, names: str) -> None:
    done = template(value)
    assert done.returncode != 0
    assert names in done.stderr


def test_a_key_without_its_secret_is_refused(template: Helm) -> None:
    source = ("metricsSources[0].name=mimir", "metricsSources[0].url=http://mimir")
    done = template(*source, "metricsSources[0].bearerTokenFile=token")
    assert "bearerTokenFile of mimir is a key of a Secret: set secretName, or write a path" in done.stderr


def test_service_monitor_and_pod_monitor_exclude_each_other(template: Helm) -> None:
    done = template("monitoring.serviceMonitor.enabled=true", "monitoring.podMonitor.enabled=true")
    assert "would scrape the operator twice" in done.stderr


def test_networks_of_providers_reach_the_operator_and_the_policy(render: Render) -> None:
    values = ("gateway.allowedProviderNetworks={127.0.0.0/8}", "gateway.refusedProviderNetworks={10.0.0.0/8}")
    manifests = render(*values)
    config = yaml.safe_load(only(manifests, "ConfigMap")["data"]["config.yaml"])
    assert (config["allowedProviderNetworks"], config["refusedProviderNetworks"]) == (["127.0.0.0/8"], ["10.0.0.0/8"])
    policy = only(manifests, POLICY, "promptrollout-providers")["spec"]
    variables = {each["name"]: each["expression"] for each in policy["variables"]}
    assert yaml.safe_load(variables["allowed"]) == ["127.0.0.0/8"]
    refused = [str(network) for _, network in DEFAULT_REFUSED]
    assert sorted(yaml.safe_load(variables["refused"])) == sorted([*refused, "10.0.0.0/8"]), "as gateways refuse them"
    assert not [each for each in render("admission.enabled=false") if each["kind"].startswith(POLICY)]
