"""Renders chat templates that nobody vouches for: a process of its own, bounded in processor time, memory and output.

`render` starts this file as a script; `answer` is what the script does. Jinja's sandbox keeps a template from reaching
Python, the bounds keep it from hanging or filling its host.

Messages are guarded: the first letter of every special token has a stand-in inside them while the template runs, so
that in the result only what the template wrote can be a special token. It does not know tokenizers or models.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

CPU_S, WALL_S, MEMORY_BYTES, CHARACTERS = 5, 60, 1 << 30, 1 << 22
"""What one call may take: processor time, time on the clock, address space, length of all texts together."""

STAND_INS = range(0xF0000, 0xFFFFE)
"""Code points that no text has a use for (private use, plane 15)."""

_CALLED = {"name": False, "arguments": False, "description": False, "parameters": False}
STRUCTURE: dict[str, Any] = {
    "chats": {
        "role": True,
        "content": False,
        "tool_call_id": False,
        "tool_calls": {"id": False, "type": True, "function": _CALLED},
    },
    "tools": {"type": True, "function": _CALLED},
}
"""Keys of what a template is given: True for values that are words of ours, False for what somebody wrote."""


class Refused(Exception):
    """The template refuses a conversation: its own message."""


class Failed(Exception):
    """The template can't be rendered, or not within bounds."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """Texts in which letters from messages may have a stand-in; `letters` turns these back (for str.translate)."""

    texts: list[str]
    letters: dict[int, str]


def render(
    source: str,
    chats: Sequence[Sequence[Mapping[str, Any]]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    names: Mapping[str, Any],
    specials: Iterable[str],
    ask: bool,
) -> Rendered:
    """Conversations as a template writes them.

    Args:
        source: a Jinja template, as Hugging Face defines chat templates.
        chats: conversations, each a list of messages of a role and a content, and what else they have.
        tools: that the template is told of.
        names: further variables, such as `bos_token`.
        specials: special tokens that a message must not be able to write.
        ask: whether an answer is to follow (`add_generation_prompt`).
    Raises:
        Refused, Failed: see there.
    """
    plain = [[dict(message) for message in chat] for chat in chats]
    request = {
        "source": source,
        "chats": plain,
        "tools": list(tools),
        "names": dict(names),
        "specials": list(specials),
        "ask": ask,
    }
    request["bounds"] = {"cpu_s": CPU_S, "memory_bytes": MEMORY_BYTES, "characters": CHARACTERS}
    try:
        done = subprocess.run(
            [sys.executable, "-P", __file__],
            check=False,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=WALL_S,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"it took more than {WALL_S} s") from error
    if done.returncode < 0:
        raise Failed(f"it took more than {CPU_S} s of processor time, or more memory than it may have")
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["its process ended without a word"])[-1][:300])
    told = json.loads(done.stdout)
    if "error" in told:
        raise (Refused if told["refused"] else Failed)(told["error"])
    return Rendered(told["texts"], {int(sign): letter for sign, letter in told["letters"].items()})


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """What a request comes to: its texts and stand-ins, or what went wrong in a line."""
    import jinja2

    class RefusedByTemplate(jinja2.TemplateError):
        pass

    def refuse(message: object) -> None:
        raise RefusedByTemplate(str(message))

    try:
        environment = _environment(refuse)
        template = environment.from_string(request["source"])
        literals = [value for _, kind, value in environment.lex(request["source"]) if kind == "string"]
        told = {"chats": request["chats"], "tools": request.get("tools", [])}
        told, letters = _guard(told, request["source"], literals, request["specials"])
        room, texts = request["bounds"]["characters"], []
        for messages in told["chats"]:
            known = {"tools": told["tools"] or None, "documents": None, "add_generation_prompt": request["ask"]}
            parts = []
            for part in template.generate(messages=messages, **known, **request["names"]):
                room -= len(part)
                if room < 0:
                    return {"refused": False, "error": "it writes too much"}
                parts.append(part)
            texts.append("".join(parts))
    except MemoryError:
        return {"refused": False, "error": "it needs too much memory"}
    except Exception as error:  # whatever a template can bring about
        said = " ".join(str(error).split())[:300]
        refused = isinstance(error, RefusedByTemplate)
        return {"refused": refused, "error": said if refused else f"{type(error).__name__}: {said}"}
    return {"texts": texts, "letters": letters}


def _guard(
    told: dict[str, Any], source: str, literals: Iterable[str], specials: Iterable[str]
) -> tuple[dict[str, Any], dict[int, str]]:
    """Chats and tools in which no special token can begin inside of what somebody wrote; what stand-ins stand for.

    What a template looks for in messages (the end of a thought in an answer) it still finds: its own string literals
    keep their letters, unless a special token could begin in one of them.
    """
    names = [name for name in specials if name]
    first = sorted({name[0] for name in names})
    if not first:
        return told, {}
    used = {*source, *json.dumps(told, ensure_ascii=False)}
    free = (sign for sign in STAND_INS if chr(sign) not in used)
    letters = dict(zip(free, first, strict=False))
    sign_of = {letter: chr(sign) for sign, letter in letters.items()}

    def harmless(literal: str) -> bool:
        ends = [literal[i:] for i, letter in enumerate(literal) if letter in sign_of]
        return bool(ends) and not any(name.startswith(x) or x.startswith(name) for x in ends for name in names)

    read = {x[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape") for x in literals}  # as Jinja does
    kept = sorted((x for x in read if len(x) > 1 and harmless(x)), key=len, reverse=True)
    pattern = re.compile("|".join([*map(re.escape, kept), f"[{re.escape(''.join(first))}]"]))

    def guarded(value: Any, structure: Mapping[str, Any] | bool) -> Any:
        """A value without; what `STRUCTURE` names is ours and stays."""
        if isinstance(value, str):
            return pattern.sub(lambda found: sign_of.get(found[0], found[0]), value)
        if isinstance(value, list):
            return [guarded(one, structure) for one in value]
        if not isinstance(value, dict):
            return value
        if isinstance(structure, bool):
            return {guarded(key, False): guarded(one, False) for key, one in value.items()}
        return {key: one if structure[key] is True else guarded(one, structure[key]) for key, one in value.items()}

    return guarded(told, STRUCTURE), letters


def _environment(refuse: Any) -> Any:
    """Jinja as transformers sets it up for chat templates.

    Source: transformers, utils/chat_template_utils.py (5e43e2e8).
    """
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the model wrote, for training; here it is only its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _bound(cpu_s: int, memory_bytes: int) -> None:
    """Bound this process, where its system can."""
    try:
        import resource
    except ImportError:  # the time on the clock still bounds it
        return
    for what, most in ((resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(what, (most, most))
        except (OSError, ValueError):  # a system that has no such bound
            continue


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    _bound(asked["bounds"]["cpu_s"], asked["bounds"]["memory_bytes"])
    print(json.dumps(answer(asked)))
