"""POST /v1/chat/completions."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from unmask.lm.model import LanguageModel
from unmask.lm.rows import Ask, as_list
from unmask.serve import constraint
from unmask.serve.answers import answer, continued
from unmask.serve.errors import Refused, naming
from unmask.serve.schemas import Chat, Message
from unmask.serve.service import Service, service
from unmask.serve.wire import CHAT

router = APIRouter()

ROLES = {"developer": "system"}
"""OpenAI's newer names for roles."""


@router.post("/v1/chat/completions")
async def chat(body: Chat, request: Request, service: Annotated[Service, Depends(service)]) -> Response:
    """Answer a conversation."""
    constraint.of_tools(body.tools, body.tool_choice)
    more = constraint.of_format(body.response_format)
    service.limits.check("messages", len(body.messages), "messages")
    top = top_of(body)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise Refused("invalid_value", "max_tokens and max_completion_tokens mean the same; give one", "max_tokens")
    most = body.max_tokens or body.max_completion_tokens
    messages = [{"role": ROLES.get(m.role, m.role), "content": text_of(m)} for m in body.messages]

    def make(lm: LanguageModel) -> Ask:
        with naming("messages"):
            turns = as_list(lm.turns(messages))
        return continued(service, lm, body, turns, most, "messages")

    return await answer(service, request, body, make, CHAT, more=more, top=top)


def top_of(body: Chat) -> int | None:
    """Whether log-probabilities are asked for, and whether the best token's beside them."""
    if body.top_logprobs and not body.logprobs:
        raise Refused("invalid_value", "top_logprobs needs logprobs: true", "top_logprobs")
    if (body.top_logprobs or 0) > 1:
        raise Refused(
            "unsupported", "one best token is kept for each position; ask for top_logprobs 0 or 1", "top_logprobs"
        )
    return (body.top_logprobs or 0) if body.logprobs else None


def text_of(message: Message) -> str:
    """The text of a message."""
    content = message.content
    return content if isinstance(content, str) else "".join(part.text for part in content)
