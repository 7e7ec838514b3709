"""Everything that a client can be told instead of an answer: one table of codes, one of our own exceptions.

The shape is OpenAI's, `{"error": {"message", "type", "param", "code"}}`, in a response as in a running stream.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from unmask.base.errors import BadInput, RequestFailed, TooLong, UnmaskError, Unsupported

INVALID = "invalid_request_error"
CODES: dict[str, tuple[int, str]] = {
    "invalid_value": (400, INVALID),
    "unknown_field": (400, INVALID),
    "missing_field": (400, INVALID),
    "unsupported": (400, INVALID),
    "limit_exceeded": (400, INVALID),
    "context_length_exceeded": (400, INVALID),
    "invalid_json": (400, INVALID),
    "invalid_api_key": (401, "authentication_error"),
    "forbidden": (403, "permission_error"),
    "not_found": (404, "not_found_error"),
    "model_not_found": (404, "not_found_error"),
    "method_not_allowed": (405, INVALID),
    "body_timeout": (408, INVALID),
    "body_too_large": (413, INVALID),
    "queue_full": (429, "rate_limit_error"),
    "client_gone": (499, INVALID),
    "request_failed": (500, "server_error"),
    "replica_lost": (502, "server_error"),
    "engine_failed": (503, "server_error"),
    "loading": (503, "server_error"),
    "draining": (503, "server_error"),
    "deadline_exceeded": (504, "server_error"),
}
"""Code to status and type."""

RETRY_AFTER_S = {"queue_full": 1, "replica_lost": 1, "loading": 2, "draining": 10, "engine_failed": 30}
"""After how many seconds it is worth to come again."""

EXCEPTIONS: dict[type[UnmaskError], str] = {
    TooLong: "context_length_exceeded",
    BadInput: "invalid_value",
    Unsupported: "unsupported",
    RequestFailed: "request_failed",
    UnmaskError: "request_failed",
}
"""Our exceptions to codes; the first that fits counts."""

_INTERNAL = "the request made the server fail; others were not touched. Its log has more, under the request's id"


class Refused(Exception):
    """What a client is told.

    Args:
        code: a key of `CODES`.
        message: what was expected, what came, what to do.
        param: the field of the request that it is about.
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param

    @property
    def status(self) -> int:
        """Of HTTP."""
        return CODES[self.code][0]

    @property
    def body(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        error = {"message": self.message, "type": CODES[self.code][1], "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """Of a response that says it."""
        after = RETRY_AFTER_S.get(self.code)
        return {} if after is None else {"retry-after": str(after)}


def refused(error: Exception, param: str | None = None) -> Refused:
    """What a client is told of an exception; of our own faults no more than that."""
    if isinstance(error, Refused):
        return error
    code = next((code for kind, code in EXCEPTIONS.items() if isinstance(error, kind)), "request_failed")
    if code == "request_failed":
        return Refused(code, _INTERNAL)
    return Refused(code, re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(error).split())), param)


@contextmanager
def naming(param: str, kind: type[UnmaskError] = UnmaskError) -> Iterator[None]:
    """Errors inside, of this kind, are about this field."""
    try:
        yield
    except kind as error:
        raise refused(error, param) from error
