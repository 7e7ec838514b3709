"""Arrays and objects from their parts: what may follow what, and how many there may be. It does not know schemas."""

from collections.abc import Sequence
from dataclasses import dataclass

from unmask.constrain.automata.compose import Net, Part, seq


@dataclass(frozen=True, slots=True)
class Style:
    """What stands between parts, and in which order they may come.

    Args:
        comma: between two parts.
        pad: behind the last one.
        any_order: whether parts of `chosen` may come in any order, at the price of states for every set of them.
    """

    comma: Part
    pad: Part
    any_order: bool = False


def chosen(pairs: Sequence[tuple[bool, Part]], more: Part | None, low: int, high: int | None, style: Style) -> Part:
    """Parts of which each stands at most once, from `low` to `high` in all (None: any number).

    Args:
        pairs: whether a part is needed, and the part.
        more: what may follow behind them, any number of times.
    """

    def grow(net: Net, at: int) -> int:
        end = net.state()
        nodes: dict[tuple[int, int], int] = {}
        todo: list[tuple[int, int]] = []

        def node(left: int, count: int) -> int:
            key = (left, min(count, max(low, 1)) if high is None else count)
            if key not in nodes:
                nodes[key] = net.state()
                todo.append(key)
            return nodes[key]

        net.link(at, node((1 << len(pairs)) - 1, 0))
        while todo:
            left, count = todo.pop(0)
            here = nodes[left, count]
            waiting = [i for i in range(len(pairs)) if left >> i & 1]
            if left and not any(pairs[i][0] for i in waiting):
                net.link(here, node(0, count))  # the others are left out
            full = high is not None and count >= high
            ways = (
                [] if full else [(pairs[i][1], left & ~(1 << i)) for i in (waiting if style.any_order else waiting[:1])]
            )
            if not left:
                if count >= low:
                    net.link(style.pad(net, here) if count else here, end)
                if more is not None and not full:
                    ways.append((more, 0))
            elif not style.any_order and not pairs[waiting[0]][0]:
                net.link(here, node(left & ~(1 << waiting[0]), count))
            for part, after in ways:
                member = seq([style.comma, part]) if count else part
                net.link(member(net, here), node(after, count + 1))
        return end

    return grow


def ranked(
    ways: Sequence[Sequence[tuple[int, Part]]],
    counts: tuple[int, int | None],
    hits: tuple[int, int | None],
    style: Style,
) -> Part:
    """Parts in a row, of which some are hits.

    Args:
        ways: what may stand at each place, and how many hits it is; the last of them at all further places.
        counts: how many parts there may be, from low to high (None: any number).
        hits: how many of them may be hits.
    """
    (low, high), (least, most) = counts, hits

    def grow(net: Net, at: int) -> int:
        end = net.state()
        nodes: dict[tuple[int, int], int] = {}
        todo: list[tuple[int, int]] = []

        def node(count: int, hit: int) -> int:
            longest = max(len(ways) - 1, low, 1) if high is None else high
            key = (min(count, longest), min(hit, least) if most is None else hit)
            if key not in nodes:
                nodes[key] = net.state()
                todo.append(key)
            return nodes[key]

        net.link(at, node(0, 0))
        while todo:
            count, hit = todo.pop(0)
            here = nodes[count, hit]
            if count >= low and hit >= least:
                net.link(style.pad(net, here) if count else here, end)
            if high is not None and count >= high:
                continue
            for gain, part in ways[min(count, len(ways) - 1)]:
                if most is None or hit + gain <= most:
                    following = seq([style.comma, part]) if count else part
                    net.link(following(net, here), node(count + 1, hit + gain))
        return end

    return grow
