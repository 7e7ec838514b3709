"""Numbers as JSON writes them, within bounds: which digit may follow which.

Integers have at most 18 digits and fractions as many, so that every reader holds them. It does not know schemas.
"""

from decimal import Decimal
from functools import cache

import numpy as np

from unmask.base.errors import Unsupported
from unmask.constrain.budget import Meter
from unmask.constrain.compose import Part, alt, leaf, machine, maybe, repeat, seq, text
from unmask.constrain.machine import BYTES, DEAD, Machine, both
from unmask.constrain.regex import own

DIGITS = 18
_NOTHING = r"\x02"  # no number has it, and outlines-core refuses a regex that matches nothing
_LONGEST = 40
_LARGEST_STEP = 1000


def integer(low: int | None, high: int | None, step: int | None, meter: Meter) -> Machine:
    """Integers from low to high (None: without end) that are multiples of a step.

    Raises:
        Unsupported: a bound of more than 40 digits, or a step above 1000.
    """
    _short_enough(low, high)
    parts = []
    if high is None or high >= 0:
        parts.append(own(_natural(max(low or 0, 0), high)))
    if low is None or low < 0:
        nearest = 1 if high is None else max(-high, 1)
        parts.append(machine(seq([text("-"), leaf(own(_natural(nearest, None if low is None else -low)))]), meter))
    found = both(machine(alt([leaf(part) for part in parts]), meter), any_integer(), meter)
    return found if step is None else both(found, _multiples(step), meter)


def number(low: Decimal | None, high: Decimal | None, *, above: bool, below: bool, meter: Meter) -> Machine:
    """Numbers between two bounds, written without exponent; `above` and `below` leave out the bounds themselves.

    Raises:
        Unsupported: a bound of more than 40 digits.
    """
    if low is None and high is None:
        return any_number()
    _short_enough(low, high)
    parts = []
    if high is None or high >= 0:
        parts.append(leaf(_magnitude(low, high, above, below, meter)))
    if low is None or low < 0:
        far, near = (None if low is None else -low), (None if high is None else -high)
        parts.append(seq([text("-"), leaf(_magnitude(near, far, below, above, meter))]))
    return machine(alt(parts), meter)


@cache
def any_integer() -> Machine:
    """Every integer of up to 18 digits."""
    meter = Meter()
    return machine(seq([maybe(text("-")), alt([text("0"), seq([leaf(own("[1-9]")), _digits(0, DIGITS - 1)])])]), meter)


@cache
def any_number() -> Machine:
    """Every number: an integer, perhaps a fraction, perhaps an exponent of two digits."""
    return machine(seq([leaf(_plain()), maybe(seq([leaf(own("[eE][+-]?")), _digits(1, 2)]))]), Meter())


@cache
def _plain() -> Machine:
    """Numbers without exponent."""
    return machine(seq([leaf(any_integer()), maybe(seq([text("."), _digits(1, DIGITS)]))]), Meter())


def _digits(low: int, high: int) -> Part:
    return repeat(leaf(own("[0-9]")), low, high)


def _short_enough(*bounds: int | Decimal | None) -> None:
    for bound in bounds:
        if bound is not None and len(format(Decimal(bound), "f")) > _LONGEST:
            raise Unsupported(f"a bound has at most {_LONGEST} digits, got {bound}; round it")


def _magnitude(low: Decimal | None, high: Decimal | None, above: bool, below: bool, meter: Meter) -> Machine:
    """Numbers without a sign; a bound below zero is none, save that nothing lies under a negative upper one."""
    found = both(_plain(), own("[0-9].*"), meter)
    if low is not None and low >= 0:
        found = both(found, own(_at_least(low, strict=above)), meter)
    if high is not None:
        found = both(found, own(_at_most(high, strict=below)), meter)
    return found


def _split(bound: Decimal) -> tuple[int, str]:
    whole, _, fraction = format(bound, "f").partition(".")
    return int(whole), fraction.rstrip("0")


def _at_least(bound: Decimal, *, strict: bool) -> str:
    whole, digits = _split(bound)
    longer = [f"{digits[:i]}[{int(d) + 1}-9][0-9]*" for i, d in enumerate(digits) if d != "9"]
    equal = f"{digits}[0-9]*[1-9][0-9]*" if strict else f"{digits}[0-9]*"
    fraction = rf"\.(?:{'|'.join([*longer, equal])})"
    if not digits and not strict:
        fraction = r"(?:\.[0-9]+)?"
    return rf"(?:{_natural(whole + 1, None)})(?:\.[0-9]+)?|{whole}{fraction}"


def _at_most(bound: Decimal, *, strict: bool) -> str:
    whole, digits = _split(bound)
    shorter = [f"{digits[:i]}[0-{int(d) - 1}][0-9]*" for i, d in enumerate(digits) if d != "0"]
    prefixes = [digits[:i] for i in range(1, len(digits))]
    equal = [] if strict else [f"{digits}0*" if digits else "0+"]
    ways = [*shorter, *prefixes, *equal]
    parts = [rf"(?:{_natural(0, whole - 1)})(?:\.[0-9]+)?"] if whole else []
    if digits or not strict:
        parts.append(rf"{whole}(?:\.(?:{'|'.join(ways)}))?")
    return "|".join(parts) or _NOTHING


def _natural(low: int, high: int | None) -> str:
    """Natural numbers without leading zeros; without an upper bound they are of any length."""
    if high is not None and high < low:
        return _NOTHING
    first, last = str(low), "" if high is None else str(high)
    shortest, longest = len(first), len(last)
    if shortest == longest:
        return _same_length(first, last)
    parts = [_same_length(first, "9" * shortest)]
    if high is None:
        parts.append(f"[1-9][0-9]{{{shortest}}}[0-9]*")
    else:
        parts += [f"[1-9][0-9]{{{shortest},{longest - 2}}}"] if longest - shortest > 1 else []
        parts.append(_same_length("1" + "0" * (longest - 1), last))
    return "|".join(parts)


def _same_length(low: str, high: str) -> str:
    """Digits from low to high, all of one length."""
    if not low:
        return ""
    if low[0] == high[0]:
        return low[0] + _grouped(_same_length(low[1:], high[1:]))
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    parts = []
    if low[1:].strip("0"):
        parts.append(low[0] + _grouped(_same_length(low[1:], "9" * rest)))
        first += 1
    if high[1:].strip("9"):
        parts.append(high[0] + _grouped(_same_length("0" * rest, high[1:])))
        last -= 1
    if first <= last:
        parts.append(f"[{first}-{last}]" + (f"[0-9]{{{rest}}}" if rest else ""))
    return "|".join(parts)


def _grouped(pattern: str) -> str:
    return f"(?:{pattern})" if "|" in pattern else pattern


def _multiples(step: int) -> Machine:
    """Integers that a step divides: a state per remainder, and the sign and the first digit before them.

    Raises:
        Unsupported: a step above 1000.
    """
    if not 1 <= step <= _LARGEST_STEP:
        raise Unsupported(f"multipleOf is supported for whole numbers from 1 to {_LARGEST_STEP}, got {step}")
    remainder, digit = np.arange(step)[:, None], np.arange(10)
    table = np.full((step + 2, BYTES), DEAD, np.int32)
    table[2:, 48:58] = (remainder * 10 + digit) % step + 2
    table[:2, 48:58] = digit % step + 2
    table[0, ord("-")] = 1
    return Machine(table, np.arange(step + 2) == 2)
