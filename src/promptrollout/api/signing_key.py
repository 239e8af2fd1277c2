"""PromptSigningKey: the keys of one rollout's response ids. Gateway pods read them, and no role of people does.

Without an ownerReference, like its PromptDelivery: both outlive a rollout that is made anew.
"""

from typing import Annotated

from pydantic import Field

from promptrollout.api.meta import CustomResource, Model, Name, Timestamp

ResponseKey = Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]{64}$")]


class SigningKeySpec(Model):
    gateway: Name
    """Whose pods read it."""
    rollout_uid: Annotated[str, Field(alias="rolloutUID", max_length=64)]
    key: ResponseKey
    """Signs response ids. To have others drawn at once, delete the object."""
    next: ResponseKey
    """Signs after it; all pods know it by then."""
    previous: ResponseKey | None = None
    """Did sign before it, and is believed."""
    rotated_at: Timestamp
    """Since when the key signs that does."""
    readable: Annotated[list[ResponseKey], Field(max_length=8)] = []
    """That stood in the PromptDelivery, where people can read them: conversations go on by their ids, votes under them
    count only while pods need them there."""
    readable_until: Timestamp | None = None
    """When conversations under them end; absent while they stand in the PromptDelivery."""


class PromptSigningKey(CustomResource):
    """The keys of one rollout's response ids: written by the operator, read by gateway pods."""

    kind_name = "PromptSigningKey"
    plural = "promptsigningkeys"
    short_names = ("pkey",)
    columns = (
        ("Gateway", "string", ".spec.gateway", 0),
        ("Rotated", "string", ".spec.rotatedAt", 0),
        ("Age", "date", ".metadata.creationTimestamp", 0),
    )
    written_by_operator = True
    in_category = False  # who may list the others may not list this one, and would be told so each time

    spec: SigningKeySpec
