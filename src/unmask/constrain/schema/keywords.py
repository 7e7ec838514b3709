"""The words of JSON schemas: which keywords there are, of what they speak, and what is of which type.

It does not know languages or tokens.
"""

import json
from collections.abc import Mapping
from typing import Any

from unmask.base.errors import BadInput, Unsupported

PATTERNS = "(patterns)"
"""Our own keyword, as all in brackets: further patterns of a string, from schemas that were merged."""
NO_PATTERNS = "(no patterns)"
"""Patterns that a string must not match."""
EXCEPT = "(except)"
"""Values that a value must not equal."""
NO_MULTIPLE = "(no multiple of)"
"""Whole numbers that must not divide a number."""
BYTE = "(byte)"
"""Triples (place, low, high): the byte of a string at a place; with -1, -1 the string ends at or before it."""
MEMBERS = "(members)"
"""Schemas with `MEMBER_WORDS` alone that all hold for an object."""
ALSO = "(also)"
"""Schemas that hold as well."""
OWN = frozenset([PATTERNS, NO_PATTERNS, EXCEPT, NO_MULTIPLE, BYTE, MEMBERS, ALSO])

MEMBER_WORDS = ("properties", "patternProperties", "additionalProperties")
"""Which of them a member of an object is under is a matter of all three."""
ANNOTATIONS = frozenset(
    [
        "$schema",
        "$vocabulary",
        "$id",
        "$comment",
        "$defs",
        "$anchor",
        "$dynamicAnchor",
        "definitions",
        "components",
        "title",
        "description",
        "markdownDescription",
        "default",
        "example",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "discriminator",
        "externalDocs",
        "nullable",
        "xml",
    ]
)
"""Keywords that ask for nothing, those of OpenAPI among them; so does every one that begins with `x-`."""
GENERAL = frozenset(["type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else"])
KEYWORDS: Mapping[str, frozenset[str]] = {
    "string": frozenset(["minLength", "maxLength", "pattern", "format"]),
    "number": frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]),
    "array": frozenset(
        [
            "items",
            "prefixItems",
            "minItems",
            "maxItems",
            "uniqueItems",
            "contains",
            "minContains",
            "maxContains",
            "unevaluatedItems",
        ]
    ),
    "object": frozenset(
        [
            "properties",
            "patternProperties",
            "additionalProperties",
            "required",
            "minProperties",
            "maxProperties",
            "propertyNames",
            "unevaluatedProperties",
            "dependentRequired",
            "dependentSchemas",
            "dependencies",
        ]
    ),
}
"""Keywords by the type that they speak of; they ask nothing of other types."""
_SHAPES: Mapping[type, frozenset[str]] = {
    dict: frozenset(["properties", "patternProperties", "dependentRequired", "dependentSchemas", "dependencies"]),
    list: frozenset(["required", "prefixItems", "enum", "allOf", "anyOf", "oneOf"]),
    str: frozenset(["pattern", "format", "$ref"]),
    bool: frozenset(["uniqueItems"]),
}
"""What Python has for the values of some keywords."""
_KNOWN = GENERAL | OWN | frozenset().union(*KEYWORDS.values())
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def asking(schema: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The keywords of a schema that ask for something.

    Raises:
        Unsupported: one that can't be honoured.
        BadInput: one whose value is of the wrong type.
    """
    found = {key: value for key, value in schema.items() if key not in ANNOTATIONS and not key.startswith("x-")}
    for keyword in found:
        if keyword not in _KNOWN:
            raise Unsupported(
                f"the schema's keyword {keyword!r} at {path} can't be honoured; supported are "
                f"{', '.join(sorted(_KNOWN - OWN))}"
            )
    for shape, words in _SHAPES.items():
        for keyword in words & set(found):
            if not isinstance(found[keyword], shape):
                name = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}[shape]
                raise BadInput(f"{path}/{keyword} is {name}, got {json.dumps(found[keyword])[:60]}")
    return found


def kinds_of(schema: Mapping[str, Any], path: str) -> list[str]:
    """The types that a schema names; all where it names none.

    Raises:
        BadInput: no type of JSON.
    """
    asked = schema.get("type", [kind for kind in TYPES if kind != "integer"])
    if not isinstance(asked, str | list):
        raise BadInput(f"{path}/type is a name or a list of names, got {asked!r}")
    kinds = [asked] if isinstance(asked, str) else list(asked)
    for kind in kinds:
        if kind not in TYPES:
            raise BadInput(f"{path}/type names {kind!r}; known: {', '.join(TYPES)}")
    return [kind for kind in kinds if not (kind == "integer" and "number" in kinds)]


def count_of(schema: Mapping[str, Any], key: str, path: str) -> int | None:
    """A keyword that counts.

    Raises:
        BadInput: no whole number from 0 on.
    """
    if key not in schema:
        return None
    value = schema[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise BadInput(f"{path}/{key} is a whole number from 0 on, got {value!r}")
    return int(value)


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


def canonical(value: Any) -> str:
    """The same for values that are equal in JSON, where 1 is 1.0 but not true."""

    def number(digits: str) -> float | int:
        return int(float(digits)) if float(digits).is_integer() else float(digits)

    return json.dumps(json.loads(json.dumps(value), parse_float=number), sort_keys=True)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal in JSON."""
    return canonical(one) == canonical(other)
