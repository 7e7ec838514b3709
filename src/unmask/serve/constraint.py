"""From OpenAI's words for structured answers to the settings of constrained decoding: the one place where they meet.

What the settings can't be honoured with is refused where they are read (`unmask.lm.write`), by the field's name.
"""

from typing import Any

from unmask.lm.results import Settings
from unmask.serve.errors import Refused
from unmask.serve.schemas import ResponseFormat


def of_format(asked: ResponseFormat | None) -> Settings:
    """Settings for a `response_format`."""
    if asked is None or asked.type == "text":
        return {}
    if asked.type == "json_object":
        return {"schema": {"type": "object"}}
    schema = (asked.json_schema or {}).get("schema")
    if not isinstance(schema, dict):
        raise Refused("missing_field", "a json_schema has the schema itself under 'schema'", "response_format")
    return {"schema": schema}


def of_tools(tools: list[dict[str, Any]] | None, choice: str | dict[str, Any] | None) -> None:
    """Tool calls need schemas inside of free text, which constrained decoding does not offer yet."""
    if tools:
        raise Refused("unsupported", "tools need constrained decoding, which this version does not have", "tools")
    if choice not in (None, "none", "auto"):
        raise Refused(
            "unsupported", "a tool can't be chosen where there are none; leave tool_choice out", "tool_choice"
        )
