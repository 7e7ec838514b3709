"""Tools in conversations: how they are described to a model, and how calls of them are written.

A tool is `{"name", "description", "parameters"}`, a message of the assistant may have `tool_calls`, each
`{"id", "name", "arguments"}`, and a message of the role "tool" says with `tool_call_id` which of them it answers.
Templates of published models write them their own way; where there is none, they are plain text, as here. It does not
know models, tokens, or what a text may be.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Tool = Mapping[str, Any]

INTRODUCTION = 'Tools, called by answering {"name": ..., "arguments": {...}}, a line for each call and nothing else:\n'
"""Before the tools of a plain conversation, a line of JSON each."""
BETWEEN = "\n"
"""Between two calls of a plain answer."""


def opened(name: str) -> str:
    """A call up to its arguments."""
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '


def written(name: str, arguments: Mapping[str, Any]) -> str:
    """A call."""
    return f"{opened(name)}{json.dumps(arguments, ensure_ascii=False)}}}"


def plain(chat: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[dict[str, str]]:
    """A conversation of which all is text: tools in the message of the system, calls in those of the assistant."""
    found = []
    for message in chat:
        calls = [written(call["name"], call["arguments"]) for call in message.get("tool_calls", ())]
        parts = [message["content"], *calls] if message["content"] else calls or [""]
        found.append({"role": message["role"], "content": BETWEEN.join(parts)})
    if not tools:
        return found
    lines = [json.dumps({k: v for k, v in tool.items() if v is not None}, ensure_ascii=False) for tool in tools]
    said = INTRODUCTION + "\n".join(lines)
    if found and found[0]["role"] == "system":
        return [{"role": "system", "content": f"{found[0]['content'].rstrip()}\n\n{said}"}, *found[1:]]
    return [{"role": "system", "content": said}, *found]


def published(chat: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A conversation as templates of published models expect it.

    Source: transformers, docs on tool use in chat templates: arguments are objects, and a call is a `function`.
    """
    found = []
    for message in chat:
        calls = [
            {"id": one["id"], "type": "function", "function": {"name": one["name"], "arguments": one["arguments"]}}
            for one in message.get("tool_calls", ())
        ]
        found.append({**message, **({"tool_calls": calls} if calls else {})})
    return found


def functions(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as such templates expect them."""
    return [{"type": "function", "function": {k: v for k, v in tool.items() if v is not None}} for tool in tools]
