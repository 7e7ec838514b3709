"""The engine: `add`, `step`, `cancel`. No threads, no files, no text beyond stop strings, no clock but one it is given.

Each step is one forward for all rows that keep keys and values, and one for those that don't. Whatever the company, a
request gets the same tokens: noise is keyed by its own seed, exact caches hold what a full forward would compute, and
what a preempted request had read is read again. To the bit that needs kernels whose rows don't depend on how many there
are; `unmask.engine.bits` tries whether those of this machine are like that.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unmask.base.canvas import Canvas
from unmask.base.denoiser import Denoiser
from unmask.base.errors import BadInput, RequestFailed, UnmaskError, Unsupported
from unmask.base.step import Plan, Proposal, State
from unmask.constrain.holes import Holes
from unmask.decode import control, guidance, resize
from unmask.decode.audit import Auditor
from unmask.decode.bias import Biases
from unmask.decode.heard import Heard
from unmask.decode.memory import Remembering
from unmask.decode.reading import Reading, between
from unmask.decode.staleness import Staleness
from unmask.decode.trace import record
from unmask.engine.admit import admitted
from unmask.engine.batch import block_of, cut, reach, shared
from unmask.engine.crowd import Board, Crowd, kind
from unmask.engine.live import Live, by_crowd, growing, plans
from unmask.engine.pace import Clock, Pace
from unmask.engine.request import Delta, Request
from unmask.engine.room import Room
from unmask.engine.stats import Stats
from unmask.engine.widths import Widths
from unmask.text.tokenizer import Tokenizer


class Engine:
    """Many requests through one model.

    Args:
        model: the network.
        rows: requests that are written at the same time.
        cache_positions: whose keys and values there is memory for; None is all rows at full length, at most a GiB.
        positions: that one forward may feed; longer prompts are read in parts.
        share: whether requests that begin alike read that only once.
        tokenizer: for stop strings.
        clock: seconds, for requests with a target; without one none may have it.
        costs: seconds of a forward by positions fed, for drafts as wide as pays here; see `unmask.engine.widths`.

    Attributes:
        stats: what was done.
        widths: of drafts; they can be told what a forward costs later than here.
    """

    def __init__(
        self,
        model: Denoiser,
        *,
        rows: int = 32,
        cache_positions: int | None = None,
        positions: int = 2048,
        share: bool = True,
        tokenizer: Tokenizer | None = None,
        clock: Clock | None = None,
        costs: Mapping[int, float] | None = None,
    ) -> None:
        if rows < 1 or positions < 1:
            raise BadInput(f"an engine has 1 row and 1 position at least, got rows={rows} and positions={positions}")
        self.model, self.num_rows, self.positions, self.tokenizer = model, rows, positions, tokenizer
        self.canvas = Canvas.blank(rows, device=model.device)
        self.canvas.eos, self.canvas.ends = model.vocab.eos, model.vocab.ends
        self._memory = None if model.traits.clock else Remembering(model, 2 * rows)
        self._auditor, self._staleness = Auditor(positions), Staleness(positions)
        self.room = Room(model, rows, cache_positions, share=share)
        self.stats = Stats(pages=self.room.num_pages)
        self._pace, self.widths = Pace(clock), Widths(costs, shadows=model.traits.speaks == "here")
        self._sampling: Board | None = None  # comes with the first request
        self._guidance = torch.zeros(rows, dtype=torch.float64, device=model.device)
        self._revises = torch.zeros(rows, dtype=torch.bool, device=model.device)
        self._holes, self._biases = Holes(), Biases(rows, model.device)
        self._own = torch.zeros(rows, dtype=torch.int64, device=model.device)
        self._crowds: dict[object, Crowd] = {}
        self._waiting: deque[Live] = deque()
        self._running: dict[int, Live] = {}  # by id, in the order of arrival
        self._free = list(range(rows - 1, -1, -1))
        self._over: list[Delta] = []
        self._readings: dict[int, Reading] = {}
        self._next = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do something."""
        return bool(self._waiting or self._running or self._over)

    def add(self, request: Request, began: float | None = None, canvas: Canvas | None = None) -> int:
        """Take a request in; it starts with one of the next steps. A target counts from `began`, by its clock.

        `canvas` is what `check` has given for it, where it was asked before; nobody else may have it then.

        Returns:
            What it is called in deltas and by `cancel`.
        Raises:
            BadInput, TooLong, Unsupported: it can never be written here; nothing has changed.
        """
        canvas, decoder = self.check(request) if canvas is None else canvas, request.decoder
        if decoder.choices:
            raise BadInput("this decoder has options that are left open; see unmask.engine.sizes.settled")
        if self._sampling is None:
            shared = replace(decoder.sampling, bias=self._biases)
            self._sampling = Board(shared, self.num_rows, self.model.device)
        if decoder.sampling.forbidden != self._sampling.part.forbidden:
            raise Unsupported("requests of one engine forbid the same ids; use another engine for this one")
        chase = self._pace.chase(request, began)
        if (name := kind(decoder)) not in self._crowds:
            self._crowds[name] = Crowd.of(decoder, self.num_rows, self.model.device)
        live = Live(self._next, request, canvas, self._crowds[name], chase=chase)
        self._next += 1
        self._waiting.append(live)
        return live.id

    def check(self, request: Request) -> Canvas:
        """A request's own canvas; raises what `add` raises. It changes nothing, so any thread may call it."""
        self._pace.check(request)
        return admitted(request, self.model, self.tokenizer, self.room, self._holes)

    def reading(self, id: int) -> Reading | None:
        """A request's row as it stands, from its first step until the step after its last."""
        return self._readings.get(id)

    def cancel(self, id: int) -> bool:
        """Let a request go as it stands; whether there was one. Nothing more will be heard of it."""
        live = self._running.get(id) or next((one for one in self._waiting if one.id == id), None)
        if live is None:
            return False
        self._leave(live)
        self.stats.cancelled += 1
        self._gauge()
        return True

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """One forward (two where some rows keep keys and values and others don't), and what it did."""
        self._pace.tick(going_on=bool(self._running))
        self._enter()
        self._pace.ease(self._running.values(), self.canvas, self._own)
        done = self.canvas.done.tolist()
        self._watch([one for one in self._running.values() if self._staleness.watches(one.row) and not done[one.row]])
        for caches in (True, False):
            lives = [live for live in self._running.values() if live.caches is caches and not done[live.row]]
            if lives:
                lives, plan = self._chosen(lives, caches=caches)
                self._turn(lives, plan, caches=caches)
        self.stats.steps += 1
        self._finish()
        deltas, self._over = self._over, []
        self._gauge()
        return deltas

    def _enter(self) -> None:
        """Those who wait come in, in order, while there are places."""
        self._readings = {id: reading for id, reading in self._readings.items() if id in self._running}
        while self._waiting and self._free:
            live = self._waiting.popleft()
            request, decoder, live.row = live.request, live.request.decoder, self._free.pop()
            self.canvas.enter(live.row, live.canvas)
            self.canvas.stride[live.row] = decoder.stride
            if self._memory is not None:
                self._memory.forget(torch.tensor([live.row, live.row + self.num_rows]))
            ends = request.ends and self.model.vocab.eos is not None
            live.reading = Reading(
                self.canvas, live.row, request.layout, revises=decoder.revises, ends=ends, tokenizer=self.tokenizer
            )
            live.reading.drift = self._auditor.join(live.row, decoder.audit)
            self._staleness.join(live.row, decoder)
            live.reading.chosen = decoder.chosen
            self._readings[live.id] = live.reading
            live.told = request.layout.gaps[-1].start if request.layout.gaps else len(request.layout.tokens)
            live.crowd.join(live.row, decoder)
            assert self._sampling is not None
            self._sampling.set(live.row, decoder.sampling)
            self._biases.set(live.row, decoder.sampling.bias)
            live.growing = resize.begin(request.layout, decoder, request.spans, self.model.vocab)
            resize.allow(self._sampling.part, live.row, live.growing)
            self._guidance[live.row] = decoder.guidance
            self._revises[live.row] = decoder.revises
            self._own[live.row] = len(request.layout.tokens)
            self._holes.enter(live.row, request.spans)
            self._running[live.id] = live
            self.widths.join(live)

    def _watch(self, lives: Sequence[Live]) -> None:
        """See how far what is kept of these rows has moved; those that can't be looked at go."""
        try:
            if lives:
                self._staleness.look(self.model, self.canvas, plans(lives, self.canvas, self.model, self.room.cache))
        except Exception as error:  # as in `_turn`
            for half in self._blamed(error, lives):
                self._watch([lives[i] for i in half])

    def _chosen(self, lives: list[Live], *, caches: bool) -> tuple[list[Live], Plan]:
        """Those of them, oldest first, that go into the next forward, and its plan."""
        cache = self.room.cache if caches else None
        plan = plans(lives, self.canvas, self.model, cache)
        if caches and self._open(lives, plan):
            plan = plans(lives, self.canvas, self.model, cache)
        widths = (plan.positions >= 0).sum(1).tolist()
        shares = widths if sum(widths) <= self.positions else shared(plan, widths, cache, self.positions)
        ends = reach(plan, widths, shares) if caches else widths
        taken, gone = [], set[int]()
        for i, (live, end) in enumerate(zip(lives, ends, strict=True)):
            if shares[i] and live.row not in gone and (not caches or self._seat(live, end, gone)):
                taken.append(i)
        chosen = plan if len(taken) == len(lives) else plan.take(_index(plan, taken))
        if shares is not widths and any(shares[i] < widths[i] for i in taken):
            chosen = cut(chosen, _index(plan, [shares[i] for i in taken]))
        return [lives[i] for i in taken], chosen

    def _open(self, lives: Sequence[Live], plan: Plan) -> bool:
        """Those that are new to the cache come in; whether any of them found something read already."""
        found, shift = 0, int(self.model.traits.speaks == "next")
        new = [i for i, live in enumerate(lives) if not self.room.has(live.row)]
        if not new:
            return False
        finals, blocks = plan.keep.sum(1).tolist(), block_of(plan)
        for i in new:
            live, final, block = lives[i], finals[i], blocks[i]
            readable = max(0, final - shift)  # what is fed again is never another one's
            text = self.canvas.tokens[live.row, :readable].tolist()
            request = live.request
            reused = self.room.open(live.row, text, block, twice=bool(request.decoder.guidance), share=request.share)
            live.reused = reused if live.reused is None else live.reused
            self.stats.prompt, self.stats.reused = self.stats.prompt + final, self.stats.reused + reused
            found += reused
        return bool(found)

    def _seat(self, live: Live, end: int, gone: set[int]) -> bool:
        """Pages for a row up to `end`, if need be from the youngest that are younger; whether it has them.

        Rows that gave way are added to `gone`.
        """
        while not self.room.grow(live.row, end):
            holders = [one for one in self._running.values() if one.id >= live.id and self.room.holds(one.row)]
            youngest = holders[-1] if holders else live
            self.stats.preempted += bool(holders)
            self.room.give_way(youngest.row)
            gone.add(youngest.row)
            if youngest is live:
                return False
        return True

    def _turn(self, lives: list[Live], plan: Plan, *, caches: bool) -> None:
        """One forward for these rows and what follows from it. If it fails, those go who make it fail alone."""
        try:
            offer = self._propose(lives, plan, caches=caches)
        except Exception as error:  # whatever a network raises: one request must not end the others
            for half in self._blamed(error, lives):
                self._turn([lives[i] for i in half], plan.take(_index(plan, half)), caches=caches)
            return
        spared = None if caches or self._memory is None else self._memory.spared[: len(lives)]
        fed = plan.positions >= 0 if spared is None else (plan.positions >= 0) & ~spared[:, None]
        self.stats.travelled(fed.sum(1).tolist())
        no_number = offer.log_prob.isnan().any(1).tolist()  # where nothing was asked it is a number
        asks = (plan.targets >= 0).any(1).tolist()
        for live, bad in zip(lives, no_number, strict=True):
            if bad:
                self._fail(live, RequestFailed("the network gave no numbers for this request (NaN)"))
        traces = {live.row: live.reading.trace for live in lives if live.reading is not None}
        for crowd, index in by_crowd(lives):
            some = [i for i in index if asks[i] and not no_number[i]]
            if some:
                part, offered, idle = plan, offer, spared
                if len(some) < len(lives):
                    these = _index(plan, some)
                    part, offered, idle = plan.take(these), offer.take(these), None if idle is None else idle[these]
                if not crowd.decoder.window.exact:
                    self._staleness.note(self.canvas, part)
                turn = control.settle(self._holes, self.canvas, crowd.decide(offered, part), anew=crowd.decoder.anew)
                turn, resizes = resize.decide(turn, growing([lives[i] for i in some]))
                self.canvas.apply(turn.plan, turn.edit, turn.offer, idle)
                if turn.edit.misread is not None:
                    self.room.trim(turn.plan.rows, turn.edit.misread)
                record(traces, self.canvas, turn)
                for live in (lives[i] for i in some if lives[i].row in resizes):
                    assert self._sampling is not None
                    found = resizes[live.row]
                    self._own[live.row] = live.resize(found, self.canvas, self._holes, self._sampling.part)
        self._settle([live for live, bad in zip(lives, no_number, strict=True) if not bad], caches=caches)

    def _propose(self, lives: Sequence[Live], plan: Plan, *, caches: bool) -> Proposal:
        crowds = by_crowd(lives)
        reads = frozenset[str]().union(*(crowd.decoder.reads for crowd, _ in crowds))
        if len(crowds) == 1:
            asked = crowds[0][0].decoder.asks(plan)
        else:
            asked = torch.zeros_like(plan.targets, dtype=torch.bool)
            for crowd, index in crowds:
                these = _index(plan, index)
                asked[these] = crowd.decoder.asks(plan.take(these))
        model: Denoiser = self.model if caches or self._memory is None else self._memory
        if any(live.request.decoder.guidance for live in lives):
            model = guidance.Guided(model, self._guidance, self.canvas.state == State.FIXED)
        assert self._sampling is not None
        anew = torch.tensor([live.request.decoder.anew for live in lives], device=asked.device)
        by_row = {live.row: live for live in lives}
        heard = Heard(model)
        offer = self._auditor.propose(
            heard,
            plan,
            self._sampling.part,
            cache=self.room.cache if caches else None,
            asked=asked,
            reads=reads,
            whole=lambda rows: plans([by_row[row] for row in rows.tolist()], self.canvas, self.model, None),
            control=control.Control.over(self._holes, self.canvas, plan, asked, anew),
        )
        resize.listen(heard, plan, growing(lives))
        return offer

    def _settle(self, lives: Sequence[Live], *, caches: bool) -> None:
        """Rows that need not go on are ended, and what was read can be found by others."""
        held = self.room.cache.held.tolist() if caches and self.room.cache is not None else []
        for live in lives:
            assert live.reading is not None
            if live.request.stops and live.reading.stopped(live.request.stops):
                self.canvas.stop(_index(self.canvas, [live.row]))
            if caches:
                self.room.publish(live.row, self.canvas.tokens, held[live.row])
        self.widths.learn(lives)
        rows = _index(self.canvas, [live.row for live in lives])
        full = ((self.canvas.filled >= self._own) & ~self._revises)[rows]
        self.canvas.stop(rows[full])  # what will be cut need not be written

    def _finish(self) -> None:
        """Tell what is new, and let those go that are done."""
        lives = list(self._running.values())
        if not lives:
            return
        canvas, readings = self.canvas, [live.reading for live in lives if live.reading is not None]
        sealed, filled, lengths = (column.tolist() for column in (canvas.sealed, canvas.filled, canvas.length))
        until = [(sealed if reading.revises else filled)[reading.row] for reading in readings]
        texts = between(readings, [live.told for live in lives], until)
        for live, end, news in zip(lives, until, texts, strict=True):
            assert live.reading is not None
            done = sealed[live.row] >= lengths[live.row]
            live.told = max(live.told, end)
            result = live.reading.result() if done else None
            if result is not None and live.chase is not None:
                result = replace(result, eased=self._pace.told(live.chase, int(canvas.turn[live.row])))
            if news or done:
                self._over.append(Delta(id=live.id, tokens=news, result=result, reused=live.reused or 0))
            if result is not None:
                self.stats.hear(result)
                self._leave(live)

    def _blamed(self, error: Exception, lives: Sequence[Live]) -> tuple[range, ...]:
        """Halves of rows that have failed together, to be tried by themselves; one that has failed alone goes."""
        if len(lives) > 1:
            return range(len(lives) // 2), range(len(lives) // 2, len(lives))
        failed = RequestFailed(f"a forward failed: {type(error).__name__}: {error}")
        self._fail(lives[0], error if isinstance(error, UnmaskError) else failed)
        return ()

    def _fail(self, live: Live, error: UnmaskError) -> None:
        self.stats.failed += 1
        self._over.append(Delta(id=live.id, error=error))
        self._leave(live, spoilt=True)

    def _leave(self, live: Live, *, spoilt: bool = False) -> None:
        """A request is no more: its place and its pages are free, and its crowd goes with the last of its kind."""
        if live.row < 0:
            self._waiting.remove(live)
        else:
            self.widths.leave(live.id)
            self._staleness.leave(live.row)
            self.room.close(live.row, spoilt=spoilt)
            self.canvas.stop(_index(self.canvas, [live.row]))
            self._holes.leave(live.row)
            self._biases.set(live.row, ())
            del self._running[live.id]
            self._free.append(live.row)
        if not any(one.crowd is live.crowd for one in [*self._running.values(), *self._waiting]):
            del self._crowds[kind(live.request.decoder)]

    def _gauge(self) -> None:
        stats, pool = self.stats, self.room.pool
        stats.audited, stats.glimpsed = self._auditor.forwards, self._staleness.positions
        stats.waiting, stats.running, stats.pages_held = len(self._waiting), len(self._running), self.room.num_held
        stats.pages_idle = 0 if pool is None else pool.num_idle


def _index(like: Plan | Canvas, values: Sequence[int]) -> Tensor:
    """An index tensor on the device of a plan or a canvas."""
    where = like.rows.device if isinstance(like, Plan) else like.tokens.device
    return torch.tensor(values, dtype=torch.int64, device=where)
