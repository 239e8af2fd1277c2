"""The keys of response ids that this pod has: of PromptSigningKeys, and on its disk for a start without API server."""

from __future__ import annotations

import logging
from typing import Any

from pydantic import ValidationError

from promptrollout.api.signing_key import SigningKeySpec
from promptrollout.gateway.rollouts.last_good import Store

logger = logging.getLogger(__name__)


class SigningKeys:
    """By rollout. The key of a deleted object stays in use: the operator makes a new one, and until then no feedback is
    lost."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: dict[str, SigningKeySpec] = {}
        self.listed = False
        """The first list is complete."""
        self.refused = False
        """The API server refused the last list: this pod may not read them, or the cluster has no such kind."""

    def get(self, rollout: str) -> SigningKeySpec | None:
        return self._keys.get(rollout)

    def has_key(self, rollout: str) -> bool | None:
        """None: this pod may not read such objects. While the API server is down, the keys on its disk count."""
        return None if self.refused else rollout in self._keys

    def load(self) -> None:
        """Read the keys on the disk."""
        for rollout, raw in self._store.load_signing_keys().items():
            self.update(rollout, raw)

    def update(self, rollout: str, raw: dict[str, Any]) -> SigningKeySpec | None:
        """The rollout's key, if it is valid and another one than before."""
        try:
            key = SigningKeySpec.model_validate(raw)
        except ValidationError as error:
            # without its input, which is a key
            field = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
            logger.error("PromptSigningKey %s: %s is not valid: the last key stays in use", rollout, field)
            return None
        if key == self._keys.get(rollout):
            return None
        self._keys[rollout] = key
        return key

    def forget(self, rollout: str) -> None:
        self._keys.pop(rollout, None)
