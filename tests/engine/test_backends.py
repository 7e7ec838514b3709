"""What a backend computes is what torch computes, in any company; and its files say the same."""

import json
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

import unmask
from unmask.base.attend import Attend
from unmask.base.errors import BadInput, TooLong, UnknownName, Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.cli import main
from unmask.engine import backends
from unmask.engine.backends import onnx, openvino
from unmask.engine.backends.graph import Body, JoinedAttention, JoinedMLP, example, join, traceable
from unmask.engine.pages import Pages
from unmask.models.backbone import Shape, Transformer
from unmask.nn.moe import Experts

NAMES = ("tiny", "tiny-ar")
CAUSAL, BLOCKS = Attend(kind="causal"), Attend(kind="blocks", block=4)
SMALL = Shape(vocab_size=64, width=32, depth=2, heads=4, kv_heads=2, hidden=48, max_length=64)
OTHERS = {
    "gpt": replace(SMALL, norm="layer", mlp="plain", activation="gelu", position="learned", kv_heads=4, qkv_bias=True),
    "qwen": replace(SMALL, qk_norm=True, qkv_bias=True, tied=False, head_bias=True, mlp_bias=True, rotary_dim=4),
    "scaled": replace(SMALL, embedding_scale=3.0, output_bias=True, kv_heads=1),
}


def small(shape=SMALL, **traits):
    return Transformer(shape, Vocab(size=64, mask=0, eos=1), Traits(**traits)).eval()


@pytest.fixture(scope="module")
def models():
    return {name: unmask.load(name).model for name in NAMES}


@pytest.fixture(scope="module")
def fast(models):
    return {name: openvino.build(model) for name, model in models.items()}


def ids(*size, seed=0):
    return torch.randint(8, 60, size, generator=torch.Generator().manual_seed(seed))


def close(found, expected, atol=1e-4):
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4)


def pair(model, other, *, caches=(None, None), **asked):
    """The same read by both; features and logits have to agree."""
    with torch.no_grad():
        expected = model.read(asked["tokens"], cache=caches[0], **{k: v for k, v in asked.items() if k != "tokens"})
    found = other.read(asked["tokens"], cache=caches[1], **{k: v for k, v in asked.items() if k != "tokens"})
    close(found, expected)
    close(other.head(found), model.head(expected).detach(), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "attend",
    [
        Attend(kind="full"),
        CAUSAL,
        BLOCKS,
        Attend(kind="blocks", block=torch.tensor([1, 2, 5])),
        Attend(kind="given", given=torch.rand(3, 11, 11, generator=torch.Generator().manual_seed(1)) < 0.2),
    ],
)
def test_whole_rows(models, fast, name, attend):
    """Under `given` there are queries that see nothing."""
    positions = torch.arange(11).expand(3, 11)
    pair(models[name], fast[name], tokens=ids(3, 11), positions=positions, attend=attend)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_a_draft_a_commit_and_one_token(models, fast, name):
    model, other = models[name], fast[name]
    caches = model.cache(3, 40), other.cache(3, 40)
    known = torch.arange(8).expand(3, 8)
    for positions, keep, seed in ((known, True, 0), (known[:, :4] + 8, False, 1), (known[:, :4] + 8, True, 2)):
        kept = torch.full(positions.shape, keep)
        asked = {"tokens": ids(*positions.shape, seed=seed), "positions": positions, "attend": BLOCKS, "keep": kept}
        pair(model, other, caches=caches, **asked)
    one = torch.tensor([[12], [12]])
    rows = torch.tensor([2, 0])
    pair(model, other, caches=caches, tokens=ids(2, 1), positions=one, attend=CAUSAL, rows=rows, keep=one > 0)
    assert torch.equal(caches[0].known, caches[1].known)
    assert caches[1].held.tolist() == [13, 12, 13]
    shown = caches[0].known
    close(caches[1].k[:, shown], caches[0].k[:, shown])
    close(caches[1].v[:, shown], caches[0].v[:, shown])


