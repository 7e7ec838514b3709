"""A model of a causal context and a canvas (DiffusionGemma) through the public calls."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from unmask.base.errors import Unsupported
from unmask.base.vocab import Traits
from unmask.lm.model import LanguageModel
from unmask.models.gemma import Gemma, GemmaShape
from unmask.nn.moe import Experts

BLOCK, STEPS = 8, 5


@pytest.fixture(scope="module")
def lm(tokenizer):
    vocab = replace(tokenizer.vocab, mask=None)
    shape = GemmaShape(
        vocab_size=vocab.size,
        width=32,
        depth=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        hidden=48,
        max_length=96,
        experts=Experts(num=4, chosen=2, hidden=16, normalise=True),
        embedding_scale=32**0.5,
        window=6,
        wide=(1,),
        wide_kv_heads=1,
        wide_head_dim=16,
        wide_theta=1e6,
    )
    traits = Traits(sees="context-then-canvas", block=BLOCK, noise="uniform", carries=True)
    model = Gemma(shape, vocab, traits, seed=5)
    with torch.no_grad():
        model.norm.weight.fill_(40.0)  # beliefs that are sharp enough to differ from each other
    model.defaults = {"decoder": "diffusion-gemma", "steps": STEPS, "bound": 2.0}
    return LanguageModel(model, tokenizer, name="toy-canvases")


def test_a_text_is_written_canvas_by_canvas_and_cut(lm):
    spent, widths, lengths = [], set(), set()

    def watch(rows):
        spent.append(rows.num_forwards)
        lengths.add(rows.engine.room.length)
        widths.add(int((rows.engine.canvas.length - rows.engine.canvas.origin)[0]))

    out = lm.generate("def add(", length=20, eos="keep", watch=watch)
    assert out.text == "def add(" + out.completion
    assert len(out.tokens) == len(out.logprobs) == 20
    assert out.stats.forwards == spent[-1] <= 3 * STEPS
    assert all(p <= 0 for p in out.logprobs)
    assert lengths.pop() < lm.model.max_length  # room for this row, not for the longest there could be
    assert widths == {3 * BLOCK}  # the last canvas is a whole one, though four of its tokens are cut off


def test_a_batch_gives_what_each_prompt_gives_alone(lm):
    prompts = ["def add(", "Dear", "import os\nimport"]
    together = lm.generate(prompts, length=20, seed=3)
    alone = [lm.generate(p, length=20, seed=3) for p in prompts]
    assert [o.tokens for o in together] == [o.tokens for o in alone]
    assert [o.stats.forwards for o in together] == [o.stats.forwards for o in alone]
    assert alone[0].tokens != lm.generate(prompts[0], length=20, seed=4).tokens


def test_what_settles_early_spends_fewer_forwards(lm):
    lm = LanguageModel(deepcopy(lm.model), lm.tokenizer)
    with torch.no_grad():  # layers that hardly add to the embedding: each token believes in itself
        for name, weight in lm.model.named_parameters():
            if "post_" in name:
                weight.mul_(0.02)
    slow = lm.generate("def", length=16, eos="keep", steps=30, bound=99.0, settle=0.0)
    quick = lm.generate("def", length=16, eos="keep", steps=30, bound=99.0, settle=9.0)
    assert slow.stats.forwards == 2 * 30
    assert quick.stats.forwards < 2 * 30


def test_pins_stay(lm):
    out = lm.generate("def add(", length=16, pins={3: "ab"}, eos="keep")
    assert out.tokens[3 : 3 + len(lm.tokenizer.encode("ab"))] == lm.tokenizer.encode("ab")


def test_a_stream_only_grows_and_tells_of_whole_canvases(lm):
    told, committed = "", set()
    for step in lm.stream("def add(", length=24, eos="keep", seed=2):
        assert step.text.startswith(told)
        told = step.text
        committed.add(told)
    assert told == lm.generate("def add(", length=24, eos="keep", seed=2).completion
    assert len(committed) > 2


def test_what_it_can_not_do_is_refused(lm):
    with pytest.raises(Unsupported, match="can't see what stands behind a gap"):
        lm.infill("a", "b", length=4)
    with pytest.raises(Unsupported, match="sees is 'all' or 'blocks'"):
        lm.score("def add(")
    with pytest.raises(Unsupported, match="guidance masks the prompt"):
        lm.generate("def", length=8, guidance=1.0)
    with pytest.raises(Unsupported, match="a rule with a start"):
        lm.generate("def", length=8, decoder="llada")
