"""Values of a schema in groups that exclude each other: whoever takes one of each has no two that are equal.

That is how items of `uniqueItems` are written, since no automaton can remember all items before. Groups are further
keywords for the schema: a constant, a range of numbers, a byte at some place of a string, a required member in turn.
It works on the JSON of schemas; which strings there are it asks.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from unmask.constrain.automata.machine import Machine
from unmask.constrain.schema.keywords import BYTE, asking, canonical, kinds_of
from unmask.constrain.schema.strings import groups

_CUTS = (-100, -10, -1, 0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000)
"""Numbers at which ranges of numbers begin."""
_LENGTHS = 4
"""Lengths of lists that are told apart."""
_DEEPEST = 3


def told_apart(
    schema: Any, path: str, resolve: Callable[[Any, str], Any], strings: Callable[[Any, str], Machine], depth: int = 0
) -> list[dict[str, Any]]:
    """Groups of the values of a schema, as what each adds to it. Some may be empty.

    Args:
        resolve: what a schema that is a reference leads to.
        strings: the strings under the keywords of a schema.
    """
    schema = resolve(schema, path)
    if schema is False:
        return []
    words: Mapping[str, Any] = asking(schema, path) if isinstance(schema, dict) else {}
    if "enum" in words or "const" in words:
        values = [words["const"]] if "const" in words else words["enum"]
        return [{"const": value} for value in {canonical(value): value for value in values}.values()]
    found: list[dict[str, Any]] = []
    for kind in kinds_of(words, path):
        if kind == "null":
            found.append({"const": None})
        elif kind == "boolean":
            found += [{"const": False}, {"const": True}]
        elif kind == "string":
            found += [{"type": "string", BYTE: [list(place)]} for place in groups(strings(words, path))]
        elif kind == "array":
            lengths: list[dict[str, Any]] = [{"minItems": i, "maxItems": i} for i in range(_LENGTHS)]
            found += [{"type": "array", **some} for some in [*lengths, {"minItems": _LENGTHS}]]
        elif kind == "object":
            found += _by_member(words, path, resolve, strings, depth)
        else:
            found += _ranges(words, kind)
    return found


def _by_member(
    words: Mapping[str, Any],
    path: str,
    resolve: Callable[[Any, str], Any],
    strings: Callable[[Any, str], Machine],
    depth: int,
) -> list[dict[str, Any]]:
    """Objects by the required member that has most groups itself."""
    best: list[dict[str, Any]] = [{"type": "object"}]
    properties = words.get("properties")
    if depth < _DEEPEST and isinstance(properties, dict):
        for key in words.get("required", []):
            ways = told_apart(properties[key], path, resolve, strings, depth + 1) if key in properties else []
            if len(ways) > len(best):
                best = [{"type": "object", "properties": {key: way}} for way in ways]
    return best


def _ranges(words: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    low = max([words[key] for key in ("minimum", "exclusiveMinimum") if key in words], default=None)
    high = min([words[key] for key in ("maximum", "exclusiveMaximum") if key in words], default=None)
    cuts: list[float] = [cut for cut in _CUTS if (low is None or cut > low) and (high is None or cut <= high)]
    if low is not None and high is not None and len(cuts) < len(_CUTS) // 2 and high > low:
        count = min(int(high - low) + 1, len(_CUTS)) if kind == "integer" else len(_CUTS)
        exact = [low + (high - low) * i / count for i in range(1, count)]
        cuts = sorted({round(cut) if kind == "integer" or high - low > count * 2 else round(cut, 3) for cut in exact})
    edges = [None, *cuts, None]
    found = []
    for begin, end in pairwise(edges):
        group: dict[str, Any] = {"type": kind}
        if begin is not None:
            group["minimum"] = begin
        if end is not None:
            group["exclusiveMaximum"] = end
        found.append(group)
    return found
