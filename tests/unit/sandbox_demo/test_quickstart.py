"""The quickstart's files agree with each other and with what the demo promises."""

import copy

import pytest
import yaml

from promptrollout.api.prompt import PromptSpec
from promptrollout.api.rollout import RolloutSpec
from promptrollout.api.template import prompt_problems, variables_of
from promptrollout.sandbox.controlplane.model_address import MODEL_SERVICE
from promptrollout.sandbox.demo.quickstart import Quickstart, find_quickstart, version_of
from promptrollout.sandbox.demo.story import VARIABLES
from promptrollout.sandbox.model.behaviour import Behaviour, first_fit, parse_behaviours
from promptrollout.sandbox.settings import SandboxError


@pytest.fixture
def quickstart() -> Quickstart:
    return Quickstart(find_quickstart())


def rollouts(quickstart: Quickstart) -> dict[str, dict]:
    documents = yaml.safe_load_all(quickstart.manifests())
    first = next(d for d in documents if d and d["kind"] == "PromptRollout")
    changes = {name: yaml.safe_load(quickstart.change(name)) for name in ("good-change", "bad-change")}
    return {"first-version": first, **changes}


def test_the_provider_names_the_service_in_whose_place_the_sandbox_puts_its_model(quickstart: Quickstart) -> None:
    provider = next(d for d in yaml.safe_load_all(quickstart.manifests()) if d and d["kind"] == "ModelProvider")
    assert provider["spec"]["baseURL"] == f"{MODEL_SERVICE}/v1"


def test_a_change_changes_the_messages_and_nothing_else(quickstart: Quickstart) -> None:
    first, good, bad = (copy.deepcopy(r) for r in rollouts(quickstart).values())
    texts = [r["spec"]["template"].pop("messages")[0]["content"] for r in (first, good, bad)]
    assert first == good == bad
    assert texts[1].startswith(texts[0])
    assert texts[2].startswith(texts[1])
    assert len(set(texts)) == 3


def test_the_prompts_are_sound_and_the_users_bring_their_variables(quickstart: Quickstart) -> None:
    for rollout in rollouts(quickstart).values():
        prompt = PromptSpec.model_validate(rollout["spec"]["template"])
        assert prompt_problems(prompt) == []
        assert set().union(*(variables_of(each.content or "") for each in prompt.messages)) == set(VARIABLES)


def test_each_prompt_meets_the_rule_of_its_name(quickstart: Quickstart) -> None:
    rules = parse_behaviours(quickstart.behaviours())
    for name, rollout in rollouts(quickstart).items():
        text = rollout["spec"]["template"]["messages"][0]["content"]
        assert first_fit(rules, text, "gpt-5.4-mini", {}).name == name


def test_the_bad_change_costs_twice_as_much_and_is_not_cut_short(quickstart: Quickstart) -> None:
    rules: dict[str, Behaviour] = {rule.name: rule for rule in parse_behaviours(quickstart.behaviours())}
    means = {name: rule.tokens.completion_mean or 0 for name, rule in rules.items()}
    assert means["bad-change"] / means["good-change"] > 2
    assert rules["bad-change"].contract_break_rate == 0.3
    limit = RolloutSpec.model_validate(rollouts(quickstart)["bad-change"]["spec"]).template.parameters.max_tokens
    assert limit > means["bad-change"] + 6 * rules["bad-change"].tokens.completion_spread


def test_versions_are_named_as_the_operator_names_them(quickstart: Quickstart) -> None:
    versions = {
        quickstart.first_version().version,
        *(quickstart.version(c).version for c in ("good-change", "bad-change")),
    }
    assert len(versions) == 3
    assert all(version.startswith("support-assistant-") for version in versions)


def test_a_rollout_without_a_prompt_is_a_clear_error(quickstart: Quickstart) -> None:
    rollout = rollouts(quickstart)["first-version"]
    del rollout["spec"]["template"]
    with pytest.raises(SandboxError, match=r"support-assistant: .*template is missing"):
        version_of(rollout)
