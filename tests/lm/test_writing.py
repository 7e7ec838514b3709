"""generate, infill, fill, refine, stream: what they promise, for every kind of model."""

import asyncio

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import unmask
from small_model import model_of
from unmask.base.errors import BadInput, TooLong, UnknownName, Unsupported
from unmask.decode.options import OPTIONS
from unmask.lm.model import LanguageModel
from unmask.lm.results import Settings

TEXT = "def add(a, b):\n    return a + b  # naïve 🙂\n"


@pytest.fixture(params=["lm", "block_lm", "ar_lm"])
def any_lm(request):
    return request.getfixturevalue(request.param)


class TestGenerate:
    def test_text_is_prompt_and_completion(self, any_lm):
        out = any_lm.generate("def add(", length=12)
        assert out.text == "def add(" + out.completion
        assert any_lm.tokenizer.decode(out.tokens) == out.completion
        assert len(out.tokens) <= 12
        assert len(out.logprobs) == len(out.tokens)
        assert all(p <= 0 for p in out.logprobs)
        assert out.finish_reason in ("stop", "length")
        assert out.stats.forwards >= 1
        assert out.stats.tokens_per_forward == len(out.tokens) / out.stats.forwards
        assert out.stats.seconds > 0
        assert len(out.trace) >= len(out.tokens)

    def test_seeds(self, any_lm):
        first = any_lm.generate("a", length=16, temperature=1.0)
        again = any_lm.generate("a", length=16, temperature=1.0, seed=0)
        other = any_lm.generate("a", length=16, temperature=1.0, seed=1)
        assert first.tokens == again.tokens != other.tokens

    def test_a_batch_gives_what_each_prompt_gives_alone(self, any_lm):
        prompts = ["def add(", "Dear", "import os\nimport"]
        together = any_lm.generate(prompts, length=10, temperature=0.8, seed=3)
        alone = [any_lm.generate(p, length=10, temperature=0.8, seed=3) for p in prompts]
        assert [o.tokens for o in together] == [o.tokens for o in alone]

    def test_n_texts_differ_and_the_first_is_the_only_one(self, any_lm):
        outs = any_lm.generate("a", length=12, n=3, temperature=1.0)
        assert len(outs) == 3
        assert len({tuple(o.tokens) for o in outs}) > 1
        assert outs[0].tokens == any_lm.generate("a", length=12, temperature=1.0).tokens

    def test_ids_as_prompt(self, any_lm):
        ids = [any_lm.model.vocab.bos, *any_lm.tokenizer.encode("def add(")]
        assert any_lm.generate(ids, length=6).tokens == any_lm.generate("def add(", length=6).tokens

    def test_exact_length(self, any_lm):
        for length in (1, 7, 20):
            out = any_lm.generate("def", length=length, eos="forbid", temperature=1.5)
            assert len(out.tokens) == length
            assert out.finish_reason == "length"
            assert any_lm.model.vocab.eos not in out.tokens

    def test_a_range_of_lengths(self, any_lm):
        sizes = [len(o.tokens) for o in any_lm.generate("a", length=(5, 30), n=20, temperature=3.0)]
        assert min(sizes) >= 5
        assert max(sizes) <= 30

    def test_an_end_of_text_ends_it_and_keep_writes_on(self, any_lm):
        outs = any_lm.generate("a", length=40, n=30, temperature=3.0)
        ended = [o for o in outs if o.finish_reason == "stop"]
        assert ended
        assert all(any_lm.model.vocab.eos not in o.tokens for o in ended)
        assert all(len(o.tokens) == 40 for o in outs if o.finish_reason == "length")
        kept = any_lm.generate("a", length=40, n=30, temperature=3.0, eos="keep")
        assert all(len(o.tokens) == 40 for o in kept)

    def test_stop_strings_cut_at_their_earliest_match(self, any_lm):
        whole = any_lm.generate("a", length=30, eos="forbid", temperature=1.0, seed=4)
        middle = whole.completion[8:10]
        out = any_lm.generate("a", length=30, eos="forbid", temperature=1.0, seed=4, stop=["@never@", middle])
        assert out.completion == whole.completion[: whole.completion.index(middle)]
        assert out.finish_reason == "stop"
        assert len(out.tokens) <= len(whole.tokens)

    def test_pins_stand_where_they_were_put(self, any_lm):
        ids = any_lm.tokenizer.encode(" parcel")
        out = any_lm.generate("a", length=20, pins={4: " parcel"}, eos="forbid", temperature=1.0)
        assert out.tokens[4 : 4 + len(ids)] == ids

    def test_without_a_prompt(self, any_lm):
        out = any_lm.generate(None, length=5, eos="forbid")
        assert out.text == out.completion
        assert len(out.tokens) == 5

    def test_an_ar_model_needs_a_token_to_start_from(self, ar_lm):
        with pytest.raises(BadInput, match="the prompt is empty"):
            ar_lm.generate([], length=5)

    def test_literal_specials_are_text(self, lm):
        out = lm.generate("<|mask|> and [MASK]", length=4)
        assert out.text.startswith("<|mask|> and [MASK]")

    @pytest.mark.parametrize(
        ("call", "error", "says"),
        [
            ({"prompt": ""}, BadInput, "the prompt is empty"),
            ({"prompt": "a", "length": 0}, BadInput, "a length is a whole number"),
            ({"prompt": "a", "length": (5, 2)}, BadInput, "ends before it begins"),
            ({"prompt": "a", "length": 500}, TooLong, "toy holds 96"),
            ({"prompt": "a", "eos": "maybe"}, BadInput, "eos is 'stop'"),
            ({"prompt": "a", "n": 0}, BadInput, "n is a whole number"),
            ({"prompt": "a", "seed": 1.5}, BadInput, "a seed is"),
            ({"prompt": "a", "pins": {70: "x"}}, BadInput, "takes positions 70"),
            ({"prompt": "a", "pins": {0: "ab", 1: "x"}}, BadInput, "overlaps"),
            ({"prompt": "a", "stepz": 3}, UnknownName, "Did you mean 'steps'"),
            ({"prompt": [10**6]}, BadInput, "token ids lie between"),
        ],
    )
    def test_bad_input(self, lm, call, error, says):
        with pytest.raises(error) as caught:
            lm.generate(**call)
        assert says in str(caught.value)


