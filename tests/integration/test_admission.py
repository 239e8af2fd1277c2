"""Who may name a Secret, an image or an address: real users of a real API server, each with the roles that it says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from promptrollout.api.base_url import BASE_URL_PROBLEM
from promptrollout.sandbox.sandbox import Sandbox
from tests.integration.api import ApiKubectl, Refused
from tests.integration.chart import install_all_but_the_operator, rendered

pytestmark = pytest.mark.usefixtures("no_operator")

Manifest = dict[str, Any]
Run = Callable[..., subprocess.CompletedProcess[str]]
URL = "https://collect.example.com/v1"


@pytest.fixture(scope="module")
def installed(sandbox: Sandbox) -> Sandbox:
    """The chart, its policies too; every user may at first do nothing."""
    install_all_but_the_operator(sandbox.kubeconfig)
    return sandbox


class People:
    """Users of one namespace."""

    def __init__(self, kubectl: ApiKubectl, namespace: str) -> None:
        self.kubectl, self.namespace = kubectl, namespace

    def grant(self, user: str, role: str, kind: str = "ClusterRole") -> None:
        group = "rbac.authorization.k8s.io"
        binding = {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": f"{user}-{role}"},
            "roleRef": {"apiGroup": group, "kind": kind, "name": role},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
        }
        self.kubectl.apply(binding)

    def let_use(self, user: str, verb: str, secret: str) -> None:
        """The narrowest grant: one verb on one Secret."""
        rule = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [secret], "verbs": [verb]}
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": f"{verb}-{secret}"},
            "rules": [rule],
        }
        self.kubectl.apply(role)
        self.grant(user, f"{verb}-{secret}", "Role")

    def apply(self, user: str, body: Manifest, *, dry_run: bool = False) -> str:
        """Server-side apply under a field manager of the user's, as a GitOps controller does; empty: accepted."""
        try:
            self.kubectl.api.apply(body, self.namespace, manager=user, user=user, dry_run=dry_run)
        except Refused as refused:
            return str(refused)
        return ""


@pytest.fixture
def people(installed: Sandbox, kubectl: ApiKubectl, namespace: str, eventually: Callable[..., Any]) -> People:
    found = People(kubectl, namespace)
    for user in ("alice", "bob"):
        found.grant(user, "promptrollout-edit")
    # a policy that was just applied is not yet in force: for more than 15 s where the API server starves. A dry run:
    # once the object is there, applying it again would change nothing and be accepted
    probe = provider(key=("probe", "k"))
    eventually(lambda: "you may not use Secret" in found.apply("alice", probe, dry_run=True))
    return found


@pytest.fixture
def strict(people: People, eventually: Callable[..., Any]) -> Iterator[People]:
    """In the test's namespace the chart's policy holds as it is by default, too: the sandbox allows loopback."""
    policy, binding = (
        body
        for body in rendered("fullnameOverride=strict")
        if body["kind"].startswith("ValidatingAdmissionPolicy") and body["metadata"]["name"] == "strict-providers"
    )
    binding["metadata"]["name"] = people.namespace
    labels = {"kubernetes.io/metadata.name": people.namespace}
    binding["spec"]["matchResources"] = {"namespaceSelector": {"matchLabels": labels}}
    people.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all([policy, binding]))
    refused = "gateways may not connect to this address"
    probe = provider("probe", baseURL="http://127.0.0.1/v1")
    eventually(lambda: refused in people.apply("alice", probe, dry_run=True))
    yield people
    people.kubectl("delete", "validatingadmissionpolicybinding", people.namespace)


