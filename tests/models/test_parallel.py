"""A model over two processes says what it says in one, and both write the same tokens."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh

from unmask.base.errors import Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.engine import backends
from unmask.lm.model import LanguageModel
from unmask.models.backbone import Shape, Transformer
from unmask.models.parallel import parallelize, plan
from unmask.nn.moe import Experts
from unmask.nn.quantize import RoundedLinear, int8

SHAPE = Shape(
    vocab_size=61, width=32, depth=2, heads=4, kv_heads=2, hidden=48, max_length=64, qk_norm=True, qkv_bias=True
)
SHAPES = {
    "tied": replace(SHAPE, output_bias=True, mlp_bias=True),
    "untied": replace(SHAPE, tied=False),  # 61 tokens: the parts are unlike
    "gpt": replace(SHAPE, norm="layer", mlp="plain", activation="gelu", position="learned", kv_heads=4),
}
ASKED = {"length": 12, "eos": "forbid", "seed": 3, "temperature": 1.0, "decoder": "sdar", "block": 4}
PROMPTS = [[9, 10, 11], [12], [13, 14, 15, 16, 17]]


def small(shape):
    model = Transformer(shape, Vocab(size=61, mask=0, eos=1), Traits(sees="blocks", block=4), seed=7)
    with torch.no_grad():
        model.embed_tokens.weight.mul_(20)
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(generator=torch.Generator().manual_seed(1))
    return model.eval()


def written(model):
    return [out.tokens for out in LanguageModel(model).generate(PROMPTS, **ASKED)]


@torch.no_grad()
def process(rank, folder, expected):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for name, (logits, tokens) in expected.items():
        model = parallelize(small(SHAPES[name]), mesh)
        torch.testing.assert_close(model(torch.arange(24).view(2, 12)), logits, atol=1e-5, rtol=1e-5)
        assert model.cache(1, 8).k.shape[3] == SHAPES[name].kv_heads // 2
        assert model.layers[0].self_attn.k_proj.weight.to_local().shape[0] == model.shape.kv_heads * 8 // 2
        assert written(model) == tokens, name
    with pytest.raises(Unsupported, match="already"):
        parallelize(model, mesh)
    with pytest.raises(Unsupported, match="split over processes"):
        backends.build(model, "compile")
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    expected = {}
    for name, shape in SHAPES.items():
        model = small(shape)
        with torch.no_grad():
            expected[name] = model(torch.arange(24).view(2, 12)), written(model)
        assert len({token for tokens in expected[name][1] for token in tokens}) > 8
    multiprocessing.spawn(process, (tmp_path, expected), nprocs=2)


def test_what_cant_be_split():
    model = small(SHAPE)
    with pytest.raises(Unsupported, match="kv_heads=2"):
        plan(model, 4)
    with pytest.raises(Unsupported, match="mixture of experts"):
        plan(Transformer(replace(SHAPE, experts=Experts(num=4, chosen=2, hidden=8)), model.vocab, model.traits), 2)
    with pytest.raises(Unsupported, match="plain transformers"):
        plan(object(), 2)
    model.layers[1].mlp.up_proj = RoundedLinear(*int8(model.layers[1].mlp.up_proj.weight), None)
    with pytest.raises(Unsupported, match="quantize"):
        plan(model, 2)