def test_rows_of_unlike_length_and_fillers_between(models, fast):
    model, other = models["tiny"], fast["tiny"]
    caches = model.cache(4, 40), other.cache(4, 40)
    positions = torch.full((4, 12), -1)
    for row, width in enumerate((12, 3, 0, 7)):
        positions[row, :width] = torch.arange(width)
    positions[3, 2] = -1
    asked = {"tokens": ids(4, 12), "positions": positions, "attend": CAUSAL}
    pair(model, other, **asked)
    pair(model, other, caches=caches, keep=positions >= 0, **asked)
    assert caches[1].held.tolist() == [12, 3, 0, 2]
    late = torch.tensor([[12, 13], [3, -1], [0, 1], [2, -1]])
    pair(model, other, caches=caches, tokens=ids(4, 2), positions=late, attend=CAUSAL)


@pytest.mark.parametrize("shape", OTHERS.values(), ids=OTHERS)
def test_other_networks(shape):
    model = small(shape)
    with torch.no_grad():
        for weight in model.parameters():
            weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) / 10
    pair(model, openvino.build(model), tokens=ids(2, 9), positions=torch.arange(9).expand(2, 9), attend=CAUSAL)


@pytest.mark.parametrize("precision", ["loaded", "int8"])
def test_a_row_has_the_same_bits_in_any_company(precision):
    """Alone, among others, in pieces, with a cache or without: rounding does not depend on the batch."""
    model = small(replace(SMALL, width=576, heads=9, kv_heads=3, max_length=700))
    fast, length = openvino.build(model, precision), 600
    text, places = ids(1, length), torch.arange(length)[None]
    whole = fast.read(text, positions=places, attend=CAUSAL)[0]
    cache = fast.cache(5, length + 20)
    for start, stop in ((0, 1), (1, 100), (100, 117), (117, 599), (599, 600)):
        positions = torch.full((5, stop - start), -1)
        tokens = ids(5, stop - start, seed=start)
        positions[3], tokens[3] = places[0, start:stop], text[0, start:stop]
        for row, other in ((0, 1), (1, 17), (2, 40), (4, 1)):
            some = min(other, stop - start)
            positions[row, :some] = torch.arange(some) + int(cache.held[row])
        found = fast.read(tokens, positions=positions, attend=CAUSAL, cache=cache, keep=positions >= 0)
        assert torch.equal(found[3], whole[start:stop]), (start, stop)
    features = torch.cat([whole, whole])
    for count in (1, 2, 7, 64):
        assert torch.equal(fast.head(whole[:count]), fast.head(features)[:count])


def test_pages_in_any_order_give_the_same_bits(fast):
    model, known = fast["tiny-ar"], torch.arange(40).expand(2, 40)
    plain = model.cache(2, 64)
    paged = Pages(model.cache(0, 64), rows=2, length=64, num_pages=10)
    for row, pages in enumerate(([7, 2, 9], [1, 8, 3])):
        paged.hold(row, pages)
    paged.k += 1.0  # whatever others left there
    for positions in (known, known[:, :1] + 40):
        asked = {"positions": positions, "attend": CAUSAL, "keep": positions >= 0}
        found = [model.read(ids(*positions.shape), cache=cache, **asked) for cache in (plain, paged)]
        assert torch.equal(*found)


def test_a_layer_is_few_operations():
    """What OpenVINO fuses follows from how the graph is written; a small operation costs its start."""
    body, _ = openvino.graphs(traceable(small(replace(SMALL, depth=6)), "loaded"))
    compiled = openvino._library().Core().compile_model(body, "CPU", openvino.SETTINGS)
    kinds = Counter(op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ops())
    assert kinds["RoPE"] == kinds["Subgraph"] == 6  # a layer's queries and keys are turned at once, attention is one
    assert kinds["FullyConnected"] == 24
    assert kinds["ScatterUpdate"] == 12
    run = sum(count for kind, count in kinds.items() if kind not in ("Const", "Input", "Reshape"))
    assert run < 200


def test_int8_is_the_rounding_of_a_model_loaded_so(models, fast):
    rounded = unmask.load("tiny", quantize="int8").model
    asked = {"positions": torch.arange(12).expand(2, 12), "attend": Attend(kind="full")}
    with torch.no_grad():
        expected = rounded.read(ids(2, 12), **asked)
    for other in (openvino.build(rounded), openvino.build(models["tiny"], "int8")):
        close(other.read(ids(2, 12), **asked), expected)
    assert (fast["tiny"].read(ids(2, 12), **asked) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "options"), [("tiny", {}), ("tiny", {"decoder": "bd3", "block": 16}), ("tiny-ar", {})]
)
def test_the_same_texts(fast, name, options):
    lm, prompts = unmask.load(name), ["def add(a, b):\n", "import os\n", "class Point:\n    def "]
    asked = {"length": 24, "seed": 3, **options}
    expected = [out.tokens for out in lm.generate(prompts, **asked)]
    lm.runner = fast[name]
    assert [out.tokens for out in lm.generate(prompts, **asked)] == expected


