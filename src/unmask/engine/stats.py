"""What an engine has done and how full it is."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from unmask.decode.reading import Filled


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
        audited: forwards for measuring drift, which `forwards` does not count; `rows` and `positions` neither.
        glimpsed: positions that the first layer alone was asked about, to see how far what is kept has moved.
        compared, flipped: offers over kept keys and values that an audit has compared with those of a full forward, and
            those of them whose best token was another one, of requests that have finished.
        drift_sum, drift_max: total variation of what was compared, summed up and at most.
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
    audited: int = 0
    glimpsed: int = 0
    compared: int = 0
    flipped: int = 0
    drift_sum: float = 0.0
    drift_max: float = 0.0
    waiting: int = 0
    running: int = 0
    pages: int = 0
    pages_held: int = 0
    pages_idle: int = 0

    def travelled(self, widths: Sequence[int]) -> None:
        """A forward was asked for rows that feed so many positions each; 0 where it was known what it would say."""
        self.forwards += any(widths)
        self.rows += sum(width > 0 for width in widths)
        self.positions += sum(widths)

    def hear(self, result: Filled) -> None:
        """What became of a request that has ended well, and what its audits have found."""
        self.finished += 1
        self.committed += sum(change.kind == "commit" for change in result.trace)
        self.edits += result.trace.num_edits
        drift = result.drift
        if drift is not None:
            self.compared, self.flipped = self.compared + drift.targets, self.flipped + drift.flips
            self.drift_sum += drift.mean_tv * drift.targets
            self.drift_max = max(self.drift_max, drift.max_tv)

    def as_dict(self) -> dict[str, float]:
        """For reports."""
        return asdict(self)
