"""What a spec asks for, and each way in which it cannot be had: path, reason and fix."""

from typing import Any

import pytest

from promptrollout.api.delivery import VersionRef
from promptrollout.api.digest import digest_of
from promptrollout.api.slo import Objective
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.declarations.reconcile import slo_verdict
from promptrollout.operator.rollouts.resolve import Resolved, resolve
from tests.unit.operator.world import PROMPT, a_copy, an_object, prompt, rollout_spec, store_with, texts

SCHEMA = {"type": "object"}


def resolved(store: Store | None = None, stable: VersionRef | None = None, **changes: Any) -> Resolved:
    return resolve("ns", "app", rollout_spec(**changes), stable, store or store_with(), {"default"})


def objectives(found: Resolved) -> dict[str, Objective]:
    assert found.desired.problems == ()
    assert found.desired.snapshot is not None
    return {o.name: o for o in found.desired.snapshot.objectives}


def test_a_template_becomes_a_version_whose_copy_is_to_be_made() -> None:
    found = resolved()
    assert found.desired.version is not None
    assert found.desired.version.digest == digest_of(prompt())
    assert found.desired.version.version == "app-" + digest_of(prompt())[7:17]
    assert found.missing_copies == (prompt(),)
    assert found.metrics_source == "default"
    assert resolved(store_with(a_copy())).missing_copies == ()


def test_a_named_version_is_copied_too() -> None:
    store = store_with(an_object("PromptVersion", "first", PROMPT))
    found = resolved(store, template=None, versionRef={"name": "first"})
    assert found.desired == resolved().desired
    assert found.missing_copies == (prompt(),)


@pytest.mark.parametrize(
    ("changes", "path", "says"),
    [
        ({"gatewayRef": {"name": "no"}}, "spec.gatewayRef.name", "no PromptGateway no in ns: create it"),
        ({"template": None, "versionRef": {"name": "no"}}, "spec.versionRef.name", "no PromptVersion no in ns"),
        ({"template": None}, "spec", "exactly one of template and versionRef"),
        ({"template": PROMPT | {"providerRef": {"name": "no"}}}, "spec.template.providerRef.name", "ModelProvider no"),
        ({"baselineRef": {"name": "no"}}, "spec.baselineRef.name", "no PromptVersion no in ns"),
        (
            {"template": PROMPT | {"messages": [{"role": "user", "content": "{{ a"}]}},
            "spec.template.messages[0].content",
            "line 1",
        ),
        ({"template": PROMPT | {"outputSchema": {"type": "nonsense"}}}, "spec.template.outputSchema", "JSON Schema"),
        ({"analysis": {"sloRefs": [{"name": "no"}]}}, "spec.analysis.sloRefs[0].name", "no PromptSLO no in ns"),
    ],
)
def test_defects_are_named_with_path_and_fix(changes: dict[str, Any], path: str, says: str) -> None:
    found = resolved(**changes)
    assert [problem for problem in texts(found.desired) if problem.startswith(f"{path}:") and says in problem]
    assert found.desired.snapshot is None
    assert found.missing_copies == () or "sloRefs" in path or "Ref" in path


def test_a_metrics_source_that_the_operator_does_not_have() -> None:
    store = store_with()
    store.put("PromptGateway", an_object("PromptGateway", "default", {"metricsSource": "mimir"}, resourceVersion="8"))
    (problem,) = texts(resolved(store).desired)
    assert "mimir" in problem
    assert "it has: default" in problem
    assert resolved(store, analysis={"mode": "None"}).desired.problems == ()


def test_an_object_in_the_place_of_the_copy() -> None:
    foreign = a_copy()
    del foreign["metadata"]["labels"]
    (problem,) = texts(resolved(store_with(foreign)).desired)
    assert "exists, but is not the operator's copy" in problem
    different = a_copy()
    different["spec"] = PROMPT | {"model": "large"}
    found = resolved(store_with(different)).desired
    assert found.version is None
    assert "differs" in texts(found)[0]


