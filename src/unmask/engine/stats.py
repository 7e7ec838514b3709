"""What an engine has done and how full it is."""

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Stats:
    """Counters since the start, and gauges.

    Args:
        steps, forwards: calls of `step` that did something, and of the network.
        rows, positions: that travelled in these forwards, summed up.
        committed, edits: tokens that were written, and that were taken back or written over.
        finished, failed, cancelled, preempted: requests.
        prompt, reused: positions that were to be read before a request could write, and those of them that another
            request had read already.
        waiting, running: requests now.
        pages, pages_held, pages_idle: of the cache; idle ones hold text that may be asked for again.
    """

    steps: int = 0
    forwards: int = 0
    rows: int = 0
    positions: int = 0
    committed: int = 0
    edits: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    preempted: int = 0
    prompt: int = 0
    reused: int = 0
    waiting: int = 0
    running: int = 0
    pages: int = 0
    pages_held: int = 0
    pages_idle: int = 0

    def as_dict(self) -> dict[str, int]:
        """For reports."""
        return asdict(self)
