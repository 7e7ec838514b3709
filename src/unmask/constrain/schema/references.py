"""References within a schema: every one becomes a pointer from the root, whatever base URI or anchor it was said by.

On the way, words of older drafts become today's: a list of `items`, `additionalItems`, `then` without `if`, and
`exclusiveMinimum` beside a `minimum`, as OpenAPI 3.0 has it. It works on the JSON of schemas alone.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote, urldefrag, urljoin

from unmask.base.errors import BadInput, Unsupported
from unmask.constrain.schema.keywords import OWN, asking

_ONE = frozenset(
    [
        "items",
        "additionalItems",
        "additionalProperties",
        "contains",
        "not",
        "if",
        "then",
        "else",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
    ]
)
_LISTS = frozenset(["allOf", "anyOf", "oneOf", "prefixItems", "items"])
_MAPS = frozenset(["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"])
_LONGEST = 16
"""References that lead to references."""


def linked(root: Any) -> Any:
    """A document whose references are pointers from its root; those that lead out of it stay as they are.

    Raises:
        Unsupported: a keyword that is our own.
        BadInput: it nests without end.
    """
    places: dict[tuple[str, str], str] = {("", ""): ""}
    try:
        _visit(root, "", "", lambda schema, pointer, base: _note(schema, pointer, base, places))
        return _visit(root, "", "", lambda schema, pointer, base: _renewed(schema, base, places))
    except RecursionError:
        raise BadInput("the schema nests too deep to be read") from None


def follow(root: Any, target: Any, path: str) -> Any:
    """What a pointer from the root leads to.

    Raises:
        Unsupported: it leads out of the document.
        BadInput: it leads nowhere.
    """
    if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
        raise Unsupported(f"the reference {target!r} at {path} can't be honoured; refer to '#/$defs/...'")
    found = root
    steps = [unquote(step).replace("~1", "/").replace("~0", "~") for step in target.split("/")[1:]]
    for name, after in zip(steps, [*steps[1:], ""], strict=False):
        if name == "items" and after.isdigit() and isinstance(found, Mapping) and "prefixItems" in found:
            name = "prefixItems"  # it was a list of items
        try:
            found = found[int(name)] if isinstance(found, list) else found[name]
        except (KeyError, IndexError, ValueError, TypeError):
            raise BadInput(f"the reference {target!r} at {path} leads nowhere") from None
    return found


def followed(root: Any, schema: Any, path: str) -> Any:
    """A schema, or where it leads to if it asks for nothing but a reference; raises as `follow`."""
    for _ in range(_LONGEST):
        if not isinstance(schema, dict) or set(words := asking(schema, path)) != {"$ref"}:
            return schema
        schema = follow(root, words["$ref"], path)
    raise Unsupported(f"the reference {words['$ref']!r} at {path} leads in a circle")


def _visit(schema: Any, pointer: str, base: str, do: Callable[[dict[str, Any], str, str], dict[str, Any]]) -> Any:
    """Do something with a schema and all below it; returns the schema with what came of it."""
    if not isinstance(schema, dict):
        return schema
    own = schema.get("$id")
    if isinstance(own, str) and not own.startswith("#"):
        base = urldefrag(urljoin(base, own)).url
    out = do(schema, pointer, base)
    for keyword, parts in _below(out):
        values = {
            name: _visit(some, f"{pointer}/{_step(keyword)}{'/' + _step(name) if name else ''}", base, do)
            for name, some in parts
        }
        if isinstance(out[keyword], list):
            out[keyword] = list(values.values())
        else:
            out[keyword] = {**out[keyword], **values} if "" not in values else values[""]
    return out


def _below(schema: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Keywords with schemas in them, and these by name; a keyword that is a schema itself has the name ''."""
    for keyword, value in schema.items():
        if keyword in _LISTS and isinstance(value, list):
            yield keyword, [(str(i), some) for i, some in enumerate(value)]
        elif keyword in _MAPS and isinstance(value, dict):
            yield keyword, [(name, some) for name, some in value.items() if name]
        elif keyword in _ONE and isinstance(value, dict):
            yield keyword, [("", value)]
        elif keyword == "components" and isinstance(value, dict) and isinstance(value.get("schemas"), dict):
            yield keyword, [("", {**value, "schemas": value["schemas"]})]
    if "schemas" in schema and not set(schema) & {"type", "properties", "$ref"} and isinstance(schema["schemas"], dict):
        yield "schemas", list(schema["schemas"].items())


def _note(schema: dict[str, Any], pointer: str, base: str, places: dict[tuple[str, str], str]) -> dict[str, Any]:
    """Remember where a schema with a name of its own lies."""
    own = schema.get("$id")
    if isinstance(own, str):
        places.setdefault((base, own[1:] if own.startswith("#") else ""), pointer)
    for keyword in ("$anchor", "$dynamicAnchor"):
        if isinstance(schema.get(keyword), str):
            places.setdefault((base, schema[keyword]), pointer)
    return dict(schema)


def _renewed(schema: dict[str, Any], base: str, places: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    out = dict(schema)
    if taken := OWN & set(out):
        raise Unsupported(f"the schema's keyword {min(taken)!r} can't be honoured")
    if isinstance(out.get("$ref"), str):
        out["$ref"] = _pointer(out["$ref"], base, places)
    more = out.pop("additionalItems", True)
    if isinstance(out.get("items"), list):
        out["prefixItems"], out["items"] = out["items"], more
    for strict, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        # it said whether the bound itself is left out
        if isinstance(out.get(strict), bool) and out.pop(strict) and bound in out:
            out[strict] = out.pop(bound)
    if "if" not in out:
        out = {key: value for key, value in out.items() if key not in ("then", "else")}
    elif "then" not in out and "else" not in out:
        del out["if"]
    if "contains" not in out:
        out = {key: value for key, value in out.items() if key not in ("minContains", "maxContains")}
    return out


def _pointer(target: str, base: str, places: Mapping[tuple[str, str], str]) -> str:
    """A reference from the root; as it is if it leads out of the document."""
    uri, inside = urldefrag(base + target if target.startswith("#") else urljoin(base, target))
    named = unquote(inside)
    if not named.startswith("/") and (uri, named) in places:
        return "#" + places[uri, named]
    if named.startswith("/") and (uri, "") in places:
        return "#" + places[uri, ""] + inside
    return target


def _step(name: str) -> str:
    return quote(name.replace("~", "~0").replace("/", "~1"), safe="$~")
