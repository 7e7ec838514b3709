r"""Templates: text with holes in double braces.

    {{name}}       a hole called name, of the default length range
    {{name:1-4}}   1 to 4 tokens
    {{name:8}}     exactly 8 tokens
    {{:8}}  {{}}   the same without a name
    \{{            two braces that open no hole
    \\{{name}}     a backslash, then a hole

A backslash means itself everywhere else, and so do single braces and a `}}` outside a hole, so that code needs no other
escapes. It does not know tokens or models.
"""

import re

from unmask.base.errors import BadInput
from unmask.text.segments import Hole, Segment, Text

DEFAULT = (1, 16)
"""Tokens of a hole that names no length."""

_OPEN = re.compile(r"(\\*)\{\{")
_INSIDE = re.compile(r"\s*(?P<name>[^\W\d]\w*)?\s*(?::\s*(?P<low>\d{1,9})\s*(?:-\s*(?P<high>\d{1,9})\s*)?)?", re.ASCII)


def parse(template: str, default: tuple[int, int] = DEFAULT) -> list[Segment]:
    """Cut a template into what is given and what is to be written, in order; no given part is empty.

    Args:
        template: the text; see the head of this file for what stands for a hole.
        default: shortest and longest length, in tokens, of holes that name none.
    Raises:
        BadInput: a hole that is not closed, not understood, of length 0, of a range that runs backwards, or of a name
            that was used before. The message gives the hole's place in code points.
    """
    found: list[Segment] = []
    names: set[str] = set()
    given, at = "", 0
    while opening := _OPEN.search(template, at):
        slashes = len(opening[1])
        given += template[at : opening.start()] + "\\" * (slashes // 2)
        if slashes % 2:
            given, at = given + "{{", opening.end()
            continue
        place = opening.end() - 2
        closing = template.find("}}", opening.end())
        if closing < 0:
            raise BadInput(
                f"the hole at code point {place} is not closed; end it with }}}}, or write \\{{{{ for two plain braces"
            )
        hole = _hole(template[opening.end() : closing], place, default)
        if hole.name in names:
            raise BadInput(f"the hole at code point {place} is the second one called {hole.name!r}; rename it")
        if hole.name is not None:
            names.add(hole.name)
        found += [Text(given), hole] if given else [hole]
        given, at = "", closing + 2
    given += template[at:]
    return [*found, Text(given)] if given else found


def _hole(inside: str, place: int, default: tuple[int, int]) -> Hole:
    """The hole that a pair of braces describes."""
    said = _INSIDE.fullmatch(inside)
    if said is None:
        raise BadInput(
            f"the hole at code point {place} says {inside!r}; expected name, name:8 or name:1-4 (the name may be left "
            "out), or write \\{{ for two plain braces"
        )
    low, high = default
    if said["low"] is not None:
        low = int(said["low"])
        high = low if said["high"] is None else int(said["high"])
    try:
        return Hole(name=said["name"], low=low, high=high)
    except BadInput as error:
        raise BadInput(f"the hole at code point {place}: {error}") from None
