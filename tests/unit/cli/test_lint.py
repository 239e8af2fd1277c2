"""`promptrollout lint`: what a cluster refuses is refused here, with the line; what it takes passes."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from promptrollout.api.base_url import BASE_URL_PROBLEM
from promptrollout.api.crds import KINDS, RULES, kind_schema
from promptrollout.api.slo import Objective
from promptrollout.cli.lint import check, doubts_about, lint
from promptrollout.cli.lint_schema import CEL, schema_problems, written
from promptrollout.cli.manifests import Manifest as Document
from promptrollout.cli.manifests import read
from promptrollout.engine.objectives.signals import not_measured
from tests.integration.test_objects import GOOD, REFUSALS, Manifest, rollout
from tests.objectives import REFUSED, TAKEN

EXAMPLES = Path(__file__).parents[3] / "examples"


def errors(text: str) -> list[str]:
    return [str(finding) for finding in check(list(read("f.yaml", text))) if finding.is_error]


@pytest.mark.parametrize("make", GOOD, ids=lambda make: make.__name__)
def test_what_the_api_server_takes_passes(make: Callable[[], Manifest]) -> None:
    assert errors(yaml.safe_dump(make())) == []


@pytest.mark.parametrize(("make", "change"), [case[1:3] for case in REFUSALS], ids=[case[0] for case in REFUSALS])
def test_what_the_api_server_refuses_is_refused(
    make: Callable[[], Manifest], change: Callable[[Manifest], None]
) -> None:
    body = make()
    change(body)
    assert errors(yaml.safe_dump(body))


def rules(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for rule in node.get(RULES, ()):
            if "oldSelf" not in rule["rule"]:  # about a change: there is nothing to compare with in a file
                yield rule["message"]
        for child in node.values():
            yield from rules(child)


def slo(objective: Any) -> str:
    kind = {"apiVersion": "promptrollout.dev/v1alpha1", "kind": "PromptSLO", "metadata": {"name": "quality"}}
    return yaml.safe_dump(kind | {"spec": {"objectives": [objective]}})


@pytest.mark.parametrize("name", REFUSED)
def test_an_objective_that_the_api_server_refuses_is_refused_with_its_words(name: str) -> None:
    objective, says = REFUSED[name]
    assert says in " ".join(errors(slo(objective)))


@pytest.mark.parametrize("name", TAKEN)
def test_an_objective_that_the_api_server_takes_has_a_test_and_a_measure(name: str) -> None:
    found = errors(slo(TAKEN[name]))
    if reason := not_measured(Objective.model_validate(TAKEN[name])):
        assert [each.partition(" ")[2] for each in found] == [f"PromptSLO/quality: spec.objectives[0].signal: {reason}"]
    else:
        assert found == []


def test_a_base_url_that_its_provider_will_not_know_is_warned_of() -> None:
    body = {"apiVersion": "promptrollout.dev/v1alpha1", "kind": "ModelProvider", "metadata": {"name": "openai"}}
    (found,) = check(list(read("f.yaml", yaml.safe_dump(body | {"spec": {"baseURL": "https://api.openai.com"}}))))
    assert (found.is_error, found.path) == (False, "spec.baseURL")
    assert "write https://api.openai.com/v1" in found.reason


@pytest.mark.parametrize("base_url", ["http://[::1/v1", "http://vllm:99999/v1", "http://vllm:４４３/v1"])
def test_a_base_url_that_nobody_can_ask_is_an_error(base_url: str) -> None:
    (found,) = errors(yaml.safe_dump(contract("ModelProvider", "openai", baseURL=base_url)))
    assert found.endswith(f"ModelProvider/openai: spec.baseURL: {BASE_URL_PROBLEM}")


def test_every_cel_rule_has_its_twin_and_none_is_left_over() -> None:
    assert {message for kind in KINDS for message in rules(kind_schema(kind))} == set(CEL)


@pytest.mark.parametrize(
    ("path", "value", "path_said", "reason"),
    [
        (
            ("strategy", "canary", "holdbackPercent"),
            60,
            "spec.strategy.canary.holdbackPercent",
            "choose a value from 0 to 50",
        ),
        (("strategy", "canary", "bakeSecond"), 5, "spec.strategy.canary.bakeSecond", "did you mean bakeSeconds?"),
        (("analysis", "objectives", 0, "versusStable"), {"maxIncrease": 5}, "maxIncrease", "mean maxIncreasePercent?"),
        (("analysis", "objectives", 0, "versusStable"), {"maxDecreas": "1"}, "maxDecreas", "did you mean maxDecrease?"),
        (("analysis", "objectives", 0, "signal"), "CostPerRequst", "signal", "did you mean CostPerRequest?"),
        (("analysis", "objectives", 0, "max"), 0.004, "objectives[0].max", 'write "0.004"'),
        (("strategy", "canary", "steps", 0, "weight"), "5", "steps[0].weight", "write it without quotes"),
        (("strategy", "canary", "steps", 0, "weight"), 101, "steps[0].weight", "from 1 to 100"),
        (("template", "messages", 0, "content"), "{{ open", "template.messages[0].content", "line 1"),
        (("template", "outputSchema", "type"), "objekt", "spec.template.outputSchema", "not a JSON Schema"),
        (("paused",), None, "spec.paused", "is null"),
        (("paused",), "yes", "spec.paused", "write it without quotes"),
        (("paused",), 1, "spec.paused", "write true or false"),
        (("analysis", "objectives"), {"name": "x"}, "spec.analysis.objectives", "write a list"),
        (("strategy", "canary"), "fast", "spec.strategy.canary", "write its fields"),
        (("strategy", "canary", "steps"), [], "spec.strategy.canary.steps", "add some"),
        (("strategy", "canary", "steps", 0, "minDurationSeconds"), -1, "minDurationSeconds", "from 0 to 2592000"),
    ],
)
def test_error_names_the_field_and_the_fix(path: tuple[Any, ...], value: Any, path_said: str, reason: str) -> None:
    body = rollout()
    node: Any = body["spec"]
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    (error,) = errors(yaml.safe_dump(body))
    assert path_said in error
    assert reason in error


def test_line_is_that_of_the_field() -> None:
    text = (
        "# a comment\napiVersion: v1\nkind: Secret\nmetadata: {name: k}\n---\n"
        "apiVersion: promptrollout.dev/v1alpha1\nkind: PromptGateway\nmetadata: {name: g}\nspec:\n  replicas: 0\n"
    )
    assert errors(text) == [
        "f.yaml:10: PromptGateway/g: spec.replicas: 0 is out of range; choose a value from 1 to 500"
    ]


def test_key_that_stands_twice_is_an_error() -> None:
    assert "replicas appears twice" in errors("spec:\n  replicas: 1\n  replicas: 2\n")[0]


def test_broken_yaml_is_an_error_with_its_line() -> None:
    (error,) = errors("a: 1\nb: [1,\n")
    assert error.startswith("f.yaml:3: not YAML: ")


LEVELS = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
LEVELS += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n".join(LEVELS), "f.yaml:5: not YAML: aliases stand for more than 100,000 values"),
        ("a: &a [1, *a]", "f.yaml:1: not YAML: an alias refers to a value that contains it"),
        ("a:\n- " + "[" * 5000, "f.yaml:2: not YAML: nested more than 100 levels deep"),
        ("a0: &a0 [x]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 300)), "more than 100 levels deep"),
    ],
    ids=["bomb", "cycle", "deep", "deep by aliases"],
)
def test_yaml_that_would_take_all_time_or_memory_is_refused(text: str, reason: str) -> None:
    (error,) = errors(text)
    assert reason in error


def test_aliases_and_merge_keys_are_followed() -> None:
    (document,) = read("f.yaml", "a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, y: 2}\n")
    assert isinstance(document, Document)
    assert document.body == {"a": {"x": 1}, "b": [{"x": 1}, {"x": 1}], "c": {"x": 1, "y": 2}}


def paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from paths(child, (*path, key))


def with_value(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copied = node.copy()
    copied[path[0]] = with_value(node[path[0]], path[1:], value)
    return copied


@pytest.mark.parametrize("wrong", [[1], {"a": 1}, 1, "x", None], ids=repr)
def test_a_field_of_any_shape_is_looked_at_without_falling_over_it(wrong: Any) -> None:
    """In one object at a time, beside whole ones that refer to it."""
    labelled = {"labels": {"a": "b"}, "annotations": {"a": "b"}, "name": "keys", "namespace": "a"}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": labelled, "data": {"api-key": "eA=="}}
    slo = contract("PromptSLO", "support-quality", objectives=[CONTRACT])
    slo["metadata"] = labelled | {"name": "support-quality"}
    bodies = [rollout(), slo, secret, *yaml.safe_load_all(PROVIDER)]
    bodies = [body for body in bodies if body]
    for index, body in enumerate(bodies):
        for path in paths(body):
            given = [*bodies[:index], with_value(body, path, wrong), *bodies[index + 1 :]]
            documents = [Document("f.yaml", each) for each in given]
            assert all(map(str, (*check(documents), *doubts_about(documents))))


PROVIDER = """
apiVersion: promptrollout.dev/v1alpha1
kind: ModelProvider
metadata: {name: p, namespace: a}
spec:
  baseURL: https://host/v1
  apiKeySecretRef: {name: keys, key: api-key}
