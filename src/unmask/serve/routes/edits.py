"""POST /v1/edit/completions and /v1/apply/completions, with tagged sections as Mercury has them.

An edit writes the region anew from the cursor on (all of it without one), and sees both sides; what a model was not
taught, instructions for one, it does not follow. An apply is a merge of what is given, so no network is asked.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from unmask.lm.model import LanguageModel
from unmask.lm.results import Output
from unmask.lm.rows import Ask
from unmask.serve import tags
from unmask.serve.answers import texts
from unmask.serve.errors import Refused, naming
from unmask.serve.routes.chat import text_of
from unmask.serve.schemas import Apply, Edit
from unmask.serve.service import Answer, Service, counted, service
from unmask.serve.wire import APPLY, EDIT, Envelope

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

    def shown(index: int, output: Output) -> dict[str, Any]:
        text = asked.kept + str(output.completion)
        return Envelope(EDIT, service.model).choice(index, text, output.finish_reason)

    return await texts(service, request, body, make, EDIT, shown)


@router.post("/v1/apply/completions")
async def apply(body: Apply, service: Annotated[Service, Depends(service)]) -> Response:
    """Lay an update over an original."""
    lm = service.check(body)
    with naming(MESSAGE):
        text = tags.apply(_said(body))
        given, written = (len(lm.reader.ids(x)) for x in (text_of(body.messages[0]), text))
    envelope = Envelope(APPLY, service.model)
    cost = {"prompt_tokens": given, "completion_tokens": written, "total_tokens": given + written, "forwards": 0}
    return Answer(envelope.around([envelope.choice(0, text, "stop")], usage=cost))


def _said(body: Edit | Apply) -> str:
    message = body.messages[0]
    if message.role != "user":
        raise Refused("invalid_value", "the one message is the user's", "messages[0].role")
    return text_of(message)
