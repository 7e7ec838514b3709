"""The tokenizer that the header of a GGUF file tells, as the content of one `tokenizer.json`.

It takes the header's keys and values as they are, and knows neither files nor models.

Source: keys and kinds of tokens: ggml-org/ggml, docs/gguf.md; how each pre-tokenizer cuts a text, and which of them put
a begin of text first: ggml-org/llama.cpp, src/llama-vocab.cpp, against the tokenizers that were published with the
models.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from unmask.base.errors import BadCheckpoint, Unsupported
from unmask.text.published import CLASSES

KEY, TEMPLATE = "tokenizer.ggml.", "tokenizer.chat_template"
CONTROL, USER, UNUSED = 3, 4, 5
"""Kinds of tokens: special; added, but text; no token at all."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|"
    r"\s+"
)


@dataclass(frozen=True, slots=True)
class Cut:
    """How a text is cut before its pieces are looked up.

    Args:
        pattern: of one piece; None is GPT-2's.
        digits: whether each digit stands alone.
        composed: whether letters and their accents become one first (NFC).
        whole: whether a piece that is a token is one, whatever the merges say.
        begins: whether a begin of text stands first, where the header does not say.
    """

    pattern: str | None = None
    digits: bool = False
    composed: bool = False
    whole: bool = False
    begins: bool = False


CUTS = {
    "gpt-2": Cut(),
    "smollm": Cut(digits=True),
    "qwen2": Cut(CLASSES["Qwen2Tokenizer"], composed=True),
    "llama-bpe": Cut(_LLAMA3, whole=True, begins=True),
}
"""By the header's name of the pre-tokenizer."""


def spec(told: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of a `tokenizer.json`; None where the header tells of no tokenizer.

    Raises:
        BadCheckpoint: a key is missing or contradicts another.
        Unsupported: a tokenizer that is no byte-level BPE, or cuts texts in a way that is not in `CUTS`.
    """
    kind = told.get(f"{KEY}model", "none")
    if kind in ("none", "no_vocab"):
        return None
    cut = CUTS.get(str(told.get(f"{KEY}pre")))
    if kind != "gpt2" or cut is None:
        raise Unsupported(
            f"a tokenizer of kind {kind!r} that cuts texts as {told.get(f'{KEY}pre')!r} can't be read from GGUF; "
            f"this code reads 'gpt2' with {', '.join(CUTS)}. Use the model's own folder"
        )
    tokens, kinds = _strings(told, "tokens"), told.get(f"{KEY}token_type")
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise BadCheckpoint(f"{KEY}token_type must have one kind for each of {len(tokens)} tokens")
    vocab = {token: i for i, (token, x) in enumerate(zip(tokens, kinds, strict=True)) if x != UNUSED}
    if len(vocab) != sum(x != UNUSED for x in kinds):
        raise BadCheckpoint(f"{KEY}tokens repeats a token")
    merges = [(a, b) for a, _, b in (text.partition(" ") for text in _strings(told, "merges"))]
    inner = _bpe(vocab, merges, cut)
    for number, (token, x) in enumerate(zip(tokens, kinds, strict=True)):
        if x in (CONTROL, USER):
            inner.add_tokens([AddedToken(token, normalized=False, special=x == CONTROL)])
            assert inner.token_to_id(token) == number
    start = told.get(f"{KEY}bos_token_id")
    if told.get(f"{KEY}add_bos_token", cut.begins) and isinstance(start, int) and 0 <= start < len(tokens):
        name = tokens[start]
        inner.post_processor = processors.TemplateProcessing(single=f"{name} $A", special_tokens=[(name, start)])
    content: dict[str, Any] = json.loads(inner.to_str())
    return content


def template(told: Mapping[str, Any]) -> str | None:
    """The chat template, if there is one."""
    found = told.get(TEMPLATE)
    return found if isinstance(found, str) else None


def _bpe(vocab: dict[str, int], merges: list[tuple[str, str]], cut: Cut) -> tokenizers.Tokenizer:
    try:
        inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=cut.whole))
    except Exception as error:  # the library raises nothing narrower
        raise BadCheckpoint(f"tokens and merges make no tokenizer: {error}") from error
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut.digits else []
    if cut.pattern is not None:
        steps.append(pre_tokenizers.Split(tokenizers.Regex(cut.pattern), behavior="isolated"))
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.pattern is None)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*steps, spell])
    inner.decoder = decoders.ByteLevel()
    if cut.composed:
        inner.normalizer = normalizers.NFC()
    return inner


def _strings(told: Mapping[str, Any], key: str) -> list[str]:
    found = told.get(KEY + key)
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise BadCheckpoint(f"{KEY}{key} must be a list of texts")
    return found
