"""PromptSigningKey: the keys of one rollout's response ids. Gateway pods read them, and no role of people does.

Without an ownerReference, like its PromptDelivery: both outlive a rollout that is recreated.
"""

from typing import Annotated

from pydantic import Field

from promptrollout.api.meta import CustomResource, Model, Name, Timestamp

ResponseKey = Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]{64}$")]


class SigningKeySpec(Model):
    gateway: Name
    """The PromptGateway whose pods read it."""
    rollout_uid: Annotated[str, Field(alias="rolloutUID", max_length=64)]
    key: ResponseKey
    """Signs response ids. To replace all keys at once, delete the object."""
    next: ResponseKey
    """The key that signs next. All pods know it by then."""
    previous: ResponseKey | None = None
    """The key that signed before. Its ids are still valid."""
    rotated_at: Timestamp
    """Since when `key` signs."""
    readable: Annotated[list[ResponseKey], Field(max_length=8)] = []
    """Keys that were in the PromptDelivery, where people can read them. Their ids continue conversations; votes with
    them count only while a pod needs them there."""
    readable_until: Timestamp | None = None
    """Until when their ids continue conversations. Absent while they are in the PromptDelivery."""


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
    in_category = False  # people who may list the other kinds may not list this one, and would get an error each time

    spec: SigningKeySpec