class TestGaps:
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(prefix=st.text(max_size=12), suffix=st.text(max_size=12), low=st.integers(1, 3), more=st.integers(0, 5))
    def test_infill_keeps_both_sides_byte_for_byte(self, lm, prefix, suffix, low, more):
        out = lm.infill(prefix, suffix, length=(low, low + more))
        assert out.text == prefix + out.completion + suffix
        assert low <= len(out.tokens) <= low + more
        assert out.finish_reason == "stop"

    def test_candidates_share_forwards(self, lm):
        fixed = lm.infill("def", "return", length=12, decoder="llada")
        tried = lm.infill("def", "return", length=(1, 12), decoder="llada")
        assert (tried.stats.forwards, fixed.stats.forwards) == (13, 12)  # and one to compare them

    def test_fill_names_its_holes(self, lm):
        out = lm.fill("Dear {{name:1-4}}, your parcel {{:8}} today.")
        (name, first), (nothing, second) = out.holes
        assert (name, nothing) == ("name", None)
        assert out.text == f"Dear {first}, your parcel {second} today."
        assert len(lm.tokenizer.encode(second)) >= 1

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_refine_touches_nothing_else(self, lm, data):
        start = data.draw(st.integers(0, len(TEXT) - 1))
        end = data.draw(st.integers(start + 1, len(TEXT)))
        strength = data.draw(st.sampled_from([0.3, 1.0]))
        out = lm.refine(TEXT, spans=[(start, end)], strength=strength, seed=data.draw(st.integers(0, 99)))
        assert out.text.startswith(TEXT[:start])
        assert out.text.endswith(TEXT[end:])
        assert len(out.tokens) == len(lm.tokenizer.encode(TEXT[start:end]))

    def test_refine_several_spans_and_strength(self, lm):
        out = lm.refine(TEXT, spans=[(20, 26), (4, 7)])
        assert out.text[:4] == TEXT[:4]
        assert TEXT[7:20] in out.text
        assert len(out.holes) == 2
        weak = lm.refine(TEXT, spans=[(0, len(TEXT))], strength=0.2)
        same = sum(a == b for a, b in zip(weak.tokens, lm.tokenizer.encode(TEXT), strict=True))
        assert same >= 0.8 * len(weak.tokens) - 1
        longer = lm.refine(TEXT, spans=[(4, 7)], length=9)
        assert len(longer.tokens) == 9

    @pytest.mark.parametrize(
        ("spans", "says"),
        [([], "no spans"), ([(5, 5)], "0 <= start < end"), ([(0, 999)], "999"), ([(0, 5), (4, 8)], "overlaps")],
    )
    def test_bad_spans(self, lm, spans, says):
        with pytest.raises(BadInput, match=says):
            lm.refine(TEXT, spans=spans)

    def test_what_a_model_can_not_see_is_refused(self, block_lm, ar_lm):
        for model in (block_lm, ar_lm):
            with pytest.raises(Unsupported, match="behind a gap"):
                model.infill("a", "b", length=3)

    def test_bad_strength_and_template(self, lm):
        with pytest.raises(BadInput, match="strength is above 0"):
            lm.refine(TEXT, spans=[(0, 3)], strength=0)
        with pytest.raises(BadInput, match="no hole"):
            lm.fill("nothing to do")
        with pytest.raises(BadInput, match="at least 1 token"):
            lm.fill("a {{x:0}}")


