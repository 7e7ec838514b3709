"""Numbers as JSON writes them, within bounds: which digit may follow which.

Integers have at most 18 digits and fractions as many, so that every reader holds them. Where it matters that two
numbers are not the same (a bound that is left out, a multiple, a value that is excluded) they have 15 in all, which
doubles tell apart. It does not know schemas.
"""

import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from functools import cache

import numpy as np

from unmask.base.errors import Unsupported
from unmask.constrain.automata.budget import Meter
from unmask.constrain.automata.compose import Part, alt, leaf, machine, maybe, repeat, seq, text
from unmask.constrain.automata.machine import BYTES, DEAD, Machine, both, minimal, without
from unmask.constrain.automata.regex import own

DIGITS = 18
CAREFUL = 15
"""Significant digits that a double holds, whatever they are."""
_LONGEST = 40
_ANY_FRACTION = r"(?:\.[0-9]+)?"
_LARGEST_STEP = 1000
_FINEST = 4
"""Digits behind the point of a step."""
_ENUMERATED = 10_000
"""Multiples of a step that are tried one by one."""


def integer(low: int | None, high: int | None, step: int | None, meter: Meter) -> Machine:
    """Integers from low to high (None: without end) that are multiples of a step.

    Raises:
        Unsupported: a bound of more than 40 digits, or a step above 1000.
    """
    _short_enough(low, high)
    parts = []
    if high is None or high >= 0:
        parts.append(_natural(max(low or 0, 0), high))
    if low is None or low < 0:
        nearest = 1 if high is None else max(-high, 1)
        parts.append(machine(seq([text("-"), leaf(_natural(nearest, None if low is None else -low))]), meter))
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
    for bound, strict in ((low, above), (high, below)):
        if bound is not None and strict and len(bound.as_tuple().digits) > CAREFUL:
            raise Unsupported(f"a bound that is left out has at most {CAREFUL} digits, got {bound}; round it")
    parts = []
    if high is None or high >= 0:
        parts.append(leaf(_magnitude(low, high, above, below, meter)))
    if low is None or low < 0:
        far, near = (None if low is None else -low), (None if high is None else -high)
        parts.append(seq([text("-"), leaf(_magnitude(near, far, below, above, meter))]))
    found = machine(alt(parts), meter)
    return both(found, careful(), meter) if above or below else found


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
        found = both(found, _at_least(low, strict=above), meter)
    if high is not None:
        found = both(found, _at_most(high, strict=below), meter)
    return found


def _split(bound: Decimal) -> tuple[int, str]:
    whole, _, fraction = format(bound, "f").partition(".")
    return int(whole), fraction.rstrip("0")


def _at_least(bound: Decimal, *, strict: bool) -> Machine:
    whole, digits = _split(bound)
    longer = [f"{digits[:i]}[{int(d) + 1}-9][0-9]*" for i, d in enumerate(digits) if d != "9"]
    equal = f"{digits}[0-9]*[1-9][0-9]*" if strict else f"{digits}[0-9]*"
    fraction = rf"\.(?:{'|'.join([*longer, equal])})"
    if not digits and not strict:
        fraction = _ANY_FRACTION
    parts = [(leaf(_natural(whole + 1, None)), _ANY_FRACTION), (text(str(whole)), fraction)]
    return machine(alt([seq([begin, leaf(own(rest))]) for begin, rest in parts]), Meter())


def _at_most(bound: Decimal, *, strict: bool) -> Machine:
    whole, digits = _split(bound)
    shorter = [f"{digits[:i]}[0-{int(d) - 1}][0-9]*" for i, d in enumerate(digits) if d != "0"]
    prefixes = [digits[:i] for i in range(1, len(digits))]
    equal = [] if strict else [f"{digits}0*" if digits else "0+"]
    parts = [(leaf(_natural(0, whole - 1)), _ANY_FRACTION)]
    if digits or not strict:
        parts.append((text(str(whole)), rf"(?:\.(?:{'|'.join([*shorter, *prefixes, *equal])}))?"))
    return machine(alt([seq([begin, leaf(own(rest))]) for begin, rest in parts]), Meter())


def _natural(low: int, high: int | None) -> Machine:
    """Natural numbers without leading zeros; without an upper bound those of any length that a bound may have."""
    high = 10**_LONGEST if high is None else high
    parts = []
    for length in range(len(str(low)), len(str(max(high, 0))) + 1):
        first, last = max(low, 10 ** (length - 1) if length > 1 else 0), min(high, 10**length - 1)
        if first <= last:
            parts.append(leaf(_same_length(str(first), str(last))))
    return machine(alt(parts), Meter())


