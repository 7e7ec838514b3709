"""Strings survive the round trip, user text never becomes a special id, foreign files are read or refused."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from unmask.base.errors import BadCheckpoint, BadInput, Unsupported
from unmask.base.vocab import Vocab
from unmask.text.tokenizer import FILE, SPECIALS, Tokenizer

TEXTS = [
    "def area(r):\n    return 3.14 * r * r\n\n\ndef side(a):\n    if a:\n        return a\n    return 0\n" * 3,
    "It is a truth universally acknowledged, that a single man doesn't want what isn't his.\n" * 3,
]
OURS = Tokenizer.train(TEXTS, 330)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_every_string_survives(text):
    ids = OURS.encode(text)
    assert OURS.decode_bytes(ids) == text.encode()
    assert OURS.decode(ids) == text
    assert not {0, 1, 2, 3} & {*ids}


@pytest.mark.parametrize("name", SPECIALS.values())
def test_a_special_token_in_user_text_is_text(name):
    ids = OURS.encode(f"a {name}b{name}")
    assert not {0, 1, 2, 3} & {*ids}
    assert OURS.decode(ids) == f"a {name}b{name}"


def test_specials_come_first_and_stand_for_no_bytes():
    assert OURS.vocab == Vocab(size=330, mask=0, eos=1, bos=2, pad=3)
    assert OURS.token_bytes[:4] == [b""] * 4
    assert OURS.decode([0, *OURS.encode("a"), 1]) == "a"
    assert len(OURS.token_bytes) == len(OURS) == 330
    assert {bytes([b]) for b in range(256)} <= {*OURS.token_bytes}


def test_half_a_character_is_replaced_and_its_bytes_are_kept():
    half = OURS.encode("é")[:1]
    assert OURS.decode(half) == "\ufffd"
    assert OURS.decode_bytes(half) == "é".encode()[:1]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("def f():\n", "    return 1\n"),
        ("x = 1", "\n\ny = 2"),
        ("a", " word"),
        ("f(x):\n    ", "return x"),
        ("it", ", he"),
    ],
)
def test_a_text_cut_at_a_line_or_word_has_the_tokens_of_its_pieces(left, right):
    assert OURS.encode(left) + OURS.encode(right) == OURS.encode(left + right)


def test_indentation_is_one_token():
    assert OURS.encode("        ") == OURS.encode("\n        return")[1:2]


def test_training_is_deterministic_and_files_hold_everything(tmp_path):
    assert Tokenizer.train(iter(TEXTS), 330).fingerprint == OURS.fingerprint
    assert Tokenizer.train(TEXTS, 329).fingerprint != OURS.fingerprint
    OURS.save(tmp_path / "model")
    for path in (tmp_path / "model", tmp_path / "model" / FILE):
        again = Tokenizer.load(path)
        assert again.fingerprint == OURS.fingerprint
        assert again.encode("<|mask|> is text") == OURS.encode("<|mask|> is text")
    assert [p.name for p in (tmp_path / "model").iterdir()] == [FILE]


def test_many_texts_are_the_same_as_one_by_one():
    assert OURS.encode_many(TEXTS) == [OURS.encode(t) for t in TEXTS]


def test_what_it_refuses():
    with pytest.raises(BadInput, match="at least 260"):
        Tokenizer.train(TEXTS, 259)
    with pytest.raises(BadInput, match="no text"):
        Tokenizer.train([], 300)
    with pytest.raises(BadInput, match="surrogate at code point 2"):
        OURS.encode("ab\ud800")
    for wrong in (-1, 330):
        with pytest.raises(BadInput, match=f"token id {wrong} is outside"):
            OURS.decode([4, wrong])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no tokenizer at"),
        ("{", "can't be read as JSON"),
        ("[1]", "no 'model'"),
        ('{"model": {"type": "Martian"}}', "not a tokenizer"),
    ],
)
def test_missing_and_corrupt_files(tmp_path, content, message):
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(BadCheckpoint, match=message):
        Tokenizer.load(tmp_path)


def foreign(tmp_path, model, **parts):
    inner = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(inner, name, part)
    return inner, tmp_path / FILE


def test_the_mask_of_a_foreign_tokenizer_is_never_read_from_text(tmp_path):
    inner, file = foreign(
        tmp_path,
        models.BPE(
            vocab={letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]
        ),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
    )
    inner.add_tokens(["[gMASK]", "<tool>"])  # ids 256 and 257, not marked special by their maker
    inner.save(str(file))
    mine = Tokenizer.load(file, Vocab(size=300, mask=256))
    assert mine.decode(mine.encode("a [gMASK] b")) == "a [gMASK] b"
    assert 256 not in mine.encode("[gMASK]")
    assert mine.token_bytes[257] == b"<tool>"
    assert mine.token_bytes[299] == b""  # padded vocabulary
    assert Tokenizer.load(file).vocab == Vocab(size=258)
    with pytest.raises(BadCheckpoint, match=r"special ids \[300\] are outside the vocabulary of 300"):
        Tokenizer.load(file, Vocab(size=300, mask=300))


def test_byte_fallback_is_spelled_and_word_pieces_are_not(tmp_path):
    spelled = {"<unk>": 0, "<0xC3>": 1, "<0xA9>": 2, "\u2581a": 3, "b": 4}
    _, file = foreign(tmp_path, models.BPE(vocab=spelled, merges=[], unk_token="<unk>", byte_fallback=True))
    _.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    _.save(str(file))
    assert Tokenizer.load(file).decode_bytes([3, 1, 2, 4]) == " aéb".encode()
    inner, file = foreign(tmp_path, models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece()
    inner.save(str(file))
    words = Tokenizer.load(file)
    assert words.decode(words.encode("playing")) == "playing"
    with pytest.raises(Unsupported, match="WordPiece"):
        words.decode_bytes([1])


def test_padding_and_truncation_of_a_foreign_file_are_off(tmp_path):
    OURS.save(tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / FILE).write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).encode(TEXTS[0]) == OURS.encode(TEXTS[0])
