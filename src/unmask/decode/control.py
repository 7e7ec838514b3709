"""Constraints on a step: what its targets may hold, what goes together, and which edits can stand.

The decoder asks `unmask.constrain.holes`; policies choose positions and know nothing of it. All open targets of a row
get their candidates from one joint answer, so whichever of them a policy takes, and whatever it takes back, the rest
can still be written. Only tokens that take the place of written ones may not go together, and of these as many stand
as do, the surest first.

It does not know what the automata are of.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from unmask.base.canvas import Canvas
from unmask.base.errors import BadInput, Unsupported
from unmask.base.step import Plan, State, Turn
from unmask.constrain.holes import Holes, Span
from unmask.decode import windows
from unmask.decode.decoder import Decoder


def check(decoder: Decoder, spans: Sequence[Span], canvas: Canvas, spell: Sequence[bytes]) -> None:
    """Raise for what can never be written, before any forward.

    Args:
        decoder: how to write it.
        spans: of the only row of `canvas`.
        spell: the bytes of each token, for reasons.
    Raises:
        Unsupported: a decoder that writes ahead of itself.
        BadInput: no text fits; the message says which length or which pin makes it so.
    """
    if not spans:
        return
    if decoder.lookahead:
        raise Unsupported("steps of a constrained text can't be guessed ahead; leave lookahead out")
    if isinstance(decoder.window, windows.Draft):
        raise Unsupported("a constrained text can't be drafted and verified; use another decoder, like 'ar'")
    for span in spans:
        if len(span.automaton.class_of) != len(spell) or span.stop > canvas.tokens.shape[1]:
            raise BadInput(
                f"a constraint over {len(span.automaton.class_of)} tokens on positions up to {span.stop} is not for "
                f"this model, which has {len(spell)}, and this row, which has {canvas.tokens.shape[1]}"
            )
    if (reason := contradiction(spans, canvas, spell)) is not None:
        raise BadInput(f"the constraint can't be met: {reason}")


def contradiction(spans: Sequence[Span], canvas: Canvas, spell: Sequence[bytes]) -> str | None:
    """Why the only row of a canvas can't be filled, or None if it can."""
    holes = Holes(spell)
    holes.enter(0, spans)
    holes.update(canvas.tokens, canvas.state)
    return None if bool(holes.feasible(torch.tensor([0])).all()) else holes.why(0, canvas.tokens[0])


