"""Names of an object's members, by the patterns that they match. It does not know schemas."""

import re
from collections.abc import Callable, Collection, Sequence

from unmask.base.errors import Unsupported
from unmask.constrain.automata.budget import Meter
from unmask.constrain.automata.compose import alt, machine, text
from unmask.constrain.automata.machine import Machine, both, without
from unmask.constrain.automata.regex import PRINTABLE, own
from unmask.constrain.schema.strings import ANY

_MOST = 16


def matches(pattern: str, name: str, find: Callable[[str], Machine]) -> bool:
    """Whether any reader of a pattern may find it in a name."""
    if find(pattern).accepts(name.encode("utf-8", "surrogatepass")):
        return True
    try:
        return not name.isascii() and re.search(pattern, name) is not None
    except re.error:
        return False


def sorted_out(
    taken: Collection[str], patterns: Sequence[str], find: Callable[[str], Machine], meter: Meter
) -> list[tuple[Machine, frozenset[str]]]:
    """All names but those that are taken, in groups by the patterns that they match.

    Raises:
        Unsupported: too many groups.
    """
    rest = without(own(ANY), machine(alt([text(n.encode("utf-8", "surrogatepass")) for n in taken]), meter), meter)
    cells = [(rest, frozenset[str]())]
    for pattern in dict.fromkeys(patterns):
        found = find(pattern)
        split = []
        for names, known in cells:
            split.append((both(names, found, meter), known | {pattern}))
            # readers agree on what a pattern does not match in printable ASCII
            split.append((without(both(names, own(PRINTABLE), meter), found, meter), known))
        cells = [(names, known) for names, known in split if not names.empty]
        if len(cells) > _MOST:
            raise Unsupported(f"patternProperties sorts names into more than {_MOST} groups; use fewer patterns")
    return cells
