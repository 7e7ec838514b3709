"""The one loop: look, propose, decide, write. Every decoder of the field is this with another window and policy.

It does not know text, requests or files.
"""

from collections.abc import Iterator

import torch

from unmask.base.canvas import Canvas
from unmask.base.denoiser import Denoiser
from unmask.base.errors import BadInput
from unmask.base.step import State, Turn
from unmask.decode.decoder import Decoder
from unmask.decode.guidance import Guided
from unmask.decode.memory import Remembering
from unmask.decode.propose import propose


@torch.inference_mode()
def denoise(model: Denoiser, canvas: Canvas, decoder: Decoder) -> Iterator[Turn]:
    """Fill a canvas, turn by turn, until every row is done.

    Args:
        model: the network.
        canvas: the text; changed in place.
        decoder: window, policies and sampling.
    Yields:
        Each turn, after it was written to the canvas.
    Raises:
        BadInput: a model that speaks of the next token has nothing to start from.
    """
    if model.traits.sees == "left" and bool((canvas.origin == 0).any()):
        raise BadInput("a model that reads left to right needs a token to start from; give a prompt")
    num_rows, length = canvas.tokens.shape
    halves = 2 if decoder.guidance else 1
    cache = model.cache(halves * num_rows, length, decoder.spare(model.traits)) if decoder.window.caches else None
    memory = Remembering(model, halves * num_rows) if cache is None and not model.traits.clock else None
    model = model if memory is None else memory
    if decoder.guidance:
        model = Guided(model, decoder.guidance, canvas.state == State.FIXED)
    if model.traits.noise == "uniform":
        canvas.noise(model.vocab.size)
    while not bool(canvas.done.all()):
        plan = decoder.look(canvas, model.traits, cache)
        asked, reads = decoder.asks(plan), decoder.reads
        offer = propose(model, plan, decoder.sampling, cache=cache, asked=asked, reads=reads)
        turn = decoder.decide(offer, plan)
        canvas.apply(turn.plan, turn.edit, turn.offer, None if memory is None else memory.spared[: len(plan.rows)])
        yield turn
