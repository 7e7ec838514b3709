"""POST /v1/completions and /v1/fim/completions. With a suffix, what is written sees both sides."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from unmask.lm.model import LanguageModel
from unmask.lm.rows import Ask
from unmask.serve import constraint
from unmask.serve.answers import answer, between, continued
from unmask.serve.errors import Refused
from unmask.serve.schemas import Completion, Fim
from unmask.serve.service import Service, service
from unmask.serve.wire import TEXT

router = APIRouter()


@router.post("/v1/completions")
async def complete(body: Completion, request: Request, service: Annotated[Service, Depends(service)]) -> Response:
    """Continue prompts, or write what stands before a suffix."""
    bound = constraint.of(body, service.limits)
    prompts = _several(body.prompt)
    service.limits.check("prompts", len(prompts), "prompt")
    if not prompts or any(not len(prompt) for prompt in prompts):
        raise Refused("invalid_value", "the prompt is empty; give some text", "prompt")
    if body.suffix:
        for name, unused in (("eos", body.eos != "stop"), ("min_tokens", body.min_tokens), ("pins", body.pins)):
            if unused:
                raise Refused("unsupported", f"{name} has no meaning before a suffix; leave it out", name)

    def make(lm: LanguageModel) -> Ask:
        if not body.suffix:
            return continued(service, lm, body, prompts, body.max_tokens, "prompt", bound)
        if len(prompts) > 1 or not isinstance(prompts[0], str):
            raise Refused("unsupported", "a suffix goes with one prompt, a text", "prompt")
        return between(service, lm, body, (prompts[0], body.suffix), body.max_tokens, bound=bound)

    return await answer(service, request, body, make, TEXT, bound=bound, top=body.logprobs)


@router.post("/v1/fim/completions")
async def fim(body: Fim, request: Request, service: Annotated[Service, Depends(service)]) -> Response:
    """What stands between a prompt and a suffix."""
    bound = constraint.of(body, service.limits)

    def make(lm: LanguageModel) -> Ask:
        if body.suffix:
            return between(service, lm, body, (body.prompt, body.suffix), body.max_tokens, bound=bound)
        if not body.prompt:
            raise Refused("invalid_value", "both the prompt and the suffix are empty; give some text", "prompt")
        plain = Completion(prompt=body.prompt, stop=body.stop, n=body.n)
        return continued(service, lm, plain, [body.prompt], body.max_tokens, "prompt", bound)

    return await answer(service, request, body, make, TEXT, bound=bound)


def _several(prompt: Any) -> Sequence[Any]:
    """The prompts of a text, ids, or a list of either."""
    return prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
