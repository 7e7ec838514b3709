"""From sources to rows: the split goes by content, the cache is whole or made again, bytes are counted."""

import itertools
import json
import math

import numpy as np
import pytest

from small_tokenizers import byte_level, sentencepiece
from small_tokenizers import write as write_files
from unmask.base.errors import BadCheckpoint, BadInput
from unmask.base.vocab import Vocab
from unmask.data import prepare as prepared
from unmask.data.prepare import MARK, prepare
from unmask.data.sources import Source
from unmask.data.tokens import encode, is_held_out, load
from unmask.text.tokenizer import Tokenizer

TEXTS = [f"def f{i}(x):\n    return x + {i * i}  # number {i}, café\n" * (1 + i % 4) for i in range(60)]
ALL = {"length": 16, "held_out": 0.25, "size": 300}


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "texts.jsonl", TEXTS)


def write(file, texts):
    file.write_text("\n".join(json.dumps({"text": t}) for t in texts))
    return Source("jsonl", str(file))


def documents(rows, tokenizer):
    ids, starts = rows.tokens.ids, rows.tokens.starts
    return [tokenizer.decode(ids[a:b].tolist()) for a, b in itertools.pairwise(starts)]


def test_every_document_is_on_one_side_framed_and_whole(tmp_path, source):
    corpus = prepare([source], tmp_path / "out", **ALL)
    train, held = (documents(rows, corpus.tokenizer) for rows in (corpus.train, corpus.held_out))
    assert sorted(train + held) == sorted(TEXTS)
    assert 0.05 * len(TEXTS) < len(held) < 0.5 * len(TEXTS)
    for rows in (corpus.train, corpus.held_out):
        assert (rows.tokens.ids[rows.tokens.starts[:-1]] == corpus.tokenizer.vocab.bos).all()
        assert (rows.tokens.ids[rows.tokens.starts[1:] - 1] == corpus.tokenizer.vocab.eos).all()
        assert len(rows) == math.ceil(len(rows.tokens.ids) / 16)


def test_bytes_per_token_counts_the_ends_and_not_the_beginnings(tmp_path, source):
    corpus = prepare([source], tmp_path / "out", **ALL)
    held = documents(corpus.held_out, corpus.tokenizer)
    counted = sum(len(corpus.tokenizer.encode(t)) + 1 for t in held)
    assert corpus.bytes_per_token == sum(len(t.encode()) for t in held) / counted


@pytest.mark.parametrize(
    ("inner", "named", "front"), [(sentencepiece(), "<s>", ["<s>"]), (byte_level(), "<|im_start|>", [])]
)
def test_a_foreign_tokenizer_says_what_stands_before_a_document(tmp_path, inner, named, front):
    """Its post-processor tells: some published models name a begin of text that never stands there."""
    texts = ["abc def", "a bag"]
    front = [inner.token_to_id(name) for name in front]
    vocab = Vocab(size=inner.get_vocab_size(), bos=inner.token_to_id(named), eos=inner.get_vocab_size() - 1)
    tokenizer = Tokenizer.load(write_files(tmp_path / "theirs", inner), vocab)
    found = encode(texts, tokenizer, tmp_path / "ids")
    assert found.ids.tolist() == [i for text in texts for i in [*front, *tokenizer.encode(text), vocab.eos]]

    texts = [f"abc {'a bag ' * i}" for i in range(20)]
    given = prepare(
        [write(tmp_path / "abc.jsonl", texts)],
        tmp_path / "out",
        length=16,
        held_out=0.3,
        path=str(tmp_path / "theirs"),
    )
    held = [text for text in texts if is_held_out(text, 0.3)]
    counted = sum(len(given.tokenizer.encode(text)) for text in held)
    assert given.bytes_per_token == sum(len(text) for text in held) / counted


def test_the_split_goes_by_content(tmp_path, source):
    """Stable under order and growth, and copies never fall on both sides."""
    corpus = prepare([source], tmp_path / "one", **ALL)
    held = {*documents(corpus.held_out, corpus.tokenizer)}
    mixed = write(tmp_path / "mixed.jsonl", [*reversed(TEXTS), *TEXTS[:20], "something new\n"])
    other = prepare([mixed], tmp_path / "two", **ALL)
    again = documents(other.held_out, other.tokenizer)
    assert {*again} - {"something new\n"} == held
    assert not {*again} & {*documents(other.train, other.tokenizer)}


