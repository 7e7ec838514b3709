"""Rounded weights: a plain linear map with other numbers, and no row that knows of its neighbours."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import unmask
from small_gguf import publish
from unmask.base.errors import Unsupported
from unmask.models.load import load, save
from unmask.models.parallel import plan
from unmask.nn import fp8, quantize
from unmask.nn.moe import Pool
from unmask.nn.quantize import FORMATS, RoundedLinear, RoundedStack, int8, rounds

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = {"llada2_moe": "experts, fused maps", "llada_moe": "experts one by one", "mdlm": "fused, biased; adaLN beside"}


def draw(*size, seed=0, dtype=torch.float32):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain(weight, scale):
    """The numbers that rounded weights stand for."""
    return weight.double() * scale.double()[..., None]


class TestRounding:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 10**6), st.sampled_from([1e-30, 1e-3, 1.0, 1e4]))
    def test_nothing_is_off_by_more_than_half_a_step(self, seed, size):
        weight = draw(5, 7, seed=seed) * size
        packed, scale = int8(weight)
        assert packed.dtype == torch.int8
        assert scale.dtype == torch.float32
        assert torch.equal(packed.abs().amax(-1), torch.full((5,), 127, dtype=torch.int8))
        assert bool(((plain(packed, scale) - weight).abs() <= scale[:, None] * 0.5001).all())
        assert torch.equal(int8(-weight)[0], -packed)

    def test_an_output_has_its_own_scale(self):
        weight = draw(6, 8)
        other = weight.clone()
        other[3] *= 1000
        for one, two in zip(int8(weight), int8(other), strict=True):
            assert torch.equal(one[torch.arange(6) != 3], two[torch.arange(6) != 3])

    def test_zeros_and_stacks(self):
        packed, scale = int8(torch.zeros(2, 3))
        assert not packed.any()
        assert not scale.any()
        stack = draw(4, 5, 6)
        packed, scale = int8(stack)
        assert all(torch.equal(packed[i], int8(stack[i])[0]) for i in range(4))
        assert torch.equal(scale, torch.stack([int8(x)[1] for x in stack]))


class TestMaps:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("cache", [1, 999, 1 << 20])
    def test_it_is_the_map_of_the_rounded_weights(self, dtype, bias, cache, monkeypatch):
        monkeypatch.setattr(quantize, "CACHE_BYTES", cache)
        packed, scale = int8(draw(13, 24))
        shift = nn.Parameter(draw(13, seed=1, dtype=dtype)) if bias else None
        x = draw(3, 5, 24, seed=2, dtype=dtype)
        found = RoundedLinear(packed, scale, shift)(x)
        wanted = x.double() @ plain(packed, scale).T + (0 if shift is None else shift.double())
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=4 * torch.finfo(dtype).eps * 30)

    def test_large_sums_stay_in_float16(self):
        packed, scale = int8(torch.full((2, 4096), 1e-3))
        found = RoundedLinear(packed, scale, None)(torch.full((1, 4096), 100.0, dtype=torch.float16))
        torch.testing.assert_close(found.float(), torch.full((1, 2), 409.6), rtol=2e-3, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_row_does_not_depend_on_its_neighbours(self, dtype):
        """Not on what they are, at all; on how many they are, as far as a plain map does: in the order of sums."""
        map_ = RoundedLinear(*int8(draw(40, 64)), None)
        x = draw(30, 64, seed=1, dtype=dtype)
        whole = map_(x)
        others = torch.where(torch.arange(30)[:, None] == 7, x, x * 1e4 + 3)
        assert torch.equal(map_(others)[7], whole[7])
        for rows in (1, 2, 3, 5, 8, 17):
            torch.testing.assert_close(map_(x[:rows]), whole[:rows], rtol=0, atol=float(whole.abs().max()) * 1e-6)

    def test_a_stack_gives_floats_out(self):
        packed, scale = int8(draw(3, 4, 5))
        stack = RoundedStack(packed, scale, torch.bfloat16)
        assert len(stack) == 3
        assert torch.equal(stack[1], (packed[1] * scale[1][:, None]).bfloat16())


@pytest.fixture(scope="module", params=["llama", "qwen2", *KINDS])
def folder(request, tmp_path_factory):
    """Networks of every kind of map: plain, biased, fused, turned, experts in one or many tensors."""
    path = tmp_path_factory.mktemp(request.param)
    if request.param in KINDS:
        shutil.copytree(GOLDEN / request.param, path, dirs_exist_ok=True)
    else:
        publish(path, request.param.title(), **({"tie_word_embeddings": True} if request.param == "llama" else {}))
    return path


def forward(model):
    tokens = torch.randint(60, (2, 12), generator=torch.Generator().manual_seed(5))
    return model(tokens, t=torch.full((2,), 0.5))


@torch.no_grad()
def test_a_model_is_the_plain_one_with_rounded_weights(folder):
    small, whole = load(folder, "cpu", quantize="int8"), load(folder, "cpu")
    before = forward(whole)
    names = [name for name, _ in whole.named_parameters() if rounds(whole, name)]
    assert names
    assert not any(
        word in name for name in names for word in ("embed", "lm_head", "norm", ".gate.weight", "bias", "modulation")
    )
    for name, weight in whole.named_parameters():
        if name in names:
            owner, _, leaf = name.rpartition(".")
            packed = small.get_submodule(owner if leaf == "weight" else name)
            assert packed.weight.dtype == torch.int8
            assert torch.equal(packed.weight, int8(weight)[0])
            weight.copy_(plain(packed.weight, packed.scale))
        else:
            assert torch.equal(weight, small.get_parameter(name))
    assert not [name for name, _ in small.named_parameters() if name in names]
    after = forward(small)
    torch.testing.assert_close(after, forward(whole), rtol=0, atol=2e-5 * float(before.abs().max()))
    assert not torch.equal(after, before)
    assert float((after - before).abs().max()) < 0.1 * float(before.abs().max())


def test_experts_come_one_at_a_time(tmp_path, monkeypatch):
    """Where they are stored one by one, no more than one of them is in memory as floats."""
    shutil.copytree(GOLDEN / "llada_moe", tmp_path, dirs_exist_ok=True)
    shapes = []
    monkeypatch.setitem(FORMATS, "int8", lambda weight: shapes.append(weight.shape) or int8(weight))
    load(tmp_path, "cpu", quantize="int8")
    assert {len(shape) for shape in shapes} == {2}


def test_half_precision_beside_it(tmp_path):
    shutil.copytree(GOLDEN / "llada_moe", tmp_path, dirs_exist_ok=True)
    model = load(tmp_path, "cpu", "bfloat16", "int8")
    assert {x.dtype for x in model.parameters()} == {torch.bfloat16}
    assert forward(model).dtype == torch.bfloat16


def test_rows_of_a_model_do_not_depend_on_each_other(tmp_path):
    publish(tmp_path)
    lm = unmask.load(tmp_path, quantize="int8")
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    together = lm.generate(prompts, length=12, eos="forbid")
    assert [out.tokens for out in together] == [lm.generate(p, length=12, eos="forbid").tokens for p in prompts]


def test_what_cant_be_had(tmp_path):
    publish(tmp_path / "a")
    with pytest.raises(Unsupported, match="can't be rounded to 'int4'; known: int8"):
        unmask.load(tmp_path / "a", quantize="int4")
    model = load(tmp_path / "a", "cpu", quantize="int8")
    with pytest.raises(Unsupported, match="rounded by quantize='int8'; load it without"):
        save(model, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_fp8_is_asked_of_torchao(monkeypatch):
    """Only what is asked: what it computes needs a GPU."""
    library, calls = pytest.importorskip("torchao.quantization"), []
    monkeypatch.setattr(library, "quantize_", lambda module, config: calls.append(config))
    fp8.place(nn.Linear(16, 32, dtype=torch.bfloat16), "weight")
    assert type(calls[0]).__name__ == "Float8DynamicActivationFloat8WeightConfig"
    assert all(isinstance(one, library.PerRow) for one in calls[0].granularity)


@torch.no_grad()
def test_fp8_on_its_way_through_loading(tmp_path, monkeypatch):
    """On a CPU, with torchao's format that rounds weights alone."""
    library = pytest.importorskip("torchao.quantization")
    weights_alone = library.Float8WeightOnlyConfig(set_inductor_config=False)
    monkeypatch.setattr(library, "Float8DynamicActivationFloat8WeightConfig", lambda granularity: weights_alone)
    monkeypatch.setattr(fp8, "check", lambda device, dtype: None)
    publish(tmp_path, "Qwen2", hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1)
    small, whole = load(tmp_path, "cpu", "bfloat16", "fp8"), load(tmp_path, "cpu", "bfloat16")
    lent = {name for name, weight in small.named_parameters() if type(weight) is not nn.Parameter}
    assert lent == {name for name, _ in whole.named_parameters() if rounds(whole, name)}
    before, after = forward(whole).float(), forward(small).float()
    assert not torch.equal(after, before)
    assert float((after - before).abs().max()) < 0.1 * float(before.abs().max())
    with pytest.raises(Unsupported, match="quantize"):
        plan(small, 1)
    with pytest.raises(Unsupported, match="rounded by quantize='fp8'"):
        save(small, tmp_path / "b")


def test_where_fp8_cant_be_had(tmp_path, monkeypatch):
    publish(tmp_path)
    with pytest.raises(Unsupported, match=r"compute capability 8\.9 at least, and cpu is none; use quantize='int8'"):
        load(tmp_path, "cpu", quantize="fp8")
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(Unsupported, match="compute capability"):
        fp8.check(cuda, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(Unsupported, match="bfloat16"):
        fp8.check(cuda, torch.float32)
    with pytest.raises(Unsupported, match="multiples of 16"):
        fp8.place(nn.Linear(16, 20), "weight")
    with pytest.raises(Unsupported, match=r"stored one is torch\.float32"):
        fp8.place(nn.Linear(16, 16), "weight")
    with pytest.raises(Unsupported, match="experts"):
        fp8.place(Pool(16, 2, 16), "up_proj")
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(Unsupported, match=r"unmask\[gpu\]"):
        fp8.check(cuda, None)


def test_routers_are_left_alone():
    """Some are linear maps, and near ties between experts must not be settled by rounding."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"router": nn.ModuleDict({"proj": nn.Linear(4, 4)})})])

    assert not rounds(Block(), "layers.0.router.proj.weight")