def test_a_model_is_loaded_onto_a_backend():
    lm = unmask.load("tiny", backend="openvino")
    assert lm.backend == "openvino"
    assert lm.runner is not lm.model
    wanted = unmask.load("tiny").generate("def add(", length=12, eos="forbid")
    assert lm.generate("def add(", length=12, eos="forbid").tokens == wanted.tokens
    with pytest.raises(UnknownName, match="openvino"):
        unmask.load("tiny", backend="openvin")


def test_networks_that_can_not_leave_torch():
    experts = replace(SMALL, experts=Experts(num=4, chosen=2, hidden=8))
    condition = replace(SMALL, sigma="zero", condition=8)
    for model, said in (
        (small(experts), "mixture of experts"),
        (small(condition), "noise"),
        (small().to(torch.bfloat16), "bfloat16"),
        (object(), "plain transformers"),
    ):
        with pytest.raises(Unsupported, match=said):
            openvino.build(model)
    assert backends.build(small(experts))[0] == "torch"


def test_nobody_is_told():
    openvino.build(small())
    assert "openvino_telemetry" not in sys.modules


def test_names():
    model = small()
    assert backends.build(model, "torch") == ("torch", model)
    assert backends.build(model)[0] in backends.BACKENDS
    with pytest.raises(UnknownName, match="openvino"):
        backends.build(model, "openvimo")
    with pytest.raises(UnknownName, match="precision"):
        backends.build(model, "openvino", "int3")
    with pytest.raises(BadInput, match="quantize"):
        backends.build(model, "torch", "int8")
    with pytest.raises(TooLong):
        openvino.build(model).cache(1, 65)


def test_a_package_that_is_not_here(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(Unsupported, match=r"unmask\[cpu\]"):
        openvino.build(small())
    assert backends.build(small())[0] == "torch"


@pytest.mark.parametrize("precision", ["loaded", "int8"])
@pytest.mark.parametrize("shape", [SMALL, *OTHERS.values()], ids=["small", *OTHERS])
def test_maps_of_the_same_numbers_are_one_product(shape, precision):
    apart, joined = traceable(small(shape), precision), join(traceable(small(shape), precision))
    for layer in joined.layers:
        assert isinstance(layer.self_attn, JoinedAttention)
        assert isinstance(layer.mlp, JoinedMLP) == (shape.mlp == "gated")
    with torch.no_grad():
        for one, other in zip(Body(apart)(*example(apart)), Body(joined)(*example(joined)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["loaded", "int8"])
def test_files(models, tmp_path, capsys, precision):
    with pytest.raises(SystemExit) as ended:
        main(["export", "tiny", "--out", str(tmp_path / "new"), "--precision", precision, "--json"])
    assert not ended.value.code
    assert "body.xml" in json.loads(capsys.readouterr().out)["files"]
    about = json.loads((tmp_path / "new" / "about.json").read_text())
    assert about["body"]["inputs"][0] == "tokens"
    asked = {"positions": torch.arange(12).expand(2, 12), "attend": Attend(kind="full")}
    here = openvino.build(models["tiny"], precision)
    there = openvino.build(models["tiny"], precision, tmp_path / "new")
    assert torch.equal(here.read(ids(2, 12), **asked), there.read(ids(2, 12), **asked))
    with pytest.raises(SystemExit) as ended:
        main(["export", "tiny", "--out", str(tmp_path / "new")])
    assert ended.value.code == 2
    assert "new folder" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["loaded", "int8"])
def test_onnx_runs_elsewhere(precision):
    model = small(OTHERS["qwen"])
    other, expected = onnx.build(model, precision), openvino.build(model, precision)
    caches = expected.cache(2, 20), other.cache(2, 20)
    first = torch.arange(7).expand(2, 7)
    pair(expected, other, caches=caches, tokens=ids(2, 7), positions=first, attend=CAUSAL, keep=first >= 0)
    pair(expected, other, caches=caches, tokens=ids(2, 1), positions=first[:, :1] + 7, attend=CAUSAL)