def test_the_share_of_a_split():
    texts = [f"text {i}" for i in range(4000)]
    held = {t for t in texts if is_held_out(t, 0.1)}
    assert abs(len(held) / 4000 - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 4000)
    assert held <= {t for t in texts if is_held_out(t, 0.2)}
    assert not any(is_held_out(t, 0.0) for t in texts)


def test_the_tokenizer_never_saw_what_is_held_out(tmp_path, source):
    corpus = prepare([source], tmp_path / "out", **ALL)
    kept = [t for t in TEXTS if not is_held_out(t, 0.25)]
    assert corpus.tokenizer.fingerprint == Tokenizer.train(kept, 300).fingerprint


def test_what_was_made_is_used_again_and_what_changed_is_made_anew(tmp_path, source, monkeypatch):
    out = tmp_path / "out"
    first = prepare([source], out, **ALL)
    made = []
    inner = prepared._make
    monkeypatch.setattr(prepared, "_make", lambda *a: made.append(1) or inner(*a))
    second = prepare([source], out, **ALL | {"length": 8})
    assert not made
    assert np.array_equal(first.train.tokens.ids, second.train.tokens.ids)
    prepare([source], out, **ALL | {"held_out": 0.3})
    prepare([source], out, **ALL | {"held_out": 0.3, "size": 280})
    prepare([write(tmp_path / "texts.jsonl", TEXTS[1:])], out, **ALL)
    assert len(made) == 3


@pytest.mark.parametrize("torn", [MARK, "tokenizer.json", "train/ids.bin", "train/starts.npy", "held_out/about.json"])
def test_a_torn_folder_is_made_again(tmp_path, source, torn):
    out = tmp_path / "out"
    whole = prepare([source], out, **ALL).train.tokens.ids.tolist()
    content = (out / torn).read_bytes()
    (out / torn).write_bytes(content[: len(content) // 2])
    assert prepare([source], out, **ALL).train.tokens.ids.tolist() == whole
    assert (out / torn).read_bytes() == content
    (out / torn).unlink()
    assert prepare([source], out, **ALL).train.tokens.ids.tolist() == whole


def test_an_interrupted_encoding_leaves_nothing_that_looks_whole(tmp_path):
    tokenizer = Tokenizer.train(TEXTS, 300)

    def texts():
        yield from TEXTS * 5
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(texts(), tokenizer, tmp_path / "train")
    with pytest.raises(BadCheckpoint, match="holds no tokens"):
        load(tmp_path / "train")


def test_a_given_tokenizer_is_used_and_its_change_noticed(tmp_path, source):
    given = {"length": 16, "held_out": 0.25, "path": str(tmp_path / "words")}
    with pytest.raises(BadCheckpoint, match="no tokenizer at"):
        prepare([source], tmp_path / "out", **given)
    for size in (290, 280):
        Tokenizer.train(TEXTS, size).save(tmp_path / "words")
        corpus = prepare([source], tmp_path / "out", **given)
        assert corpus.tokenizer.vocab.size == size
        assert sorted(documents(corpus.train, corpus.tokenizer)) == sorted(t for t in TEXTS if not is_held_out(t, 0.25))


def test_too_little_to_split(tmp_path):
    one = write(tmp_path / "one.jsonl", TEXTS[:1])
    with pytest.raises(BadInput, match="no document is held out"):
        prepare([one], tmp_path / "out", **ALL | {"held_out": 1e-9})


def test_large_vocabularies_keep_their_ids(tmp_path):
    """uint16 ends at 65535; a vocabulary beyond it gets four bytes an id."""
    tokenizer = Tokenizer.train(TEXTS, 300)
    assert encode(TEXTS, tokenizer, tmp_path / "small").ids.dtype == np.uint16
    wide = Tokenizer(tokenizer._spec, type(tokenizer.vocab)(size=70_000, mask=0, eos=69_999, bos=2, pad=3))
    ids = encode(TEXTS, wide, tmp_path / "wide").ids
    assert ids.dtype == np.uint32
    assert (ids == 69_999).sum() == len(TEXTS)
