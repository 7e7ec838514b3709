"""Tokenizers and chats are read as transformers reads them, where nobody plays tricks."""

import json

import pytest
import transformers
from test_chat_template import CHATS, NAMES, TEMPLATES

from small_tokenizers import byte_level, sentencepiece, write
from unmask.base.vocab import Vocab
from unmask.text.chat import ChatTemplate
from unmask.text.tokenizer import Tokenizer

transformers.utils.logging.set_verbosity_error()
TEXTS = ["he1l\n\nll! 123  it's  É\n \n x", "e\u0301 naïve 🙂\t\tIT'S", "abc a"]


def theirs(folder, **names):
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("chatml"), byte_level(plain=["<think>", "</think>"]))


@pytest.mark.parametrize("name", TEMPLATES)
def test_chats(folder, name):
    read = ChatTemplate(TEMPLATES[name], Tokenizer.load(folder, Vocab(size=300)), NAMES).read(CHATS)
    for messages, ours in zip(CHATS, read, strict=True):
        found = theirs(folder, **NAMES).apply_chat_template(
            messages, chat_template=TEMPLATES[name], add_generation_prompt=True, return_dict=True
        )
        assert list(ours.ids) == found["input_ids"]


@pytest.mark.parametrize("scheme", [None, "first", "always", "never"])
def test_what_stands_before_a_text(tmp_path, scheme):
    tokenizer = Tokenizer.load(write(tmp_path, sentencepiece(scheme)), Vocab(size=400, bos=1, eos=2))
    for text in TEXTS:
        assert [*tokenizer.start, *tokenizer.encode(text)] == theirs(tmp_path)(text)["input_ids"]


@pytest.mark.parametrize(("kind", "family"), [("Qwen2Tokenizer", "qwen2"), ("GPT2Tokenizer", "gpt2")])
@pytest.mark.parametrize("settings", [{}, {"add_bos_token": True, "bos_token": "<|end|>"}])
def test_pieces_and_merges(tmp_path, kind, family, settings):
    model = json.loads(byte_level(specials=[]).to_str())["model"]
    end = {"content": "<|end|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    told = {"tokenizer_class": kind, "eos_token": "<|end|>", "added_tokens_decoder": {str(len(model["vocab"])): end}}
    write(tmp_path, None, vocab=model["vocab"], tokenizer_config=told | settings, config={"model_type": family})
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    tokenizer = Tokenizer.load(tmp_path, Vocab(size=300))
    for text in TEXTS:
        assert [*tokenizer.start, *tokenizer.encode(text)] == reference(text)["input_ids"]
