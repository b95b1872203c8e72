"""Schemas of other projects (`schemas/README.md`), as strict as their own tools are."""

from pathlib import Path
from typing import Any

SCHEMAS = Path(__file__).with_name("schemas")


def strict(schema: Any) -> Any:
    """A Kubernetes schema that refuses unknown fields, as `kubectl` does: JSON schema lets them pass."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not is_open:
        made["additionalProperties"] = False
    return made
