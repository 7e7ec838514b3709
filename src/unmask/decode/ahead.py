"""Steps guessed ahead and checked in the forward that is made anyway: the same text in fewer forwards.

What the model held at its last look tells what the next steps would write if it changed its mind about nothing. The
policies themselves make these guesses, and the texts that come out travel beside the one that stands. Where a step
turns out as guessed, the forward has already seen what comes of it, and the next one is decided too. What is decided,
and from what, is as if there had been no guesses, and never in more forwards: a row whose text `Remembering` knows
makes no guesses, and no forward is made for a text that would have had none without them.

Source: the idea is that of SSD (Gao et al. 2025, arXiv:2510.04147) and Spiffy (Agrawal et al. 2025, arXiv:2509.18085),
where the guesses are made for the one-token rule; here they form one chain (no tree), made by any policies.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from unmask.base.attend import NOBODY
from unmask.base.canvas import Canvas
from unmask.base.step import Edit, Plan, Proposal, State, Turn
from unmask.decode.parts import Parts
from unmask.decode.windows.shadows import beside

Policy = Callable[[Proposal, Plan], Edit]


def guess(plan: Plan, canvas: Canvas, policy: Policy, count: int, *, whole: bool, shift: int) -> Plan:
    """The plan that looks at guesses too: `count` further texts, whose targets stand between those of the first.

    Args:
        plan: what is looked at anyway.
        canvas: the text.
        policy: what decides.
        count: steps to guess.
        whole: whether all that is fed depends on the targets, or they alone.
        shift: as in `look`.
    """
    # where nothing was written the last time, the network need not be asked again, and would be for the guesses only
    texts, there = [plan], plan.took != 0 if whole else torch.ones_like(plan.rows, dtype=torch.bool)
    for _ in range(count):
        now = texts[-1]
        held = _believed(now, canvas)
        edit = policy(held, now)
        there = there & held.asked.any(1) & (edit.state == State.OPEN).any(1)
        t, s = later(plan, len(texts))
        texts.append(
            replace(
                now,
                targets=now.targets.masked_fill(~there[:, None], NOBODY),
                state=edit.state.masked_fill(~there[:, None], State.ABSENT),
                standing=edit.tokens,
                turn=now.turn + 1,
                level=t[:, None].expand_as(now.level),
                left=now.left - 1,
                t=t,
                s=s,
            )
        )
    start = torch.zeros_like(plan.rows) if whole else plan.targets[:, 0]
    stop = (plan.positions if whole else plan.targets).amax(1) + 1
    # a step that writes nothing makes no new text: what was said of the one before is said of it
    new = [(b.state != a.state).any(1, keepdim=True) for a, b in pairwise(texts)]
    tokens = [_text(canvas, text, whole=whole).where(grew, NOBODY) for text, grew in zip(texts[1:], new, strict=True)]
    guessed = torch.stack(tokens, dim=1)
    lanes, at = beside(plan, start, stop, guessed, kind="texts")
    wanted = (plan.targets - shift).clamp(min=0) - start[:, None]
    for i, grew in enumerate(new):
        own = torch.where(wanted >= 0, at[:, i, None] + wanted, plan.source)
        texts[i + 1] = replace(texts[i + 1], source=torch.where(grew, own, texts[i].source))
    names = ("targets", "state", "standing", "last", "source", "turn", "level")
    columns: dict[str, Any] = {n: torch.stack([getattr(x, n) for x in texts], dim=2).flatten(1) for n in names}
    return replace(lanes, **columns)


def decide(offer: Proposal, plan: Plan, policy: Policy, count: int, ends: tuple[int, ...]) -> Turn:
    """The steps that turn out as guessed and the one after them, as one turn.

    Args:
        offer, plan: of a plan that `guess` made.
        policy, count: as there.
        ends: ids that end a text: what would be behind is not there any more, so no step is taken over from there.
    """
    num, size = count + 1, plan.targets.shape[1] // (count + 1)
    columns = (torch.arange(size)[None] * num + torch.arange(num)[:, None]).to(plan.rows.device)
    steps = torch.arange(num, device=plan.rows.device)
    t, s = (torch.stack(times, dim=1) for times in zip(*(later(plan, i) for i in range(num)), strict=True))
    columns = columns.expand(len(plan.rows), num, size)
    parts = Parts(columns=columns, t=t, s=s, left=plan.left[:, None] - steps, due=plan.due[:, None].expand(-1, num))
    asked, offered = parts.plan(plan), parts.offer(offer)
    edit = policy(offered, asked)

    def apart(x: Tensor) -> Tensor:
        return x.view(len(plan.rows), num, size, *x.shape[2:])

    tokens, state, old = apart(edit.tokens), apart(edit.state), apart(asked.state)
    there = apart(asked.targets) >= 0
    ended = (torch.isin(tokens, torch.tensor(ends, device=tokens.device)) & (state == State.DONE)).any(2)
    same = (state[:, :-1] == old[:, 1:]) & ((tokens[:, :-1] == apart(asked.standing)[:, 1:]) | ~there[:, 1:])
    right = (same | ~there[:, 1:]).all(2) & there[:, 1:].any(2) & ~ended[:, :-1]
    taken = right.cumprod(1).sum(1)  # (R,) guesses that were right
    # each target is told of as the step saw it that wrote it, those that stay open as the last one did
    wrote = (old == State.OPEN) & (state == State.DONE) & (steps <= taken[:, None])[:, :, None]
    which = torch.where(wrote.any(1), wrote.int().argmax(1), taken[:, None])

    every = torch.arange(len(plan.rows), device=which.device)[:, None], torch.arange(size, device=which.device)

    def told(x: Tensor) -> Tensor:
        return apart(x)[every[0], which, every[1]]

    last = taken[:, None, None].expand(-1, 1, size)
    columns_of = {f.name: getattr(offered, f.name) for f in fields(offered)}
    first: dict[str, Any] = {n: apart(getattr(asked, n))[:, 0] for n in ("targets", "state", "standing", "last")}
    return Turn(
        replace(plan, **first, turn=told(asked.turn)),
        replace(offered, **{name: told(x) for name, x in columns_of.items() if x is not None}),
        Edit(
            tokens=tokens.gather(1, last)[:, 0],
            state=state.gather(1, last)[:, 0],
            settled=edit.settled.view(-1, num).gather(1, taken[:, None])[:, 0],
            steps=taken + 1,
        ),
    )


def later(plan: Plan, count: int) -> tuple[Tensor, Tensor]:
    """(R,) noise levels before and after the step that comes `count` steps later, as `look` would give them."""
    left, stride = ((x * plan.steps).round().long() for x in (plan.t, plan.t - plan.s))
    before = (left - count * stride).clamp(min=0)
    return (before / plan.steps).double(), ((before - stride).clamp(min=0) / plan.steps).double()


def _believed(plan: Plan, canvas: Canvas) -> Proposal:
    """What the model would offer if it still held what it held at its last look; nothing where it has not looked."""
    at = plan.targets.clamp(min=0)
    best, top = canvas.best[plan.rows].gather(1, at), canvas.top[plan.rows].gather(1, at)
    known = (plan.state == State.OPEN) & (best >= 0)
    sure = top.exp()
    return Proposal(
        asked=known,
        is_open=known,
        tokens=best,
        log_prob=top,
        best=best,
        top=top,
        entropy=-top,
        margin=sure,
        standing=torch.full_like(top, -torch.inf),
    )


def _text(canvas: Canvas, text: Plan, *, whole: bool) -> Tensor:
    """(R, N) what stands at the targets of a guess, or in all of its row; negative where there is none."""
    if not whole:
        return text.standing.where(text.targets >= 0, NOBODY)
    row = canvas.tokens[text.rows].clone()
    r, i = (text.targets >= 0).nonzero(as_tuple=True)
    row[r, text.targets[r, i]] = text.standing[r, i]
    return row.where((text.targets >= 0).any(1)[:, None], NOBODY)