def test_errors_are_always_watched_and_contracts_where_there_is_one() -> None:
    cost = {"objectives": [{"name": "cost", "signal": "CostPerRequest", "max": "1"}]}
    assert set(objectives(resolved(analysis=cost))) == {"cost", "error-rate"}
    with_schema = PROMPT | {"outputSchema": SCHEMA}
    found = objectives(resolved(analysis=cost, template=with_schema))
    assert set(found) == {"cost", "error-rate", "contract-failure-rate"}
    assert found["contract-failure-rate"].versus_stable is not None
    assert set(objectives(resolved(template=with_schema))) == {"errors", "contract-failure-rate"}


def test_a_first_schema_has_nothing_to_be_compared_with() -> None:
    old = a_copy()
    stable = VersionRef(version=old["metadata"]["name"], digest=digest_of(prompt()))
    found = objectives(resolved(store_with(old), stable, template=PROMPT | {"outputSchema": SCHEMA}))
    assert found["contract-failure-rate"].versus_stable is None
    assert found["contract-failure-rate"].max is not None


def test_an_objective_on_contracts_without_a_contract_would_wait_for_ever() -> None:
    contract = {"objectives": [{"name": "contract", "signal": "ContractFailureRate", "max": "0.1"}]}
    found = resolved(analysis=contract)
    assert set(objectives(found)) == {"error-rate"}
    left_out = "the prompt has no outputSchema, so objectives on ContractFailureRate are left out: contract"
    assert found.note == left_out
    store = store_with(an_object("PromptSLO", "slo", {"objectives": [contract["objectives"][0] | {"name": "other"}]}))
    assert resolved(store, analysis=contract | {"sloRefs": [{"name": "slo"}]}).note == f"{left_out} and 1 more"
    assert resolved(analysis=contract, template=PROMPT | {"outputSchema": SCHEMA}).note == ""
    assert resolved().note == ""


def test_slos_are_merged_and_must_not_say_the_same_name_twice() -> None:
    cost = {"name": "cost", "signal": "CostPerRequest", "max": "1"}
    store = store_with(
        an_object("PromptSLO", "one", {"objectives": [cost]}),
        an_object("PromptSLO", "two", {"objectives": [cost]}),
    )
    assert set(objectives(resolved(store, analysis={"sloRefs": [{"name": "one"}]}))) == {"cost", "error-rate"}
    (problem,) = texts(resolved(store, analysis={"sloRefs": [{"name": "one"}, {"name": "two"}]}).desired)
    assert problem.startswith("spec.analysis.sloRefs[1] (PromptSLO two): the objective cost is also declared in")


JUDGE = {"name": "judge", "signal": "JudgeScore", "dimension": "tone", "min": "4"}


@pytest.mark.parametrize(
    ("analysis", "path"),
    [
        ({"objectives": [JUDGE]}, "spec.analysis.objectives[0].signal"),
        ({"sloRefs": [{"name": "slo"}]}, "spec.analysis.sloRefs[0] (PromptSLO slo): spec.objectives[0].signal"),
    ],
)
def test_what_no_gateway_exports_is_invalid_instead_of_waited_for(analysis: dict[str, Any], path: str) -> None:
    slo = an_object("PromptSLO", "slo", {"objectives": [JUDGE]})
    found = resolved(store_with(slo), analysis=analysis)
    (problem,) = texts(found.desired)
    assert problem.startswith(f"{path}: objective judge: ")
    assert "do not export JudgeScore: remove it, or export" in problem
    assert (found.desired.snapshot, found.desired.version) == (None, resolved().desired.version)
    ready, reason, text = slo_verdict(slo)
    assert (ready, reason) == (False, "InvalidSpec")
    assert text == "spec.objectives[0].signal: " + problem.removeprefix(f"{path}: ")


COST = {"name": "cost", "signal": "CostPerRequest", "max": "1"}


