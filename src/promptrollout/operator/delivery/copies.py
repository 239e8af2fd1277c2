"""The operator's own copies of versions: pruning an old file in Git cannot take the rollback target away."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from promptrollout.api.delivery import VersionRef
from promptrollout.api.digest import copy_name, digest_of
from promptrollout.api.names import (
    API_VERSION,
    GROUP,
    LABEL_DIGEST,
    LABEL_MANAGED_BY,
    LABEL_ROLLOUT,
    MANAGED_BY,
    short_digest,
)
from promptrollout.api.prompt import PromptSpec, canonical
from promptrollout.operator.cluster.identity import OncePerModel, OncePerObject
from promptrollout.operator.cluster.store import Store

Object = dict[str, Any]

ANNOTATION_PROMOTED = f"{GROUP}/promoted"
"""On a copy: the revision that promoted it. What to serve if status and delivery are both lost."""


def copy_of(namespace: str, rollout: str, prompt: PromptSpec) -> Object:
    """The object. Without ownerReference: it must survive a replaced or restored rollout."""
    digest = digest_of(prompt)
    return {
        "apiVersion": API_VERSION,
        "kind": "PromptVersion",
        "metadata": {
            "name": copy_name(rollout, digest),
            "namespace": namespace,
            "labels": {
                LABEL_MANAGED_BY: MANAGED_BY,
                LABEL_ROLLOUT: rollout,
                LABEL_DIGEST: short_digest(digest),
            },
        },
        "spec": canonical(prompt),
    }


def is_copy(item: Object, rollout: str) -> bool:
    labels = item["metadata"].get("labels") or {}
    return labels.get(LABEL_MANAGED_BY) == MANAGED_BY and labels.get(LABEL_ROLLOUT) == rollout


def _parse(item: Object) -> PromptSpec | None:
    try:
        return PromptSpec.model_validate(item.get("spec") or {})
    except ValidationError:
        return None


def _digest(prompt: PromptSpec) -> str | None:
    try:
        return digest_of(prompt)
    except ValueError:
        return None


prompt_of: OncePerObject[PromptSpec | None] = OncePerObject("PromptVersion", _parse)
"""The prompt of a PromptVersion object; None if it cannot be read."""
digest_if_any: OncePerModel[PromptSpec, str | None] = OncePerModel(_digest)
"""The digest; None of a prompt that has none (prompt_problems says why)."""


def owned(store: Store, namespace: str, rollout: str) -> list[Object]:
    """The copies of one rollout, oldest first."""
    found = [item for item in store.of_rollout("PromptVersion", namespace, rollout) if is_copy(item, rollout)]
    return sorted(found, key=lambda item: (item["metadata"].get("creationTimestamp", ""), item["metadata"]["name"]))


def ref_of(item: Object) -> VersionRef | None:
    prompt = prompt_of(item)
    digest = digest_if_any(prompt) if prompt is not None else None
    return None if digest is None else VersionRef(version=item["metadata"]["name"], digest=digest)


def promoted(copies: list[Object]) -> VersionRef | None:
    """The copy with the highest mark."""
    marked = [(mark_of(item), item) for item in copies if mark_of(item) > 0]
    return ref_of(max(marked, key=lambda pair: pair[0])[1]) if marked else None


def mark_of(item: Object) -> int:
    text = (item["metadata"].get("annotations") or {}).get(ANNOTATION_PROMOTED, "")
    return int(text) if text.isdigit() else 0


def superfluous(copies: list[Object], needed: set[str], limit: int) -> list[Object]:
    """Copies that may be deleted: all but those needed by name and the newest `limit` of the others."""
    others = [item for item in copies if item["metadata"]["name"] not in needed]
    return others[: len(others) - limit] if limit else others
