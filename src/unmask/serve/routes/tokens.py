"""POST /tokenize and /detokenize."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from unmask.base.errors import Unsupported
from unmask.lm.model import LanguageModel
from unmask.serve.errors import naming
from unmask.serve.schemas import Detokenize, Tokenize
from unmask.serve.service import Answer, Service, service
from unmask.text.tokenizer import Tokenizer

router = APIRouter()


@router.post("/tokenize")
async def tokenize(body: Tokenize, service: Annotated[Service, Depends(service)]) -> Response:
    """Ids of a text; none of them is special, whatever the text says."""
    lm = service.check(body)
    with naming("prompt"):
        ids = await asyncio.to_thread(_tokenizer(lm).encode, body.prompt)
    return Answer({"tokens": ids, "count": len(ids), "max_model_len": lm.model.max_length})


@router.post("/detokenize")
async def detokenize(body: Detokenize, service: Annotated[Service, Depends(service)]) -> Response:
    """The text of ids."""
    lm = service.check(body)
    service.limits.check("prompt_tokens", len(body.tokens), "tokens")
    with naming("tokens"):
        return Answer({"prompt": await asyncio.to_thread(_tokenizer(lm).decode, body.tokens)})


def _tokenizer(lm: LanguageModel) -> Tokenizer:
    if lm.tokenizer is None:
        raise Unsupported("this model has no tokenizer; it speaks ids only")
    return lm.tokenizer