---
"""


@pytest.mark.parametrize(
    ("secret", "expected"),
    [
        ("metadata: {name: keys}\nstringData: {api-key: x}", None),
        ("metadata: {name: keys, namespace: a}\ndata: {api-key: eA==}", None),
        ("metadata: {name: keys}\nstringData: {apikey: x}", "Secret keys has no key api-key"),
        ("metadata: {name: keys, namespace: b}", "references stay inside a namespace"),
    ],
)
def test_references_between_the_given_objects(secret: str, expected: str | None) -> None:
    found = errors(f"{PROVIDER}apiVersion: v1\nkind: Secret\n{secret}\n")
    assert (expected is None) == (not found)
    assert expected is None or expected in found[0]


def test_objective_of_an_slo_must_not_repeat_the_rollouts_own() -> None:
    body = rollout()
    slo = {
        "apiVersion": body["apiVersion"],
        "kind": "PromptSLO",
        "metadata": {"name": "support-quality"},
        "spec": {"objectives": [{"name": "cost", "signal": "ErrorRate", "max": "0.1"}]},
    }
    (error,) = errors(yaml.safe_dump_all([body, slo]))
    assert "objective cost of PromptSLO support-quality is also declared in spec.analysis.objectives" in error


def warnings(*bodies: Manifest) -> list[str]:
    found = [str(each) for each in check(list(read("f.yaml", yaml.safe_dump_all(bodies)))) if not each.is_error]
    return [warning for warning in found if "is not in the given files" not in warning]


def contract(kind: str, name: str, **spec: Any) -> Manifest:
    return {"apiVersion": "promptrollout.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


CONTRACT = {"name": "json", "signal": "ContractFailureRate", "max": "0.1"}


def test_an_objective_on_contract_failures_without_a_contract_is_a_warning() -> None:
    body = rollout()
    body["spec"]["analysis"]["objectives"] = [CONTRACT]
    body["spec"]["analysis"]["sloRefs"] = [{"name": "support-quality"}]
    slo = contract("PromptSLO", "support-quality", objectives=[CONTRACT | {"name": "other"}])
    assert warnings(body, slo) == []
    del body["spec"]["template"]["outputSchema"]
    own, of_slo = warnings(body, slo)
    assert "spec.analysis.objectives[0].signal: objective json is on ContractFailureRate" in own
    assert "spec.analysis.sloRefs[0]: objective other of PromptSLO support-quality is on ContractFailureRate" in of_slo
    for warning in (own, of_slo):
        assert "there is no spec.template.outputSchema: the operator leaves it out" in warning
        assert warning.endswith("; add the schema, or remove the objective")
    assert len(warnings(body)) == 1  # nobody knows an SLO that is not given


def test_a_step_that_exposes_everybody_is_a_warning() -> None:
    body = rollout()
    body["spec"]["analysis"] = {"objectives": [{"name": "errors", "signal": "ErrorRate", "max": "0.1"}]}
    body["spec"]["strategy"]["canary"]["steps"] = [{"weight": 50}, {"weight": 100}]
    (warning,) = warnings(body)
    assert "spec.strategy.canary.steps[1].weight: 100 sends everybody" in warning
    assert "nothing can be compared with stable; remove the step" in warning
    body["spec"]["analysis"] = {"mode": "None"}
    assert warnings(body) == []


def test_a_version_that_is_referred_to_is_looked_into_for_its_contract() -> None:
    body = rollout()
    body["spec"]["analysis"] = {"objectives": [CONTRACT]}
    prompt = body["spec"].pop("template")
    body["spec"]["versionRef"] = {"name": "first"}
    assert warnings(body) == []
    assert warnings(body, contract("PromptVersion", "first", **prompt)) == []
    del prompt["outputSchema"]
    (warning,) = warnings(body, contract("PromptVersion", "first", **prompt))
    assert "there is no spec.outputSchema of PromptVersion first" in warning


def test_an_objective_on_cost_needs_a_price_for_exactly_the_model() -> None:
    cost = {"name": "cost", "signal": "CostPerRequest", "versusStable": {"maxIncreasePercent": 20}}
    body = rollout()
    body["spec"]["analysis"] = {"objectives": [cost]}
    template = body["spec"]["template"]
    row = {"model": template["model"], "inputPerMillionUsd": "1", "outputPerMillionUsd": "1"}
    kind, name = "ModelProvider", template["providerRef"]["name"]
    priced = contract(kind, name, baseURL="https://host/v1", prices=[row])
    other = contract(kind, name, baseURL="https://host/v1", prices=[row | {"model": "other"}])

    def said(*bodies: Manifest) -> list[str]:
        return errors(yaml.safe_dump_all(bodies))

    assert said(body) == []  # a provider that is not given may well have it
    assert said(body, priced) == []
    (error,) = said(body, other)
    assert "spec.analysis.objectives[0]: objective cost needs a price for the model" in error
    assert f"for the model {template['model']}: add it to spec.prices of ModelProvider" in error
    body["spec"]["analysis"] = {"sloRefs": [{"name": "shared"}]}
    (error,) = said(body, other, contract("PromptSLO", "shared", objectives=[cost]))
    assert "spec.analysis.sloRefs[0]: objective cost of PromptSLO shared needs a price for the model" in error
    body["spec"].pop("template")
    body["spec"]["versionRef"] = {"name": "first"}
    assert (
        len(
            said(
                body,
                other,
                contract("PromptVersion", "first", **template),
                contract("PromptSLO", "shared", objectives=[cost]),
            )
        )
        == 1
    )


def test_the_rollout_to_simulate_can_be_applied_with_the_basic_example() -> None:
    files = [str(EXAMPLES / folder / "rollout.yaml") for folder in ("basic", "simulate")]
    result = CliRunner().invoke(lint, files)
    assert result.exit_code == 0, result.output
    assert "PromptGateway default is not" not in result.output
    assert "ModelProvider openai is not" not in result.output


ARM = 'version="{{ version }}", variant="{{ variant }}"'


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (f"sum(up{{{ARM}}})", None),
        (f"sum(up{{{ARM}, x=')(\"'}}[5m]) # a comment (", None),
        (f"sum(up{{{ARM}, x=`\\`}})", None),
        (f'sum(up{{{ARM}, x="a\\"b"}})', None),
        (f"sum(up{{{ARM}}}", "( at character 4 is never closed"),
        (f"sum(up{{{ARM})", ") at character 56 cannot close { at character 7"),
        (f"up{{{ARM}}})", ") at character 53 closes nothing"),
        (f"up{{{ARM}, x='a}}", "the quote ' at character"),
        (f'up{{{ARM}, x="{{{{ arm }}}}"}}', "{{ arm }} is not a variable"),
    ],
)
def test_an_expression_whose_brackets_do_not_close_is_an_error(query: str, says: str | None) -> None:
    objective = {"name": "own", "signal": "Custom", "max": "1", "custom": {"value": query}}
    found = errors(slo(objective))
    assert len(found) == (says is not None)
    assert says is None or f"spec.objectives[0].custom.value: {says}" in found[0]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ('failed{version="{{ version }}"}', "put {{ version }} and {{ variant }} into its label matchers"),
        (f'failed{{{ARM}, x="{{{{ arm }}}}"}}', "{{ arm }} is not a variable"),
        ("failed", 'such as failed_total{version="{{ version }}", variant="{{ variant }}"}'),
    ],
)
def test_of_several_queries_the_one_at_fault_is_named_with_its_line(bad: str, says: str) -> None:
    objective = {"name": "own", "signal": "Custom", "max": "0.1", "custom": {}}
    objective["custom"] = {"ratio": {"bad": bad, "total": f"all{{{ARM}}}"}}
    text = slo(objective)
    line = next(number for number, each in enumerate(text.splitlines(), 1) if "bad:" in each)
    (error,) = errors(text)
    assert error.startswith(f"f.yaml:{line}: PromptSLO/quality: spec.objectives[0].custom.ratio.bad: ")
    assert says in error


def test_a_step_that_is_shorter_than_an_interval_is_a_warning() -> None:
    body = rollout()
    steps = body["spec"]["strategy"]["canary"]["steps"]
    steps[0]["minDurationSeconds"] = 30  # as long as intervalSeconds, unless that is said
    body["spec"]["analysis"].pop("intervalSeconds", None)
    assert warnings(body) == []
    body["spec"]["analysis"]["intervalSeconds"] = 60
    (warning,) = warnings(body)
    assert (
        "spec.strategy.canary.steps[0].minDurationSeconds: 30 s are less than analysis.intervalSeconds (60)" in warning
    )
    del steps[0]["minDurationSeconds"]  # five minutes
    assert warnings(body) == []
    steps[0]["minDurationSeconds"] = 30
    body["spec"]["analysis"] = {"mode": "None", "intervalSeconds": 60}
    assert warnings(body) == []


def test_object_that_is_not_given_is_a_warning_and_strict_makes_it_fail(tmp_path: Path) -> None:
    file = tmp_path / "provider.yaml"
    file.write_text(PROVIDER)
    loose = CliRunner().invoke(lint, [str(file)])
    assert loose.exit_code == 0
    assert "warning: " in loose.output
    assert CliRunner().invoke(lint, ["--strict", str(file)]).exit_code == 1


@pytest.mark.parametrize(
    ("versus", "text"),
    [
        (
            {"maxIncreasePercent": 50},
            "promotion below +50 %, rollback above +10 %; set rollback",
        ),
        ({"maxIncreasePercent": 50, "rollbackAbovePercent": 50}, ""),
    ],
)
def test_a_margin_alone_is_explained_by_a_note_that_fails_nothing(
    tmp_path: Path, versus: dict[str, int], text: str
) -> None:
    file = tmp_path / "slo.yaml"
    objective = {"name": "errors", "signal": "ErrorRate", "versusStable": versus}
    file.write_text(yaml.safe_dump(contract("PromptSLO", "quality", objectives=[objective])))
    result = CliRunner().invoke(lint, ["--strict", str(file)])
    assert result.exit_code == 0, result.output
    assert "1 object checked: 0 errors, 0 warnings" in result.output
    notes = [line for line in result.output.splitlines() if line.startswith("note: ")]
    assert len(notes) == bool(text)
    assert all(text in note and "spec.objectives[0].versusStable" in note for note in notes)


def test_nothing_to_check_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text("replicas: 2\n")
    result = CliRunner().invoke(lint, [str(tmp_path)])
    assert result.exit_code == 1
    assert "no object of promptrollout.dev" in result.output


def test_metadata_of_a_wrong_type_is_an_error() -> None:
    body = rollout() | {"metadata": [1]}
    (error,) = errors(yaml.safe_dump(body))
    assert error.startswith("f.yaml:3: PromptRollout/(no name): metadata: must be of type object, not array")


def test_standard_input() -> None:
    result = CliRunner().invoke(lint, ["-"], input=PROVIDER.replace("https", "ftp"))
    assert result.exit_code == 1
    assert "stdin:6: ModelProvider/p: spec.baseURL" in result.output


def test_examples_are_sound() -> None:
    result = CliRunner().invoke(lint, [str(EXAMPLES)])
    assert result.exit_code == 0, result.output


def test_unknown_kind_of_ours() -> None:
    problem = schema_problems("PromptRolout", {"metadata": {"name": "x"}})[0]
    assert (written(problem.path), problem.reason) == ("kind", "PromptRolout is unknown; did you mean PromptRollout?")


def test_what_the_prompts_provider_cannot_be_told_is_refused() -> None:
    body = rollout()
    template = body["spec"]["template"]
    template["parameters"] = {"seed": 1}
    body["spec"]["analysis"] = {"mode": "None"}
    kind, name = "ModelProvider", template["providerRef"]["name"]
    openai, anthropic = (contract(kind, name, type=each, baseURL="https://host/v1") for each in ("OpenAI", "Anthropic"))
    assert errors(yaml.safe_dump_all([body, openai])) == []
    (error,) = errors(yaml.safe_dump_all([body, anthropic]))
    assert "spec.template.parameters.seed: Anthropic's API does not support it: remove it" in error


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"headers": [{"name": "HOST", "value": "a"}]}, "this header belongs to the connection"),
        ({"headers": [{"name": "X-Team", "value": "a"}]}, None),
        (
            {"tls": {"caSecretRef": {"name": "a", "key": "b"}, "caConfigMapRef": {"name": "a", "key": "b"}}},
            "a CA comes from caConfigMapRef or from caSecretRef, not from both",
        ),
        ({"auth": {"header": "api-key", "scheme": ""}, "query": [{"name": "api-version", "value": "1"}]}, None),
    ],
)
def test_what_a_provider_may_say_of_its_connection(spec: dict[str, Any], says: str | None) -> None:
    found = errors(yaml.safe_dump(contract("ModelProvider", "m", baseURL="https://host/v1", **spec)))
    assert (says in " ".join(found)) if says else found == []


def test_fallbacks_and_cas_are_references() -> None:
    body = rollout()
    body["spec"]["template"]["fallbacks"] = [{"providerRef": {"name": "spare"}, "model": "big"}]
    ca = {"caConfigMapRef": {"name": "corporate", "key": "ca.crt"}}
    spare = contract("ModelProvider", "spare", baseURL="https://host/v1", tls=ca)

    def missing(*bodies: Manifest) -> set[str]:
        found = check(list(read("f.yaml", yaml.safe_dump_all(bodies))))
        return {each.reason.partition(" is not in the given files")[0] for each in found if not each.is_error}

    assert "ModelProvider spare" in missing(body)
    assert "ConfigMap corporate" in missing(body, spare)
    assert "ModelProvider spare" not in missing(body, spare)


def test_a_fallback_must_be_able_to_say_the_prompt_too() -> None:
    body = rollout()
    body["spec"]["template"] |= {
        "parameters": {"seed": 7},
        "fallbacks": [{"providerRef": {"name": "spare"}, "model": "claude"}],
    }
    spare = contract("ModelProvider", "spare", type="Anthropic", baseURL="https://host/v1")
    (error,) = errors(yaml.safe_dump_all([body, spare]))
    assert "spec.template.parameters.seed: Anthropic's API does not support it: remove it" in error


HASH = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        ({"stringData": {"shop": f"{HASH}\nrollouts: a\ntenant: t\n"}}, None),
        ({"data": {"shop": base64.b64encode(HASH.encode()).decode()}}, None),
        ({"stringData": {"shop": "sk-my-own-secret"}}, "Secret callers: shop: line 1 must be sha256:<64 hex"),
        ({"data": {"shop": "%%%"}}, "Secret callers: data.shop is not text in base64"),
        ({"stringData": {"shop": "rollouts: a"}}, "Secret callers: shop has no key"),
    ],
)
def test_entries_of_callers_keys_are_looked_at_and_never_shown(secret: dict[str, Any], says: str | None) -> None:
    auth = {"mode": "Keys", "keysSecretRef": {"name": "callers"}}
    gateway = {
        "apiVersion": "promptrollout.dev/v1alpha1",
        "kind": "PromptGateway",
        "metadata": {"name": "default"},
        "spec": {"auth": auth},
    }
    alone = [str(each) for each in check(list(read("f.yaml", yaml.safe_dump(gateway))))]
    assert ["Secret callers is not in the given files" in each for each in alone] == [True]
    other = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "callers"}, **secret}
    found = errors(yaml.safe_dump_all([gateway, other]))
    assert [says in each for each in found if says] == ([True] if says else [])
    assert len(found) == (1 if says else 0)
    assert "sk-my-own-secret" not in str(found)


@pytest.mark.parametrize(
    ("data", "says", "is_error"),
    [
        ({"api-key": "sk-mine", "hosts": "api.openai.com"}, None, False),
        ({"api-key": "sk-mine"}, "Secret openai has no data key hosts, which a later release requires", False),
        ({"api-key": "sk-mine", "hosts": "db.internal"}, "Secret openai: hosts does not name api.openai.com", True),
        ({"api-key": "sk-mine", "hosts": "https://x"}, "Secret openai: hosts: entry 1 is not a host", True),
    ],
)
def test_where_a_given_secret_lets_its_key_go(data: dict[str, str], says: str | None, is_error: bool) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "openai"}, "stringData": data}
    ref = {"name": "openai", "key": "api-key"}
    provider = contract("ModelProvider", "openai", baseURL="https://api.openai.com/v1", apiKeySecretRef=ref)
    found = list(check(list(read("f.yaml", yaml.safe_dump_all([provider, secret])))))
    assert [each.is_error for each in found] == ([is_error] if says else [])
    assert not says or says in found[0].reason
    assert "sk-mine" not in str(found)


def test_an_address_that_gateways_refuse_is_warned_of() -> None:
    body = contract("ModelProvider", "metadata", baseURL="http://169.254.169.254/v1")
    (found,) = check(list(read("f.yaml", yaml.safe_dump(body))))
    assert (found.is_error, found.path) == (False, "spec.baseURL")
    assert "is link-local, which gateways refuse unless the chart's gateway.allowedProviderNetworks" in found.reason


def test_what_would_stall_the_operator_is_the_same_error_here() -> None:
    stalls = {"role": "user", "content": "{{ " + "x~" * 8990 + "x }}"}
    doubled = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    spec = {
        "providerRef": {"name": "p"},
        "model": "m",
        "messages": [stalls] * 7,
        "outputSchema": {"$defs": {**doubled, "d40": {"type": "object"}}, "$ref": "#/$defs/d0"},
    }
    kind = {"apiVersion": "promptrollout.dev/v1alpha1", "kind": "PromptVersion", "metadata": {"name": "v"}}
    found = " ".join(errors(yaml.dump(kind | {"spec": spec}, Dumper=_WithoutAliases)))
    assert "more than 2500 tokens in braces" in found
    assert "levels of $ref" in found


class _WithoutAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