class TestStream:
    def test_committed_text_only_grows_and_ends_as_generate(self, any_lm):
        kwargs = {"length": 24, "temperature": 1.0, "seed": 2}
        steps = list(any_lm.stream("def", **kwargs))
        text = ""
        for step in steps:
            assert step.text == text + step.delta
            text = step.text
        assert all(s.output is None for s in steps[:-1])
        assert steps[-1].output.tokens == any_lm.generate("def", **kwargs).tokens
        assert text == steps[-1].output.completion

    def test_a_decoder_that_revises_takes_nothing_back(self, lm):
        text = ""
        for step in lm.stream("def", length=20, decoder="remdm", steps=30, eta=0.2, seed=1):
            assert step.text == text + step.delta
            text = step.text

    def test_stop_strings_are_never_streamed(self, lm):
        whole = lm.generate("a", length=30, eos="forbid", temperature=1.0, seed=4)
        stop = whole.completion[8:11]
        steps = list(lm.stream("a", length=30, eos="forbid", temperature=1.0, seed=4, stop=stop))
        assert all(stop not in s.text for s in steps)
        assert steps[-1].text == whole.completion[: whole.completion.index(stop)]

    def test_a_list_is_refused(self, lm):
        with pytest.raises(BadInput, match="one prompt"):
            lm.stream(["a", "b"])


def test_every_option_is_a_setting():
    assert set(Settings.__annotations__) >= set(OPTIONS)


def test_guidance_at_zero_changes_nothing_and_above_it_does(lm):
    plain = lm.generate("def add(", length=12, decoder="llada", eos="forbid")
    assert lm.generate("def add(", length=12, decoder="llada", guidance=0.0, eos="forbid").tokens == plain.tokens
    guided = lm.generate("def add(", length=12, decoder="llada", guidance=4.0, eos="forbid")
    assert guided.tokens != plain.tokens
    assert guided.stats.forwards == plain.stats.forwards


def test_async_calls(lm):
    async def both():
        out = await lm.aio.generate("def", length=6)
        steps = [step async for step in lm.aio.stream("def", length=6)]
        return out, steps

    out, steps = asyncio.run(both())
    assert out.tokens == lm.generate("def", length=6).tokens == steps[-1].output.tokens
    with pytest.raises(AttributeError):
        _ = lm.aio.nothing


def test_public_names():
    assert set(unmask.__all__) == {"LanguageModel", "__version__", "errors", "load"}
    assert unmask.errors.BadInput is BadInput
    with pytest.raises(AttributeError):
        _ = unmask.nothing


def test_logits(lm, ar_lm):
    tokens = torch.tensor([[2, 20, 30, 0, 0]])
    z = lm.logits(tokens)
    assert z.shape == (1, 5, lm.model.vocab.size)
    causal = lm.logits(tokens, attend="causal")
    assert torch.allclose(causal[:, :2], lm.logits(tokens[:, :2], attend="causal"), atol=1e-5)
    assert not torch.allclose(z, causal)
    lower = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    assert torch.allclose(lm.logits(tokens, attend=lower), causal, atol=1e-5)
    nothing = torch.zeros(1, 5, 5, dtype=torch.bool)
    assert bool(lm.logits(tokens, attend=nothing).isfinite().all())
    assert torch.allclose(ar_lm.logits(tokens), ar_lm.logits(tokens, attend="causal"), atol=1e-5)
    shifted = lm.logits(tokens, positions=torch.arange(5)[None] + 7)
    assert torch.allclose(shifted, z, atol=1e-4)  # rotary positions are relative
    with pytest.raises(Unsupported, match="sigma"):
        lm.logits(tokens, sigma=torch.zeros(1))
    for bad in (tokens[0], tokens.float(), tokens + 10**6):
        with pytest.raises(BadInput):
            lm.logits(bad)
    with pytest.raises(TooLong):
        lm.logits(torch.zeros(1, 97, dtype=torch.int64))
    with pytest.raises(BadInput, match="attend is"):
        lm.logits(tokens, attend="sideways")


