"""generate and infill with lengths that the model finds: what they promise."""

from dataclasses import replace

import pytest

from small_model import model_of
from unmask.base.errors import BadInput, TooLong, Unsupported
from unmask.lm.model import LanguageModel

GROWING = {"decoder": "daedal", "start": 8, "insert": 4, "tail": 4, "enough": 0.02, "unsure": 0.4, "threshold": 0.6}


@pytest.fixture(scope="module")
def resizing(tokenizer):
    """A model of which two tokens say that a place is to be two, or none."""
    model = model_of(tokenizer, sees="all")
    size = tokenizer.vocab.size
    model.vocab = replace(model.vocab, expand=size - 1, delete=size - 2)
    return LanguageModel(model, tokenizer, name="resizing")


class TestGenerate:
    @pytest.mark.parametrize("length", [40, (6, 40), (20, 30)])
    def test_within_what_was_asked_for(self, lm, length):
        low, high = length if isinstance(length, tuple) else (1, length)
        sizes = set()
        for seed in range(6):
            out = lm.generate("def add(", length=length, temperature=1.0, seed=seed, **GROWING)
            assert out.text == "def add(" + out.completion
            assert low <= len(out.tokens) <= out.stats.length <= high or (length == 40 and len(out.tokens) <= 40)
            assert out.stats.length >= max(8, low)
            sizes.add(out.stats.length)
        assert max(sizes) > max(8, low)

    def test_the_same_alone_and_in_a_batch_and_as_a_stream(self, lm):
        prompts = ["def add(", "Dear", "import os\nimport"]
        settings = {"length": 40, "temperature": 0.8, "seed": 1, **GROWING, "enough": 0.0, "unsure": 0.1}
        together = lm.generate(prompts, **settings)
        for prompt, out in zip(prompts, together, strict=True):
            assert lm.generate(prompt, **settings).tokens == out.tokens
            text = ""
            for step in lm.stream(prompt, **settings):
                assert step.text == text + step.delta
                text = step.text
            assert text == out.completion
        assert len({out.stats.length for out in together}) > 1

    def test_stop_strings(self, lm):
        settings = {"length": 40, "temperature": 1.0, "seed": 1, **GROWING}
        whole = lm.generate("a", eos="keep", **settings)
        stop = whole.completion[5:7]
        cut = lm.generate("a", eos="keep", stop=stop, **settings)
        assert cut.completion == whole.completion[: whole.completion.index(stop)]
        assert cut.finish_reason == "stop"

    def test_a_constraint_is_met(self, lm):
        for seed in range(4):
            settings = {"regex": "[a-f]{9}(xy)*", "temperature": 1.0, "seed": seed, **GROWING}
            out = lm.generate("a", length=40, **settings)  # which has no room at the start of 8
            assert set(out.completion[:9]) <= set("abcdef")
            assert set(out.completion[9:].replace("xy", "")) == set()

    def test_a_plain_length_is_what_it_was(self, lm):
        plain = lm.generate("def", length=12)
        assert lm.generate("def", length=12, lengths="try").tokens == plain.tokens
        assert plain.stats.length == 12

    @pytest.mark.parametrize(
        ("error", "says", "call"),
        [
            (Unsupported, "forbid", {"eos": "forbid"}),
            (Unsupported, "pinned", {"pins": {2: "x"}}),
            (Unsupported, "steps", {"steps": 4}),
            (TooLong, "positions", {"length": 500}),
            (Unsupported, "expand", {"decoder": "dreamon", "start": 4}),
            (BadInput, "start", {"decoder": "llada", "start": 4}),
        ],
    )
    def test_what_can_not_be_honoured(self, lm, error, says, call):
        settings = {"decoder": "daedal", "length": 40, **call}
        with pytest.raises(error, match=says):
            lm.generate("def", **settings)

    def test_models_that_see_less_are_refused(self, block_lm, ar_lm):
        for model in (block_lm, ar_lm):
            with pytest.raises(Unsupported):
                model.generate("def", length=20, lengths="daedal")


class TestInfill:
    def test_a_model_with_tokens_for_it_finds_the_length(self, resizing):
        sizes = set()
        for seed in range(8):
            settings = {"lengths": "tokens", "start": 6, "temperature": 8.0, "seed": seed, "decoder": "whole x quota"}
            out = resizing.infill("def area(r):\n", "\n    return a", length=(3, 20), **settings)
            assert out.text == "def area(r):\n" + out.completion + "\n    return a"
            assert 3 <= len(out.tokens) == out.stats.length <= 20
            assert not {resizing.model.vocab.expand, resizing.model.vocab.delete} & set(out.tokens)
            assert out.stats.forwards >= len(out.tokens)
            sizes.add(out.stats.length)
        assert len(sizes) > 1

    def test_it_is_what_such_a_model_does_if_its_decoder_says_so(self, resizing):
        resizing.model.defaults = {"decoder": "dreamon"}
        try:
            out = resizing.infill("a", "b", length=(1, 20), temperature=1.5)
            assert out.stats.length == len(out.tokens)
            assert resizing.infill("a", "b", length=7).stats.length == 7  # a gap of one length keeps it
            assert len(resizing.fill("a {{x:1-3}} b {{y:2-3}}").holes) == 2  # several gaps are tried
        finally:
            resizing.model.defaults = {}

    def test_many_gaps_one_length_and_other_models_are_refused(self, resizing, lm):
        with pytest.raises(Unsupported, match="one gap"):
            resizing.fill("a {{x:1-3}} b {{y:2-3}}", lengths="tokens")
        with pytest.raises(BadInput, match="range"):
            resizing.infill("a", "b", length=4, lengths="tokens")
        with pytest.raises(Unsupported, match="'try'"):
            lm.infill("a", "b", length=(1, 9), lengths="tokens")
        with pytest.raises(Unsupported, match="'try'"):
            lm.infill("a", "b", length=(1, 9), lengths="daedal")

    def test_trying_lengths_is_the_default(self, lm):
        tried = lm.infill("a", "b", length=(1, 9))
        assert lm.infill("a", "b", length=(1, 9), lengths="try").tokens == tried.tokens
        assert tried.stats.length == len(tried.tokens)
