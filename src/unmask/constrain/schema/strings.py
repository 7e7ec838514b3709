r"""Strings by length, format and pattern, as JSON spells them, and in groups that can be told apart.

Languages are built over the string itself and spelled last (`quoted`): quotes, backslashes and the five control
characters that have a short escape get it; everything else stands for itself, so a string has one spelling in JSON.
Characters are code points. It does not know schemas.
"""

import numpy as np

from unmask.base.errors import BadInput, UnknownName
from unmask.constrain.automata.budget import Meter
from unmask.constrain.automata.compose import leaf, machine, seq, text
from unmask.constrain.automata.machine import BYTES, DEAD, Machine, both, trim
from unmask.constrain.automata.regex import own

ANY = r"[^\x01-\x03]*"
"""Every text: valid UTF-8 without the three bytes that compilation needs."""

_ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\t": "t", "\n": "n", "\f": "f", "\r": "r"}

_DAY_OF = {  # a month, and its days; the last of February is left out
    "(?:0[13578]|1[02])": "(?:0[1-9]|[12][0-9]|3[01])",
    "(?:0[469]|11)": "(?:0[1-9]|[12][0-9]|30)",
    "02": "(?:0[1-9]|1[0-9]|2[0-8])",
}
_DAY = f"(?:{'|'.join(f'{month}-{day}' for month, day in _DAY_OF.items())})"
_DATE = rf"[1-9][0-9]{{3}}-{_DAY}"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = "[a-z0-9]+(?:-[a-z0-9]+)*"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_SEGMENT = "[A-Za-z0-9._~-]+"
_URI = rf"https?://{_HOST}(?::[1-9][0-9]{{0,3}})?(?:/[A-Za-z0-9._~-]*)*(?:\?[A-Za-z0-9._~=&-]*)?(?:#[A-Za-z0-9._~-]*)?"
_POINTER = r"(?:/(?:[A-Za-z0-9 _.-]|~[01])*)*"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"{_DATE}T{_TIME}",
    "duration": r"P(?:[0-9]{1,4}W|[0-9]{1,4}D|T(?:[0-9]{1,4}H)?[0-9]{1,4}M(?:[0-9]{1,4}S)?|[0-9]{1,4}DT[0-9]{1,4}H)",
    "email": rf"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{_LABEL}(?:\.{_LABEL}){{1,2}}",
    "hostname": _HOST,
    "ipv4": rf"{_OCTET}(?:\.{_OCTET}){{3}}",
    "ipv6": "[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){7}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "uri": _URI,
    "uri-reference": rf"{_URI}|/(?:{_SEGMENT}/)*(?:{_SEGMENT})?|{_SEGMENT}(?:/{_SEGMENT})*",
    "uri-template": rf"{_URI}(?:/\{{[a-z_]+\}}(?:/[A-Za-z0-9._~-]+)*)*",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(?:0|[1-9][0-9]{{0,2}})(?:#|{_POINTER})",
    "regex": r"\^?(?:(?:[A-Za-z0-9 _/:@-]|\\[.dws]|\[(?:[a-z0-9_]|a-z|A-Z|0-9)+\]|\.)[*+?]?)+\$?",
    "byte": "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
}
FORMATS |= {
    "idn-email": FORMATS["email"],
    "idn-hostname": _HOST,
    "iri": _URI,
    "iri-reference": FORMATS["uri-reference"],
}
FORMATS |= {
    f"uuid{version}": f"[0-9a-f]{{8}}-[0-9a-f]{{4}}-{version}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}"
    for version in range(1, 9)
}
FORMATS |= {
    "base64url": "(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-]{2}==|[A-Za-z0-9_-]{3}=)?",
    "ipvanyaddress": FORMATS["ipv4"],
}
FORMATS |= dict.fromkeys(("path", "file-path", "directory-path"), rf"/?(?:{_SEGMENT}/)*{_SEGMENT}")
FORMATS |= dict.fromkeys(("binary", "password"), ANY)
"""Formats by name, of draft 2020-12, OpenAPI and pydantic: each as narrow as all readers agree on (years of four
digits, lower-case hosts, full IPv6)."""
_LONGEST = {"hostname": 63, "idn-hostname": 63}
"""Characters of formats that have a limit; counting in a regex would be slow to compile."""
_DEEPEST_PLACE, _MANY, _FEW = 24, 8, 12
"""Of groups of strings: the last place that is looked at, how many bytes are many, how many get a group each."""


def format_of(name: str, meter: Meter) -> Machine:
    """The strings of a format.

    Raises:
        UnknownName: no such format.
    """
    if name not in FORMATS:
        raise UnknownName("format", name, FORMATS)
    found = own(FORMATS[name])
    return both(found, characters(1, _LONGEST[name], meter), meter) if name in _LONGEST else found


def characters(low: int, high: int | None, meter: Meter) -> Machine:
    """Strings of `low` to `high` code points (None: any more)."""
    return counted(own(r"[^\x01-\x03]"), low, high, meter)


