"""Context-free grammars as languages of a bounded depth: each rule becomes an automaton, once per depth.

What is a loop (`rules.py`) has no bound. Where a rule lies inside itself otherwise, its automaton is put into its own,
up to `depth` times, and there is nothing beyond. So every text of the language is a text of the grammar, and a text of
the grammar belongs to it if it can be read without any rule lying inside itself more than `depth` times.

It does not know notations or tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from unmask.base.errors import BadInput, Unsupported
from unmask.constrain.automata.budget import Meter
from unmask.constrain.automata.compose import Net, Part, alt, leaf, machine, repeat, seq, text
from unmask.constrain.automata.machine import Machine
from unmask.constrain.automata.regex import compiled, full, own, translate
from unmask.constrain.grammar.rules import (
    Alt,
    Letters,
    Node,
    Pattern,
    Recursion,
    Ref,
    Repeat,
    Rules,
    Seq,
    Text,
    is_maybe,
    nodes,
)

_NEVER = ((0x1, 0x3), (0xD800, 0xDFFF))
"""What is no character of any text: the marks of `regex`, and halves of surrogate pairs."""
_FEW = 64
"""Ranges of letters that are compiled in this process; more go through a child."""

Key = tuple[str, tuple[int, ...]]
"""A rule, and how often each counted rule that it may meet lies around it already."""


@dataclass(slots=True)
class Grower:
    """Turns the rules of a grammar into automata.

    Args:
        recursion: the rules, and what of them are loops.
        depth: how often a rule may lie inside itself.
    """

    recursion: Recursion
    meter: Meter
    depth: int
    _known: dict[Key, Machine] = field(default_factory=dict)
    _regexes: dict[Pattern, Machine] = field(default_factory=dict)

    @classmethod
    def of(cls, asked: Rules, meter: Meter, depth: int) -> "Grower":
        """Of a grammar.

        Raises:
            OverBudget: it takes too long to look through.
        """
        return cls(Recursion.of(asked, meter), meter, depth)

    def language(self) -> Machine:
        """All texts.

        Raises:
            BadInput: none, or a terminal that is no regex.
            Unsupported: a regex that can't be honoured.
            OverBudget: see `Meter`.
        """
        rules = self.recursion.rules
        regexes = {node for rule in rules.values() for node in nodes(rule) if isinstance(node, Pattern)}
        self._regexes = _compiled(sorted(regexes, key=lambda pattern: pattern.regex), self.meter)
        start = next(iter(rules))
        asked: Key = start, (0,) * len(self._below(start))
        todo, num_bytes = [asked], 0
        while todo:
            self.meter.states(len(todo))
            if todo[-1] in self._known:
                todo.pop()
            elif missing := [key for key in self._needs(todo[-1]) if key not in self._known]:
                todo += missing
            else:
                self._known[todo[-1]] = found = self._grown(todo[-1])
                num_bytes += found.table.nbytes
                self.meter.memory(num_bytes)
        if self._known[asked].empty:
            raise BadInput("the grammar has no text: whatever its start begins with leads back to itself for ever")
        return self._known[asked]

    # nesting

    def _below(self, rule: str) -> list[str]:
        return [name for name in self.recursion.counted if name in self.recursion.below[rule]]

    def _inside(self, key: Key, called: str) -> Key | None:
        """A rule that is called from inside another one; None: it would lie too deep."""
        around = dict(zip(self._below(key[0]), key[1], strict=True))
        if key[0] in around:
            around[key[0]] += 1
        if around.get(called, 0) > self.depth:
            return None
        return called, tuple(around.get(name, 0) for name in self._below(called))

    def _needs(self, key: Key) -> Iterator[Key]:
        for called in self.recursion.calls[key[0]]:
            if (inside := self._inside(key, called)) is not None:
                yield inside

    # growing

    def _grown(self, key: Key) -> Machine:
        """The automaton of a rule, of the rules that its calls need."""
        frame = _Frame(self, key, Net(self.meter))
        return frame.backward() if key[0] in self.recursion.left else frame.forward()

    def part(self, node: Node, key: Key) -> Part:
        """What a node says inside of a rule, loops aside."""
        match node:
            case Text(letters, fold):
                return seq([alt([text(c) for c in _cases(letter)]) for letter in letters]) if fold else text(letters)
            case Letters(ranges):
                return self._letters(ranges)
            case Pattern():
                return leaf(self._regexes[node])
            case Ref(name):
                inside = self._inside(key, name)
                return alt([]) if inside is None else leaf(self._known[inside])
            case Seq(parts):
                return seq([self.part(part, key) for part in parts])
            case Alt(ways):
                return alt([self.part(way, key) for way in ways])
            case Repeat(inner, low, high):
                times = low if high is None else high
                self.meter.states(times)
                once = self.part(inner, key)
                return repeat(leaf(machine(once, self.meter)) if times > 1 else once, low, high)

    def _letters(self, ranges: Sequence[tuple[int, int]]) -> Part:
        left = _without(ranges, _NEVER)
        if not left:
            return alt([])
        inside = "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in left)
        return leaf(own(f"[{inside}]") if len(left) <= _FEW else compiled([f"[{inside}]"], self.meter)[0])


@dataclass(slots=True)
class _Frame:
    """A rule and those that it loops through, in one net.

    Args:
        states: of each rule, where it begins (`forward`) or ends (`backward`); the rest of a loop goes on from there.
    """

    grower: Grower
    key: Key
    net: Net
    states: dict[str, int] = field(default_factory=dict)

    def forward(self) -> Machine:
        """Of rules that loop at their ends: all end in one state."""
        end, start = self.net.state(), self._state(self.key[0])
        for rule in (todo := list(self.states)):
            self._last(self.grower.recursion.rules[rule], self.states[rule], end)
            todo += [name for name in self.states if name not in todo]
        return self.net.machine(start, end)

    def backward(self) -> Machine:
        """Of rules that loop at their beginnings: all begin in one state."""
        start, end = self.net.state(), self._state(self.key[0])
        for rule in (todo := list(self.states)):
            self.net.link(self._first(self.grower.recursion.rules[rule], start), self.states[rule])
            todo += [name for name in self.states if name not in todo]
        return self.net.machine(start, end)

    def _state(self, rule: str) -> int:
        if rule not in self.states:
            self.states[rule] = self.net.state()
        return self.states[rule]

    def _last(self, node: Node, at: int, end: int) -> None:
        """Grow what is read last, from `at` to the end."""
        match node:
            case Ref(name) if name in self.grower.recursion.group[self.key[0]]:
                self.net.link(at, self._state(name))
            case Alt(ways):
                for way in ways:
                    self._last(way, at, end)
            case Repeat(inner) if is_maybe(node):
                self.net.link(at, end)
                self._last(inner, at, end)
            case Seq((*parts, last)):
                for part in parts:
                    at = self.grower.part(part, self.key)(self.net, at)
                self._last(last, at, end)
            case _:
                self.net.link(self.grower.part(node, self.key)(self.net, at), end)

    def _first(self, node: Node, start: int) -> int:
        """Grow what is read first; returns where it has been read."""
        match node:
            case Ref(name) if name in self.grower.recursion.group[self.key[0]]:
                return self._state(name)
            case Alt(ways):
                return self._joined([self._first(way, start) for way in ways])
            case Repeat(inner) if is_maybe(node):
                return self._joined([start, self._first(inner, start)])
            case Seq((first, *parts)):
                at = self._first(first, start)
                for part in parts:
                    at = self.grower.part(part, self.key)(self.net, at)
                return at
            case _:
                return self.grower.part(node, self.key)(self.net, start)

    def _joined(self, ends: Iterable[int]) -> int:
        end = self.net.state()
        for at in ends:
            self.net.link(at, end)
        return end


def _cases(letter: str) -> list[str]:
    return sorted({letter, *(other for other in (letter.lower(), letter.upper()) if len(other) == 1)})


def _without(ranges: Iterable[tuple[int, int]], never: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order, joined where they meet, without some others."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    for low, high in never:
        cut = [part for first, last in found for part in ((first, min(last, low - 1)), (max(first, high + 1), last))]
        found = [(first, last) for first, last in cut if first <= last]
    return found


def _compiled(patterns: Sequence[Pattern], meter: Meter) -> dict[Pattern, Machine]:
    """The automata of all regexes, those without anchors by one child together."""
    plain = {}
    for pattern in patterns:
        with _naming(pattern):
            body, anchored = translate(pattern.regex)
        if not anchored:
            plain[pattern] = body
    try:
        found = dict(zip(plain, compiled(list(plain.values()), meter) if plain else [], strict=True))
    except Unsupported:  # of one of them
        found = {}
    for pattern in patterns:
        if pattern not in found:
            with _naming(pattern):
                found[pattern] = full(pattern.regex, meter)
    return found


@contextmanager
def _naming(pattern: Pattern) -> Iterator[None]:
    """Say where a regex stands that is none."""
    try:
        yield
    except (BadInput, Unsupported) as error:
        raise type(error)(f"the grammar, {pattern.where}: {error}") from None
