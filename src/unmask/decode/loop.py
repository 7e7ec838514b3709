"""The one loop: look, propose, decide, write. Every decoder of the field is this with another window and policy.

It does not know text, requests or files.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from unmask.base.canvas import Canvas
from unmask.base.denoiser import Denoiser
from unmask.base.errors import BadInput
from unmask.base.step import Plan, State, Turn
from unmask.constrain.holes import Holes
from unmask.decode import control, resize
from unmask.decode.audit import Auditor
from unmask.decode.decoder import Decoder
from unmask.decode.growth.row import Growing
from unmask.decode.guidance import Guided
from unmask.decode.heard import Heard
from unmask.decode.memory import Remembering
from unmask.decode.propose import propose
from unmask.decode.reading import Reading
from unmask.decode.staleness import Staleness, check


@torch.inference_mode()
def denoise(
    model: Denoiser,
    canvas: Canvas,
    decoder: Decoder,
    auditor: Auditor | None = None,
    holes: Holes | None = None,
    growing: Mapping[int, tuple[Growing, Reading]] | None = None,
) -> Iterator[Turn]:
    """Fill a canvas, turn by turn, until every row is done.

    Args:
        model: the network.
        canvas: the text; changed in place.
        decoder: window, policies and sampling.
        auditor: measures drift on the way, of the rows that have joined it.
        holes: constraints of rows, each of which can be met; see `unmask.decode.control.check`.
        growing: rows that may grow, each of which may as it is asked to (`unmask.decode.resize.check`), and who reads
            them.
    Yields:
        Each turn, after it was written to the canvas. Rows get the positions that it gives them after that.
    Raises:
        BadInput: a model that speaks of the next token has nothing to start from.
        Unsupported: see `unmask.decode.staleness.check`.
    """
    if model.traits.sees == "left" and bool((canvas.origin == 0).any()):
        raise BadInput("a model that reads left to right needs a token to start from; give a prompt")
    num_rows, length = canvas.tokens.shape
    canvas.stride.fill_(decoder.stride)
    halves = 2 if decoder.guidance else 1
    spare = decoder.spare(length, model.traits)
    cache = model.cache(halves * num_rows, length, spare) if decoder.window.caches else None
    memory = Remembering(model, halves * num_rows) if cache is None and not model.traits.clock else None
    model = model if memory is None else memory
    rows = {row: one for row, (one, _) in (growing or {}).items()}
    drawn = resize.sampling(decoder.sampling, rows, num_rows, canvas.tokens.device)
    if model.traits.noise == "uniform":
        canvas.noise(model.vocab.size)
    anew = torch.full((num_rows,), decoder.anew, device=model.device)
    check(decoder, model)
    staleness = Staleness()
    for row in range(num_rows):
        staleness.join(row, decoder)
    while not bool(canvas.done.all()):
        plan = decoder.look(canvas, model.traits, cache)
        if decoder.watches:
            staleness.look(model, canvas, plan)
            plan = decoder.look(canvas, model.traits, cache)
        asked, reads = decoder.asks(plan), decoder.reads
        rule = None if holes is None else control.Control.over(holes, canvas, plan, asked, anew[plan.rows])
        guided = Guided(model, decoder.guidance, canvas.state == State.FIXED) if decoder.guidance else model
        heard = Heard(guided)
        if auditor is None or cache is None:
            offer = propose(heard, plan, drawn, cache=cache, asked=asked, reads=reads, control=rule)
        else:
            whole = partial(_uncached, decoder, canvas, model)
            offer = auditor.propose(
                heard, plan, drawn, cache=cache, asked=asked, reads=reads, whole=whole, control=rule
            )
        resize.listen(heard, plan, rows)
        if not decoder.window.exact:
            staleness.note(canvas, plan)
        turn = decoder.decide(offer, plan)
        if holes is not None:
            turn = control.settle(holes, canvas, turn, anew=decoder.anew)
        turn, resizes = resize.decide(turn, rows)
        canvas.apply(turn.plan, turn.edit, turn.offer, None if memory is None else memory.spared[: len(plan.rows)])
        if cache is not None and turn.edit.misread is not None:
            cache.trim(turn.plan.rows, turn.edit.misread)
        yield turn
        for row, found in resizes.items():
            resize.carry_out(found, canvas, row, rows[row], decoder, (growing or {})[row][1], holes)
            resize.allow(drawn, row, rows[row])


def _uncached(decoder: Decoder, canvas: Canvas, model: Denoiser, rows: Tensor) -> Plan:
    """What some rows would be fed without a cache."""
    return decoder.look(canvas, model.traits, None, rows)