def words(low: int, high: int, meter: Meter) -> Machine:
    """Strings of `low` to `high` words: runs of what is no blank; blanks may stand at both ends.

    Raises:
        BadInput: less than one word.
    """
    if low < 1:
        raise BadInput(f"a number of words is at least 1, got {low}")
    word = own(r"[^\s\x01-\x03]+")
    blank = leaf(own(r"\s+"))
    more = machine(seq([blank, leaf(word)]), meter)
    maybe = leaf(own(r"\s*"))
    return machine(seq([maybe, leaf(word), leaf(counted(more, low - 1, high - 1, meter)), maybe]), meter)


def lines(low: int, high: int, meter: Meter) -> Machine:
    """Strings of `low` to `high` lines, which is one more than line feeds.

    Raises:
        BadInput: less than one line.
    """
    if low < 1:
        raise BadInput(f"a number of lines is at least 1, got {low}")
    line = own(r"[^\n\x01-\x03]*")
    more = counted(machine(seq([text("\n"), leaf(line)]), meter), low - 1, high - 1, meter)
    return machine(seq([leaf(line), leaf(more)]), meter)


def counted(unit: Machine, low: int, high: int | None, meter: Meter) -> Machine:
    """A unit `low` to `high` times (None: any more), side by side in one table.

    It must be clear from the next byte whether a unit goes on or the next one begins, as it is for characters, and for
    words and lines with what divides them in front.
    """
    if high is not None and high < low:
        raise BadInput(f"a length runs from low to high, got {low} to {high}; swap them")
    if low == 0 and high == 0:
        return Machine.literal(b"")
    size, copies = len(unit), max(low, 1) if high is None else high
    meter.states(size * copies)
    shift = (np.arange(copies) * size)[:, None, None]
    table = np.where(unit.table == DEAD, DEAD, unit.table + shift)
    begins = unit.table[0] != DEAD
    for copy in range(copies):
        after = min(copy + 1, copies - 1) if high is None else copy + 1
        if after < copies:  # where a unit may end the next one may begin
            entry = np.where(unit.table[0] == DEAD, DEAD, unit.table[0] + after * size)
            ends = unit.accept[:, None] & begins & (unit.table == DEAD)
            table[copy] = np.where(ends, entry, table[copy])
    accept = np.tile(unit.accept, (copies, 1))
    accept[: max(low - 1, 0)] = False
    table, ends = table.reshape(-1, BYTES).astype(np.int32), accept.reshape(-1)
    ends[0] |= low == 0
    return trim(Machine(table, ends), meter)


def quoted(value: Machine, meter: Meter) -> Machine:
    """What JSON writes for the strings of a language: escaped, between quotes."""
    size = len(value)
    meter.states(2 * size + 2)
    plain, escape = value.table.copy(), np.full_like(value.table, DEAD)
    for letter, sign in _ESCAPES.items():
        escape[:, ord(sign)] = value.table[:, ord(letter)]
    plain[:, :32] = DEAD
    plain[:, ord('"')] = np.where(value.accept, 2 * size, DEAD)
    plain[:, ord("\\")] = np.where((escape != DEAD).any(1), np.arange(size) + size, DEAD)
    end = np.full((2, BYTES), DEAD, np.int32)
    end[1, ord('"')] = 0
    table = np.concatenate([plain, escape, end])
    order = np.roll(np.arange(len(table)), 1)  # the opening quote, which is last, comes first
    table = np.where(table == DEAD, DEAD, table + 1)[order]
    table = np.where(table == len(table), 0, table).astype(np.int32)
    return trim(Machine(table, order == 2 * size), meter)


def at_byte(place: int, low: int, high: int) -> Machine:
    """Strings with a byte from low to high at a place; for -1 those that end at or before it."""
    table = np.full((place + 2, BYTES), DEAD, np.int32)
    table[:place] = np.arange(1, place + 1)[:, None]
    table[place + 1] = place + 1
    if low < 0:
        return Machine(table[: place + 1], np.ones(place + 1, bool))
    table[place, low : high + 1] = place + 1
    return Machine(table, np.arange(place + 2) == place + 1)


def groups(value: Machine) -> list[tuple[int, int, int]]:
    """Arguments of `at_byte` that split a language into some parts that exclude each other.

    The place is the first at which many bytes may stand.
    """
    front, found = np.zeros(1, np.int64), list[np.ndarray]()
    while len(front) and len(found) < _DEEPEST_PLACE:
        ways = value.table[front]
        found.append(np.flatnonzero((ways != DEAD).any(0)))
        front = np.unique(ways[ways != DEAD])
    place = next(
        (i for i, some in enumerate(found) if len(some) >= _MANY), max(range(len(found)), key=lambda i: len(found[i]))
    )
    some = found[place]
    if not len(some):
        return [(place, -1, -1)]
    cuts = some if len(some) <= _FEW else np.array([0, *map(ord, "05Aadgkmprtw{")])
    ranges = [(int(low), int(high) - 1) for low, high in zip(cuts, [*cuts[1:], BYTES], strict=True)]
    return [(place, -1, -1)] + [(place, a, b) for a, b in ranges if ((some >= a) & (some <= b)).any()]
