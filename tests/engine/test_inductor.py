"""torch.compile computes what torch does, in graphs whose number is known, whatever the company."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unmask.base.attend import Attend
from unmask.base.errors import BadInput, Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.engine import backends
from unmask.engine.backends import inductor
from unmask.engine.backends.inductor import Buckets
from unmask.engine.room import SPARE
from unmask.lm.model import LanguageModel
from unmask.models.backbone import Shape, Transformer
from unmask.nn.cache import rounded
from unmask.nn.moe import Experts

CAUSAL, BLOCKS = Attend(kind="causal"), Attend(kind="blocks", block=4)
SMALL = Shape(vocab_size=64, width=32, depth=2, heads=4, kv_heads=2, hidden=64, max_length=40, qk_norm=True)
FEW = Buckets(rows=(1, 4), widths=(16, 40), slots=(48,))
WANTED = [(4, 16, 48), (1, 16, 48)]
"""Graphs take seconds to compile, so all tests share two."""


def small(shape=SMALL, **traits):
    return Transformer(shape, Vocab(size=64, mask=0, eos=1), Traits(**traits), seed=3).eval()


@pytest.fixture(scope="module")
def model():
    return small(sees="blocks", block=4)


@pytest.fixture(scope="module")
def fast(model):
    try:
        built = inductor.build(model, buckets=FEW)
    except Unsupported as error:
        pytest.skip(str(error))
    assert built.compiled == []
    assert built.warm([1, 3], [1, 16], [20]) == [WANTED[1], WANTED[0]]
    assert built.compiled == [WANTED[1], WANTED[0]]
    return built


def ids(*size, seed=0):
    return torch.randint(8, 60, size, generator=torch.Generator().manual_seed(seed))


def pair(model, other, *, caches=(None, None), tokens, **asked):
    """The same read by both; features and logits have to agree."""
    with torch.no_grad():
        expected = model.read(tokens, cache=caches[0], **asked)
        found = other.read(tokens, cache=caches[1], **asked)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(other.head(found), model.head(expected), atol=1e-3, rtol=1e-4)


def test_whole_rows_and_more_rows_than_a_graph_has(model, fast):
    """Under `given` there are queries that see nothing."""
    given = torch.rand(6, 11, 11, generator=torch.Generator().manual_seed(1)) < 0.2
    for attend in (CAUSAL, BLOCKS, Attend(kind="given", given=given)):
        pair(model, fast, tokens=ids(6, 11), positions=torch.arange(11).expand(6, 11), attend=attend)


def test_a_cache_with_rows_of_unlike_length(model, fast):
    caches = model.cache(3, 30), fast.cache(3, 30)
    positions = torch.full((3, 12), -1)
    for row, width in enumerate((12, 3, 7)):
        positions[row, :width] = torch.arange(width)
    positions[2, 2] = -1
    pair(model, fast, caches=caches, tokens=ids(3, 12), positions=positions, attend=CAUSAL, keep=positions >= 0)
    assert caches[1].held.tolist() == [12, 3, 2]
    late, rows = torch.tensor([[2, -1], [12, 13]]), torch.tensor([2, 0])
    pair(model, fast, caches=caches, tokens=ids(2, 2), positions=late, attend=CAUSAL, rows=rows, keep=late >= 0)
    assert torch.equal(caches[0].known, caches[1].known)
    shown = caches[0].known
    torch.testing.assert_close(caches[1].k[:, shown], caches[0].k[:, shown], atol=1e-4, rtol=1e-4)


def test_a_row_has_the_same_bits_in_any_company(fast):
    text, places = ids(1, 16), torch.arange(16)[None]
    whole = fast.read(text, positions=places, attend=CAUSAL)[0]
    cache = fast.cache(3, 30)
    for start, stop in ((0, 1), (1, 9), (9, 16)):
        positions, tokens = torch.full((3, stop - start), -1), ids(3, stop - start, seed=start)
        positions[1], tokens[1] = places[0, start:stop], text[0, start:stop]
        positions[2, 0] = int(cache.held[2])
        found = fast.read(tokens, positions=positions, attend=CAUSAL, cache=cache, keep=positions >= 0)
        assert torch.equal(found[1], whole[start:stop])


def test_the_same_texts(model, fast):
    lm = LanguageModel(model)
    asked = {"length": 8, "eos": "forbid", "seed": 3, "decoder": "bd3", "block": 4}
    prompts = [[9, 10, 11], [12], [13, 14, 15, 16, 17]]
    expected = [out.tokens for out in lm.generate(prompts, **asked)]
    lm.runner = fast
    assert [out.tokens for out in lm.generate(prompts, **asked)] == expected
    assert sorted(fast.compiled) == sorted(WANTED)


def test_buckets():
    for length in (40, 512, 2048, 4096):
        buckets = Buckets.of(length)
        known = set(buckets.all())
        assert len(known) < 90
        assert buckets.slots[-1] > length + SPARE
        assert all(rounded(size) == size for size in buckets.slots)
        asked = ((1, 1, 2), (3, 5, 20), (100, length, length + 1), (16, 16, length), (2, length, 30))
        for rows, width, slots in (*asked, (2, length + SPARE, 30)):  # the last: shadows beside a row of full length
            r, w, t = found = buckets.fit(rows, width, max(slots, width + 1))
            assert found in known
            assert w >= width
            assert t > max(width, slots - 1)
            assert r == 1 or r * w <= buckets.positions
            assert r >= rows or r == max(n for n, m, _ in known if m == w)


def test_what_cant_be_had(monkeypatch):
    with pytest.raises(Unsupported, match="mixture of experts"):
        inductor.build(small(replace(SMALL, experts=Experts(num=4, chosen=2, hidden=8))))
    with pytest.raises(BadInput, match="reach the 40 positions"):
        inductor.build(small(), buckets=Buckets(rows=(1,), widths=(16,), slots=(48,)))
    with pytest.raises(BadInput, match="quantize='int8'"):
        backends.build(small(), "compile", "int8")
    with pytest.raises(Unsupported, match="beyond the largest bucket, 40"):
        FEW.fit(1, 41, 42)
    with pytest.raises(BadInput, match="rising"):
        Buckets(rows=(4, 1), widths=(16,), slots=(48,))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(Unsupported, match="compiler"):
        inductor.build(small())


def test_the_script_for_gpus_runs():
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    asked = [sys.executable, str(script), "--tiny", "--kinds", "torch", "fp8", "--tries", "1"]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [one["width"] for one in told["torch"]["widths"]] == [1, 4, 32]
    assert told["torch"]["agree"] == 1
    assert "fp8" in told
