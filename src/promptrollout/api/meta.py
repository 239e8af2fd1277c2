"""What every object is made of: the base model, bounded field types, references and conditions."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """Base of all API types: camelCase outside, snake_case inside, immutable, unknown fields ignored.

    `rules` are CEL validations (`rule`, `message`) that the CRD generator attaches to the type's schema.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        use_enum_values=True,
        use_attribute_docstrings=True,
    )
    rules: ClassVar[tuple[tuple[str, str], ...]] = ()

    def dump(self) -> dict[str, Any]:
        """The JSON object as Kubernetes stores it: aliases, absent fields left out."""
        return self.model_dump(by_alias=True, exclude_none=True, mode="json")


Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Decimal = Annotated[str, Field(max_length=24, pattern=r"^[0-9]{1,12}(\.[0-9]{1,10})?$")]
SignedDecimal = Annotated[str, Field(max_length=24, pattern=r"^-?[0-9]{1,12}(\.[0-9]{1,10})?$")]
Digest = Annotated[str, Field(max_length=71, pattern=r"^sha256:[0-9a-f]{64}$")]
HeaderName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9-]+$")]
# any provider's, ARNs and titles with spaces among them; printable ASCII, since it travels in a header
ModelName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[!-~]([ -~]*[!-~])?$")]
Text = Annotated[str, Field(max_length=1024)]
ShortText = Annotated[str, Field(max_length=256)]
Timestamp = Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})]
# arbitrary JSON that passes through untouched
Json = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


class LocalRef(Model):
    """A reference inside the namespace."""

    name: Name
    """Its metadata.name."""


class SecretKeyRef(Model):
    """One key of a Secret in the namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """Key in the data of the Secret."""


class ConfigMapKeyRef(Model):
    """One key of a ConfigMap in the namespace."""

    name: ObjectName
    """Name of the ConfigMap."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """Key in the data of the ConfigMap."""


class Condition(Model):
    """metav1.Condition."""

    type: Annotated[str, Field(min_length=1, max_length=63)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z]([A-Za-z0-9_]*)$")]
    message: Annotated[str, Field(max_length=2048)] = ""
    last_transition_time: Timestamp
    observed_generation: Annotated[int, Field(ge=0)] | None = None


Conditions = Annotated[
    list[Condition],
    Field(
        max_length=20,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]


class ObjectMeta(Model):
    """The part of metav1.ObjectMeta that is read as a model."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class CustomResource(Model):
    """Base of the kinds. Class variables describe the CRD around the schema."""

    kind_name: ClassVar[str]
    plural: ClassVar[str]
    short_names: ClassVar[tuple[str, ...]]
    columns: ClassVar[tuple[tuple[str, str, str, int], ...]] = ()
    """Printer columns: name, type, JSON path, priority."""
    selectable_fields: ClassVar[tuple[str, ...]] = ()
    max_name_length: ClassVar[int] = 63
    """Of metadata.name; shorter where names of owned objects are built from it."""
    written_by_operator: ClassVar[bool] = False
    """The whole object, not only its status: its schema has bounds, but no defaults and no rules."""

    in_category: ClassVar[bool] = True
    """`kubectl get prompts` lists it too."""

    api_version: str = ""
    kind: str = ""
    metadata: ObjectMeta