@pytest.mark.parametrize(
    ("analysis", "path"),
    [
        ({"objectives": [COST]}, "spec.analysis.objectives"),
        ({"sloRefs": [{"name": "slo"}]}, "spec.analysis.sloRefs[0] (PromptSLO slo)"),
    ],
)
@pytest.mark.parametrize("model", ["tiny", "Small", "small-2"])
def test_cost_needs_a_price_for_exactly_this_model(analysis: dict[str, Any], path: str, model: str) -> None:
    store = store_with(an_object("PromptSLO", "slo", {"objectives": [COST]}))
    found = resolved(store, analysis=analysis, template=PROMPT | {"model": model}).desired
    assert texts(found) == (
        f"{path}: objective cost needs a price for the model {model}: "
        "add it to spec.prices of ModelProvider model, or remove the objective",
    )
    assert found.snapshot is None
    # without that objective, or without analysis, no price is needed
    assert resolved(template=PROMPT | {"model": model}).desired.problems == ()
    assert resolved(store, analysis=analysis | {"mode": "None"}, template=PROMPT | {"model": model}).desired.snapshot
    assert resolved(store, analysis=analysis).desired.problems == ()


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"parameters": {"seed": 1}}, "spec.template.parameters.seed"),
        ({"parameters": {"presencePenalty": "0.5"}}, "spec.template.parameters.presencePenalty"),
        ({"tools": [{"type": "web_search"}]}, "spec.template.tools[0]"),
    ],
)
def test_what_anthropic_has_no_word_for_is_refused_with_its_place(changes: dict[str, Any], path: str) -> None:
    spec = {"type": "Anthropic", "baseURL": "https://host/v1"}
    store = store_with()
    store.put("ModelProvider", an_object("ModelProvider", "model", spec, resourceVersion="8"))
    (problem,) = texts(resolved(store, template=PROMPT | changes).desired)
    assert problem.startswith(f"{path}: ")
    assert resolved(template=PROMPT | changes).desired.problems == (), "OpenAI has"
    assert resolved(store).desired.problems == ()


def test_too_many_objectives() -> None:
    many = [{"name": f"o{n}", "signal": "CostPerRequest", "max": "1"} for n in range(20)]
    (problem,) = texts(resolved(analysis={"objectives": many}).desired)
    assert "21 objectives" in problem


def test_without_analysis_there_are_no_objectives() -> None:
    found = resolved(analysis={"mode": "None"}).desired
    assert found.snapshot is not None
    assert found.snapshot.objectives == []
    assert not found.snapshot.analyse


def test_a_prompt_that_costs_too_much_is_invalid_and_what_is_served_goes_on() -> None:
    """10 messages of 8,990 times `x~` held the operator for eight seconds, and all rollouts with it."""
    stalls = prompt().model_dump(by_alias=True, exclude_none=True)
    stalls["messages"] = [{"role": "user", "content": "{{ " + "x~" * 8990 + "x }}"}] * 10
    stable = VersionRef(version="app-" + "a" * 10, digest="sha256:" + "a" * 64)
    found = resolved(store_with(a_copy()), stable, template=stalls)
    assert (found.desired.version, found.desired.snapshot, found.missing_copies) == (None, None, ())
    assert any("more than 2500 tokens in braces" in problem for problem in texts(found.desired))


@pytest.mark.parametrize(
    ("canary", "percent"),
    [
        ({"steps": [{"weight": 10}, {"weight": 50}]}, 5),
        ({"steps": [{"weight": 97}, {"pause": {}}]}, 3),
        ({"steps": [{"weight": 10}, {"weight": 100}]}, 0),
        ({"steps": [{"weight": 10}], "holdbackPercent": 12}, 12),
        ({"steps": [{"weight": 10}], "holdbackPercent": 0}, 0),
    ],
)
def test_five_percent_are_held_back_if_the_last_step_leaves_as_many(canary: dict[str, Any], percent: int) -> None:
    found = resolved(strategy={"canary": canary}).desired.snapshot
    assert found is not None
    assert found.holdback_percent == percent
