"""What operators and clients ask before they ask for text: models, health, readiness, metrics, version."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

import unmask
from unmask.base.errors import Unsupported
from unmask.lm.model import LanguageModel
from unmask.serve.errors import Refused
from unmask.serve.service import Answer, Service, service

router = APIRouter()


@router.get("/v1/models")
async def models(service: Annotated[Service, Depends(service)]) -> Response:
    """The model that is served."""
    return Answer({"object": "list", "data": [await _card(service)]})


@router.get("/v1/models/{name:path}")
async def model(name: str, service: Annotated[Service, Depends(service)]) -> Response:
    """One model."""
    if name not in (service.model, service.worker.lm.name):
        raise Refused("model_not_found", f"no model called {name!r} is served here", "model")
    return Answer(await _card(service))


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(service: Annotated[Service, Depends(service)]) -> Response:
    """Whether the process lives; a failed engine does not come back without a restart."""
    if service.worker.state == "failed":
        _ = service.worker.lm
    return Answer({"status": "ok"})


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(request: Request, service: Annotated[Service, Depends(service)]) -> Response:
    """Whether requests are taken."""
    _ = service.worker.lm
    if request.app.state.guard.draining:
        raise Refused("draining", "the server is shutting down")
    return Answer({"status": "ready"})


@router.get("/metrics")
async def metrics(service: Annotated[Service, Depends(service)]) -> Response:
    """In Prometheus' text format."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/version")
async def version() -> Response:
    """Of this package."""
    return Answer({"version": unmask.__version__})


def _spells(lm: LanguageModel) -> bool:
    """Whether tokens are spelled one by one, so that something can be asked of texts."""
    try:
        return len(lm.controls.vocabulary) > 0
    except Unsupported:
        return False


async def _card(service: Service) -> dict[str, Any]:
    lm = service.worker.lm
    sees_all, speaks = lm.model.traits.sees == "all", lm.tokenizer is not None
    spells = await asyncio.to_thread(_spells, lm)
    capabilities = {
        "chat": speaks,
        "completion": True,
        "fim": sees_all and speaks,
        "infill": sees_all and speaks,
        "refine": sees_all and speaks,
        "edit": sees_all and speaks,
        "score": True,
        "diffusion_stream": speaks,
        "json_schema": spells,
        "regex": spells,
        "grammar": spells,
        "tools": spells,
    }
    return {
        "id": service.model,
        "object": "model",
        "created": 0,
        "owned_by": "unmask",
        "max_model_len": lm.model.max_length,
        "mask_token_id": lm.model.vocab.mask,
        "backend": lm.backend,
        "capabilities": capabilities,
    }
