"""Outputs in OpenAI's shapes: choices, log-probabilities, usage; what only a diffusion model has in further fields.

A log-probability is that of a token at the step that wrote it, given what the model saw then; `step` says which step.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from unmask.base.errors import Unsupported
from unmask.decode.audit import Drift
from unmask.decode.trace import Change
from unmask.lm.results import Output
from unmask.lm.rows import Ask
from unmask.serve.guard import fresh_id
from unmask.serve.job import Done
from unmask.text.tokenizer import Tokenizer

LEAST = -9999.0
"""Stands for a log-probability of minus infinity, which JSON can't say."""


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer of one endpoint is called, and where its text goes.

    Args:
        prefix: of ids.
        name, chunk: what a whole answer and a piece of a stream are called.
        chat: whether text stands in a message.
    """

    prefix: str
    name: str
    chunk: str
    chat: bool = False


CHAT = Form("chatcmpl", "chat.completion", "chat.completion.chunk", chat=True)
TEXT = Form("cmpl", "text_completion", "text_completion")
EDIT = Form("edit", "edit.completion", "edit.completion.chunk", chat=True)
APPLY = Form("apply", "apply.completion", "apply.completion.chunk", chat=True)
INFILL = Form("infill", "infill.completion", "infill.completion.chunk")
REFINE = Form("refine", "refine.completion", "refine.completion.chunk")


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all pieces of one answer have in common."""

    form: Form
    model: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", f"{self.form.prefix}-{fresh_id()}")

    def around(self, choices: list[dict[str, Any]], *, chunk: bool = False, **more: Any) -> dict[str, Any]:
        """Choices as an answer, or as a piece of a stream."""
        name = self.form.chunk if chunk else self.form.name
        return {"id": self.id, "object": name, "created": self.created, "model": self.model, "choices": choices, **more}

    def choice(
        self, index: int, text: str, finish_reason: str | None, logprobs: Any = None, *, chunk: bool = False
    ) -> dict[str, Any]:
        """One text, or a piece of it."""
        if not self.form.chat:
            place: dict[str, Any] = {"text": text}
        elif chunk:
            place = {"delta": {"content": text} if text else {}}
        else:
            place = {"message": {"role": "assistant", "content": text, "refusal": None}}
        return {"index": index, **place, "logprobs": logprobs, "finish_reason": finish_reason}

    def called(self, choice: dict[str, Any], message: dict[str, Any] | None) -> dict[str, Any]:
        """A choice whose text is a call of a tool, as this message says it; as it is, where there is none."""
        return choice if message is None else {**choice, "message": message, "finish_reason": "tool_calls"}


def usage(ask: Ask, done: Done) -> dict[str, Any]:
    """What an answer cost: tokens that were given, tokens that are given back, forwards of the network.

    Where a target of seconds or an audit was asked for, what became of it, text by text; what was chosen for options
    that were left open is the same for all of them.
    """
    prompts = [rows[0] for rows, draw in zip(ask.texts, ask.draws, strict=True) if draw == 0]
    given = sum(len(row.tokens) - sum(gap.stop - gap.start for gap in row.gaps) for row in prompts)
    written = sum(len(output.tokens) for output in done.outputs)
    stats = [output.stats for output in done.outputs]
    forwards = sum(one.forwards for one in stats)
    eased = [asdict(s.eased) | {"kept": s.eased.kept} for s in stats if s.eased is not None]
    drift = [_summary(s.drift) for s in stats if s.drift is not None]
    return {
        "prompt_tokens": given,
        "completion_tokens": written,
        "total_tokens": given + written,
        "prompt_tokens_details": {"cached_tokens": min(done.reused, given)},
        "forwards": forwards,
        "tokens_per_forward": round(written / forwards, 4) if forwards else 0.0,
        "edits": sum(one.edits for one in stats),
        **({"eased": eased} if eased else {}),
        **({"drift": drift} if drift else {}),
        **({"chosen": dict(stats[0].chosen)} if stats and stats[0].chosen else {}),
    }


def logprobs(
    form: Form,
    tokenizer: Tokenizer | None,
    tokens: Sequence[int],
    changes: Sequence[Change | None],
    top: int,
    at: int = 0,
) -> dict[str, Any]:
    """Log-probabilities of tokens.

    Args:
        form: whose shape.
        tokenizer: spells them.
        tokens, changes: ids and what wrote them.
        top: how many of the most probable tokens to tell beside each, if so many are known.
        at: code points of the text before these tokens.
    """
    names = [_name(tokenizer, token) for token in tokens]
    steps = [None if change is None else change.step for change in changes]
    values = [_number(0.0 if change is None else change.log_prob) for change in changes]
    ranks = [() if change is None else change.ranked[:top] for change in changes]
    if form.chat:
        entries = zip(tokens, names, values, steps, ranks, strict=True)
        content = [
            {
                "token": name,
                "logprob": value,
                "bytes": _bytes(tokenizer, token),
                "step": step,
                "top_logprobs": [
                    {"token": _name(tokenizer, one), "bytes": _bytes(tokenizer, one), "logprob": nats}
                    for one, nats in rank
                ],
            }
            for token, name, value, step, rank in entries
        ]
        return {"content": content, "refusal": None}
    offsets = []
    for token in tokens:
        offsets.append(at)
        at += 0 if tokenizer is None else len(tokenizer.decode([token]))
    own = [((token, value),) for token, value in zip(tokens, values, strict=True)]
    told = [{_name(tokenizer, i): _number(nats) for i, nats in (*a, *b)} for a, b in zip(ranks, own, strict=True)]
    return {
        "tokens": names,
        "token_logprobs": values,
        "top_logprobs": told if top else None,
        "text_offset": offsets,
        "steps": steps,
    }


def of_output(form: Form, tokenizer: Tokenizer | None, output: Output, top: int) -> dict[str, Any]:
    """Log-probabilities of a whole text."""
    return logprobs(form, tokenizer, output.tokens, output.changes, top)


def _summary(drift: Drift) -> dict[str, Any]:
    return {name: value for name, value in drift.as_dict().items() if name != "looks"}


def _name(tokenizer: Tokenizer | None, token: int) -> str:
    """A token's text; of one that is part of a character the bytes, as OpenAI spells them; of a special its name."""
    data = _bytes(tokenizer, token)
    if data is None:
        specials = {} if tokenizer is None else tokenizer.specials
        return next((name for name, one in specials.items() if one.id == token), f"token_id:{token}")
    try:
        return bytes(data).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _bytes(tokenizer: Tokenizer | None, token: int) -> list[int] | None:
    """What a token stands for; None for none, as of special tokens."""
    if tokenizer is None:
        return None
    try:
        data = tokenizer.decode_bytes([token])
    except Unsupported:  # one that is spelled in letters only
        data = tokenizer.decode([token]).encode()
    return list(data) or None


def _number(value: float) -> float:
    return max(LEAST, value)
