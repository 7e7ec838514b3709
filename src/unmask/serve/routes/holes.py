"""POST /v1/infill and /v1/refine: canvases with many holes, and texts of which spans are written anew."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from unmask.base.errors import Unsupported
from unmask.constrain.spec import Constraint
from unmask.lm.model import LanguageModel
from unmask.lm.results import Output
from unmask.lm.rows import Ask, Length
from unmask.serve import constraint
from unmask.serve.answers import texts, texts_of
from unmask.serve.constraint import Bound
from unmask.serve.errors import Refused, naming
from unmask.serve.schemas import Infill, Refine, Segment
from unmask.serve.service import Service, counted, service
from unmask.serve.wire import INFILL, REFINE, of_output
from unmask.text.segments import Hole, Text

router = APIRouter()


@router.post("/v1/infill")
async def infill(body: Infill, request: Request, service: Annotated[Service, Depends(service)]) -> Response:
    """Fill the holes of a text."""
    pieces = [_piece(i, segment) for i, segment in enumerate(body.segments)]
    num_holes = sum(isinstance(piece, Hole) for piece in pieces)
    service.limits.check("holes", num_holes, "segments")
    n, bound = texts_of(service, body), _bound(service, body)
    if not num_holes:
        raise Refused("invalid_value", 'there is nothing to fill; one segment at least is {"mask": {...}}', "segments")

    def make(lm: LanguageModel) -> Ask:
        counted(service.limits, lm, [piece.text for piece in pieces if isinstance(piece, Text)], "segments")
        with naming("segments"):
            ask = lm.reader.fill(pieces, n, lm.controls.fits(bound.settings))
        for piece in pieces:
            if isinstance(piece, Hole) and piece.name in bound.params:
                with naming(bound.params[piece.name]):
                    lm.controls.check(bound.settings, piece.name, piece.low, piece.high)
        return ask

    names = [segment.mask.name for segment in body.segments if segment.mask is not None]
    shown = _shower(service, body, names)
    return await texts(service, request, body, make, INFILL, shown, bound=bound)


@router.post("/v1/refine")
async def refine(body: Refine, request: Request, service: Annotated[Service, Depends(service)]) -> Response:
    """Write spans of a text anew."""
    spans = [(start, end) for start, end in body.spans] if body.spans else [(0, len(body.text))]
    if not body.text:
        raise Refused("invalid_value", "the text is empty; give one character or more", "text")
    service.limits.check("holes", len(spans), "spans")
    length: Length | None = (body.length[0], body.length[1]) if isinstance(body.length, list) else body.length
    bound = constraint.of(body, service.limits)
    if bound.asked and len(spans) > 1:
        raise Refused("unsupported", "what is asked is of one span; give one, or use /v1/infill", bound.param)

    def make(lm: LanguageModel) -> Ask:
        counted(service.limits, lm, [body.text], "text")
        with naming("length" if length is not None else "text"):
            lm.reader.infill("", "", 1 if length is None else length)
        with naming("strength" if length is not None and body.strength < 1 else "spans"):
            return lm.reader.refine(
                body.text, spans, body.strength, length, body.seed or 0, lm.controls.fits(bound.settings)
            )

    shown = _shower(service, body, [None] * len(spans))
    return await texts(service, request, body, make, REFINE, shown, bound=bound)


def _bound(service: Service, body: Infill) -> Bound:
    """What is asked of each hole; a hole is called by its place among the segments, as two may have the same name."""
    asked: dict[str | None, Constraint] = {}
    params: dict[str | None, str] = {}
    for i, segment in enumerate(body.segments):
        found = constraint.constraint(segment, service.limits, f"segments[{i}].")
        if found is not None:
            asked[str(i)], params[str(i)] = found
            if segment.mask is None:
                raise Refused("invalid_value", "it binds a mask, and this is a text", params[str(i)])
    return Bound(asked=asked, params=params)


def _piece(index: int, segment: Segment) -> Text | Hole:
    where = f"segments[{index}]"
    if (segment.text is None) == (segment.mask is None):
        raise Refused("invalid_value", "a segment is a text or a mask, one of them", where)
    if segment.mask is None:
        return Text(str(segment.text))
    with naming(f"{where}.mask"):
        return Hole(low=segment.mask.min, high=segment.mask.max, name=str(index))


def _shower(service: Service, body: Infill | Refine, names: Sequence[str | None]) -> Any:
    """How a text with its holes, which are called so, is shown."""
    tokenizer = service.check(body).tokenizer
    with naming("model"):
        if tokenizer is None:
            raise Unsupported("this model has no tokenizer; it can't be asked for text")

    def shown(index: int, output: Output) -> dict[str, Any]:
        return {
            "index": index,
            "text": output.text,
            "holes": [{"name": name, "text": text} for name, (_, text) in zip(names, output.holes, strict=True)],
            "finish_reason": output.finish_reason,
            "logprobs": of_output(INFILL, tokenizer, output, 0) if body.logprobs else None,
        }

    return shown
