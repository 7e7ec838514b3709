"""POST /v1/infill and /v1/refine: canvases with many holes, and texts of which spans are written anew."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from unmask.base.errors import Unsupported
from unmask.lm.model import LanguageModel
from unmask.lm.results import Output
from unmask.lm.rows import Ask, Length
from unmask.serve.answers import texts, texts_of
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
    service.limits.check("holes", sum(isinstance(piece, Hole) for piece in pieces), "segments")
    n = texts_of(service, body)

    def make(lm: LanguageModel) -> Ask:
        counted(service.limits, lm, [piece.text for piece in pieces if isinstance(piece, Text)], "segments")
        with naming("segments"):
            return lm.reader.fill(pieces, n)

    return await texts(service, request, body, make, INFILL, _shower(service, body))


@router.post("/v1/refine")
async def refine(body: Refine, request: Request, service: Annotated[Service, Depends(service)]) -> Response:
    """Write spans of a text anew."""
    spans = [(start, end) for start, end in body.spans] if body.spans else [(0, len(body.text))]
    service.limits.check("holes", len(spans), "spans")
    length: Length | None = (body.length[0], body.length[1]) if isinstance(body.length, list) else body.length

    def make(lm: LanguageModel) -> Ask:
        counted(service.limits, lm, [body.text], "text")
        with naming("length" if length is not None else "text"):
            lm.reader.infill("", "", 1 if length is None else length)
        with naming("strength" if length is not None and body.strength < 1 else "spans"):
            return lm.reader.refine(body.text, spans, body.strength, length, body.seed or 0)

    return await texts(service, request, body, make, REFINE, _shower(service, body))


def _piece(index: int, segment: Segment) -> Text | Hole:
    where = f"segments[{index}]"
    if (segment.text is None) == (segment.mask is None):
        raise Refused("invalid_value", "a segment is a text or a mask, one of them", where)
    bound = {"regex": segment.regex, "schema": segment.schema_}
    for name, value in bound.items():
        if value is not None and segment.mask is None:
            raise Refused("invalid_value", f"a {name} binds a mask, and this is a text", f"{where}.{name}")
        if value is not None:
            raise Refused(
                "unsupported", f"{name} needs constrained decoding, which this version does not have", f"{where}.{name}"
            )
    if segment.mask is None:
        return Text(str(segment.text))
    with naming(f"{where}.mask"):
        return Hole(low=segment.mask.min, high=segment.mask.max, name=segment.mask.name)


def _shower(service: Service, body: Infill | Refine) -> Any:
    """How a text with its holes is shown."""
    tokenizer = service.check(body).tokenizer
    with naming("model"):
        if tokenizer is None:
            raise Unsupported("this model has no tokenizer; it can't be asked for text")

    def shown(index: int, output: Output) -> dict[str, Any]:
        return {
            "index": index,
            "text": output.text,
            "holes": [{"name": name, "text": text} for name, text in output.holes],
            "finish_reason": output.finish_reason,
            "logprobs": of_output(INFILL, tokenizer, output, 0) if body.logprobs else None,
        }

    return shown
