"""Tokens that a call wants more or less, and what it is told of those that were not taken."""

import math
import re

import pytest
import torch

from unmask.base.errors import BadInput

DECODERS = {
    "quota": {"decoder": "llada", "steps": 8},
    "threshold": {"decoder": "fast-dllm", "block": 8, "threshold": 0.3},
    "prefix": {"decoder": "fast-dllm-prefix", "block": 8, "threshold": 0.3},
    "ancestral": {"decoder": "mdlm", "steps": 6, "temperature": 1.0},
    "remask": {"decoder": "remdm", "steps": 8, "eta": 0.3, "temperature": 1.0},
    "edit": {"decoder": "whole x quota + edit", "steps": 6, "edit_threshold": 0.0},
    "renoise": {"decoder": "whole x renoise", "steps": 6, "bound": 2.0},
    "wino": {"decoder": "wino", "block": 8, "threshold": 0.2, "doubt": 0.3},
    "guided": {"decoder": "llada", "steps": 8, "guidance": 1.5},
    "ahead": {"decoder": "llada", "steps": 12, "lookahead": 2},
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_text_is_what_it_leans_to(lm, name):
    """As if the model itself spoke so: what is shut out is not there, what is pushed is."""
    settings, ask = DECODERS[name], {"length": 12, "eos": "forbid", "seed": 3}
    plain = lm.generate("def add(", **ask, **settings)
    out = lm.generate("def add(", **ask, **settings, logit_bias=dict.fromkeys(plain.tokens, -100))
    assert not {*out.tokens} & {*plain.tokens}
    assert all(math.isfinite(value) for value in out.logprobs)
    wanted = next(i for i in range(9, 300) if i not in plain.tokens)
    out = lm.generate("def add(", **ask, **settings, logit_bias={str(wanted): 100})
    assert out.tokens == [wanted] * 12
    assert out.logprobs == pytest.approx([0.0] * 12, abs=1e-6)  # of the distribution with the bias
    assert lm.generate("def add(", **ask, **settings, logit_bias={}).logprobs == plain.logprobs
    assert lm.generate("def add(", **ask, **settings, logit_bias={wanted: 0}).logprobs == plain.logprobs


def test_every_call_takes_it(lm):
    (token,) = lm.tokenizer.encode("x")
    all_x = {"logit_bias": {token: 100}}
    assert lm.infill("def ", "\n", length=(2, 4), **all_x).completion.strip("x") == ""
    assert lm.fill("a {{n:3}} b", **all_x).holes == [("n", "xxx")]
    text = "import os"
    out = lm.refine(text, spans=[(7, 9)], **all_x)
    assert out.text.startswith("import ")
    assert {*out.completion} == {"x"}
    *_, last = lm.stream("def", length=5, **all_x)
    assert last.text == "xxxxx"


def test_an_end_of_text_may_be_pushed_or_held_back(lm):
    eos = lm.model.vocab.eos
    out = lm.generate("def", length=9, logit_bias={eos: 100})
    assert (out.tokens, out.finish_reason) == ([], "stop")
    assert lm.generate("def", length=9, eos="forbid", logit_bias={eos: -100}).finish_reason == "length"
    with pytest.raises(BadInput, match=f"token {eos} likelier"):
        lm.generate("def", length=9, eos="forbid", logit_bias={eos: 1})
    with pytest.raises(BadInput, match="likelier"):
        lm.generate("def", length=9, logit_bias={lm.model.vocab.mask: 1})
    with pytest.raises(BadInput, match="ids from 0"):
        lm.infill("a", "b", logit_bias={lm.model.vocab.size: 1})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_within_what_a_constraint_allows(lm, temperature):
    ids = {letter: lm.tokenizer.encode(letter)[0] for letter in "abx"}
    ask = {"length": 6, "eos": "forbid", "temperature": temperature, "regex": "[ab]{6}", "seed": 2}
    out = lm.generate("def ", **ask, logit_bias={ids["x"]: 100, ids["b"]: 50}, top_logprobs=4)
    assert out.completion == "bbbbbb"
    assert all(len(rank) < 4 and rank[0][0] == ids["b"] for rank in out.top_logprobs)  # what may not stand is not told
    out = lm.generate("def ", **ask, logit_bias={ids["b"]: -100})
    assert set(out.tokens) != {ids["b"]}
    assert re.fullmatch("[ab]{6}", out.completion)


@pytest.mark.parametrize("name", DECODERS)
def test_the_most_probable_tokens(lm, name):
    settings, ask = DECODERS[name], {"length": 12, "eos": "forbid", "seed": 3}
    plain = lm.generate("def add(", **ask, **settings)
    assert plain.top_logprobs == [[]] * 12
    out = lm.generate("def add(", **ask, **settings, top_logprobs=5)
    assert out.tokens == plain.tokens
    assert out.logprobs == plain.logprobs
    for token, value, change, rank in zip(out.tokens, out.logprobs, out.changes, out.top_logprobs, strict=True):
        ids, values = zip(*rank, strict=True)
        assert len(ids) == len({*ids}) == 5
        assert [*values] == sorted(values, reverse=True)
        assert rank[0] == (change.best, change.top)
        assert dict(rank).get(token, value) == value  # to the bit
        assert token in ids or value <= values[-1]
        assert sum(map(math.exp, values)) <= 1 + 1e-9


def test_they_are_of_the_step_that_wrote_the_token(lm):
    """One token at a time: the network is asked again for what it saw, and leans as it did."""
    bias = {token: 2.0 - token % 5 for token in range(20, 90)}
    ask = {"length": 4, "eos": "keep", "decoder": "whole x quota", "steps": 4}
    out = lm.generate("def", **ask, logit_bias=bias, top_logprobs=20)
    vocab, steps = lm.model.vocab, [change.step for change in out.changes]
    given = [*lm.reader.start, *lm.tokenizer.encode("def")]
    for at, step in enumerate(steps):
        seen = [t if s < step else vocab.mask for t, s in zip(out.tokens, steps, strict=True)]
        logits = lm.logits([[*given, *seen]])[0, len(given) + at].double()
        logits[[*bias]] += torch.tensor([*bias.values()], dtype=torch.float64)
        logits[[vocab.mask, *({vocab.bos, vocab.pad} - {None})]] = -math.inf
        best = logits.log_softmax(-1).topk(20)
        assert [token for token, _ in out.top_logprobs[at]] == best.indices.tolist()
        assert [value for _, value in out.top_logprobs[at]] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_of_what_top_k_leaves(lm):
    out = lm.generate("def", length=6, eos="forbid", temperature=1.0, top_k=3, top_logprobs=20)
    assert [len(rank) for rank in out.top_logprobs] == [3] * 6
    assert all(token in dict(rank) for token, rank in zip(out.tokens, out.top_logprobs, strict=True))
    assert all(sum(math.exp(value) for _, value in rank) == pytest.approx(1) for rank in out.top_logprobs)


def test_pinned_tokens_have_none(lm):
    out = lm.generate("def", length=6, eos="forbid", pins={2: "x"}, top_logprobs=2)
    assert [len(rank) for rank in out.top_logprobs] == [2, 2, 0, 2, 2, 2]


@pytest.mark.parametrize("wrong", [-1, 21, 2.5, True, "3"])
def test_how_many_is_checked(lm, wrong):
    with pytest.raises(BadInput, match="top_logprobs is a whole number from 0 to 20"):
        lm.generate("def", length=4, top_logprobs=wrong)
