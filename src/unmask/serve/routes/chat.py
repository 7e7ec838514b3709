"""POST /v1/chat/completions."""

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from unmask.lm.model import LanguageModel
from unmask.lm.rows import Ask, as_list
from unmask.serve import constraint, tools
from unmask.serve.answers import answer, continued
from unmask.serve.errors import Refused, naming
from unmask.serve.schemas import Chat, Message, ToolCall
from unmask.serve.service import Service, service
from unmask.serve.wire import CHAT

router = APIRouter()

ROLES = {"developer": "system"}
"""OpenAI's newer names for roles."""


@router.post("/v1/chat/completions")
async def chat(body: Chat, request: Request, service: Annotated[Service, Depends(service)]) -> Response:
    """Answer a conversation."""
    lm, calls = service.check(body), None
    if body.tools or body.tool_choice is not None:  # a template may have to be tried, in a process
        calls, bound = await asyncio.to_thread(tools.of, body, lm, service.limits)
    else:
        bound = constraint.of(body, service.limits)
    service.limits.check("messages", len(body.messages), "messages")
    top = top_of(body)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise Refused("invalid_value", "max_tokens and max_completion_tokens mean the same; give one", "max_tokens")
    most = body.max_tokens or body.max_completion_tokens
    messages = [turn(i, message) for i, message in enumerate(body.messages)]

    def make(lm: LanguageModel) -> Ask:
        with naming("messages"):
            turns = as_list(lm.turns(messages, tools.told(body), call=calls is not None and calls.must))
        count = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        return continued(service, lm, body, turns, most, "messages", bound, count)

    return await answer(service, request, body, make, CHAT, bound=bound, calls=calls, top=top)


def turn(index: int, message: Message) -> dict[str, Any]:
    """A message as templates read it.

    Raises:
        Refused: what a message of its role does not have, or arguments that are no JSON object.
    """
    where = f"messages[{index}]"
    if message.content is None and message.tool_calls is None:
        raise Refused("missing_field", f"the field '{where}.content' is missing", f"{where}.content")
    found: dict[str, Any] = {"role": ROLES.get(message.role, message.role), "content": text_of(message)}
    for name, role in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
        if getattr(message, name) is not None and message.role != role:
            raise Refused("invalid_value", f"{name} is for the role {role}; leave it out", f"{where}.{name}")
    if message.name is not None and message.role != "tool":
        raise Refused("unsupported", "who speaks is told by the role alone; leave the name out", f"{where}.name")
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls is not None:
        found["tool_calls"] = [
            {"id": call.id, "name": call.function.name, "arguments": _arguments(call, f"{where}.tool_calls[{i}]")}
            for i, call in enumerate(message.tool_calls)
        ]
    return found


def _arguments(call: ToolCall, where: str) -> dict[str, Any]:
    try:
        found = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        param = f"{where}.function.arguments"
        raise Refused("invalid_value", "the arguments of a call are the text of a JSON object", param)
    return found


def top_of(body: Chat) -> int | None:
    """How many of the most probable tokens are told beside each; None where no log-probabilities are asked for."""
    if body.top_logprobs and not body.logprobs:
        raise Refused("invalid_value", "top_logprobs needs logprobs: true", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def text_of(message: Message) -> str:
    """The text of a message."""
    content = message.content or ""
    return content if isinstance(content, str) else "".join(part.text for part in content)
