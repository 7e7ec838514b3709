"""The application: routes, exceptions as answers, the guard around all of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

import unmask
from unmask.base.errors import UnmaskError
from unmask.serve.compiling import Compiler
from unmask.serve.errors import Refused, refused
from unmask.serve.guard import Guard, Keys
from unmask.serve.limits import Limits
from unmask.serve.metrics import Metrics
from unmask.serve.routes import ROUTERS
from unmask.serve.service import Answer, Service
from unmask.serve.worker import Worker

_ERROR: dict[str, Any] = {name: {"type": "string"} for name in ("message", "type", "code")}
_ERROR["param"] = {"anyOf": [{"type": "string"}, {"type": "null"}]}
REFUSAL: dict[str, Any] = {
    "description": "what was wrong, in OpenAI's shape",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {"error": {"type": "object", "required": [*_ERROR], "properties": _ERROR}},
            }
        }
    },
}
"""How the schema of this server describes every refusal."""


def create(
    worker: Worker, limits: Limits, metrics: Metrics, *, keys: Sequence[str] = (), name: str | None = None
) -> Guard:
    """The application around a worker.

    Args:
        worker: owner of the engine; it is started by who runs the application.
        limits: of requests.
        metrics: of the server.
        keys: who may ask; without any, whoever reaches it by a loopback name.
        name: what the model is called here.
    """
    app = FastAPI(
        title="unmask", version=unmask.__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )  # a redirect would be made of the Host header
    for router in ROUTERS:
        app.include_router(router, responses={"4XX": REFUSAL, "5XX": REFUSAL})
    app.state.service = Service(worker, limits, metrics, Compiler(limits, metrics), name)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(UnmaskError, _ours)
    app.add_exception_handler(Exception, _ours)  # the guard writes it to the log
    app.state.guard = guard = Guard(app, Keys(keys), limits, metrics)
    return guard


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return Answer(error.body, error.status, error.headers)


async def _ours(request: Request, error: Exception) -> Response:
    return await _refused(request, refused(error))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: ("not_found", "no such route"), 405: ("method_not_allowed", "this route has other methods")}
    code, message = codes.get(error.status_code, ("invalid_json", "the body can't be read as JSON"))
    answer = await _refused(request, Refused(code, message))
    if error.headers:
        answer.headers.update(error.headers)
    return answer


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _refused(request, said(error.errors(), error.body))


def said(errors: Sequence[Mapping[str, Any]], body: Any) -> Refused:
    """What a client is told of a body that is not as it should be.

    One error: of a `type` that is not known, as that explains others, then of an unknown field, else the one that is
    deepest inside, as a value that may be of several types has errors for all of them.
    """
    places = [field(e["loc"], body, missing=e["type"] == "missing") for e in errors]

    def rank(i: int) -> tuple[bool, bool, int]:
        typed = errors[i]["type"] == "literal_error" and places[i].endswith("].type")
        return not typed, errors[i]["type"] != "extra_forbidden", -len(places[i])

    order = sorted(range(len(errors)), key=rank)
    first, param = errors[order[0]], places[order[0]]
    kind = first["type"]
    if kind == "json_invalid" or (not param and kind == "missing"):
        return Refused("invalid_json", "the body is not JSON; send one JSON object")
    if not param:
        return Refused("invalid_json", "the body is one JSON object")
    if kind == "extra_forbidden":
        return Refused("unknown_field", f"there is no field {param[:200]!r} here; leave it out", param[:200])
    if kind == "missing":
        return Refused("missing_field", f"the field {param!r} is missing", param)
    message = str(first.get("ctx", {}).get("error") or first["msg"])
    return Refused("invalid_value", message if message.startswith(param) else f"{param}: {message}", param)


def field(loc: Sequence[str | int], body: Any, *, missing: bool) -> str:
    """A place in a body as it is written, `messages[0].content`; what names a branch of a union is no place."""
    path, here, parts = "", body, list(loc[1:])
    for i, part in enumerate(parts):
        if isinstance(here, dict) and part in here:
            path, here = f"{path}.{part}" if path else str(part), here[part]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            path, here = f"{path}[{part}]", here[part]
        elif missing and i == len(parts) - 1 and isinstance(here, dict):
            path = f"{path}.{part}" if path else str(part)
    return path
