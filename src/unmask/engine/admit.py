"""Whether a request can ever be written by an engine, before anything is done for it."""

from unmask.base.canvas import Canvas
from unmask.base.denoiser import Denoiser
from unmask.base.errors import BadInput, TooLong, Unsupported
from unmask.constrain.holes import Holes
from unmask.decode import control, guidance, resize, staleness
from unmask.decode.session import lay_out, spelled
from unmask.engine.request import Request
from unmask.engine.room import Room
from unmask.text.tokenizer import Tokenizer


def admitted(request: Request, model: Denoiser, tokenizer: Tokenizer | None, room: Room, holes: Holes) -> Canvas:
    """A request's own canvas.

    Args:
        request: what is asked for.
        model, tokenizer, room, holes: of the engine.
    Raises:
        BadInput, TooLong, Unsupported: it can never be written there.
    """
    decoder = request.decoder
    if len(request.layout.tokens) > model.max_length:
        raise TooLong(f"the row has {len(request.layout.tokens)} positions and the model holds {model.max_length}")
    if request.stops and tokenizer is None:
        raise Unsupported("stop strings need a tokenizer; give the engine one, or leave them out")
    canvas = lay_out(model, [request.layout], decoder, [request.seed], ends=request.ends)
    if model.traits.noise == "uniform":
        canvas.noise(model.vocab.size)
    if model.traits.sees == "left" and int(canvas.origin) == 0 and int(canvas.length):
        raise BadInput("a model that reads left to right needs a token to start from; give a prompt")
    if decoder.guidance:
        guidance.check(model.traits, model.vocab)
    decoder.window.check(model.traits)
    staleness.check(decoder, model)
    if not bool(canvas.done):
        decoder.window(canvas, model.traits, None)  # refuses what it can't do
    resize.check(request.layout, decoder, request.spans, model)
    if request.spans:
        holes.spell = holes.spell or spelled(model, tokenizer)
        control.check(decoder, request.spans, canvas, holes.spell)
    if decoder.window.caches and room.cache is None:
        raise Unsupported("this network takes a time, so no keys and values are final; use the window 'whole'")
    if decoder.window.caches:
        length = canvas.tokens.shape[1]
        room.could_hold(length, decoder.spare(length, model.traits), twice=bool(decoder.guidance))
    return canvas
