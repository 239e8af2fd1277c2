"""A gateway's objects, byte for byte: a changed pod template restarts gateways when the operator is upgraded."""

import json
from pathlib import Path

import pytest

from promptrollout.api.gateway import GatewaySpec
from promptrollout.api.meta import ConfigMapKeyRef, SecretKeyRef
from promptrollout.operator.config import Config
from promptrollout.operator.gateways.objects import gateway_objects
from tests.unit.operator.world import an_object

GOLDEN = Path(__file__).parents[2] / "golden" / "gateway-objects.json"
SPECS = {
    "default": {},
    "keys": {
        "replicas": 3,
        "drainSeconds": 60,
        "limits": {"maxRequestBytes": 2048, "maxConcurrentRequests": 7, "maxQueuedRequests": 0},
        "auth": {"mode": "Keys", "keysSecretRef": {"name": "callers"}},
    },
    "service-accounts": {
        "limits": {"maxQueueMilliseconds": 100, "requestsPerMinutePerKey": 60},
        "auth": {
            "mode": "KeysAndServiceAccounts",
            "keysSecretRef": {"name": "callers"},
            "audience": "shop",
            "serviceAccounts": [{"namespace": "shop", "rollouts": ["support"]}, {"namespace": "b", "name": "c"}],
        },
        "resources": {"requests": {"cpu": "1"}},
    },
}
FILES = {"model/a/api-key": SecretKeyRef(name="openai", key="token"), "z/ca.crt": ConfigMapKeyRef(name="ca", key="pem")}
NETWORKS = {"default": {}, "keys": {"allowed": ["127.0.0.0/8", "10.0.0.0/8"], "refused": ["192.0.2.0/24"]}}


def made(name: str) -> str:
    found = {f"{key}ProviderNetworks": value for key, value in NETWORKS.get(name, {}).items()}
    environment = Config.model_validate(found).gateway_environment
    gateway, spec = an_object("PromptGateway", "default", {}), GatewaySpec.model_validate(SPECS[name])
    return json.dumps(gateway_objects(gateway, spec, "image:1", FILES, "the-role", environment), indent=1)


@pytest.mark.parametrize("name", SPECS)
def test_what_is_made_does_not_change(name: str) -> None:
    assert made(name) == json.dumps(json.loads(GOLDEN.read_text())[name], indent=1)
