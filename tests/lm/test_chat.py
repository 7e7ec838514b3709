"""Chat: conversations in, answers out; every end of text ends one, whichever decoder writes it."""

import asyncio
import json

import pytest
import torch

import unmask
from exact import KnownDenoiser
from small_model import model_of
from small_tokenizers import CHATML, byte_level, write
from unmask.base.errors import BadCheckpoint, BadInput, TooLong, Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.lm.model import LanguageModel
from unmask.models.load import save
from unmask.text import sandbox
from unmask.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INNER = byte_level()
END, START, TURN, MASK = (INNER.token_to_id(name) for name in CHATML)
FILES = {"tokenizer_config": {"chat_template": TEMPLATE, "eos_token": "<|endoftext|>"}}


def folder(path, *, vocab=None, traits=None, **files):
    """A model with random weights and a tokenizer as published."""

    class Like:
        pass

    Like.vocab = vocab or Vocab(size=280, mask=MASK, eos=END, bos=END, pad=END)
    save(model_of(Like, **(traits or {"sees": "all"})), path)
    return write(path, INNER, **{**FILES, **files})


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    return unmask.load(folder(tmp_path_factory.mktemp("chatty")))


class Scripted(KnownDenoiser):
    """Knows what comes: token i of the script, i positions behind the first one that was open."""

    def __init__(self, script, begin, vocab, traits):
        super().__init__(vocab.size - 1, 96, traits)
        self.vocab, self.script, self.begin = vocab, torch.tensor(script), begin
        self.defaults, self.device = {}, torch.device("cpu")

    def eval(self):
        return self

    def log_prob(self, evidence, target):
        token = self.script[(target - self.begin).clamp(0, len(self.script) - 1)]
        surely = torch.full((len(target), self.size), -20.0, dtype=torch.float64)
        return surely.scatter(1, token[:, None], 0.0)


def scripted(tmp_path, script, traits, stops=(TURN,)):
    """A model that goes on with this text behind the prompt "hi"; the mask is the last id."""
    vocab = Vocab(size=INNER.get_vocab_size(), mask=INNER.get_vocab_size() - 1, eos=END, stops=stops)
    tokenizer = Tokenizer.load(write(tmp_path, INNER), vocab)
    return LanguageModel(Scripted(script, len(tokenizer.encode("hi")), vocab, traits), tokenizer)


WAYS = {
    "ar": (Traits(sees="left", speaks="next"), {}),
    "whole": (Traits(), {"decoder": "llada", "steps": 4}),
    "at once": (Traits(), {"decoder": "llada", "steps": 1}),
    "block": (Traits(sees="blocks", block=4), {"decoder": "sdar"}),
    "revising": (Traits(), {"decoder": "remdm", "steps": 24, "eta": 0.2}),
}


@pytest.mark.parametrize("way", WAYS)
class TestEnds:
    def test_each_of_them_ends_a_text(self, tmp_path, way):
        traits, settings = WAYS[way]
        body = INNER.encode("he says").ids
        for end in (END, TURN):
            lm = scripted(tmp_path, [*body, end, *body, END, *body], traits)
            out = lm.generate("hi", length=20, **settings)
            assert (out.completion, out.finish_reason, out.tokens) == ("he says", "stop", body)
            assert len(out.logprobs) == len(body)
            steps = list(lm.stream("hi", length=20, **settings))
            assert (steps[-1].text, steps[-1].output.tokens) == ("he says", body)
            assert all("he says".startswith(step.text) for step in steps)

    def test_only_what_is_named_ends_a_text(self, tmp_path, way):
        traits, settings = WAYS[way]
        body = INNER.encode("abc").ids
        out = scripted(tmp_path, [*body, TURN, *body], traits, stops=()).generate("hi", length=7, **settings)
        assert (out.tokens, out.finish_reason) == ([*body, TURN, *body], "length")

    def test_keep_and_forbid(self, tmp_path, way):
        traits, settings = WAYS[way]
        body = INNER.encode("abc").ids
        lm = scripted(tmp_path, [*body, TURN, *body], traits)
        kept = lm.generate("hi", length=7, eos="keep", **settings)
        assert (kept.tokens, kept.completion) == ([*body, TURN, *body], "abcabc")
        exact = lm.generate("hi", length=7, eos="forbid", **settings)
        assert len(exact.tokens) == 7
        assert not {END, TURN} & {*exact.tokens}

    def test_not_before_the_shortest_length(self, tmp_path, way):
        traits, settings = WAYS[way]
        lm = scripted(tmp_path, [*INNER.encode("abc").ids, TURN, *INNER.encode("abcabc").ids, END], traits)
        out = lm.generate("hi", length=(6, 20), **settings)
        assert len(out.tokens) >= 6
        assert not {END, TURN} & {*out.tokens}
        assert lm.generate("hi", length=(2, 20), **settings).completion == "abc"  # any of them, once there is enough


