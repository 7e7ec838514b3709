"""The one thread that owns the engine: jobs come in through a bounded queue, what happens to them goes back to a loop.

A job is one HTTP request: an ask whose rows are written together with those of others. Who waits for it lives in an
asyncio loop, which is told by `call_soon_threadsafe`; nothing else is shared. A request that makes a forward fail is
thrown out by the engine. If the thread itself fails nothing is restarted in silence: every job is told, and the state
says so from then on. It knows no HTTP.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from unmask.base.canvas import Canvas
from unmask.base.errors import UnmaskError
from unmask.decode.trace import Change
from unmask.engine import backends
from unmask.engine.engine import Engine
from unmask.engine.request import Delta, Request
from unmask.engine.sizes import settled
from unmask.lm.model import LanguageModel
from unmask.lm.write import held_back, outputs
from unmask.serve.errors import Refused, refused
from unmask.serve.job import Done, Draft, Event, Job, Row, Told
from unmask.serve.limits import Limits
from unmask.serve.metrics import Metrics

log = logging.getLogger("unmask.serve")

State = Literal["loading", "ready", "failed", "stopped"]


class Worker:
    """Owner of the engine.

    Args:
        load: opens the model; called in the thread.
        limits: of rows and of the queue.
        metrics: told what happens.
    """

    def __init__(self, load: Callable[[], LanguageModel], limits: Limits, metrics: Metrics) -> None:
        self.state: State = "loading"
        self.error: Exception | None = None
        self._load, self._limits, self._metrics = load, limits, metrics
        self._lm: LanguageModel | None = None
        self._engine: Engine | None = None
        self._priced = False  # what forwards cost is measured for the first who asks
        self._news = threading.Condition()
        self._inbox: deque[Job] = deque()
        self._gone: deque[Job] = deque()
        self._active: dict[Job, None] = {}
        self._where: dict[int, tuple[Job, int]] = {}
        self._open: set[Job] = set()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    @property
    def lm(self) -> LanguageModel:
        """The model.

        Raises:
            Refused: it is not there (yet, or any more).
        """
        if self.state == "loading":
            raise Refused("loading", "the model is being loaded; come again in a moment")
        if self.state != "ready" or self._lm is None:
            raise Refused(
                "engine_failed", "the engine has failed and takes no requests; the server has to be restarted"
            )
        return self._lm

    @property
    def unloadable(self) -> bool:
        """Whether it failed before there was an engine."""
        return self.state == "failed" and self._engine is None

    @property
    def num_open(self) -> int:
        """Jobs that have not ended."""
        return len(self._open)

    @property
    def num_waiting(self) -> int:
        """Jobs that wait for places."""
        return len(self._inbox)

    def check(self, requests: Sequence[Request]) -> list[Canvas]:
        """What the engine makes of these before it takes them in, or raises; in any thread."""
        _ = self.lm
        assert self._engine is not None
        return [self._engine.check(request) for request in requests]

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn; in the loop's thread.

        Raises:
            Refused: the queue is full, or nobody works.
        """
        with self._news:
            _ = self.lm
            if len(self._inbox) >= self._limits.queue:
                raise Refused("queue_full", f"{len(self._inbox)} requests wait already; come again in a moment")
            self._inbox.append(job)
            self._open.add(job)
            self._news.notify()

    def cancel(self, job: Job) -> None:
        """Let a job go, before the next forward; one that has ended is left as it is."""
        with self._news:
            if job not in self._open:
                return
            self._open.discard(job)
            if job in self._inbox:
                self._inbox.remove(job)
            else:
                self._gone.append(job)
                self._news.notify()
        self._metrics.ended("cancelled")

    def cancel_all(self, why: Refused) -> None:
        """Tell all jobs that they end now."""
        for job in list(self._open):
            self.cancel(job)
            job.loop.call_soon_threadsafe(job.put, why)

    def stop(self, timeout_s: float) -> bool:
        """End the thread behind its forward; whether it has ended in time."""
        with self._news:
            if self.state == "ready":
                self.state = "stopped"
            self._news.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # ---- in the thread ----

    def _main(self) -> None:
        try:
            lm = self._lm = self._load()
            self._engine = Engine(
                lm.runner,
                rows=self._limits.rows,
                cache_positions=self._limits.cache_positions or None,
                tokenizer=lm.tokenizer,
                clock=time.perf_counter,
            )
            self._metrics.watch(self._engine.stats, self)
            self.state = "ready"
            log.info("ready", extra={"model": lm.name, "backend": lm.backend})
            while self.state == "ready":
                self._turn(lm, self._engine)
        except Exception as error:  # the thread's own fault: nobody else would ever hear of it
            self.error, self.state = error, "failed"
            known = isinstance(error, UnmaskError) and self._engine is None  # a model that can't be had
            log.critical("the engine's thread has failed", exc_info=None if known else error)
        with self._news:
            left, self._open = list(self._open), set()
        for job in left:
            self._end(job, Refused("engine_failed", "the engine has failed; the server has to be restarted"))

    def _turn(self, lm: LanguageModel, engine: Engine) -> None:
        """Let in who may come, let go who has gone, one step, and tell."""
        with self._news:
            while not (self._inbox or self._gone or engine.busy or self.state != "ready"):
                self._news.wait()
            gone, self._gone = list(self._gone), deque()
            running, come = sum(job.num_left for job in self._active), []
            while self._inbox and running < self._limits.rows:
                come.append(self._inbox.popleft())
                running += len(come[-1].requests)
        for job in gone:
            self._leave(job, engine)
        for job in come:
            self._enter(job, engine, lm)
        if not engine.busy:
            return
        began = time.perf_counter()
        deltas = engine.step()
        self._metrics.stepped(time.perf_counter() - began, engine.stats.running)
        for delta in deltas:
            if delta.id in self._where:
                self._guarded(*self._where[delta.id], delta, lm)
        for job in [job for job in self._active if job.tells.drafts and job.single]:
            self._sketch(job, engine, lm)

    def _enter(self, job: Job, engine: Engine, lm: LanguageModel) -> None:
        if job not in self._open:  # gone in the meantime
            return
        if not self._priced and any(request.decoder.adapts for request in job.requests):
            engine.widths.price(backends.costs(lm.runner))  # some thirty forwards, once
            self._priced = True
        try:
            requests = settled(job.requests, lm.runner, lm.tokenizer)  # may measure: the network is ours
            those = zip(requests, job.requests, job.canvases, strict=True)
            job.ids = [engine.add(new, job.began, canvas if new is old else None) for new, old, canvas in those]
        except UnmaskError as error:
            self._finish(job, refused(error))
            return
        job.rows = [Row() for _ in job.ids]
        self._active[job] = None
        self._where |= {id: (job, row) for row, id in enumerate(job.ids)}

    def _leave(self, job: Job, engine: Engine | None) -> None:
        """Nothing of a job is left in the engine."""
        self._active.pop(job, None)
        for id in job.ids:
            self._where.pop(id, None)
            if engine is not None:
                engine.cancel(id)

    def _guarded(self, job: Job, row: int, delta: Delta, lm: LanguageModel) -> None:
        """What a step did for a row; whatever goes wrong in telling it is this job's fault alone."""
        try:
            self._tell(job, row, delta, lm)
        except Exception as error:  # as for a forward: one request must not end the others
            log.error("a request failed", exc_info=error, extra={"request_id": job.id})
            self._leave(job, self._engine)
            self._finish(job, refused(error))

    def _tell(self, job: Job, row: int, delta: Delta, lm: LanguageModel) -> None:
        if delta.error is not None:
            raise delta.error
        if delta.tokens and not job.started:
            job.started = True
            self._metrics.first_text.observe(time.perf_counter() - job.began)
        if delta.result is not None:
            job.rows[row].result, job.rows[row].reused = delta.result, delta.reused
            results = [one.result for one in job.rows if one.result is not None]
            if len(results) == len(job.rows):
                found = outputs(lm.runner, lm.tokenizer, job.ask, results, job.began)
                self._leave(job, self._engine)
                self._finish(job, Done(outputs=found, reused=sum(one.reused for one in job.rows)))
                return
        if job.tells.text and job.single and delta.tokens and lm.tokenizer is not None:
            self._spell(job, row, delta, lm)

    def _spell(self, job: Job, row: int, delta: Delta, lm: LanguageModel) -> None:
        """Tell committed text that can't change any more, and the tokens that it is all of."""
        assert lm.tokenizer is not None
        state = job.rows[row]
        state.tokens += delta.tokens
        state.spelled += lm.tokenizer.decode_bytes(delta.tokens)
        text = held_back(state.spelled, job.ask.stops)
        new, first = text[len(state.told) :], state.num_told
        if not new:
            return
        state.told = text
        tokens: list[int] = []
        changes: list[Change | None] = []
        if job.tells.logs and self._engine is not None:
            size, spelled = len(text.encode()), 0
            for token in state.tokens:
                spelled += len(lm.tokenizer.token_bytes[token])
                if spelled > size:
                    break
                tokens.append(token)
            reading = self._engine.reading(delta.id)
            assert reading is not None  # it is there for as long as there is news of it
            changes = reading.changes[first : len(tokens)]
            tokens, state.num_told = tokens[first:], max(first, len(tokens))
        self._send(job, Told(index=row, text=new, tokens=tokens, changes=changes))

    def _sketch(self, job: Job, engine: Engine, lm: LanguageModel) -> None:
        """Tell drafts, of rows whose last one was taken."""
        for row, id in enumerate(job.ids):
            reading = engine.reading(id)
            if reading is None or row in job.sketches or job.rows[row].result is not None:
                continue
            first = reading.layout.gaps[-1].start
            forwards = int(reading.canvas.forwards[reading.row])
            self._send(job, Draft(index=row, forwards=forwards, cells=reading.cells()[first:]))

    def _finish(self, job: Job, event: Done | Refused) -> None:
        """A job ends by itself."""
        with self._news:
            if job not in self._open:
                return
            self._open.discard(job)
        self._end(job, event)

    def _end(self, job: Job, event: Done | Refused) -> None:
        self._metrics.ended("failed" if isinstance(event, Refused) else "finished")
        if isinstance(event, Done):
            self._metrics.wrote(event.outputs)
        self._send(job, event)

    def _send(self, job: Job, event: Event) -> None:
        try:
            job.loop.call_soon_threadsafe(job.put, event)
        except RuntimeError:  # its loop is closed: nobody listens any more
            log.warning("nobody listens", extra={"request_id": job.id})
