"""The digest of a prompt: sha256 over its canonical JSON (RFC 8785)."""

import hashlib

import rfc8785

from promptrollout.api.names import short_digest
from promptrollout.api.prompt import PromptSpec, canonical


def canonical_bytes(spec: PromptSpec) -> bytes:
    """RFC 8785 form of the prompt. Raises ValueError if a number in `outputSchema`, `tools` or `extra` has no exact
    JSON double (integers beyond 2**53, NaN, infinities)."""
    try:
        return rfc8785.dumps(canonical(spec))
    except rfc8785.CanonicalizationError as error:
        raise ValueError(f"the prompt has no canonical JSON form: {error}") from error


def digest_of(spec: PromptSpec) -> str:
    """`sha256:` and 64 hexadecimal characters. Equal for two prompts iff the same would reach the model."""
    return "sha256:" + hashlib.sha256(canonical_bytes(spec)).hexdigest()


def copy_name(rollout: str, digest: str) -> str:
    """Name of the operator's own copy of a version: `<rollout>-<first ten of the digest>`."""
    return f"{rollout}-{short_digest(digest)}"
