"""Commands, variables and rewritten paths of a container, as plain values."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from promptrollout.sandbox.node.podspec import (
    ConfigError,
    ImageError,
    container_command,
    container_mounts,
    container_variables,
    expand,
    field_value,
    image_repository,
    named_port,
    parse_quantity,
    resource_value,
    rewrite_argument,
    rewrite_path,
)

CONTEXT = {"podIP": "127.64.0.1", "hostIP": "127.0.0.1", "nodeName": "sandbox"}
POD: dict[str, Any] = {
    "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "web", "a": 'say "hi"'}},
    "spec": {"serviceAccountName": "robot", "containers": []},
}
MOUNTS = {"/etc/app": Path("/host/app"), "/etc/app/inner": Path("/host/inner"), "/data": Path("/host/data")}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)", "x1y2"),
        ("$(MISSING)", "$(MISSING)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A ${A}", "$A ${A}"),
    ],
)
def test_expansion_follows_kubernetes(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expanded


@pytest.mark.parametrize(
    ("path", "rewritten"),
    [
        ("/etc/app", "/host/app"),
        ("/etc/app/", "/host/app/"),
        ("/etc/app/x.yaml", "/host/app/x.yaml"),
        ("/etc/app/inner/y", "/host/inner/y"),
        ("/etc/application", "/etc/application"),
        ("see /etc/app", "see /etc/app"),
        ("/data", "/host/data"),
    ],
)
def test_paths_below_a_mount_are_rewritten_at_their_boundary(path: str, rewritten: str) -> None:
    assert rewrite_path(path, MOUNTS) == rewritten


def test_arguments_are_rewritten_behind_a_flag() -> None:
    assert rewrite_argument("--config=/etc/app/c.yaml", MOUNTS) == "--config=/host/app/c.yaml"
    assert rewrite_argument("path=/etc/app/c.yaml", MOUNTS) == "path=/etc/app/c.yaml"
    assert rewrite_argument("/etc/app/c.yaml", MOUNTS) == "/host/app/c.yaml"


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        ("promptrollout", "promptrollout"),
        ("localhost:5000/a/promptrollout:v1", "localhost:5000/a/promptrollout"),
        ("ghcr.io/a/promptrollout@sha256:00", "ghcr.io/a/promptrollout"),
        ("ghcr.io/a/promptrollout:v1@sha256:00", "ghcr.io/a/promptrollout"),
    ],
)
def test_image_names(image: str, repository: str) -> None:
    assert image_repository(image) == repository
    assert container_command({"image": image}, {}, {}) == [sys.executable, "-m", "promptrollout"]


def test_the_command_replaces_the_entrypoint_and_other_images_are_refused() -> None:
    container = {"image": "x/promptrollout", "command": ["sh", "$(N)"], "args": ["/data/$(N)"]}
    assert container_command(container, {"N": "7"}, MOUNTS) == ["sh", "7", "/host/data/7"]
    arguments = container_command({"image": "x/promptrollout", "args": ["gateway"]}, {}, {})
    assert arguments == [sys.executable, "-m", "promptrollout", "gateway"]
    for image in ("nginx", "x/promptrollout-extra", "promptrollout/other"):
        with pytest.raises(ImageError, match=image):
            container_command({"image": image, "command": ["sh"]}, {}, {})


def lookup(kind: str, name: str) -> dict[str, bytes] | None:
    return {("Secret", "s"): {"key": b"hidden"}, ("ConfigMap", "c"): {"a": b"1", "b": b"2"}}.get((kind, name))


def variables(**container: Any) -> dict[str, str]:
    return container_variables(POD, {"name": "main", **container}, lookup, CONTEXT)


def test_variables_come_in_order_and_may_refer_to_earlier_ones() -> None:
    found = variables(
        envFrom=[{"configMapRef": {"name": "c"}}, {"secretRef": {"name": "none", "optional": True}}],
        env=[
            {"name": "b", "value": "over $(a)"},
            {"name": "later", "value": "$(b)!"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}},
            {"name": "EMPTY"},
        ],
    )
    assert found == {"a": "1", "b": "over 1", "later": "over 1!", "KEY": "hidden", "EMPTY": ""}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"secretKeyRef": {"name": "none", "key": "k"}}, 'secret "none" not found'),
        ({"secretKeyRef": {"name": "s", "key": "k"}}, "couldn't find key k in Secret s"),
        ({"configMapKeyRef": {"name": "c", "key": "k"}}, "couldn't find key k in ConfigMap c"),
        ({"fieldRef": {"fieldPath": "status.phase"}}, "unsupported fieldPath 'status.phase'"),
        ({"fileKeyRef": {}}, "not supported"),
    ],
)
def test_what_cannot_be_resolved_is_named(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        variables(env=[{"name": "X", "valueFrom": source}])


def test_downward_fields() -> None:
    assert field_value(POD, "metadata.labels['app']", CONTEXT) == "web"
    assert field_value(POD, "metadata.labels['none']", CONTEXT) == ""
    assert field_value(POD, "metadata.labels", CONTEXT) == 'a="say \\"hi\\""\napp="web"'
    assert field_value(POD, "status.podIP", CONTEXT) == "127.64.0.1"


@pytest.mark.parametrize(
    ("quantity", "number"), [("250m", 0.25), ("2", 2.0), ("64Mi", 64 * 2**20), ("1e3", 1000.0), ("1.5G", 1.5e9)]
)
def test_quantities(quantity: str, number: float) -> None:
    assert parse_quantity(quantity) == number


def test_resources_are_rounded_up_to_the_divisor() -> None:
    container = {"name": "main", "resources": {"limits": {"cpu": "1500m", "memory": "100Mi"}}}
    assert resource_value(POD, container, {"resource": "limits.cpu"}) == "2"
    assert resource_value(POD, container, {"resource": "limits.cpu", "divisor": "1m"}) == "1500"
    assert resource_value(POD, container, {"resource": "limits.memory", "divisor": "1Mi"}) == "100"
    with pytest.raises(ConfigError, match="'1x' is not a quantity"):
        parse_quantity("1x")


def test_ports_by_name() -> None:
    containers = [{"ports": [{"name": "http", "containerPort": 8080}]}]
    assert named_port(containers, "http") == 8080
    assert named_port(containers, 9090) == named_port(containers, "9090") == 9090
    with pytest.raises(ConfigError, match="'admin'"):
        named_port(containers, "admin")


def test_sub_paths_stay_inside_their_volume() -> None:
    volumes = {"v": Path("/host/v")}
    container = {"name": "main", "volumeMounts": [{"name": "v", "mountPath": "/a/", "subPath": "x"}]}
    assert container_mounts(container, volumes) == {"/a": Path("/host/v/x")}
    for wrong in ("../x", "/x"):
        container["volumeMounts"] = [{"name": "v", "mountPath": "/a", "subPath": wrong}]
        with pytest.raises(ConfigError, match="subPath"):
            container_mounts(container, volumes)
    container["volumeMounts"] = [{"name": "none", "mountPath": "/a"}]
    with pytest.raises(ConfigError, match='volume "none"'):
        container_mounts(container, volumes)
