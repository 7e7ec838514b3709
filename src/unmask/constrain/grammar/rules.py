"""Rules of a context-free grammar as plain values, and which of their references are loops.

What refers to itself only at its end, or only at its beginning, through other rules too, is a loop of an automaton and
needs no bound (Mohri & Nederhof's right- and left-linear groups). What does both, as operators do, is first written as
repetition:

    e: e op e | prefix e | e suffix | atom    is    e: prefix* atom (suffix | op prefix* atom)*

Every other reference that leads back to its rule nests, and has to be counted. It does not know notations, automata or
depths.

Source: Mohri & Nederhof 2001, Regular approximation of context-free grammars through transformation, section 2 (what is
strongly regular); nothing is approximated here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from unmask.constrain.automata.budget import Meter

_NODE_BYTES = 256
"""Of a node in memory, about."""


@dataclass(frozen=True, slots=True)
class Text:
    """A given text; with `fold` its letters in either case."""

    text: str
    fold: bool = False


@dataclass(frozen=True, slots=True)
class Letters:
    """One character of some ranges of code points, both ends included."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a regex matches; `where` it stands is for errors."""

    regex: str
    where: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Ref:
    """What a rule says."""

    name: str


@dataclass(frozen=True, slots=True)
class Seq:
    """All, one after the other."""

    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Alt:
    """One of several."""

    ways: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A part `low` to `high` times; None is any number."""

    inner: "Node"
    low: int
    high: int | None


Node = Text | Letters | Pattern | Ref | Seq | Alt | Repeat


@dataclass(frozen=True, slots=True)
class Rules:
    """A grammar: what each rule says, and the one that a text is."""

    start: str
    rules: Mapping[str, Node]


def is_maybe(node: Node) -> bool:
    """Whether a node is another one or nothing."""
    return isinstance(node, Repeat) and (node.low, node.high) == (0, 1)


def nodes(node: Node) -> Iterator[Node]:
    """A node and all inside of it."""
    todo = [node]
    while todo:
        yield (here := todo.pop())
        todo += _inside(here)


def _inside(node: Node) -> Sequence[Node]:
    match node:
        case Seq(parts):
            return parts
        case Alt(ways):
            return ways
        case Repeat(inner):
            return (inner,)
    return ()


@dataclass(frozen=True, slots=True)
class Place:
    """A reference of a rule, and whether it stands at the rule's beginning, and at its end."""

    name: str
    first: bool
    last: bool


def places(node: Node) -> Iterator[Place]:
    """All references of a node."""
    todo = [(node, True, True)]
    while todo:
        here, first, last = todo.pop()
        match here:
            case Ref(name):
                yield Place(name, first, last)
            case Alt(ways):
                todo += [(way, first, last) for way in ways]
            case Seq(parts):
                end = len(parts) - 1
                todo += [(part, first and i == 0, last and i == end) for i, part in enumerate(parts)]
            case Repeat(inner):
                todo.append((inner, first and is_maybe(here), last and is_maybe(here)))


@dataclass(frozen=True, slots=True)
class Recursion:
    """Which references of some rules are loops, and which rules have to be counted where others nest.

    Args:
        rules: what each rule says, operators written as repetition; of those that the start needs, it first.
        group: of each rule, the rules that it loops through, itself among them.
        left: the rules that loop at their beginning; others do at their end.
        calls: of each rule, what is referred to in it and in what it loops through, and is no loop.
        counted: the rules through which all nesting goes, in the order of `rules`.
        below: of each rule, which of these may be met inside of it, itself among them.
    """

    rules: dict[str, Node]
    group: dict[str, frozenset[str]]
    left: frozenset[str]
    calls: dict[str, list[str]]
    counted: tuple[str, ...]
    below: dict[str, frozenset[str]]

    @classmethod
    def of(cls, asked: Rules, meter: Meter) -> "Recursion":
        """Of the rules that a text needs.

        Raises:
            OverBudget: it takes too long, or too many alternatives.
        """
        rules = _needed(asked)
        group = _groups(rules, meter)
        sides = _sides(rules, group)
        loose: dict[str, Node] = {}
        num_nodes = 0
        for name in rules:
            if sides[name] == (True, True):
                loose[name] = _untangled(rules, name, group[name], meter)
                num_nodes += sum(1 for _ in nodes(loose[name]))
                meter.memory(num_nodes * _NODE_BYTES)
        rules = _needed(Rules(asked.start, rules | loose))
        group = _groups(rules, meter)
        left = frozenset(name for name, side in _sides(rules, group).items() if side == (True, False))
        names = list(rules)
        number = {name: i for i, name in enumerate(names)}
        calls = []
        for name in names:
            meter.states(0)
            calls.append(_bits(number[called] for called in _calls(rules, group[name], name, at_end=name not in left)))
        reach = _closed(calls, meter)
        counted = _counted(calls, reach, meter)
        below = {
            name: frozenset(names[j] for j in _numbers((reach[i] | 1 << i) & counted)) for i, name in enumerate(names)
        }
        called = {name: [names[j] for j in _numbers(calls[i])] for i, name in enumerate(names)}
        return cls(rules, group, left, called, tuple(names[j] for j in _numbers(counted)), below)


def _calls(rules: Mapping[str, Node], group: frozenset[str], name: str, *, at_end: bool) -> set[str]:
    """What is referred to in a rule, or in the rules that it loops through, and is no loop."""
    called, frame = set[str](), [name]
    for here in frame:
        found = list(places(rules[here]))
        loops = {p for p in found if p.name in group and (p.last if at_end else p.first)}
        called |= {p.name for p in found if p not in loops}
        frame += sorted({p.name for p in loops} - set(frame))
    return called


