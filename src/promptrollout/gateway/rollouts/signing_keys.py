"""The keys of response ids that this pod has: of PromptSigningKeys, and on its disk for a start without API server."""

from __future__ import annotations

import logging
from typing import Any

from pydantic import ValidationError

from promptrollout.api.signing_key import SigningKeySpec
from promptrollout.gateway.rollouts.last_good import Store

logger = logging.getLogger(__name__)


class SigningKeys:
    """By rollout. One whose object is deleted stays: the operator draws others, and nobody's vote is lost till then."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._found: dict[str, SigningKeySpec] = {}
        self.listed = False
        """The first list is complete."""
        self.refused = False
        """The last list was: this pod may not read them, or the cluster has no such kind."""

    def get(self, rollout: str) -> SigningKeySpec | None:
        return self._found.get(rollout)

    def is_here(self, rollout: str) -> bool | None:
        """None: this pod cannot read such objects. As long as nobody answers it has what is on its disk."""
        return None if self.refused else rollout in self._found

    def load(self) -> None:
        """What the disk has."""
        for rollout, raw in self._store.load_signing_keys().items():
            self.take(rollout, raw)

    def take(self, rollout: str, raw: dict[str, Any]) -> SigningKeySpec | None:
        """The keys if they are new and can be read."""
        try:
            found = SigningKeySpec.model_validate(raw)
        except ValidationError as error:
            # its input is a key
            field = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
            logger.error("PromptSigningKey %s: %s cannot be read: the last one stays in use", rollout, field)
            return None
        if found == self._found.get(rollout):
            return None
        self._found[rollout] = found
        return found

    def forget(self, rollout: str) -> None:
        self._found.pop(rollout, None)