def test_scores(lm, ar_lm, block_lm):
    for model in (lm, block_lm):
        found = model.score("import os", samples=64)
        assert found.bound
        assert found.stderr > 0
        assert found.bits_per_byte == pytest.approx(found.nats / 0.6931471805599453 / 9)
    exact = ar_lm.score("import os")
    assert (exact.stderr, exact.bound, exact.forwards) == (0.0, False, 1)
    parts = ar_lm.score("import").nats + ar_lm.score(ar_lm.tokenizer.encode(" os"), given="import").nats
    joined = [*ar_lm.tokenizer.encode("import"), *ar_lm.tokenizer.encode(" os")]
    whole = ar_lm.score(joined, given=[ar_lm.model.vocab.bos]).nats
    assert whole == pytest.approx(parts, rel=1e-5)
    with pytest.raises(BadInput, match="empty"):
        lm.score("")
    with pytest.raises(TooLong):
        lm.score("a b c d e " * 40)
    with pytest.raises(Unsupported):
        lm.score("a", estimator="ar")


class TestEffort:
    def test_every_call_takes_it(self, lm):
        calls = [
            lambda **how: lm.generate("def add(", length=24, eos="forbid", **how),
            lambda **how: lm.infill("def add(", "return", length=16, **how),
            lambda **how: lm.fill("def {{:12}}(a, {{:8}})", **how),
            lambda **how: lm.refine(TEXT, spans=[(4, 30)], **how),
            lambda **how: list(lm.stream("def add(", length=24, eos="forbid", **how))[-1].output,
            lambda **how: asyncio.run(lm.aio.generate("def add(", length=24, eos="forbid", **how)),
        ]
        for call in calls:
            own, medium, low, instant = (call(effort=e) for e in (None, "medium", "low", "instant"))
            assert own.tokens == medium.tokens
            assert instant.stats.forwards < low.stats.forwards < own.stats.forwards
            assert len(instant.tokens) == len(own.tokens)
            assert own.stats.eased is None
        with pytest.raises(BadInput, match="effort is one of instant, low, medium, high, not 'max'"):
            lm.generate("a", effort="max")

    def test_it_is_refused_token_by_token(self, ar_lm):
        for option in ({"effort": "low"}, {"latency_s": 1.0}):
            with pytest.raises(BadInput, match=f"{next(iter(option))} has no effect on this decoder"):
                ar_lm.generate("a", length=4, **option)


class TestLatency:
    def test_what_was_done_for_a_target_is_told(self, lm):
        own = lm.generate("def add(", length=24, eos="forbid")
        easy = lm.generate("def add(", length=24, eos="forbid", latency_s=1e6)
        assert easy.tokens == own.tokens
        assert easy.stats.eased.kept
        assert (easy.stats.eased.steps, easy.stats.eased.target_s) == (0, 1e6)
        hard = lm.generate("def add(", length=24, eos="forbid", latency_s=1e-9)
        assert not hard.stats.eased.kept
        assert hard.stats.eased.effort == "instant"
        assert hard.stats.forwards < own.stats.forwards
        assert 0 < hard.stats.eased.took_s <= hard.stats.seconds

    def test_a_text_is_as_late_as_its_slowest_candidate(self, lm):
        out = lm.infill("def add(", "return", length=(2, 20), latency_s=1e6)
        assert out.stats.eased.kept
        assert out.stats.eased.took_s <= out.stats.seconds

    def test_bad_targets(self, lm):
        for value in (0, -1, "1", float("nan"), True):
            with pytest.raises(BadInput, match="latency_s is a number of seconds above 0"):
                lm.generate("a", length=4, latency_s=value)


class TestAuto:
    @pytest.fixture
    def mixture(self, tokenizer):
        return LanguageModel(model_of(tokenizer, sees="all", reads=(1, 8)), tokenizer, name="toy-mixture")

    def test_what_was_chosen_is_told_and_gives_the_same_text(self, mixture):
        how = {"length": 24, "decoder": "block x quota", "steps": 2}
        calls = [
            lambda **more: mixture.generate("def add(", **how, **more),
            lambda **more: mixture.generate(["import os", "def add("], **how, **more)[1],
            lambda **more: list(mixture.stream("def add(", **how, **more))[-1].output,
        ]
        found = [call(block="auto") for call in calls]
        assert len({tuple(out.tokens) for out in found}) == 1
        (chosen,) = {tuple(out.stats.chosen.items()) for out in found}
        assert chosen in {(("block", 1),), (("block", 8),)}
        for call in calls:
            again = call(**dict(chosen))
            assert again.tokens == found[0].tokens
            assert again.stats.chosen is None

    def test_one_size_is_taken_as_it_is(self, block_lm):
        how = {"length": 12, "decoder": "sdar"}
        out, own = block_lm.generate("def add(", **how, block="auto"), block_lm.generate("def add(", **how)
        assert out.tokens == own.tokens
        assert out.stats.chosen == {"block": block_lm.model.traits.block}

    def test_it_is_refused_where_there_are_no_sizes(self, lm):
        with pytest.raises(BadInput, match="block=auto chooses among the blocks that a model was trained to read"):
            lm.generate("a", length=4, decoder="llada", block="auto")
