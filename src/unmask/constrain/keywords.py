"""The words of JSON schemas: which keywords there are, of what they speak, and what is of which type.

It does not know languages or tokens.
"""

import json
from collections.abc import Mapping
from typing import Any

PATTERNS = "(patterns)"
"""Our own keyword: further patterns of a string, from schemas that were merged."""
ANNOTATIONS = frozenset(
    [
        "$schema",
        "$id",
        "$comment",
        "$defs",
        "$anchor",
        "definitions",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
    ]
)
"""Keywords that ask for nothing."""
GENERAL = frozenset(["type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf"]) | {PATTERNS}
KEYWORDS: Mapping[str, frozenset[str]] = {
    "string": frozenset(["minLength", "maxLength", "pattern", "format"]),
    "number": frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]),
    "array": frozenset(["items", "prefixItems", "minItems", "maxItems"]),
    "object": frozenset(["properties", "required", "additionalProperties", "minProperties", "maxProperties"]),
}
"""Keywords by the type that they speak of; they ask nothing of other types."""
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def is_of(value: Any, kind: str) -> bool:
    """Whether a value is of a JSON type."""
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    known: dict[str, type | tuple[type, ...]] = {
        "object": dict,
        "array": list,
        "string": str,
        "number": (int, float),
        "null": type(None),
    }
    return kind in known and isinstance(value, known[kind])


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal in JSON, where true is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
