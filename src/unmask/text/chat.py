"""Conversations to tokens: through the template that a model was published with, or as plain turns.

A special token that the template writes becomes its id; the same characters in a message stay text, so that nobody can
end a turn, open one, or place a mask by writing its name. `unmask.text.sandbox`, where templates run, marks what came
from messages. It does not know models.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from unmask.base.errors import BadCheckpoint, BadInput
from unmask.text import calls, sandbox
from unmask.text.calls import Tool
from unmask.text.layout import Fixed
from unmask.text.published import SETTINGS, read_object, special_names
from unmask.text.tokenizer import Tokenizer

Message = Mapping[str, Any]
Conversation = Sequence[Message]

FILE = "chat_template.jinja"
ROLES = ("system", "user", "assistant", "tool")
MORE = {"assistant": "tool_calls", "tool": "tool_call_id"}
"""What a message of a role may have besides: see `unmask.text.calls`."""
LONGEST = 1 << 20
"""Characters that a template may have."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a model is told of tools, and how it calls them.

    Args:
        kind: "plain" for text as `unmask.text.calls` writes it; "json" for the template's own words around
            `{"name", "arguments"}`; "other" for a form of the template that is not read here.
        before: text that stands before a call; None where it can't be written as text.
        between: text that stands between two calls of an answer; None where there is one at most, or it is no text.
    """

    kind: Literal["plain", "json", "other"] = "plain"
    before: str | None = ""
    between: str | None = calls.BETWEEN


class Plain:
    """The form of a chat with a model that has no template: named turns, one below the other.

    Attributes:
        stops: strings that end an answer, as the model writes the next turn itself if nothing stops it.
        form: of tools.
    """

    stops = ("\n\nUser:", "\nUser:", "\n\nSystem:", "\nSystem:")
    form = Form()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def read(self, chats: Sequence[Conversation], tools: Sequence[Tool] = (), *, call: bool = False) -> list[Fixed]:
        """Conversations up to where the answer begins, as ids and as text; a call begins there as well."""
        turns = [
            [f"{m['role'].capitalize()}:\n{m['content'].strip()}\n\n" for m in calls.plain(chat, tools)]
            for chat in chats
        ]
        texts = ["".join(turn) + "Assistant:\n" for turn in turns]
        start = self._tokenizer.start
        return [
            Fixed(ids=(*start, *ids), text=text, raw=True)
            for text, ids in zip(texts, self._tokenizer.encode_many(texts), strict=True)
        ]


class ChatTemplate:
    """The template of a published model.

    Attributes:
        stops: see `Plain`; a published template ends turns by tokens.
    """

    stops: tuple[str, ...] = ()

    def __init__(self, source: str, tokenizer: Tokenizer, names: Mapping[str, Any] | None = None) -> None:
        """From a Jinja template.

        Args:
            source: the template.
            tokenizer: whose special tokens it writes.
            names: what the template calls them, `bos_token` and the like.
        """
        self._source, self._tokenizer, self._names = source, tokenizer, dict(names or {})
        self._specials = tokenizer.specials
        by_length = sorted(self._specials, key=len, reverse=True)  # of two that start alike, the longer one
        self._find = re.compile("|".join(map(re.escape, by_length)) or r"(?!)")

    @classmethod
    def load(cls, folder: str | Path, tokenizer: Tokenizer) -> Self | None:
        """The template of a published folder: `chat_template.jinja`, or in its tokenizer_config.json; None without one.

        Raises:
            BadCheckpoint: a template that is torn, too long, or one of several of which none is called "default".
        """
        folder = Path(folder)
        given: str | None
        try:
            given = (folder / FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            given = _of_settings(folder / SETTINGS)
        except (OSError, ValueError) as error:
            raise BadCheckpoint(f"{folder / FILE} can't be read ({error}); copy it again from where it came") from error
        if given is None:
            return None
        if len(given) > LONGEST:
            raise BadCheckpoint(f"{folder}: the chat template has {len(given)} characters; the most is {LONGEST}")
        return cls(given, tokenizer, {**tokenizer.names, **special_names(folder)})

    @cached_property
    def form(self) -> Form:
        """What the template makes of tools and calls, by trying it."""
        sign = chr(sandbox.STAND_INS[-1]) * 3
        tools = [{"name": sign, "description": sign, "parameters": {"type": "object", "properties": {}}}]
        asked = [{"role": "user", "content": "?"}]
        call = calls.written(sign, {sign: sign})
        try:
            prompt = self._render([asked], tools, ask=True).texts[0]
        except (BadInput, BadCheckpoint):
            return Form()
        if sign not in prompt:
            return Form()
        text = self._calling(asked, tools, 1)
        at = text.rfind(call)
        if at < 0:
            return Form("other", None, None)
        before = text[len(prompt) : at] if text.startswith(prompt) and len(prompt) <= at else None
        rest, _, tail = self._calling(asked, tools, 2).rpartition(call)
        head, _, between = rest.rpartition(call)
        alike = between and head == text[:at] and tail == text[at + len(call) :]
        return Form("json", self._plain(before), self._plain(between) if alike else None)

    def _calling(self, asked: Conversation, tools: Sequence[Tool], num: int) -> str:
        """A conversation that ends with so many calls, all alike; empty where the template does not write it."""
        sign = chr(sandbox.STAND_INS[-1]) * 3
        each = [{"id": sign, "name": sign, "arguments": {sign: sign}} for _ in range(num)]
        try:
            chat = [*asked, {"role": "assistant", "content": "", "tool_calls": each}]
            return self._render([chat], tools, ask=False).texts[0]
        except (BadInput, BadCheckpoint):
            return ""

    def _plain(self, text: str | None) -> str | None:
        """A text, unless it holds special tokens."""
        return None if text is None or self._find.search(text) else text

    def read(self, chats: Sequence[Conversation], tools: Sequence[Tool] = (), *, call: bool = False) -> list[Fixed]:
        """Conversations up to where the answer begins, as ids and as text.

        Args:
            chats: conversations.
            tools: that the model is told of; see `unmask.text.calls`.
            call: up to where a call of a tool begins, whose form is `calls.written`.
        Raises:
            BadInput: the template refuses a conversation. BadCheckpoint: it can't be rendered, or not within bounds.
        """
        aware = any(tools) or any("tool_calls" in m or m["role"] == "tool" for chat in chats for m in chat)
        kind = self.form.kind if aware else "other"
        if kind == "plain":
            chats, tools = [calls.plain(chat, tools) for chat in chats], ()
        if call and kind == "json":
            return [self._called(chat, tools) for chat in chats]
        found = self._render(chats, tools, ask=True)
        return [self._fixed(text, found.letters) for text in found.texts]

    def _called(self, chat: Conversation, tools: Sequence[Tool]) -> Fixed:
        """A conversation up to where the template writes a call."""
        sign = chr(sandbox.STAND_INS[-1]) * 3
        last = {"role": "assistant", "content": "", "tool_calls": [{"id": "call_0", "name": sign, "arguments": {}}]}
        found = self._render([[*chat, last]], tools, ask=False)
        at = found.texts[0].rfind(calls.opened(sign))
        if at < 0:
            raise BadCheckpoint("the chat template writes no call behind this conversation; answer without tools")
        return self._fixed(found.texts[0][:at], found.letters)

    def _fixed(self, text: str, letters: dict[int, str]) -> Fixed:
        return Fixed(ids=tuple(self._ids(self._parts(text, letters))), text=text.translate(letters), raw=True)

    def end_of_turn(self) -> int | None:
        """The special token that the template writes behind an answer; None where there is none, or it can't render."""
        answer = chr(sandbox.STAND_INS[-1]) * 3
        try:
            chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
            found = self._render([chat], (), ask=False)
        except (BadInput, BadCheckpoint):
            return None
        parts = self._parts(found.texts[0], found.letters)
        place = next((i for i, part in enumerate(parts) if isinstance(part, str) and answer in part), None)
        if place is None or str(parts[place]).rpartition(answer)[2].strip() or place + 1 == len(parts):
            return None
        end = parts[place + 1]
        return end if isinstance(end, int) else None

    def _render(self, chats: Sequence[Conversation], tools: Sequence[Tool], *, ask: bool) -> sandbox.Rendered:
        try:
            return sandbox.render(
                self._source,
                [calls.published(chat) for chat in chats],
                tools=calls.functions(tools),
                names=self._names,
                specials=self._specials,
                ask=ask,
            )
        except sandbox.Refused as error:
            raise BadInput(f"the chat template refuses this conversation: {error}") from error
        except sandbox.Failed as error:
            raise BadCheckpoint(f"the chat template can't be rendered: {error}; chat without it, or mend it") from error

    def _parts(self, text: str, letters: dict[int, str]) -> list[str | int]:
        """Text and special ids, in turn."""
        parts: list[str | int] = []
        at, swallow = 0, False
        for found in [*self._find.finditer(text), None]:
            piece = text[at : found.start() if found else len(text)]
            piece = piece.lstrip() if swallow else piece
            special = self._specials[found[0]] if found else None
            piece = piece.rstrip() if special and special.lstrip else piece
            parts += [piece.translate(letters)] if piece else []
            if found and special:
                parts.append(special.id)
                at, swallow = found.end(), special.rstrip
        return parts

    def _ids(self, parts: Sequence[str | int]) -> list[int]:
        texts = [part for part in parts if isinstance(part, str)]
        head = len(texts) - sum(isinstance(part, str) for part in parts[1:])  # a text that nothing stands before
        spelled = iter(
            [*self._tokenizer.encode_many(texts[:head]), *self._tokenizer.encode_many(texts[head:], inside=True)]
        )
        return [i for part in parts for i in (next(spelled) if isinstance(part, str) else [part])]