def manifest(kind: str, name: str, spec: Manifest) -> Manifest:
    return {
        "apiVersion": "promptrollout.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }


def provider(
    name: str = "openai", key: tuple[str, str] | None = None, ca: tuple[str, str] | None = None, **spec: Any
) -> Manifest:
    found: Manifest = {"baseURL": URL, **spec}
    if key is not None:
        found["apiKeySecretRef"] = dict(zip(("name", "key"), key, strict=True))
    if ca is not None:
        found["tls"] = {"caSecretRef": dict(zip(("name", "key"), ca, strict=True))}
    return manifest("ModelProvider", name, found)


def test_the_edit_role_alone_names_no_secret(people: People) -> None:
    refusal = people.apply("alice", provider(key=("db-password", "password")))
    assert "spec.apiKeySecretRef: you may not use Secret db-password: get the verb use or get on it" in refusal
    assert people.namespace in refusal
    refusal = people.apply("alice", provider(ca=("db-password", "password")))
    assert "spec.tls.caSecretRef: you may not use Secret db-password" in refusal
    callers = {"auth": {"mode": "Keys", "keysSecretRef": {"name": "db-password"}}}
    refusal = people.apply("alice", manifest("PromptGateway", "default", callers))
    assert "spec.auth.keysSecretRef: you may not use Secret db-password" in refusal
    assert people.apply("alice", provider()) == "", "without a Secret nothing else is needed"
    assert people.apply("alice", manifest("PromptGateway", "default", {"replicas": 1})) == ""


@pytest.mark.parametrize("verb", ["get", "use"])
def test_get_or_use_on_that_very_secret_is_enough(people: People, verb: str) -> None:
    people.let_use("alice", verb, "openai")
    assert people.apply("alice", provider(key=("openai", "api-key"), ca=("openai", "ca.crt"))) == ""
    assert "may not use Secret other" in people.apply("alice", provider("second", key=("other", "api-key")))
    callers = {"auth": {"mode": "Keys", "keysSecretRef": {"name": "openai"}}}
    assert people.apply("alice", manifest("PromptGateway", "default", callers)) == ""


def test_the_namespaces_own_edit_role_reads_secrets_and_so_names_them(people: People) -> None:
    """Kubernetes' `edit` may read Secrets already: nothing changes for its users."""
    people.grant("bob", "system:aggregate-to-edit")
    assert people.apply("bob", provider(key=("db-password", "password"))) == ""


def test_a_reference_that_stays_needs_nothing_and_one_that_changes_does(people: People) -> None:
    people.let_use("alice", "use", "openai")
    first = provider(key=("openai", "api-key"), ca=("openai", "ca.crt"))
    assert people.apply("alice", first) == ""
    # somebody else, or a GitOps controller without the right, changes something else, and labels
    again = provider(key=("openai", "api-key"), ca=("openai", "ca.crt"), maxRetries=1)
    again["metadata"]["labels"] = {"team": "b"}
    assert people.apply("bob", again) == ""
    assert people.kubectl.run("label", "modelprovider/openai", "x=y", "--as=bob").returncode == 0
    for changed, field in (
        (provider(key=("openai", "other-key"), ca=("openai", "ca.crt")), "spec.apiKeySecretRef"),
        (provider(key=("elsewhere", "api-key"), ca=("openai", "ca.crt")), "spec.apiKeySecretRef"),
        (provider(key=("openai", "api-key"), ca=("openai", "api-key")), "spec.tls.caSecretRef"),
    ):
        assert f"{field}: you may not use Secret" in people.apply("bob", changed)
    # from the CA, which is never sent, to the key, which is
    assert people.apply("alice", provider("ca-only", ca=("openai", "ca.crt"))) == ""
    assert "spec.apiKeySecretRef" in people.apply("bob", provider("ca-only", key=("openai", "ca.crt")))
    # taking it out needs nothing; deleting and making it anew does
    patch = json.dumps({"spec": {"apiKeySecretRef": None}})
    done = people.kubectl.run("patch", "modelprovider/openai", "--type=merge", "-p", patch, "--as=bob")
    assert done.returncode == 0, done.stderr
    assert "may not use Secret openai" in people.apply("bob", provider(key=("openai", "api-key")))
    assert people.kubectl.run("delete", "modelprovider/openai", "--as=bob").returncode == 0
    assert "may not use Secret openai" in people.apply("bob", provider(key=("openai", "api-key")))


def test_only_who_may_create_deployments_chooses_the_image_that_has_the_keys(people: People) -> None:
    evil = manifest("PromptGateway", "default", {"image": "registry.example.com/evil:1"})
    assert "spec.image: only who may create Deployments" in people.apply("alice", evil)
    people.kubectl("create", "role", "deployer", "--verb=create", "--resource=deployments.apps")
    people.grant("alice", "deployer", "Role")
    assert people.apply("alice", evil) == ""
    assert people.apply("bob", {**evil, "spec": {**evil["spec"], "replicas": 3}}) == "", "the image stays"
    assert "spec.image" in people.apply("bob", {**evil, "spec": {"image": "registry.example.com/evil:2"}})


REFUSED = (
    *("127.0.0.1", "127.8.0.1:8080", "localhost", "[::1]:8080", "0.0.0.0", "169.254.169.254", "100.100.100.200"),
    "192.0.0.192",
    *("[fe80::1]", "[fd00:ec2::254]", "224.0.0.1", "255.255.255.255"),
)
MISSPELT = ("2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::ffff:127.0.0.1]")
TAKEN = ("10.96.0.10:8000", "192.168.1.2", "[fd12::7]:8000", "8.8.8.8", "vllm.models:8000", "1a.com")


def test_addresses_that_gateways_refuse_are_refused_at_apply(strict: People) -> None:
    for host in REFUSED:
        refusal = strict.apply("alice", provider(baseURL=f"http://{host}/v1"), dry_run=True)
        assert "gateways may not connect to this address (loopback, link-local, metadata)" in refusal, host
    for host in MISSPELT:
        refusal = strict.apply("alice", provider(baseURL=f"http://{host}/v1"), dry_run=True)
        assert "spec.baseURL: write its address in the usual form" in refusal, host
    for host in ("[::1", "vllm:99999", "vllm:４４３", "①⑥⑨.254.169.254", "169。254。169。254", "%31%36%39.254.169.254"):
        refusal = strict.apply("alice", provider(baseURL=f"http://{host}/v1"), dry_run=True)
        assert BASE_URL_PROBLEM in refusal, host
    for host in TAKEN:
        assert strict.apply("alice", provider(baseURL=f"http://{host}/v1"), dry_run=True) == "", host


def test_a_network_that_the_installation_allows_is_taken(people: People) -> None:
    assert people.apply("alice", provider(baseURL="http://127.0.0.9:8080/v1")) == ""
    assert "gateways may not connect" in people.apply("alice", provider("b", baseURL="http://169.254.169.254/v1"))


def test_no_role_of_people_reads_the_keys_of_response_ids(people: People) -> None:
    people.grant("viewer", "promptrollout-view")
    key = manifest(
        "PromptSigningKey",
        "support",
        {
            "gateway": "default",
            "rolloutUID": "7f",
            "key": "71" * 32,
            "next": "72" * 32,
            "rotatedAt": "2026-01-01T00:00:00Z",
        },
    )
    people.kubectl.apply(key)
    for user in ("alice", "viewer"):
        done = people.kubectl.run("get", "promptsigningkey", "support", "-o", "yaml", f"--as={user}")
        assert "forbidden" in done.stderr
    assert people.kubectl.run("get", "prompts", "--as=viewer").returncode == 0, "the category goes without them"
    assert "71717171" not in people.kubectl("get", "promptsigningkeys", "-o", "wide"), "no column shows one"
    gateway = f"system:serviceaccount:{people.namespace}:default"
    account = f"--serviceaccount={people.namespace}:default"
    people.kubectl("create", "rolebinding", "gateway", "--clusterrole=promptrollout-gateway", account)
    for verb, allowed in (("get", "yes"), ("list", "yes"), ("watch", "yes"), ("create", "no"), ("patch", "no")):
        answer = people.kubectl.run("auth", "can-i", verb, "promptsigningkeys.promptrollout.dev", f"--as={gateway}")
        assert answer.stdout.strip() == allowed, verb
