"""What Prometheus is told. Labels have fixed sets of values; nothing that a client sends becomes one."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from unmask.engine.stats import Stats
from unmask.lm.results import Output

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
PER_FORWARD = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32, 64)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)

_COUNTERS = {
    "forwards": "forwards of the network",
    "committed": "tokens that were written",
    "edits": "tokens that were taken back or written over",
    "prompt": "positions that were to be read before a request could write",
    "reused": "those of them that another request had read already (cache hits)",
    "preempted": "rows that had to give way for a while",
    "audited": "forwards for measuring drift, which are not among the others",
    "glimpsed": "positions that the first layer alone was asked about, for renewal by drift",
    "compared": "offers over an approximate cache that were compared with those of a full forward",
    "flipped": "those of them whose best token was another one",
    "drift_sum": "total variation of what was compared, summed up",
}
_GAUGES = {
    "running": "rows that are being written",
    "pages": "pages of keys and values",
    "pages_held": "pages that rows hold",
    "pages_idle": "pages that nobody holds and that hold text which may be asked for again",
}


class Queue(Protocol):
    """What is asked for the length of the queue."""

    @property
    def num_waiting(self) -> int:
        """Jobs that wait."""
        ...

    @property
    def num_open(self) -> int:
        """Jobs that have not ended."""
        ...


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "unmask_http_requests", "answers by route and status", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "unmask_http_seconds", "time to the end of an answer", ["route"], buckets=SECONDS, registry=registry
        )
        self.jobs = Counter("unmask_jobs", "writing requests by how they ended", ["end"], registry=registry)
        self.first_text = Histogram(
            "unmask_first_committed_seconds",
            "time to the first committed token",
            buckets=SECONDS,
            registry=registry,
        )
        self.per_forward = Histogram("unmask_tokens_per_forward", "of a text", buckets=PER_FORWARD, registry=registry)
        self.step = Histogram("unmask_step_seconds", "of the engine", buckets=SECONDS, registry=registry)
        self.batch = Histogram("unmask_batch_rows", "rows in a step", buckets=ROWS, registry=registry)
        self.returned = Counter("unmask_returned_tokens", "tokens that were given back", registry=registry)
        self.targets = Counter(
            "unmask_targets", "texts with a target of seconds, by whether it was kept", ["kept"], registry=registry
        )
        self.eased = Counter("unmask_eased_steps", "steps with less effort than was asked for", registry=registry)
        self.compilations = Counter(
            "unmask_constraints", "constraints that were asked for, by what became of them", ["end"], registry=registry
        )
        self.draining = Gauge("unmask_draining", "whether new requests are refused", registry=registry)
        for end in ("finished", "failed", "cancelled"):
            self.jobs.labels(end)
        for end in ("kept", "made", "refused", "dropped"):
            self.compilations.labels(end)
        for kept in ("yes", "no"):
            self.targets.labels(kept)
        self._stats: Stats | None = None
        self._queue: Queue | None = None
        registry.register(self)

    def watch(self, stats: Stats, queue: Queue) -> None:
        """Read an engine's counters, and a queue's length, whenever somebody asks."""
        self._stats, self._queue = stats, queue

    def collect(self) -> Iterator[Metric]:
        """What is read when somebody asks."""
        if self._stats is None or self._queue is None:
            return
        for name, help in _COUNTERS.items():
            yield CounterMetricFamily(f"unmask_{name}", help, value=getattr(self._stats, name))
        for name, help in _GAUGES.items():
            yield GaugeMetricFamily(f"unmask_{name}", help, value=getattr(self._stats, name))
        yield GaugeMetricFamily("unmask_queue", "requests that wait for places", value=self._queue.num_waiting)
        yield GaugeMetricFamily("unmask_open", "writing requests that have not ended", value=self._queue.num_open)

    def stepped(self, seconds: float, rows: int) -> None:
        """The engine took a step."""
        self.step.observe(seconds)
        self.batch.observe(rows)

    def wrote(self, outputs: Sequence[Output]) -> None:
        """A request was written."""
        for output in outputs:
            self.per_forward.observe(output.stats.tokens_per_forward)
            self.returned.inc(len(output.tokens))
            if (eased := output.stats.eased) is not None:
                self.targets.labels("yes" if eased.kept else "no").inc()
                self.eased.inc(eased.steps)

    def ended(self, end: str) -> None:
        """A job ended: finished, failed or cancelled."""
        self.jobs.labels(end).inc()

    def compiled(self, end: str) -> None:
        """A constraint was found (kept), made, refused, or given up as nobody waited for it any more (dropped)."""
        self.compilations.labels(end).inc()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
