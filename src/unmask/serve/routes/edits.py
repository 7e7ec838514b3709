"""POST /v1/edit/completions and /v1/apply/completions, with tagged sections as Mercury has them.

An edit writes the region anew from the cursor on (all of it without one), and sees both sides; what a model was not
taught, instructions for one, it does not follow. An apply is a merge of what is given, so no network is asked.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from unmask.lm.model import LanguageModel
from unmask.lm.rows import Ask
from unmask.serve import tags
from unmask.serve.errors import Refused, naming
from unmask.serve.routes.chat import text_of, turn
from unmask.serve.schemas import Apply, Edit
from unmask.serve.service import Answer, Service, counted, service
from unmask.serve.stream import Whole
from unmask.serve.wire import APPLY, EDIT, Envelope, usage

router = APIRouter()

MESSAGE = "messages[0].content"


@router.post("/v1/edit/completions")
async def edit(body: Edit, request: Request, service: Annotated[Service, Depends(service)]) -> Response:
    """Write a region of a file anew."""
    with naming(MESSAGE):
        asked = tags.edit(_said(body))

    def make(lm: LanguageModel) -> Ask:
        counted(service.limits, lm, [asked.before, asked.after], MESSAGE)
        with naming(MESSAGE):
            now = len(lm.reader.ids(asked.region))
            most = body.max_tokens or max(8, 2 * now)
            return lm.reader.infill(asked.before, asked.after, (min(most, max(1, now // 2)), most))

    job = await service.submit(request, body, make)
    done = await service.finish(request, job)
    (output,) = done.outputs
    text = asked.kept + str(output.completion)
    return _told(Envelope(EDIT, service.model), body, text, output.finish_reason, usage(job.ask, done))


@router.post("/v1/apply/completions")
async def apply(body: Apply, service: Annotated[Service, Depends(service)]) -> Response:
    """Lay an update over an original."""
    lm = service.check(body)
    with naming(MESSAGE):
        text = tags.apply(_said(body))
        given, written = (len(lm.reader.ids(x)) for x in (text_of(body.messages[0]), text))
    cost = {"prompt_tokens": given, "completion_tokens": written, "total_tokens": given + written, "forwards": 0}
    return _told(Envelope(APPLY, service.model), body, text, "stop", cost)


def _told(envelope: Envelope, body: Edit | Apply, text: str, finish: str, cost: dict[str, Any]) -> Response:
    """A text as an answer, or as a stream for clients that ask for nothing else."""
    if not body.stream:
        return Answer(envelope.around([envelope.choice(0, text, finish)], usage=cost))
    piece, end = (envelope.choice(0, some, how, chunk=True) for some, how in ((text, None), ("", finish)))
    return Whole([envelope.around([piece], chunk=True), envelope.around([end], chunk=True, usage=cost)])


def _said(body: Edit | Apply) -> str:
    message = body.messages[0]
    if message.role != "user":
        raise Refused("invalid_value", "the one message is the user's", "messages[0].role")
    return str(turn(0, message)["content"])
