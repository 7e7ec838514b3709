"""Rows whose length is found while they are written: the loop's side and the engine's side of a rule of `growth`.

After a forward the rule is told what it wants to know (`listen`), after the policies it says what becomes of the row
(`decide`), and once the step is written down the row's canvas, layout, constraints and trace take their new positions
(`carry_out`). All of it is a function of the row, so a row grows alike in any company. It is read anew as a whole from
then on, so only a window that keeps nothing between forwards will do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unmask.base.canvas import Canvas, border
from unmask.base.denoiser import Denoiser
from unmask.base.errors import BadInput, TooLong, Unsupported
from unmask.base.step import Plan, State, Turn
from unmask.base.vocab import Vocab
from unmask.constrain.holes import Holes, Span
from unmask.decode.control import contradiction
from unmask.decode.decoder import Decoder
from unmask.decode.growth.row import Growing, Resize
from unmask.decode.heard import Heard
from unmask.decode.propose import CHUNK_ELEMENTS, Sampling
from unmask.decode.reading import Reading
from unmask.decode.windows import Whole
from unmask.decode.windows.whole import active
from unmask.text.layout import Layout


def begin(layout: Layout, decoder: Decoder, spans: Sequence[Span], vocab: Vocab) -> Growing | None:
    """The row as one that may grow; None where no gap of it may."""
    if decoder.growth is None or vocab.mask is None or all(gap.bounds is None for gap in layout.gaps):
        return None
    return Growing(decoder.growth, vocab.mask, layout, spans)


def check(layout: Layout, decoder: Decoder, spans: Sequence[Span], model: Denoiser) -> None:
    """Raise for a row that can't grow as it is asked to, before any forward.

    Raises:
        BadInput: bounds that the gap does not keep at its start, or that there is no rule for.
        TooLong: it could grow beyond what the model holds.
        Unsupported: a row, a decoder or a model that growth does not go with; the message says which.
    """
    bounds = [gap.bounds for gap in layout.gaps if gap.bounds is not None]
    if not bounds:
        return
    rule, traits, window, gap = decoder.growth, model.traits, decoder.window, layout.gaps[0]
    if rule is None:
        raise BadInput("a gap has bounds, and the decoder has no rule for its length; give it one (lengths=)")
    if len(layout.gaps) > 1:
        raise Unsupported(f"one gap of a text may grow, and this one has {len(layout.gaps)}; use lengths='try'")
    (low, high), size = bounds[0], gap.size
    if not 1 <= low <= size <= high:
        raise BadInput(f"a gap of {low} to {high} positions can't have {size} at first")
    if not all(layout.is_open[gap.start : gap.stop]):
        raise Unsupported("pinned positions would move in a text that grows; leave out the pins, or lengths=")
    if layout.most > model.max_length:
        raise TooLong(f"the row could grow to {layout.most} positions, and the model holds {model.max_length}")
    if traits.sees != "all" or traits.noise != "absorb" or traits.says != "clean" or traits.clock:
        raise Unsupported(
            "text grows under models that see both sides, fill masks and are told no time; leave out lengths= here"
        )
    if not isinstance(window, Whole) or decoder.revises or decoder.lookahead:
        raise Unsupported(
            "text grows in the window whole, under policies that take nothing back, without lookahead: what others "
            "keep or plan would be of other positions"
        )
    if window.steps is not None:
        raise Unsupported("steps are shared out over positions, and nobody knows how many there will be; leave it out")
    if rule.listens and not decoder.sampling.no_end_before < layout.most:
        raise Unsupported("this text may not end before it is full, and it grows until it would; use lengths='try'")
    rule.check(layout, model.vocab, constrained=bool(spans))


def listen(heard: Heard, plan: Plan, rows: Mapping[int, Growing]) -> None:
    """Note down how sure the network is, after a forward, that these rows of a plan have come to an end."""
    for i, row in enumerate(plan.rows.tolist() if rows else ()):
        if (one := rows.get(row)) is not None and one.rule.listens and one.room:
            one.ending = _ending(heard, heard.features[i], one)


def _ending(model: Heard, features: Tensor, row: Growing) -> float:
    """Mean probability of an end of text over the last places where the network takes one for the most likely token.

    Features (W, D) are of a forward that feeds the whole row. Where there are fewer places than the rule listens at,
    those that lack count as 0.
    """
    vocab, shift, most = model.vocab, int(model.traits.speaks == "next"), row.rule.listens
    ends = torch.tensor(vocab.ends, device=features.device)
    places = torch.arange(row.gap.start, row.gap.stop, device=features.device).flip(0)
    total, count = 0.0, 0
    for part in places.split(max(1, CHUNK_ELEMENTS // vocab.size)):
        logits = model.head(features[(part - shift).clamp(min=0)]).double()
        if vocab.mask is not None:
            logits[:, vocab.mask] = -torch.inf
        sure = logits.softmax(-1)[:, ends].sum(-1)[torch.isin(logits.argmax(-1), ends)][: most - count]
        total, count = total + float(sure.sum()), count + len(sure)
        if count >= most:
            break
    return total / most


def decide(turn: Turn, rows: Mapping[int, Growing]) -> tuple[Turn, dict[int, Resize]]:
    """The turn without what is not written after all, and what becomes of its rows, by canvas row."""
    found: dict[int, Resize] = {}
    if not rows:
        return turn, found
    plan, edit = turn.plan, turn.edit
    for i, row in enumerate(plan.rows.tolist()):
        one = rows.get(row)
        if one is None or (resize := one.rule(one, turn, i)) is None:
            continue
        found[row] = resize
        if resize.void is not None:
            tokens, state = edit.tokens.clone(), edit.state.clone()
            tokens[i] = torch.where(resize.void, plan.standing[i], tokens[i])
            state[i] = torch.where(resize.void, plan.state[i], state[i])
            edit = replace(edit, tokens=tokens, state=state)
    return replace(turn, edit=edit), found


def carry_out(
    resize: Resize, canvas: Canvas, row: int, one: Growing, decoder: Decoder, reading: Reading, holes: Holes | None
) -> None:
    """Give a row its new positions. A text that could then not meet its constraint any more keeps those that it has.

    Args:
        resize: what `decide` has found.
        canvas, row: where it stands.
        one: the row.
        decoder, reading: its own.
        holes: constraints of all rows.
    """
    source = resize.source
    if resize.token is None:
        other = canvas.resized(row, source, token=one.mask)
    else:
        other = canvas.resized(row, source, token=resize.token, state=State.DONE)
    spans = [replace(s, start=border(source, s.start), stop=border(source, s.stop)) for s in one.spans]
    if holes is not None and spans and contradiction(spans, other, holes.spell) is not None:
        one.settled = True
        return
    canvas.enter(row, other)
    one.grown += max(0, len(source) - len(one.layout.tokens))
    one.layout, one.spans = one.layout.resized(source), spans
    reading.resized(one.layout, source)
    if holes is not None and spans:
        holes.enter(row, spans)
    rows = torch.tensor([row], device=canvas.tokens.device)
    if not bool(canvas.open[row].any()):  # the last that were open are no more
        canvas.stop(rows)
        return
    # as many steps are left as there are open positions in its region
    start, end, steps = active(canvas, rows, getattr(decoder.window, "block", None), None)
    places = torch.arange(canvas.tokens.shape[1], device=rows.device)
    left = (canvas.open[row] & (places >= start) & (places < end)).sum()
    canvas.step[row] = (steps[0] - left).clamp(min=0)


def sampling(own: Sampling, rows: Mapping[int, Growing], num_rows: int, device: torch.device) -> Sampling:
    """What tokens of a canvas are drawn by, where some of its rows grow."""
    if not rows:
        return own
    zeros = torch.zeros(num_rows, dtype=torch.float64, device=device)
    found = replace(own, expands=zeros, deletes=zeros.clone())
    for row, one in rows.items():
        allow(found, row, one)
    return found


def allow(sampling: Sampling, row: int, one: Growing | None) -> None:
    """Let a row have the tokens that resize it, as far as its rule says so; `sampling` has knobs over rows."""
    expands, deletes = (False, False) if one is None else one.rule.may(one)
    for knob, may in ((sampling.expands, expands), (sampling.deletes, deletes)):
        assert torch.is_tensor(knob)
        knob[row] = float(may)