def _needed(asked: Rules) -> dict[str, Node]:
    """The rules that a text may need, in the order in which they are met."""
    found = {asked.start: asked.rules[asked.start]}
    for name in (todo := [asked.start]):
        for called in sorted({place.name for place in places(found[name])} - found.keys()):
            found[called] = asked.rules[called]
            todo.append(called)
    return found


def _groups(rules: Mapping[str, Node], meter: Meter) -> dict[str, frozenset[str]]:
    """Rules that come to each other by references at their beginnings and ends."""
    names = list(rules)
    number = {name: i for i, name in enumerate(names)}
    ends = [_bits(number[p.name] for p in places(node) if p.first or p.last) for node in rules.values()]
    reach = _closed(ends, meter)
    return {
        name: frozenset({name} | {names[j] for j in _numbers(reach[i]) if reach[j] >> i & 1})
        for i, name in enumerate(names)
    }


def _closed(steps: Sequence[int], meter: Meter) -> list[int]:
    """What can be reached in one step or more, as bits (Warshall 1962)."""
    reach = list(steps)
    for middle in range(len(reach)):
        meter.states(0)
        bit, further = 1 << middle, reach[middle]
        reach = [here | further if here & bit else here for here in reach]
    return reach


def _counted(calls: Sequence[int], reach: Sequence[int], meter: Meter) -> int:
    """Some rules, as few as one by one can be left out, through which every cycle of calls goes."""
    # each leads back, at least once, to a rule that was met before or to the same one
    found = _bits(j for i, called in enumerate(calls) for j in _numbers(called) if j <= i and reach[j] >> i & 1)
    for rule in _numbers(found):
        meter.states(0)
        fewer = found & ~(1 << rule)
        found = fewer if _breaks(calls, fewer) else found
    return found


def _breaks(calls: Sequence[int], left_out: int) -> bool:
    """Whether no rule leads back to itself once some are left out."""
    waiting = {i: (called & ~left_out).bit_count() for i, called in enumerate(calls) if not left_out >> i & 1}
    callers: dict[int, list[int]] = {i: [] for i in waiting}
    for i in waiting:
        for j in _numbers(calls[i] & ~left_out):
            callers[j].append(i)
    for i in (done := [i for i, count in waiting.items() if not count]):
        for j in callers[i]:
            waiting[j] -= 1
            done += [j] if not waiting[j] else []
    return len(done) == len(waiting)


def _bits(numbers: Iterable[int]) -> int:
    return sum(1 << number for number in set(numbers))


def _numbers(bits: int) -> Iterator[int]:
    while bits:
        yield (bits & -bits).bit_length() - 1
        bits &= bits - 1


def _sides(rules: Mapping[str, Node], group: Mapping[str, frozenset[str]]) -> dict[str, tuple[bool, bool]]:
    """Of each rule, whether its group refers to itself at beginnings alone, and whether at ends alone."""
    found = {}
    for some in set(group.values()):
        own = [p for name in some for p in places(rules[name]) if p.name in some]
        found[some] = any(p.first and not p.last for p in own), any(p.last and not p.first for p in own)
    return {name: found[some] for name, some in group.items()}


def _untangled(rules: Mapping[str, Node], name: str, group: frozenset[str], meter: Meter) -> Node:
    """A rule of a group that loops at both ends, with its own operators written as repetition."""
    before: list[Node] = []
    behind: list[Node] = []
    between: list[Node] = []
    others: list[Node] = []
    seen, todo = {name}, [rules[name]]
    for node in todo:
        for way in _ways(node, group, meter):
            if len(way) == 1 and isinstance(way[0], Ref) and way[0].name in group:  # is another rule, or itself
                if way[0].name not in seen:
                    seen.add(way[0].name)
                    todo.append(rules[way[0].name])
                continue
            first, last = way[:1] == (Ref(name),), way[-1:] == (Ref(name),)
            kind = (between if last else behind) if first else (before if last else others)
            kind.append(Seq(way[int(first) : len(way) - int(last)]))
    prefixes = [Repeat(Alt(tuple(before)), 0, None)] if before else []
    operand = Seq((*prefixes, Alt(tuple(others))))
    more = [*behind, *([Seq((Alt(tuple(between)), operand))] if between else [])]
    return Seq((operand, Repeat(Alt(tuple(more)), 0, None))) if more else operand


def _ways(node: Node, group: frozenset[str], meter: Meter) -> list[tuple[Node, ...]]:
    """The alternatives of a node, written out as far as rules of the group stand at its ends."""
    found: list[tuple[Node, ...]] = [(node,)]
    if any(p.name in group and (p.first or p.last) for p in places(node)):
        match node:
            case Alt(ways):
                found = [written for way in ways for written in _ways(way, group, meter)]
            case Repeat(inner) if is_maybe(node):
                found = [(), *_ways(inner, group, meter)]
            case Seq((only,)):
                found = _ways(only, group, meter)
            case Seq((begin, *middle, end)):
                firsts, lasts = _ways(begin, group, meter), _ways(end, group, meter)
                copies = len(firsts) * len(lasts)
                meter.states(copies + (copies - 1) * sum(1 for part in middle for _ in nodes(part)))
                found = [(*first, *middle, *last) for first in firsts for last in lasts]
    meter.states(len(found))
    return found
