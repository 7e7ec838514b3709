"""POST /infill, as llama.cpp's server has it: what its editors ask between two texts."""

import re
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from unmask.lm.model import LanguageModel
from unmask.lm.rows import Ask
from unmask.serve import constraint
from unmask.serve.answers import between, continued
from unmask.serve.errors import Refused
from unmask.serve.schemas import Completion, Llama
from unmask.serve.service import Answer, Service, service
from unmask.serve.wire import usage

router = APIRouter()

PARAMS = ("input_prefix", "input_suffix")


@router.post("/infill")
async def infill(body: Llama, request: Request, service: Annotated[Service, Depends(service)]) -> Response:
    """Write what stands between a prefix and a suffix; nothing, where nothing is to be predicted."""
    before = "".join(f"{one.text}\n" for one in body.input_extra) + body.input_prefix + body.prompt
    if not body.n_predict:  # editors do so to have their context read ahead
        service.check(body)
        return Answer(_wanted({"content": "", "stop": True, "tokens_predicted": 0}, body.response_fields))
    if not before and not body.input_suffix:
        raise Refused("invalid_value", "both the prefix and the suffix are empty; give some text", "input_prefix")
    if body.samplers == []:
        raise Refused("unsupported", "no samplers are for where nothing is predicted; leave samplers out", "samplers")
    most, bound = None if body.n_predict < 0 else body.n_predict, constraint.of(body, service.limits)
    if bound.asked and body.n_indent:
        raise Refused("invalid_value", f"n_indent would cut what {bound.param} asks for; give one", "n_indent")

    def make(lm: LanguageModel) -> Ask:
        if body.input_suffix:
            return between(service, lm, body, (before, body.input_suffix), most, PARAMS, bound, "n_predict")
        plain = Completion(prompt=before, stop=body.stop)
        return continued(service, lm, plain, [before], most, PARAMS[0], bound, "n_predict")

    began = time.perf_counter()
    job = await service.submit(request, body, make, bound)
    done = await service.finish(request, job)
    seconds, cost = time.perf_counter() - began, usage(job.ask, done)
    said = {
        "content": indented(str(done.outputs[0].completion), body.n_indent),
        "stop": True,
        "model": service.model,
        "tokens_predicted": cost["completion_tokens"],
        "tokens_evaluated": cost["prompt_tokens"],
        "tokens_cached": cost["prompt_tokens_details"]["cached_tokens"],
        "truncated": False,
        "timings": {
            "prompt_n": cost["prompt_tokens"],
            "predicted_n": cost["completion_tokens"],
            "predicted_ms": 1000 * seconds,
            "predicted_per_second": cost["completion_tokens"] / seconds,
        },
        "usage": cost,
    }
    return Answer(_wanted(said, body.response_fields))


def indented(text: str, least: int) -> str:
    """A text up to the first line behind its own that is indented by less; an empty line is not."""
    for line in re.finditer(r"\n([ \t]*)(?=\S)", text) if least else ():
        if len(line[1]) < least:
            return text[: line.start() + 1]
    return text


def _wanted(said: dict[str, Any], paths: list[str] | None) -> dict[str, Any]:
    """What is wanted of an answer: a path names a field inside of another; what is not there is left out."""
    if paths is None:
        return said
    found: dict[str, Any] = {}
    for path in paths:
        here: Any = said
        for part in path.split("/"):
            here = here.get(part) if isinstance(here, dict) else None
        if here is not None:
            found[path] = here
    return found
