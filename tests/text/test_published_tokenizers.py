"""Published tokenizers: what is in which file, what stands before a text, what is special, what text never yields."""

import json

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Inner

from small_tokenizers import CHATML, byte_level, letters, sentencepiece, write
from unmask.base.errors import BadCheckpoint, BadInput, Unsupported
from unmask.base.vocab import Vocab
from unmask.text.published import CLASSES
from unmask.text.tokenizer import Tokenizer


def ids_of(inner):
    return {name: inner.token_to_id(name) for name in CHATML}


class TestFiles:
    def test_added_tokens_of_every_file(self, tmp_path):
        inner = byte_level(specials=["<|endoftext|>"])
        at = inner.get_vocab_size()
        token = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
        write(
            tmp_path,
            inner,
            tokenizer_config={
                "added_tokens_decoder": {
                    str(at): {"content": "<|im_end|>", "special": True, **token},
                    str(at + 1): {"content": "<think>", "special": False, **token},
                    str(at - 1): {"content": "<|something else|>", "special": True, **token},
                }
            },
            added_tokens={"<|MASK|>": at + 2, "<tool>": at + 3},
            special_tokens_map={"mask_token": {"content": "<|MASK|>"}, "additional_special_tokens": ["<|im_end|>"]},
        )
        tokenizer = Tokenizer.load(tmp_path, Vocab(size=400, mask=at + 2, eos=at - 1))
        assert {name: s.id for name, s in tokenizer.specials.items()} == {
            "<|endoftext|>": at - 1,
            "<|im_end|>": at,
            "<|MASK|>": at + 2,
        }
        assert tokenizer.encode("<think>") == [at + 1]  # an added token that is not special is a word of the vocabulary
        assert tokenizer.decode([at + 1, at, at + 3]) == "<think><tool>"
        for literal in ("<|MASK|>", "<|im_end|>", "<|endoftext|>"):
            assert not {*range(at - 1, at + 1), at + 2} & {*tokenizer.encode(f"a {literal}{literal}")}
            assert tokenizer.decode(tokenizer.encode(literal)) == literal

    @pytest.mark.parametrize(
        ("kind", "text"), [("GPT2Tokenizer", "hello  hell\n\nit's"), ("Qwen2Tokenizer", "he1l\n\nll!")]
    )
    def test_pieces_and_merges_make_the_same_tokenizer(self, tmp_path, kind, text):
        inner = byte_level(specials=[])
        if kind != "GPT2Tokenizer":
            cut = pre_tokenizers.Split(Regex(CLASSES[kind]), behavior="isolated")
            spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            inner.normalizer, inner.pre_tokenizer = normalizers.NFC(), pre_tokenizers.Sequence([cut, spell])
        spec = json.loads(inner.to_str())
        at = len(spec["model"]["vocab"])
        write(
            tmp_path,
            None,
            vocab=spec["model"]["vocab"],
            added_tokens={"<|mask|>": at},
            tokenizer_config={"tokenizer_class": kind, "mask_token": "<|mask|>", "eos_token": "Ġ"},
        )
        merges = "\n".join(" ".join(pair) for pair in spec["model"]["merges"])
        (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
        tokenizer = Tokenizer.load(tmp_path, Vocab(size=at + 1, mask=at))
        assert tokenizer.encode(text) == inner.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text + " <|mask|>")) == text + " <|mask|>"
        assert set(tokenizer.specials) == {"<|mask|>"}

    def test_what_is_saved_is_what_was_read(self, tmp_path):
        write(tmp_path / "in", byte_level(), special_tokens_map={"eos_token": "<|im_end|>"})
        vocab = Vocab(size=300, eos=ids_of(byte_level())["<|im_end|>"])
        tokenizer = Tokenizer.load(tmp_path / "in", vocab)
        tokenizer.save(tmp_path / "out")
        assert Tokenizer.load(tmp_path / "out", vocab).fingerprint == tokenizer.fingerprint

    @pytest.mark.parametrize(
        ("files", "error", "says"),
        [
            ({"tokenizer_config": []}, BadCheckpoint, "one JSON object"),
            ({"tokenizer_config": {"added_tokens_decoder": [1]}}, BadCheckpoint, "must be an object"),
            ({"tokenizer_config": {"added_tokens_decoder": {"one": "<x>"}}}, BadCheckpoint, "not understood at 'one'"),
            ({"added_tokens": {"<x>": "9"}}, BadCheckpoint, "a whole number, got '9'"),
            ({"added_tokens": {"<x>": 999}}, BadCheckpoint, "'<x>' can't have the id 999"),
        ],
    )
    def test_bad_files(self, tmp_path, files, error, says):
        with pytest.raises(error) as caught:
            Tokenizer.load(write(tmp_path, byte_level(), **files))
        assert says in str(caught.value)
        assert str(tmp_path) in str(caught.value)

    def test_bad_pieces(self, tmp_path):
        write(tmp_path, None, vocab={"a": 0, "b": 1}, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
        with pytest.raises(BadCheckpoint, match="no tokenizer at"):
            Tokenizer.load(tmp_path)
        (tmp_path / "merges.txt").write_text("a c\n")
        with pytest.raises(BadCheckpoint, match="make no tokenizer"):
            Tokenizer.load(tmp_path)
        write(tmp_path, None, tokenizer_config={"tokenizer_class": "MartianTokenizer"})
        with pytest.raises(Unsupported, match="MartianTokenizer is not known"):
            Tokenizer.load(tmp_path)


class TestStart:
    def test_ours_puts_its_begin_of_text_there(self):
        ours = Tokenizer.train(["some text"], 270)
        assert ours.start == (ours.vocab.bos,)

    def test_a_begin_of_text_in_the_config_does_not_tell(self, tmp_path):
        inner = byte_level()  # Qwen and LLaDA name a begin of text and put nothing there
        end = ids_of(inner)["<|endoftext|>"]
        assert Tokenizer.load(write(tmp_path, inner), Vocab(size=300, bos=end, eos=end)).start == ()

    def test_the_post_processor_tells(self, tmp_path):
        inner = sentencepiece()
        tokenizer = Tokenizer.load(write(tmp_path, inner), Vocab(size=400, bos=1, eos=2))
        assert tokenizer.start == (1,)
        assert [*tokenizer.start, *tokenizer.encode("abc")] == inner.encode("abc").ids

    def test_the_settings_tell_where_there_is_no_post_processor(self, tmp_path):
        settings = {"add_bos_token": True, "bos_token": "<|im_start|>"}
        start = ids_of(byte_level())["<|im_start|>"]
        tokenizer = Tokenizer.load(write(tmp_path, byte_level(), tokenizer_config=settings), Vocab(size=300))
        assert tokenizer.start == (start,)
        tokenizer.save(tmp_path / "out")
        assert Tokenizer.load(tmp_path / "out", Vocab(size=300)).start == (start,)


class TestTextIsText:
    def test_a_model_that_has_the_special_token_as_a_word(self, tmp_path):
        """Merges are ignored for whole words, so the library alone would read the special token from text."""
        vocab = letters() | {"<mask>": 256}
        inner = Inner(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.decoder = decoders.ByteLevel()
        assert inner.encode("<mask>").ids == [256]
        tokenizer = Tokenizer.load(write(tmp_path, inner), Vocab(size=257, mask=256))
        assert 256 not in tokenizer.encode("<mask>")
        assert tokenizer.decode(tokenizer.encode("<mask>")) == "<mask>"

    def test_unigrams(self, tmp_path):
        pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -3.0), *((c, -3.0) for c in "</s>ab")]
        inner = Inner(models.Unigram(pieces, unk_id=0, byte_fallback=False))
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        inner.decoder = decoders.Metaspace(prepend_scheme="never")
        inner.add_special_tokens([AddedToken("<unk>", special=True), AddedToken("</s>", special=True)])
        tokenizer = Tokenizer.load(write(tmp_path, inner), Vocab(size=9, eos=1))
        assert inner.encode("a</s>b</s>").ids.count(1) == 2
        for text in ("a</s>b", "</s></s>", "</s>", "a</s> b</s>"):
            assert 1 not in tokenizer.encode(text)
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode("aé") == [7, 0]  # what it does not know is unknown, as published

    def test_normalising_makes_no_special_token(self, tmp_path):
        inner = byte_level()
        inner.normalizer = normalizers.NFKC()
        inner.add_special_tokens([AddedToken("<|late|>", normalized=True, special=True)])
        tokenizer = Tokenizer.load(write(tmp_path, inner), Vocab(size=300))
        late = tokenizer.specials["<|late|>"].id
        for text in ("＜|late|＞", "＜|im_end|＞", "<|late|>"):
            assert not {late, *ids_of(inner).values()} & {*tokenizer.encode(text)}

    def test_a_letter_that_is_only_a_special_token_is_refused(self, tmp_path):
        inner = Inner(models.WordLevel({"<unk>": 0, "§": 1, "a": 2}, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = Tokenizer.load(write(tmp_path, inner), Vocab(size=3, mask=1))
        with pytest.raises(BadInput, match="only as a special token"):
            tokenizer.encode("a §")

    def test_ids_that_the_model_does_not_have(self, tmp_path):
        tokenizer = Tokenizer.load(write(tmp_path, byte_level()), Vocab(size=200))
        with pytest.raises(BadCheckpoint, match="the model has 200"):
            tokenizer.encode("Ā")


class TestDecode:
    def test_a_padding_id_that_is_a_letter_stays_one(self, tmp_path):
        bang = letters()["!"]
        tokenizer = Tokenizer.load(write(tmp_path, byte_level()), Vocab(size=300, pad=bang))
        assert tokenizer.vocab.pad is None
        assert tokenizer.decode(tokenizer.encode("Stop!")) == "Stop!"
        marked = ids_of(byte_level())["<|endoftext|>"]
        assert Tokenizer.load(tmp_path, Vocab(size=300, pad=marked)).vocab.pad == marked

    def test_spaces_before_words_stay(self, tmp_path):
        """The library drops the first space of what it decodes, wherever that stood."""
        inner = sentencepiece()
        tokenizer = Tokenizer.load(write(tmp_path, inner), Vocab(size=400, bos=1, eos=2))
        ids = tokenizer.encode("abc a Zé")
        assert inner.decode(ids[2:]) != " a Zé"
        parts = [tokenizer.decode([i]) if tokenizer.decode([i]) != "\ufffd" else "" for i in ids]
        assert tokenizer.decode(ids) == " abc a Zé"
        assert "".join(parts[:-2]) + tokenizer.decode(ids[-2:]) == " abc a Zé"

    def test_the_first_word_is_marked_once(self, tmp_path):
        tokenizer = Tokenizer.load(write(tmp_path, sentencepiece("first")), Vocab(size=400, bos=1, eos=2))
        assert tokenizer.decode(tokenizer.encode("a b")) == " a b"
        assert tokenizer.decode(tokenizer.encode_many(["a b"], inside=True)[0]) == "a b"
        assert 2 not in tokenizer.encode_many(["</s>"], inside=True)[0]
