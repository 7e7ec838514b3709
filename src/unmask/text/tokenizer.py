"""Strings to ids and back.

Our own tokenizers are byte-level BPE, so every string survives the round trip. Those of published folders are read too;
the caller then says which of their ids are the mask, the ends and the padding.

User text never becomes a special id: a literal "<|mask|>" is nine characters of text. It does not know models,
canvases or chat.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain, pairwise, takewhile
from pathlib import Path
from typing import Any, Self

import tokenizers
from tokenizers import decoders as decoding
from tokenizers import models, pre_tokenizers, trainers

from unmask.base.errors import BadCheckpoint, BadInput, Unsupported
from unmask.base.vocab import Vocab
from unmask.text.published import FILE, read, read_spec

MASK, EOS, BOS, PAD = "<|mask|>", "<|eos|>", "<|bos|>", "<|pad|>"
SPECIALS = {"mask": MASK, "eos": EOS, "bos": BOS, "pad": PAD}
"""The special tokens of our own tokenizers, in the order of their ids."""

# Context-free cuts, so that a text cut at a line border or before a space has the same tokens as the pieces:
# a run of spaces or tabs is one piece (indentation), a single space belongs to the word behind it, line ends stand
# alone, digits stand alone (as numbers of any length then look alike).
_PIECES = "|".join(
    [
        r"(?<=\p{L})'(?:[sdmt]|ll|ve|re)(?!\p{L})",
        r"[ _]?[\p{L}\p{M}]+",
        r" ?\p{N}",
        r" ?[^\s\p{L}\p{N}\p{M}]+",
        r"[\r\n]+",
        r"[ \t]{2,}",
        r"\s",
        r"\p{M}+",
    ]
)
_LONGEST = 16
"""Bytes that a learned token may have; keeps rulers and banners from eating the vocabulary."""


def _byte_of_letter() -> dict[str, int]:
    """The printable letter that byte-level BPE writes for each byte (GPT-2's alphabet), inverted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [b for b in range(256) if b not in printable]
    letters = {chr(b): b for b in printable}
    return letters | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_of_letter()


@dataclass(frozen=True, slots=True)
class Special:
    """A special token: its id, and whether it swallows the white space to its left or right."""

    id: int
    lstrip: bool = False
    rstrip: bool = False


class Tokenizer:
    """A vocabulary and the way to write with it.

    Attributes:
        vocab: size and special ids; without a padding id that is an ordinary piece of text.
    """

    def __init__(self, spec: dict[str, Any], vocab: Vocab | None = None) -> None:
        """From the content of a `tokenizer.json`; `Tokenizer.train` and `Tokenizer.load` are the usual ways in.

        Raises:
            BadCheckpoint: the content is not a tokenizer, or `vocab` does not fit it.
        """
        self._spec = _with_specials(spec, vocab)
        try:
            self._inner = tokenizers.Tokenizer.from_str(json.dumps(self._spec))
        except Exception as error:  # the library raises nothing narrower
            raise BadCheckpoint(f"not a tokenizer: {error}") from error
        self._inner.no_padding()
        self._inner.no_truncation()
        self._inner.encode_special_tokens = True
        size = self._inner.get_vocab_size(with_added_tokens=True)
        if vocab is None:
            ids: dict[str, Any] = {role: self._inner.token_to_id(name) for role, name in SPECIALS.items()}
            vocab = Vocab(size=size, **ids)
        self._added = self._inner.get_added_tokens_decoder()
        for token in self._spec.get("added_tokens") or []:
            if token["id"] not in self._added or self._added[token["id"]].content != token["content"]:
                raise BadCheckpoint(f"the added token {token['content']!r} can't have the id {token['id']}")
        if vocab.pad is not None and vocab.pad not in self._added and self._inner.id_to_token(vocab.pad) is not None:
            vocab = replace(vocab, pad=None)  # files that name no padding often say 0, which may be any piece
        self.vocab = vocab
        self._special = vocab.specials | {i for i, token in self._added.items() if token.special}
        kind = self._spec["model"]
        unknown = {kind.get("unk_id"), self._inner.token_to_id(str(kind.get("unk_token")))}
        self._never = self._special - (unknown - vocab.specials)

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> Self:
        """Learn a byte-level BPE; the same texts in the same order give the same tokenizer.

        Args:
            texts: what to learn from.
            size: ids in all, with the 4 special ones and the 256 bytes. Fewer come out where the texts are too short.
        Raises:
            BadInput: `size` leaves no room for the bytes, or there is no text.
        """
        smallest = len(SPECIALS) + 256
        if size < smallest:
            raise BadInput(
                f"a vocabulary has at least {smallest} ids (256 bytes and {len(SPECIALS)} specials), got {size}"
            )
        inner = tokenizers.Tokenizer(models.BPE())
        split = pre_tokenizers.Split(tokenizers.Regex(_PIECES), behavior="isolated")
        spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.pre_tokenizer = pre_tokenizers.Sequence([split, spell])
        inner.decoder = decoding.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=list(SPECIALS.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=_LONGEST,
            show_progress=False,
        )
        seen = 0

        def counted() -> Iterable[str]:
            nonlocal seen
            for text in texts:
                seen += len(text)
                yield text

        inner.train_from_iterator(counted(), trainer)
        if not seen:
            raise BadInput("there is no text to learn a tokenizer from; check the sources")
        return cls(json.loads(inner.to_str()))

    @classmethod
    def load(cls, path: str | Path, vocab: Vocab | None = None) -> Self:
        """Read the tokenizer of a folder, or a `tokenizer.json`.

        Args:
            path: the folder or file.
            vocab: the special ids of a foreign tokenizer; ours are known by name.
        Raises:
            BadCheckpoint: a file is missing, is not a tokenizer, or `vocab` does not fit it.
            Unsupported: a published folder that can't be read without its own code.
        """
        path = Path(path)
        spec = read(path) if path.is_dir() else read_spec(path)
        try:
            return cls(spec, vocab)
        except BadCheckpoint as error:
            raise BadCheckpoint(f"{path}: {error}") from error.__cause__

    def save(self, folder: str | Path) -> Path:
        """Write `tokenizer.json` into a folder, whole or not at all; returns its path."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        file, draft = folder / FILE, folder / f".{FILE}.{os.getpid()}"
        draft.write_text(json.dumps(self._spec, ensure_ascii=False, indent=1), encoding="utf-8")
        draft.replace(file)
        return file

    def __len__(self) -> int:
        return self.vocab.size

    @cached_property
    def fingerprint(self) -> str:
        """Tells this tokenizer from every other one (hex)."""
        told = {key: value for key, value in asdict(self.vocab).items() if key != "stops" or value}
        content = json.dumps([self._spec, told], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def byte_level(self) -> bool:
        """Whether every string survives the round trip because tokens are spelled in bytes."""
        return "ByteLevel" in _types(self._spec.get("decoder"))

    @cached_property
    def start(self) -> tuple[int, ...]:
        """Ids that stand before every text: our begin of text, or what a foreign post-processor puts there.

        A model's begin of text does not tell: many name one that was never in front of their texts.
        """
        if self.vocab.bos is not None and self._inner.token_to_id(BOS) == self.vocab.bos:
            return (self.vocab.bos,)
        found = self._inner.encode("a")
        return tuple(i for i, _ in takewhile(lambda x: x[1], zip(found.ids, found.special_tokens_mask, strict=True)))

    @cached_property
    def specials(self) -> dict[str, Special]:
        """What special tokens look like in a template's text."""
        found: dict[str, Special] = {}
        for i in sorted(self._special):
            added, name = self._added.get(i), self._inner.id_to_token(i)
            if name:
                found[name] = Special(i, added.lstrip, added.rstrip) if added else Special(i)
        return found

    @property
    def names(self) -> dict[str, str]:
        """What templates call the special tokens, `bos_token` and the like, and what these look like."""
        ids = {f"{role}_token": getattr(self.vocab, role) for role in SPECIALS}
        found = {name: None if i is None else self._inner.id_to_token(i) for name, i in ids.items()}
        return {name: text for name, text in found.items() if text}

    def encode(self, text: str) -> list[int]:
        """Ids of a text, none of them special.

        Raises:
            BadInput: the text holds half of a surrogate pair, which no encoding can carry, or a letter that is nothing
                but a special token.
            BadCheckpoint: the tokenizer writes ids that the model does not have.
        """
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str], *, inside: bool = False) -> list[list[int]]:
        """Ids of several texts; the same as one by one, on all cores.

        With `inside` they stand behind something: a tokenizer that marks the first word of a text does not do so.
        """
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise BadInput(
                    f"the text holds a lone surrogate at code point {error.start} ({text[error.start]!r}), "
                    "which is no character; remove it or decode the input with errors='replace'"
                ) from error
        inner = self._inside if inside else self._inner
        found = [e.ids for e in inner.encode_batch_fast(list(texts), add_special_tokens=False)]
        for at, ids in enumerate(found):
            if not self._never.isdisjoint(ids):
                found[at] = self._without_specials(texts[at], inside=inside)
            if ids and max(ids) >= self.vocab.size:
                raise BadCheckpoint(
                    f"the tokenizer writes id {max(ids)} and the model has {self.vocab.size}; is it another model's?"
                )
        return found

    def _without_specials(self, text: str, *, inside: bool) -> list[int]:
        """Ids of a text that the tokenizer by itself spells with specials: each is cut behind its first letter."""
        found = (self._inside if inside else self._inner).encode(text, add_special_tokens=False)
        cuts = [at + 1 for i, (at, _) in zip(found.ids, found.offsets, strict=True) if i in self._never]
        pieces = [text[a:b] for a, b in pairwise(sorted({0, *cuts, len(text)}))]
        if len(pieces) == 1:
            raise BadInput(f"the tokenizer has {text!r} only as a special token; take it out of the text")
        first, *rest = pieces
        return [*self.encode_many([first], inside=inside)[0], *chain.from_iterable(self.encode_many(rest, inside=True))]

    @cached_property
    def _inside(self) -> tokenizers.Tokenizer:
        """The same pieces for texts that stand behind something."""
        content = json.dumps(self._spec)
        if '"prepend_scheme": "first"' not in content:
            return self._inner
        inner = tokenizers.Tokenizer.from_str(content.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"'))
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True
        return inner

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids: specials are dropped, bytes that are no UTF-8 become U+FFFD.

        Raises:
            BadInput: an id outside the vocabulary.
        """
        if self._in_bytes:
            return self.decode_bytes(ids).decode(errors="replace")
        self._check(ids)
        return self._inner.decode([i for i in ids if i not in self._special])

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes that ids stand for, exactly; specials stand for none.

        Raises:
            BadInput: an id outside the vocabulary.
            Unsupported: a foreign tokenizer whose tokens are not spelled in bytes.
        """
        self._check(ids)
        spelled = self.token_bytes
        return b"".join([spelled[i] for i in ids])

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every id; b"" for specials and for ids that no token has.

        Raises:
            Unsupported: a foreign tokenizer whose tokens are not spelled in bytes.
        """
        spell = _letters if self.byte_level else _sentencepiece
        if not self._in_bytes:
            kind = self._spec["model"].get("type")
            raise Unsupported(
                f"the bytes of a {kind} token are not defined outside its sentence; use a byte-level BPE tokenizer, or "
                "one with byte fallback"
            )
        spelled = [b""] * self.vocab.size
        for token, i in self._inner.get_vocab(with_added_tokens=True).items():
            if i in self._special or i >= len(spelled):
                continue
            spelled[i] = self._added[i].content.encode() if i in self._added else spell(token)
        return spelled

    @property
    def _in_bytes(self) -> bool:
        """Whether tokens stand for the same bytes wherever they are, so that a text may be cut and joined anywhere."""
        return self.byte_level or bool(self._spec["model"].get("byte_fallback"))

    def _check(self, ids: Sequence[int]) -> None:
        if ids and (min(ids) < 0 or max(ids) >= self.vocab.size):
            wrong = next(i for i in ids if not 0 <= i < self.vocab.size)
            raise BadInput(
                f"token id {wrong} is outside the vocabulary of {self.vocab.size}; was it made by another tokenizer?"
            )


def _with_specials(spec: dict[str, Any], vocab: Vocab | None) -> dict[str, Any]:
    """The content with the caller's special ids marked special, so that text can't yield them."""
    if vocab is None:
        return spec
    own = vocab.specials
    beyond = [i for i in own if not 0 <= i < vocab.size]
    if beyond:
        raise BadCheckpoint(f"special ids {sorted(beyond)} are outside the vocabulary of {vocab.size}")
    added = [t | {"special": True} if t["id"] in own else t for t in spec.get("added_tokens") or []]
    return spec | {"added_tokens": added}


def _types(part: Any) -> set[str]:
    """The types named anywhere in one part of a tokenizer's content."""
    if isinstance(part, dict):
        return {part.get("type", "")} | set().union(*(_types(v) for v in part.values()), set())
    if isinstance(part, list):
        return set().union(*(_types(v) for v in part), set())
    return set()


def _letters(token: str) -> bytes:
    return bytes([_BYTES[letter] for letter in token]) if all(c in _BYTES for c in token) else token.encode()


def _sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()