def conversations(prompt: Any) -> tuple[list[list[dict[str, Any]]], bool]:
    """Conversations from a text, messages, or a list of either, and whether it was such a list.

    Raises:
        BadInput: anything else, or a conversation that does not end with something to answer.
    """
    if isinstance(prompt, str | Mapping) or not isinstance(prompt, Iterable):
        return [_conversation(prompt)], False
    items = list(prompt)
    if not items or isinstance(items[0], Mapping):
        return [_conversation(items)], False
    return [_conversation(item) for item in items], True


def _conversation(prompt: Any) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise BadInput("the prompt is empty; give some text")
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, Mapping) or not isinstance(prompt, Iterable):
        raise BadInput(f"a chat is a text or a list of messages with role and content, not {_short(prompt)}")
    messages = list(prompt)
    for message in messages:
        if not isinstance(message, Mapping) or {*message} - {*MORE.values()} != {"role", "content"}:
            raise BadInput(f"a message has a role and a content and nothing else, got {_short(message)}")
        if message["role"] not in ROLES:
            raise BadInput(f"a role is one of {', '.join(ROLES)}, not {_short(message['role'])}")
        if not isinstance(message["content"], str):
            raise BadInput(f"the content of a message is a text, not {_short(message['content'])}")
        if others := {*message} - {"role", "content", MORE.get(message["role"])}:
            raise BadInput(f"a message of the {message['role']} has no {min(others)}")
        for call in message.get("tool_calls", ()):
            if not isinstance(call, Mapping) or {*call} != {"id", "name", "arguments"}:
                raise BadInput(f"a call of a tool has an id, a name and arguments, got {_short(call)}")
            if not isinstance(call["arguments"], Mapping):
                raise BadInput(f"the arguments of a call are an object, not {_short(call['arguments'])}")
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise BadInput("a conversation ends with a message of the user, which is then answered")
    return [dict(message) for message in messages]


def _of_settings(file: Path) -> str | None:
    """The template in a tokenizer_config.json: a string, or several with names."""
    given = read_object(file).get("chat_template")
    if given is None or isinstance(given, str):
        return given
    named: dict[str, str] = {}
    for item in given if isinstance(given, list) else [given]:
        name, source = (item.get("name"), item.get("template")) if isinstance(item, Mapping) else (None, None)
        if not isinstance(name, str) or not isinstance(source, str):
            raise BadCheckpoint(f"{file}: chat_template is a string or a list of names and templates")
        named[name] = source
    if len(named) > 1 and "default" not in named:
        raise BadCheckpoint(f"{file}: of the chat templates {', '.join(named)} none is called default")
    return named.get("default", next(iter(named.values()), None))


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
