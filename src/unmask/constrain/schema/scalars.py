"""Strings and numbers of a schema, from their keywords to languages. It knows nothing of what they stand in."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from unmask.base.errors import BadInput
from unmask.constrain.automata.budget import Meter
from unmask.constrain.automata.compose import alt, machine, text
from unmask.constrain.automata.machine import Machine, both, without
from unmask.constrain.automata.regex import PRINTABLE, own
from unmask.constrain.schema.keywords import (
    BYTE,
    EXCEPT,
    KEYWORDS,
    NO_MULTIPLE,
    NO_PATTERNS,
    PATTERNS,
    count_of,
    is_of,
)
from unmask.constrain.schema.numerals import divided, integer, number, undivided, unlike
from unmask.constrain.schema.strings import ANY, at_byte, characters, format_of

STRING_WORDS = (*sorted(KEYWORDS["string"]), PATTERNS, NO_PATTERNS, BYTE, EXCEPT)
"""Keywords that a string is under."""
_LONG = 128
"""Characters of a format with a limit beyond that (2083 of an address): to count them takes states for each."""
_SIZES = {"int32": (-(2**31), 2**31 - 1), "uint32": (0, 2**32 - 1), "int64": (None, None), "uint64": (0, None)}
"""Formats of integers; no more than 18 digits are written anyway."""


def string(rest: Mapping[str, Any], path: str, find: Callable[[str], Machine], meter: Meter) -> Machine:
    """The strings under the keywords, as they are.

    Args:
        find: the strings in which a pattern is found.
    Raises:
        BadInput, Unsupported, OverBudget: see `unmask.constrain.automata.regex` and `format_of`.
    """
    low, high = count_of(rest, "minLength", path), count_of(rest, "maxLength", path)
    whole = own(ANY)
    if low or high is not None:
        if high is not None and "format" in rest:
            high = max(min(high, _LONG), low or 0)
        whole = characters(low or 0, high, meter)
    if "format" in rest:
        whole = both(format_of(rest["format"], meter), whole, meter)
    for pattern in [*([rest["pattern"]] if "pattern" in rest else []), *rest.get(PATTERNS, ())]:
        if not isinstance(pattern, str):
            raise BadInput(f"{path}/pattern is a string, got {pattern!r}")
        whole = both(find(pattern), whole, meter)
    for pattern in rest.get(NO_PATTERNS, ()):
        whole = without(both(whole, own(PRINTABLE), meter), find(pattern), meter)
    for place in rest.get(BYTE, ()):
        whole = both(whole, at_byte(*place), meter)
    if excluded := [value for value in rest.get(EXCEPT, ()) if isinstance(value, str)]:
        whole = without(
            whole, machine(alt([text(value.encode("utf-8", "surrogatepass")) for value in excluded]), meter), meter
        )
    return whole


def numeral(rest: Mapping[str, Any], path: str, *, whole: bool, meter: Meter) -> Machine:
    """The numbers under the keywords, as JSON writes them; `whole` ones only if asked.

    Raises:
        BadInput: a bound that is no number.
        Unsupported: bounds of too many digits, steps that are too large or too fine.
    """
    bounds = {key: _bound(rest, key, path) for key in KEYWORDS["number"]}
    low, above = _tighter(bounds["minimum"], bounds["exclusiveMinimum"], max)
    high, below = _tighter(bounds["maximum"], bounds["exclusiveMaximum"], min)
    step = bounds["multipleOf"]
    if step is not None and step <= 0:
        raise BadInput(f"{path}/multipleOf is above 0, got {step}")
    if whole or (step is not None and step == int(step)):
        least = None if low is None else int(low.to_integral_value("ROUND_CEILING")) + int(above and low == int(low))
        most = None if high is None else int(high.to_integral_value("ROUND_FLOOR")) - int(below and high == int(high))
        smallest, largest = _SIZES.get(rest.get("format", ""), (None, None)) if whole else (None, None)
        least = max((x for x in (least, smallest) if x is not None), default=None)
        most = min((x for x in (most, largest) if x is not None), default=None)
        found = integer(least, most, int(step) if step is not None and step == int(step) else None, meter)
    else:
        found = number(low, high, above=above, below=below, meter=meter)
    if step is not None and step != int(step):
        found = both(found, divided(step), meter)
    found = unlike(found, [value for value in rest.get(EXCEPT, ()) if is_of(value, "number")], meter)
    for divisor in rest.get(NO_MULTIPLE, ()):
        found = undivided(found, divisor, meter)
    return found


def _bound(rest: Mapping[str, Any], key: str, path: str) -> Decimal | None:
    if key not in rest:
        return None
    value = rest[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:
        raise BadInput(f"{path}/{key} is a number, got {value!r}")
    return Decimal(repr(value))


def _tighter(
    bound: Decimal | None, strict: Decimal | None, pick: Callable[..., Decimal]
) -> tuple[Decimal | None, bool]:
    """The bound that leaves less, and whether it is left out itself."""
    given = [value for value in (bound, strict) if value is not None]
    if not given:
        return None, False
    found = pick(given)
    return found, found == strict
