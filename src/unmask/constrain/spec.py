"""What may be asked of a text, as plain values that compare and hash: the keys of the cache.

A body says what the text is; around it stand conditions that hold as well. It does not know tokens.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from unmask.base.errors import BadInput, UnknownName
from unmask.constrain.automata.budget import Meter
from unmask.constrain.automata.compose import Part, alt, leaf, machine, repeat, seq, text
from unmask.constrain.automata.machine import Machine, both, without
from unmask.constrain.automata.regex import full, own
from unmask.constrain.grammar.grower import Grower
from unmask.constrain.grammar.notation import read
from unmask.constrain.schema.strings import ANY, characters, lines, words
from unmask.constrain.schema.writer import WHITESPACE, Writer

DEEPEST_RECURSION = 8
DEEPEST_NESTING = 32


def _plain(some: str) -> Part:
    """A given text.

    Raises:
        BadInput: it holds what no text of a constraint does.
    """
    for letter in some:
        if "\x01" <= letter <= "\x03" or "\ud800" <= letter <= "\udfff":
            raise BadInput(f"no text of a constraint holds U+{ord(letter):04X}, but {some[:60]!a} does; leave it out")
    return text(some)


@dataclass(frozen=True, slots=True)
class Anything:
    """Any text."""

    def language(self, meter: Meter) -> Machine:
        """All texts."""
        return own(ANY)


@dataclass(frozen=True, slots=True)
class Regex:
    """A text that a regex matches from end to end (the common part of ECMA-262, Python and Rust)."""

    pattern: str

    def language(self, meter: Meter) -> Machine:
        """All texts; raises as `unmask.constrain.automata.regex.full`."""
        return full(self.pattern, meter)


@dataclass(frozen=True, slots=True)
class Choices:
    """One of several texts."""

    texts: tuple[str, ...]

    def language(self, meter: Meter) -> Machine:
        """All texts.

        Raises:
            BadInput: there are none.
        """
        if not self.texts:
            raise BadInput("choices is a list with at least one text, got none")
        return machine(alt([_plain(choice) for choice in self.texts]), meter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """A JSON text that is valid under a schema.

    Args:
        content: the schema as JSON, written the same way whoever wrote it; see `of`.
        whitespace: "compact", "spaced" (a blank may follow a comma or a colon) or "free".
        any_order: whether keys may come in any order; it takes states for every set of them.
        depth: how often what refers to itself is unrolled, and how deep values nest of which nothing is said.
    """

    content: str
    whitespace: str = "spaced"
    any_order: bool = False
    depth: int = 3

    def __post_init__(self) -> None:
        if self.whitespace not in WHITESPACE:
            raise UnknownName("whitespace policy", self.whitespace, WHITESPACE)
        if not 0 <= self.depth <= DEEPEST_RECURSION:
            raise BadInput(f"depth is 0 to {DEEPEST_RECURSION}, got {self.depth}")

    @classmethod
    def of(cls, schema: Mapping[str, Any] | bool, **options: Any) -> Self:
        """From a schema as Python has it. Properties keep their order, which is the order they are written in."""
        try:
            content = json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadInput(f"a schema is a JSON object or a boolean: {error}") from None
        return cls(content=content, **options)

    def language(self, meter: Meter) -> Machine:
        """All texts; raises as `Writer.language`."""
        root = json.loads(self.content, parse_float=_finite, parse_constant=_finite)
        writer = Writer(root, meter, whitespace=self.whitespace, any_order=self.any_order, depth=self.depth)
        return writer.language()


def _finite(digits: str) -> float:
    """A number as JSON has it, which no infinite one is."""
    if not math.isfinite(value := float(digits)):
        raise BadInput(f"the schema has the number {digits[:40]}, which no reader holds")
    return value


@dataclass(frozen=True, slots=True)
class Grammar:
    """A text of a context-free grammar.

    Args:
        text: the grammar, in Lark's notation or in GBNF; see `unmask.constrain.grammar.notation`.
        depth: how often a rule may lie inside itself. What goes on at its end or at its beginning has no bound.
    """

    text: str
    depth: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise BadInput(f"a grammar is a text, not {self.text!r}")
        if not 0 <= self.depth <= DEEPEST_NESTING:
            raise BadInput(f"depth is 0 to {DEEPEST_NESTING}, got {self.depth}")

    def language(self, meter: Meter) -> Machine:
        """All texts up to the depth; raises as `unmask.constrain.grammar.notation.read` and `Grower.language`."""
        return Grower.of(read(self.text), meter, self.depth).language()


@dataclass(frozen=True, slots=True)
class Template:
    """Given texts and typed holes, one after the other; where tokens begin and end does not matter."""

    parts: tuple["str | Body", ...]

    def language(self, meter: Meter) -> Machine:
        """All texts; raises as its parts do."""
        return machine(
            seq([_plain(part) if isinstance(part, str) else leaf(part.language(meter)) for part in self.parts]), meter
        )


@dataclass(frozen=True, slots=True)
class Unlike:
    """A text that does not begin in one way."""

    beginning: str

    def language(self, meter: Meter) -> Machine:
        """All texts.

        Raises:
            BadInput: every text begins with nothing.
        """
        if not self.beginning:
            raise BadInput("every text begins with ''; give a beginning of one letter or more")
        anything = own(ANY)
        return without(anything, machine(seq([_plain(self.beginning), leaf(anything)]), meter), meter)


@dataclass(frozen=True, slots=True)
class Either:
    """A text of one of several kinds."""

    bodies: tuple["Body", ...]

    def language(self, meter: Meter) -> Machine:
        """All texts; raises as its bodies do."""
        return machine(alt([leaf(body.language(meter)) for body in self.bodies]), meter)


@dataclass(frozen=True, slots=True)
class Several:
    """A text of one kind, or several with the same words between two; the length of a text is all that bounds them."""

    body: "Body"
    between: str

    def language(self, meter: Meter) -> Machine:
        """All texts; raises as its body does."""
        return machine(repeat(leaf(self.body.language(meter)), 1, None, text(self.between)), meter)


Body = Anything | Regex | Choices | Schema | Grammar | Template | Unlike | Either | Several


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """Everything that is asked of one text.

    Args:
        body: what it is.
        contains: texts that stand in it, in this order, without touching each other's letters.
        banned: texts that stand nowhere in it.
        characters, words, lines: how many it has, (low, high) both inclusive; characters are code points.
    """

    body: Body = Anything()
    contains: tuple[str, ...] = ()
    banned: tuple[str, ...] = ()
    characters: tuple[int, int] | None = None
    words: tuple[int, int] | None = None
    lines: tuple[int, int] | None = None

    def language(self, meter: Meter) -> Machine:
        """All texts.

        Raises:
            BadInput: none is left, naming the condition that leaves none.
            Unsupported, OverBudget: as the parts do.
        """
        found = self.body.language(meter)
        if found.empty:
            raise BadInput(f"no text fits {str(self.body)[:200]}")
        anything = leaf(own(ANY))
        if self.contains:
            parts = [anything, *(piece for some in self.contains for piece in (_plain(some), anything))]
            found = self._kept(f"contains={list(self.contains)}", both(found, machine(seq(parts), meter), meter))
        for some in self.banned:
            if not some:
                raise BadInput("a banned text has at least one letter, got ''")
            found = self._kept(
                f"banned {some!r}", without(found, machine(seq([anything, _plain(some), anything]), meter), meter)
            )
        counts = {"characters": characters, "words": words, "lines": lines}
        for name, count in counts.items():
            if (asked := getattr(self, name)) is not None:
                low, high = asked
                if not 0 <= low <= high:
                    raise BadInput(f"{name} is a range from low to high, got {low} to {high}")
                found = self._kept(f"{name}={low} to {high}", both(found, count(low, high, meter), meter))
        return found

    def _kept(self, what: str, found: Machine) -> Machine:
        if found.empty:
            raise BadInput(f"no text fits the constraint once it has {what}; drop or loosen one of the two")
        return found
