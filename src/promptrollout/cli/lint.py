"""`promptrollout lint`: manifests checked without a cluster, by the same schemas and parsers as in a cluster."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from promptrollout.api.names import API_VERSION, GROUP
from promptrollout.api.rollout import Snapshot
from promptrollout.api.slo import Objective
from promptrollout.cli.inputs import require
from promptrollout.cli.lint_references import content_problems, metadata_of, reference_problems
from promptrollout.cli.lint_schema import Path as FieldPath
from promptrollout.cli.lint_schema import Problem, schema_problems, written
from promptrollout.cli.manifests import Manifest, Unreadable, files_below, read
from promptrollout.engine.objectives.definitions import margins_text
from promptrollout.simulation.rules import rules_of
from promptrollout.simulation.undecidable import Doubt, undecidable

STDIN = "-"


class Finding(NamedTuple):
    """One line of the output."""

    source: str
    line: int
    subject: str
    path: str
    reason: str
    is_error: bool
    is_note: bool = False
    """Nothing is wrong: it says what a default means, and `--strict` passes."""

    def __str__(self) -> str:
        parts = [f"{self.source}:{self.line}", self.subject, self.path, self.reason]
        level = "" if self.is_error else "note: " if self.is_note else "warning: "
        return level + ": ".join(part for part in parts if part)


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--strict", is_flag=True, help="Exit with 1 on warnings, too.")
@click.option(
    "--requests-per-minute",
    type=click.FloatRange(min=0, min_open=True),
    help="Warn about objectives that this traffic cannot decide, as `plan` does.",
)
def lint(files: tuple[str, ...], strict: bool, requests_per_minute: float | None) -> None:
    """Check manifests without a cluster: FILEs, directories, or `-` for standard input.

    Finds what the API server would refuse, unknown fields, prompts and output schemas that do not compile, and
    references that the given files contradict. Objects of other groups are ignored. Exit code 1 on errors.
    """
    documents = [document for name in files for document in _documents(name)]
    if requests_per_minute is not None:
        require("numpy")
    found = [*check(documents), *doubts_about(documents, requests_per_minute), *margin_notes(documents)]
    findings = sorted(found, key=lambda each: (each.source, each.line))
    for finding in findings:
        click.echo(str(finding), err=finding.is_error)
    ours = sum(isinstance(document, Manifest) and _is_ours(document.body) for document in documents)
    errors = sum(finding.is_error for finding in findings)
    warnings = sum(not (finding.is_error or finding.is_note) for finding in findings)
    click.echo(
        f"{_counted(ours, 'object')} checked: {_counted(errors, 'error')}, {_counted(warnings, 'warning')}",
        err=bool(errors),
    )
    if errors or (strict and warnings):
        raise click.exceptions.Exit(1)
    if not ours:
        raise click.ClickException(f"no object of {GROUP} in {', '.join(files)}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def check(documents: Sequence[Manifest | Unreadable]) -> Iterator[Finding]:
    """All that is wrong with the documents, taken together."""
    bodies = [each.body for each in documents if isinstance(each, Manifest) and isinstance(each.body, dict)]
    seen: dict[tuple[Any, ...], Manifest] = {}
    for document in documents:
        if isinstance(document, Unreadable):
            yield Finding(document.source, document.line, "", "", document.reason, True)
            continue
        if not isinstance(document.body, dict) or not document.body.get("kind"):
            reason = "is missing, so this is not a Kubernetes object; add apiVersion and kind"
            yield Finding(document.source, document.line(()), "", "kind", reason, True)
            continue
        if not _is_ours(document.body):
            continue
        metadata = metadata_of(document.body)
        name = str(metadata.get("name") or "(no name)")
        kind = str(document.body["kind"])
        errors, warnings = _of(document.body, bodies)
        identity = (kind, name, str(metadata.get("namespace")))
        if identity in seen and name != "(no name)":
            first = seen[identity]
            place = f"{first.source}:{first.line(())}"
            warnings.append(
                Problem(("metadata", "name"), f"is in {place} too, and the last one applied wins; rename or remove one")
            )
        seen.setdefault(identity, document)
        for is_error, problems in ((True, errors), (False, warnings)):
            for problem in problems:
                line = document.line(problem.path)
                yield Finding(document.source, line, f"{kind}/{name}", written(problem.path), problem.reason, is_error)


def _of(body: dict[str, Any], all_bodies: Sequence[dict[str, Any]]) -> tuple[list[Problem], list[Problem]]:
    """Errors and warnings of one object of ours."""
    if body["apiVersion"] != API_VERSION:
        return [Problem(("apiVersion",), f"{body['apiVersion']} is not served; write {API_VERSION}")], []
    kind = str(body["kind"])
    if errors := schema_problems(kind, body):
        return errors, []
    spec = body.get("spec") or {}
    errors = list(content_problems(kind, spec))
    more, warnings = reference_problems({**body, "spec": spec}, all_bodies)
    return errors + more, warnings


def doubts_about(
    documents: Sequence[Manifest | Unreadable], requests_per_minute: float | None = None
) -> Iterator[Finding]:
    """Warnings about objectives that are never decided, whatever the traffic or with this one.

    A rollout that cannot be resolved from the given files alone is passed over: what it lacks is said elsewhere.
    """
    given = [each for each in documents if isinstance(each, Manifest) and _is_sound(each.body)]
    for document in given:
        body = document.body
        if body["kind"] != "PromptRollout":
            continue
        name = body["metadata"]["name"]
        try:
            _, rules = rules_of(
                [each.body for each in given if each.body["kind"] != "PromptRollout" or each is document]
            )
        except ValueError:
            continue
        declared = [each["name"] for each in body["spec"]["analysis"].get("objectives", ())]
        for doubt in _doubts(rules, requests_per_minute):
            path: FieldPath = ("spec", "analysis")
            if doubt.objective in declared:
                path = (*path, "objectives", declared.index(doubt.objective))
            line = document.line(path)
            yield Finding(document.source, line, f"PromptRollout/{name}", written(path), str(doubt), False)


def margin_notes(documents: Sequence[Manifest | Unreadable]) -> Iterator[Finding]:
    """What rolls back where only the margin for promotion is written, which reads like a tolerance."""
    for document in documents:
        if not isinstance(document, Manifest) or not _is_sound(document.body):
            continue
        kind, spec = str(document.body["kind"]), document.body.get("spec") or {}
        path: FieldPath = ("spec", "objectives") if kind == "PromptSLO" else ("spec", "analysis", "objectives")
        given = spec if kind == "PromptSLO" else (spec.get("analysis") or {}) if kind == "PromptRollout" else {}
        for index, objective in enumerate(given.get("objectives") or ()):
            versus = objective.get("versusStable") or {}
            if not versus or {"rollbackAbovePercent", "rollbackAboveDecrease"} & versus.keys():
                continue
            text = margins_text(Objective.model_validate(objective))
            field = "rollbackAbovePercent" if "maxIncreasePercent" in versus else "rollbackAboveDecrease"
            at = (*path, index, "versusStable")
            reason = f"{text}; set {field} for another bound"
            subject = f"{kind}/{metadata_of(document.body).get('name')}"
            yield Finding(document.source, document.line(at), subject, written(at), reason, False, is_note=True)


def _doubts(rules: Snapshot, requests_per_minute: float | None) -> Iterator[Doubt]:
    yield from undecidable(rules)
    if requests_per_minute is not None:
        from promptrollout.simulation.advice import never_decided
        from promptrollout.simulation.assumed import assumed

        yield from never_decided(rules, assumed(rules, requests_per_minute))


def _is_sound(body: Any) -> bool:
    return _is_ours(body) and body.get("apiVersion") == API_VERSION and not schema_problems(str(body.get("kind")), body)


def _is_ours(body: Any) -> bool:
    return isinstance(body, dict) and str(body.get("apiVersion", "")).split("/")[0] == GROUP


def _is_foreign(body: Any) -> bool:
    return not isinstance(body, dict) or not ({"apiVersion", "kind"} & body.keys())


def _documents(name: str) -> Iterator[Manifest | Unreadable]:
    if name == STDIN:
        yield from read("stdin", sys.stdin.read())
        return
    searched = Path(name).is_dir()
    for path in files_below(Path(name)):
        try:
            text = path.read_text("utf-8")
        except OSError as error:
            raise click.ClickException(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError:
            yield Unreadable(str(path), 1, "not UTF-8; save it as UTF-8")
            continue
        for document in read(str(path), text):
            # a directory may hold other YAML and JSON, such as Helm values
            if not (searched and isinstance(document, Manifest) and _is_foreign(document.body)):
                yield document
