"""Constraints on a step: what its targets may hold, what goes together, and which edits can stand.

The decoder asks `unmask.constrain.holes`; policies choose positions and know nothing of it. All open targets of a row
get their candidates from one joint answer, so whichever of them a policy takes, and whatever it takes back, the rest
can still be written. Only tokens that take the place of written ones may not go together, and of these as many stand
as do, the surest first.

It does not know what the automata are of.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from unmask.base.canvas import Canvas
from unmask.base.errors import BadInput, Unsupported
from unmask.base.step import Plan, State, Turn
from unmask.constrain.holes import Holes, Span
from unmask.constrain.joint.question import Question
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


@dataclass(slots=True, kw_only=True, eq=False)
class Control:
    """What constraints say about the targets of one plan; N of them lie in spans.

    Args:
        question: the constraints of these targets.
        at: (N,) each, which rows and targets of the plan these are; rising in each row.
        place: (R, T) which of the N a target is, or -1.
        asked: (R, T) bool, the targets that need an offer: where policies ask about a row, all that are open in its
            spans, so that answers are exact.
        together: (N,) bool, those whose candidates come from one joint answer; the others are written already, or what
            may stand there is all that there is to say.
        anew: (N,) bool, those of rows that keep nothing from step to step.
    """

    question: Question
    at: tuple[Tensor, Tensor]
    place: Tensor
    asked: Tensor
    together: Tensor
    anew: Tensor

    @classmethod
    def over(cls, holes: Holes, canvas: Canvas, plan: Plan, asked: Tensor, anew: Tensor) -> "Control | None":
        """Read the canvas; None where no row of the plan is constrained.

        Args:
            asked: (R, T) bool, what policies ask about.
            anew: (R,) bool, rows whose policies keep nothing of a region from step to step.
        """
        if not holes.rows or holes.rows.isdisjoint(rows := plan.rows.tolist()):
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
        is_open = held & (plan.state == State.OPEN)
        asked = asked | (is_open & (asked & (is_open | again)).any(1, keepdim=True))
        r, i = (held & asked).nonzero(as_tuple=True)
        place = torch.full_like(plan.targets, -1)
        place[r, i] = torch.arange(len(r), device=r.device)
        question = holes.ask(plan.rows[r].cpu(), plan.targets[r, i].cpu())
        return cls(
            question=question,
            at=(r, i),
            place=place,
            asked=asked,
            together=((plan.state == State.OPEN) | again)[r, i] & ~torch.from_numpy(question.alone).to(r.device),
            anew=anew[r],
        )

    def bar(self, r: Tensor, i: Tensor, logits: Tensor) -> None:
        """Take out of logits (M, V) of some rows and targets, in place, what may not stand there."""
        place = self.place[r, i]
        some = (place >= 0).nonzero()[:, 0]
        if not len(some):
            return
        every, cells = len(some) == len(place), place[some].cpu().numpy()
        part = logits if every else logits[some]
        self.question.bar(cells, part)
        if not every:
            logits[some] = part

    def hear(self, r: Tensor, i: Tensor, logits: Tensor, left: Tensor, warm: Tensor) -> Tensor:
        """Remember what is said of targets (M,) that are answered together, and what they are to be drawn at here.

        Args:
            logits: (M, V) of what may stand there.
            left: the same with -inf for what top-k or top-p take out; that is written where nothing else goes together.
            warm: (M, 1) temperatures.
        Returns:
            (M, 1) the temperatures, 0 for targets that are drawn together: what they are alone is of no use.
        """
        place = self.place[r, i]
        held = (place >= 0).nonzero()[:, 0]
        some = held[self.together[place[held]]]
        if not len(some):
            return warm
        every, cells = len(some) == len(place), place[some]
        self.question.hear(
            cells.cpu().numpy(),
            logits if every else logits[some],
            warm[some, 0].cpu().numpy(),
            best=((warm[some, 0] <= 0) | self.anew[cells]).cpu().numpy(),
            left=None if left is logits else left if every else left[some],
        )
        return warm.index_fill(0, some, 0.0)

    def choose(self, offer: dict[str, Tensor], plan: Plan, warm: Tensor) -> None:
        """Put candidates that go together into an offer.

        Args:
            offer: columns (R, T) of a `Proposal`, of each target by itself.
            warm: (N,) temperatures.
        """
        numbers = self.together & torch.from_numpy(self.question.heard).to(warm.device)
        drawn, greedy, final = numbers & (warm > 0), numbers & (warm <= 0), numbers & self.anew
        if bool(drawn.any()):
            r, i = self.at
            told = self.question.sample(drawn.cpu().numpy(), plan.seed[r], plan.turn[r, i])
            self._put(offer, ("tokens", "log_prob"), drawn, told)
        for which, names in ((greedy, ("tokens", "log_prob")), (final, ("best", "top"))):
            if bool(which.any()):
                self._put(offer, names, which, self.question.fill(which.cpu().numpy()))

    def _put(self, offer: dict[str, Tensor], names: tuple[str, str], which: Tensor, told: np.ndarray) -> None:
        """Tokens (M,) and their nats; of what top-k or top-p took out, those that it would have without them."""
        r, i = (x[which] for x in self.at)
        nats, left = (torch.from_numpy(x).to(r.device) for x in self.question.nats(_numbers(which), told))
        offer[names[0]][r, i] = torch.from_numpy(told).to(r.device)
        offer[names[1]][r, i] = torch.where(left, nats + offer["top"][r, i], nats)


def _numbers(which: Tensor) -> np.ndarray:
    found: np.ndarray = which.nonzero()[:, 0].cpu().numpy()
    return found


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
    held = torch.tensor(sorted(holes.rows), device=plan.rows.device)
    some = (replaced.any(1) & torch.isin(plan.rows, held)).nonzero()[:, 0]
    if not len(some):
        return turn
    kept, (tokens, state) = edit.tokens.clone(), (canvas.tokens.clone(), canvas.state.clone())
    r, i = (plan.targets[some] >= 0).nonzero(as_tuple=True)
    cells = plan.rows[some[r]], plan.targets[some[r], i]
    tokens[cells], state[cells] = kept[some[r], i], edit.state[some[r], i]
    holes.update(tokens, state, plan.rows[some].tolist())
    for i in some[~holes.feasible(plan.rows[some])].tolist():
        row, there = int(plan.rows[i]), plan.targets[i] >= 0
        moved = replaced[i].nonzero()[:, 0]
        order = moved[turn.offer.log_prob[i, moved].argsort(descending=True, stable=True)].tolist()

        def fits(row: int = row, i: int = i, there: Tensor = there) -> bool:
            tokens[row, plan.targets[i, there]] = kept[i, there]
            holes.update(tokens, state, [row])
            return bool(holes.feasible(torch.tensor([row])).all())

        kept[i] = torch.where(replaced[i], plan.standing[i], kept[i])
        for target in order:
            kept[i, target] = edit.tokens[i, target]
            if not fits():
                kept[i, target] = plan.standing[i, target]
    return replace(turn, edit=replace(edit, tokens=kept))