@dataclass(slots=True, kw_only=True)
class Control:
    """What constraints say about the targets of one plan; N of them lie in spans.

    Args:
        holes: the constraints of all rows.
        at: (N,) each, which rows and targets of the plan these are; rising in each row.
        rows, positions: (N,) on the CPU, where they are on the canvas.
        asked: (R, T) bool, the targets that need an offer: all that are open in spans, so that answers are exact.
        together: (N,) bool, those whose candidates come from one joint answer; the others are written already.
        anew: (N,) bool, those of rows that keep nothing from step to step.
        mask: (N, V) bool, what may stand there.
    """

    holes: Holes
    at: tuple[Tensor, Tensor]
    rows: Tensor
    positions: Tensor
    asked: Tensor
    together: Tensor
    anew: Tensor
    mask: Tensor
    place: Tensor = field(init=False)
    logits: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.place = torch.full_like(self.asked, -1, dtype=torch.int64)
        self.place[self.at] = torch.arange(len(self.rows), device=self.place.device)
        self.logits = torch.empty(self.mask.shape, dtype=torch.float64, device=self.mask.device)

    @classmethod
    def over(cls, holes: Holes, canvas: Canvas, plan: Plan, asked: Tensor, anew: Tensor) -> "Control | None":
        """Read the canvas; None where no row of the plan is constrained.

        Args:
            asked: (R, T) bool, what policies ask about.
            anew: (R,) bool, rows whose policies keep nothing of a region from step to step.
        """
        if holes.rows.isdisjoint(rows := plan.rows.tolist()):
            return None
        state, there = canvas.state, plan.targets >= 0
        again = anew[:, None] & there & (plan.state == State.DONE)
        if bool(again.any()):
            r, i = again.nonzero(as_tuple=True)
            state = state.clone()
            state[plan.rows[r], plan.targets[r, i]] = State.OPEN
        holes.update(canvas.tokens, state, rows)
        every = plan.rows[:, None].expand_as(plan.targets).flatten().cpu()
        held = there & holes.covers(every, plan.targets.flatten().cpu()).view(there.shape).to(there.device)
        asked = asked | (held & (plan.state == State.OPEN))
        r, i = (held & asked).nonzero(as_tuple=True)
        cells = plan.rows[r].cpu(), plan.targets[r, i].cpu()
        return cls(
            holes=holes,
            at=(r, i),
            rows=cells[0],
            positions=cells[1],
            asked=asked,
            together=((plan.state == State.OPEN) | again)[r, i],
            anew=anew[r],
            mask=holes.allow(*cells).to(asked.device),
        )

    def hear(self, r: Tensor, i: Tensor, logits: Tensor) -> None:
        """Take out of logits (N, V) of some rows and targets, in place, what may not stand there, and remember them."""
        place = self.place[r, i]
        some = (place >= 0).nonzero()[:, 0]
        if len(some):
            logits[some] = logits[some].masked_fill(~self.mask[place[some]], -torch.inf)
            self.logits[place[some]] = logits[some]

    def choose(self, offer: dict[str, Tensor], plan: Plan, kept: Tensor, temperature: Tensor) -> None:
        """Put candidates that go together into an offer.

        Args:
            offer: columns (R, T) of a `Proposal`, of each target by itself.
            kept: (N, V) the logits that are left by top-k and top-p. Others are taken where nothing else goes together.
            temperature: (N,).
        """
        numbers = self.together & ~kept.isnan().any(1)
        drawn = numbers & (temperature > 0)
        if bool(drawn.any()):
            r, i = (x[drawn] for x in self.at)
            warm = kept[drawn] / temperature[drawn, None].clamp(min=1e-6)
            keys = plan.seed[r].cpu(), plan.turn[r, i].cpu()
            self._put(offer, ("tokens", "log_prob"), drawn, kept, self.holes.sample(*self._cells(drawn), warm, *keys))
        greedy = numbers & (temperature <= 0)
        if bool(greedy.any()):
            self._put(offer, ("tokens", "log_prob"), greedy, kept, self._best(greedy, kept))
        final = numbers & self.anew
        if bool(final.any()):
            self._put(offer, ("best", "top"), final, kept, self._best(final, kept))

    def _best(self, which: Tensor, kept: Tensor) -> Tensor:
        return self.holes.fill(*self._cells(which), kept[which])

    def _cells(self, which: Tensor) -> tuple[Tensor, Tensor]:
        return self.rows[which.cpu()], self.positions[which.cpu()]

    def _put(self, offer: dict[str, Tensor], names: tuple[str, str], which: Tensor, kept: Tensor, told: Tensor) -> None:
        """Tokens (M,) and their nats; of what top-k or top-p took out, those that it would have without them."""
        tokens, values, r, i = told.to(kept.device)[:, None], kept[which], self.at[0][which], self.at[1][which]
        found = (values.gather(1, tokens) - values.max(1, keepdim=True).values)[:, 0] + offer["top"][r, i]
        if bool((out := found.isinf()).any()):
            found[out] = self.logits[which][out].log_softmax(-1).gather(1, tokens[out])[:, 0]
        offer[names[0]][r, i], offer[names[1]][r, i] = tokens[:, 0], found


def settle(holes: Holes, canvas: Canvas, turn: Turn, *, anew: bool) -> Turn:
    """The turn, with only those written tokens replaced that leave a text that can be completed.

    What is written to open targets can, and what is taken back only leaves more ways; see `Control`. A replacement is
    possible by itself, but perhaps not beside others.

    Args:
        anew: whether the decoder keeps nothing from step to step; what it writes then goes together.
    """
    plan, edit = turn.plan, turn.edit
    if anew or not holes.rows:
        return turn
    replaced = (plan.state == State.DONE) & (edit.state == State.DONE) & (edit.tokens != plan.standing)
    which = [i for i in replaced.any(1).nonzero()[:, 0].tolist() if int(plan.rows[i]) in holes.rows]
    if not which:
        return turn
    kept, (tokens, state) = edit.tokens.clone(), (canvas.tokens.clone(), canvas.state.clone())
    for i in which:
        row, there = int(plan.rows[i]), plan.targets[i] >= 0
        moved = replaced[i].nonzero()[:, 0]
        order = moved[turn.offer.log_prob[i, moved].argsort(descending=True, stable=True)].tolist()
        state[row, plan.targets[i, there]] = edit.state[i, there]

        def fits(row: int = row, i: int = i, there: Tensor = there) -> bool:
            tokens[row, plan.targets[i, there]] = kept[i, there]
            holes.update(tokens, state, [row])
            return bool(holes.feasible(torch.tensor([row])).all())

        if fits():
            continue
        kept[i] = torch.where(replaced[i], plan.standing[i], kept[i])
        for target in order:
            kept[i, target] = edit.tokens[i, target]
            if not fits():
                kept[i, target] = plan.standing[i, target]
    return replace(turn, edit=replace(edit, tokens=kept))