def _same_length(low: str, high: str) -> Machine:
    """Digits from low to high, all of one length: per digit four states, by which of the two it has followed so far."""
    length = len(low)
    table = np.full((4 * length + 4, BYTES), DEAD, np.int32)
    for place in range(length):
        for at_low, at_high in ((True, True), (True, False), (False, True), (False, False)):
            first = int(low[place]) if at_low else 0
            last = int(high[place]) if at_high else 9
            for digit in range(first, last + 1):
                follows = 2 * (not (at_low and digit == first)) + (not (at_high and digit == last))
                table[4 * place + 2 * (not at_low) + (not at_high), 48 + digit] = 4 * (place + 1) + follows
    return Machine(table, np.arange(len(table)) >= 4 * length)


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


@cache
def careful() -> Machine:
    """Numbers without exponent of at most 15 digits: no two of different value are the same double."""
    return both(_plain(), own(rf"-?(?:[0-9]\.?){{1,{CAREFUL}}}"), Meter())


def unlike(found: Machine, values: Sequence[float], meter: Meter) -> Machine:
    """Numbers of a language that equal none of these."""
    for value in values:
        _short_enough(Decimal(repr(value)))
        whole, digits = _split(abs(Decimal(repr(value))))
        sign = "-" if value < 0 else "-?" if value == 0 else ""
        spelled = rf"{sign}{whole}" + (rf"\.{digits}0*" if digits else r"(?:\.0+)?")
        found = without(both(found, careful(), meter), own(spelled), meter)
    return found


def undivided(found: Machine, step: int, meter: Meter) -> Machine:
    """Numbers of a language that a whole number does not divide."""
    broken = own(r"-?[0-9]+\.[0-9]*[1-9][0-9]*")
    rest = machine(alt([leaf(broken), leaf(without(any_integer(), _multiples(step), meter))]), meter)
    return both(both(found, careful(), meter), rest, meter)


@cache
def divided(step: Decimal) -> Machine:
    """Numbers that a step of up to four digits behind the point divides, in decimals and in doubles.

    Readers divide doubles, and 0.07 / 0.01 is not 7 there. So multiples are tried one by one as far as that goes;
    beyond, only those are written that are doubles themselves, like 123.25.

    Raises:
        Unsupported: a finer step, or one of more than a thousand units.
    """
    meter = Meter()
    digits = -int(step.normalize().as_tuple().exponent)
    units = int(step.scaleb(digits))
    if step <= 0 or digits > _FINEST or units > _LARGEST_STEP:
        raise Unsupported(
            f"multipleOf has at most {_FINEST} digits behind the point and at most {_LARGEST_STEP} times the last of "
            f"them, got {step}"
        )
    error = abs(Fraction(float(step)) / Fraction(step) - 1)
    if not error:
        return both(_divided(units, digits), careful(), meter)
    tried = [k for k in range(_ENUMERATED) if float(k * step) / float(step) == k]
    parts = [leaf(_listed([k * units for k in tried], digits))]
    if error * 2**54 <= 1:  # then the quotient of a number that is a double is rounded to the right one
        parts.append(leaf(_divided(math.lcm(units, 5**digits), digits)))
    return both(machine(alt(parts), meter), careful(), meter)


def _divided(units: int, digits: int) -> Machine:
    """Numbers of up to so many digits behind the point whose value, in units of the last of these, is a multiple."""
    after, digit = np.arange(units)[:, None], np.arange(10)
    point = ord(".")
    table = np.full((2 + units * (digits + 2), BYTES), DEAD, np.int32)
    accept = np.zeros(len(table), bool)
    first = lambda phase: 2 + units * phase  # noqa: E731 # 0: whole part, 1: behind the point, 2 and on: digits
    table[0, ord("-")] = 1
    table[:2, 48:58] = digit % units + first(0)
    for phase in range(digits + 2):
        here = slice(first(phase), first(phase + 1))
        if phase <= digits:
            table[here, 48:58] = (after * 10 + digit) % units + first(phase + (phase > 0))
        if phase != 1:
            scale = 10 ** (digits - max(phase - 1, 0))
            accept[here] = after[:, 0] * scale % units == 0
    table[first(0) : first(1), point] = after[:, 0] + first(1)
    return minimal(Machine(table, accept), Meter())


def _listed(values: Sequence[int], digits: int) -> Machine:
    """Numbers, given in units of the last of so many digits behind the point, in all spellings; either sign."""
    trie: list[dict[str, int]] = [{}, {}]
    ends = set[int]()
    for value in values:
        whole, rest = divmod(value, 10**digits)
        text = f"{whole}.{rest:0{digits}}"
        at = 1
        for place, letter in enumerate(text):
            if not int("0" + text[place:].replace(".", "")) and place >= len(str(whole)) and text[place - 1] != ".":
                ends.add(at)
            if letter not in trie[at]:
                trie[at][letter] = len(trie)
                trie.append({})
            at = trie[at][letter]
        ends.add(at)
    trie[0] = {"-": 1, **trie[1]}
    table = np.full((len(trie), BYTES), DEAD, np.int32)
    for state, ways in enumerate(trie):
        table[state, [ord(letter) for letter in ways]] = list(ways.values())
    return minimal(Machine(table, np.isin(np.arange(len(trie)), list(ends))), Meter())
