"""How many tokens to draft: by what a forward costs here, and by how often a text's drafts have been right.

What is verified is the same text whatever the width of its drafts, so this may follow the hardware and change nothing
but the time it takes. Where drafts don't pay, none is made, and writing goes token by token.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unmask.decode.windows.draft import NONE, WIDEST, WIDTH
from unmask.engine.live import Live

PRIOR = (3.0, 4.0)
"""Drafted tokens that count as right, and as drafted, before the first was."""
AGAIN = 32
"""Tokens after which a text without drafts tries one of `WIDTH` again."""


@dataclass(slots=True)
class Record:
    """A text's drafts so far.

    Attributes:
        written: its tokens.
        right, tried: of the drafted tokens that were compared.
        width: of its drafts now.
    """

    written: int = 0
    right: float = PRIOR[0]
    tried: float = PRIOR[1]
    width: int = WIDTH
    alone: int = 0


class Widths:
    """Widths of the drafts of requests that leave them open.

    Args:
        seconds: of a forward, by positions fed; None leaves all drafts at `WIDTH`.
        shadows: whether a draft is verified by masks beside it, which are fed too.
    """

    def __init__(self, seconds: Mapping[int, float] | None, *, shadows: bool) -> None:
        self.shadows = shadows
        self._records: dict[int, Record] = {}
        self.price(seconds or {})

    def price(self, seconds: Mapping[int, float]) -> None:
        """Take it that forwards cost so much, for requests that come in from now on."""
        self.seconds = dict(sorted(seconds.items()))

    def best(self, right: float) -> int:
        """The width that writes most a second where each drafted token is right with this probability, or `NONE`."""
        rates = {NONE: 1 / self.cost(1 + int(self.shadows))}
        for width in range(1, WIDEST + 1):
            tokens = width + 1 if right >= 1 else (1 - right ** (width + 1)) / (1 - right)
            verified = 2 * width + 1 if self.shadows else width + 1
            rates[width] = tokens / (self.cost(width + 1) + self.cost(verified))
        return max(rates, key=lambda width: rates[width])

    def cost(self, positions: int) -> float:
        """Seconds of a forward of so many positions; see `between`."""
        return between(self.seconds, positions)

    def join(self, live: Live) -> None:
        """A request comes in."""
        if self.seconds and live.request.decoder.adapts:
            record = self._records[live.id] = Record()
            self._set(live, record, self.best(record.right / record.tried))

    def learn(self, lives: Sequence[Live]) -> None:
        """See what has become of these requests' drafts."""
        for live in lives:
            record = self._records.get(live.id)
            if record is None or live.reading is None:
                continue
            gained = len(live.reading.trace) - record.written
            if not gained:  # a draft was made, or text was read
                continue
            record.written += gained
            if record.width == NONE:
                record.alone += gained
                width = WIDTH if record.alone >= AGAIN else NONE
            else:
                record.right, record.tried = record.right + gained - 1, record.tried + min(gained, record.width)
                width = self.best(record.right / record.tried)
            self._set(live, record, width)

    def leave(self, id: int) -> None:
        """A request is no more."""
        self._records.pop(id, None)

    def _set(self, live: Live, record: Record, width: int) -> None:
        if width != NONE:
            record.alone = 0
        record.width = width
        live.crowd.set(live.row, "block", width)


def between(seconds: Mapping[int, float], positions: int) -> float:
    """Seconds of a forward of so many positions; between two that were measured, on the line through them.

    Args:
        seconds: of two forwards or more, by positions fed, in rising order.
        positions: fed.
    """
    known = list(seconds)
    at = min(max(1, bisect_left(known, positions)), len(known) - 1)
    (a, b), share = known[at - 1 : at + 1], (positions - known[at - 1]) / (known[at] - known[at - 1])
    return seconds[a] + share * (seconds[b] - seconds[a])