class TestLoad:
    def test_ends_of_all_files(self, tmp_path, chatty):
        vocab = chatty.model.vocab
        assert (vocab.eos, vocab.stops, vocab.ends) == (END, (TURN,), (END, TURN))  # the template tells
        assert chatty.tokenizer.vocab == vocab
        config = {"eos_token_id": [END, 5], "bos_token_id": END}
        plain = {"tokenizer_config": {}, "generation_config": config}
        assert unmask.load(folder(tmp_path / "a", **plain)).model.vocab.ends == (END, 5)
        nameless = folder(tmp_path / "b", vocab=Vocab(size=280, mask=MASK), **plain)
        assert unmask.load(nameless).model.vocab.ends == (END, 5)
        (nameless / "tokenizer.json").unlink()
        assert unmask.load(nameless).model.vocab.ends == (END, 5)

    @pytest.mark.parametrize("wrong", [280, "<|im_end|>", [True], 1.5])
    def test_bad_ends(self, tmp_path, wrong):
        with pytest.raises(BadCheckpoint, match="eos_token_id must be an id below 280"):
            unmask.load(folder(tmp_path, generation_config={"eos_token_id": wrong}))

    def test_a_torn_template_breaks_the_chat_and_nothing_else(self, tmp_path):
        lm = unmask.load(folder(tmp_path, tokenizer_config={"chat_template": "{% torn"}))
        assert lm.generate("a", length=4).text
        with pytest.raises(BadCheckpoint, match="the chat template can't be rendered"):
            lm.generate("a", length=4, chat=True)

    def test_pieces_and_merges(self, tmp_path):
        path = folder(tmp_path, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
        model = json.loads((path / "tokenizer.json").read_text())["model"]
        (path / "tokenizer.json").unlink()
        (path / "vocab.json").write_text(json.dumps(model["vocab"]))
        (path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
        (path / "added_tokens.json").write_text(json.dumps({name: INNER.token_to_id(name) for name in CHATML}))
        assert unmask.load(path).generate("hello", length=4).text.startswith("hello")


class TestStart:
    def test_a_begin_of_text_that_was_never_there(self, chatty, lm):
        """Qwen and LLaDA name one; ours is before every text."""
        ids = chatty.tokenizer.encode("he")
        assert chatty.generate("he", length=6).tokens == chatty.generate(ids, length=6).tokens
        assert lm.generate("he", length=6).tokens == lm.generate([2, *lm.tokenizer.encode("he")], length=6).tokens

    def test_a_model_that_reads_left_to_right_starts_from_an_end_of_text(self, tmp_path):
        ar = unmask.load(folder(tmp_path, traits={"sees": "left", "speaks": "next"}))
        assert ar.generate(None, length=5).tokens == ar.generate([END], length=5).tokens
        assert ar.score("he").nats == pytest.approx(ar.score(ar.tokenizer.encode("he"), given=[END]).nats)


class TestChat:
    MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]  # noqa: RUF012

    def test_the_answer_is_the_completion(self, chatty):
        out = chatty.generate("hi", length=6, chat=True)
        assert out.text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" + out.completion
        turn = (
            chatty.tokenizer.encode("user\nhi"),
            chatty.tokenizer.encode("\n"),
            chatty.tokenizer.encode("assistant\n"),
        )
        ids = [START, *turn[0], TURN, *turn[1], START, *turn[2]]
        assert out.tokens == chatty.generate(ids, length=6).tokens

    def test_messages_and_batches(self, chatty):
        one = chatty.generate(self.MESSAGES, length=6, chat=True)
        assert one.text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>")
        two = chatty.generate(["hi", self.MESSAGES], length=6, chat=True, n=2, temperature=1.0)
        assert len(two) == 4
        assert two[2].tokens == chatty.generate(self.MESSAGES, length=6, chat=True, temperature=1.0).tokens
        (alone,) = chatty.generate([self.MESSAGES], length=6, chat=True)
        assert alone.tokens == one.tokens

    def test_one_process_for_a_batch(self, chatty, monkeypatch):
        calls = []
        run = sandbox.subprocess.run
        monkeypatch.setattr(sandbox.subprocess, "run", lambda *a, **k: calls.append(a) or run(*a, **k))
        chatty.generate(["a", "b", "c"], length=2, chat=True)
        assert len(calls) == 1

    def test_a_literal_mask_or_end_of_turn_is_text(self, chatty):
        content = "<|mdm_mask|><|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
        (read,) = chatty.template.read([[{"role": "user", "content": content}]])
        assert [i for i in read.ids if i in (MASK, END, START, TURN)] == [START, TURN, START]
        out = chatty.generate(content, length=4, chat=True)
        assert content in out.text

    def test_a_base_model_chats_in_plain_turns(self, lm):
        out = lm.generate(self.MESSAGES, length=6, chat=True)
        assert out.text == "System:\nBe kind.\n\nUser:\nhi\n\nAssistant:\n" + out.completion
        assert lm.generate("hi", length=40, chat=True, eos="forbid").finish_reason == "length"

    def test_a_turn_that_the_model_writes_for_the_user_is_cut(self, tmp_path):
        traits, settings = WAYS["ar"]
        lm = scripted(tmp_path, [], traits)
        (read,) = lm.template.read([[{"role": "user", "content": "hi"}]])
        lm.model.begin = len(read.ids)
        lm.model.script = torch.tensor(lm.tokenizer.encode("yes; no\n\nUser:\nand?"))
        out = lm.generate("hi", length=18, chat=True, **settings)
        assert (out.completion, out.finish_reason) == ("yes; no", "stop")
        for stop in (";", [";"]):
            assert lm.generate("hi", length=18, chat=True, stop=stop, **settings).completion == "yes"
        assert lm.generate("hi", length=18, chat=True, eos="keep", **settings).completion == "yes; no\n\nUser:\nand"

    def test_stream(self, chatty):
        steps = list(chatty.stream(self.MESSAGES, length=6, chat=True))
        assert steps[-1].output.tokens == chatty.generate(self.MESSAGES, length=6, chat=True).tokens
        with pytest.raises(BadInput, match="one prompt"):
            chatty.stream(["a", "b"], chat=True)

    def test_async(self, chatty):
        out = asyncio.run(chatty.aio.generate(self.MESSAGES, length=6, chat=True))
        assert out.tokens == chatty.generate(self.MESSAGES, length=6, chat=True).tokens

    @pytest.mark.parametrize(
        ("prompt", "error", "says"),
        [
            ([1, 2], BadInput, "a chat is a text or a list of messages"),
            (None, BadInput, "not None"),
            ("", BadInput, "the prompt is empty"),
            ([{"role": "user", "content": "a " * 99}], TooLong, "holds 96"),
        ],
    )
    def test_bad_input(self, chatty, prompt, error, says):
        with pytest.raises(error, match=says):
            chatty.generate(prompt, length=4, chat=True)

    def test_ids_alone_do_not_chat(self, lm):
        with pytest.raises(Unsupported, match="no tokenizer, so there is no chat"):
            LanguageModel(lm.model).generate("a", chat=True)
