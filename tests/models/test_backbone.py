"""One network, any rule of attention: packed, in blocks, in two streams."""

import math

import pytest
import torch

from unmask.base.attend import NOBODY, Attend
from unmask.base.errors import BadInput, TooLong, UnknownName, Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.models.backbone import Shape, Transformer
from unmask.nn.attention import Sight

SIZES = {"vocab_size": 29, "width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "hidden": 40, "max_length": 64}
VARIANTS = {
    "tied": {},
    "untied, biases": {
        "tied": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "head_bias": True,
        "norm": "layer",
        "mlp": "plain",
        "activation": "gelu_tanh",
    },
    "qk norm, wide heads": {"qk_norm": True, "head_dim": 16, "rope_theta": 1e6, "norm_eps": 1e-6},
    "partial rotary, scale": {"rotary_dim": 4, "embedding_scale": 3.0, "activation": "gelu", "kv_heads": 1},
}


def build(*, attention="sdpa", seed=1, traits=None, **switches):
    """A random network with beliefs that depend on everything, in float64."""
    shape = Shape(**{**SIZES, **switches})
    model = Transformer(shape, Vocab(size=29, mask=0), traits or Traits(), attention=attention, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw) * 0.2)
    return model.double().eval()


def ids(*shape, seed=0):
    return torch.randint(0, 29, shape, generator=torch.Generator().manual_seed(seed))


def close(a, b, atol=1e-6):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def pack(lengths, padding):
    """(1, L) documents and places of one row."""
    documents = [i for i, n in enumerate(lengths) for _ in range(n)] + [NOBODY] * padding
    places = [j for n in lengths for j in range(n)] + [0] * padding
    return torch.tensor([documents]), torch.tensor([places])


@pytest.mark.parametrize("kind", ["full", "causal", "blocks", "two_stream"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_packed_documents_are_separate_documents(kind, variant):
    model, lengths = build(**VARIANTS[variant]), (7, 1, 5)
    documents, places = pack(lengths, 3)
    row, noisy = ids(1, 16), ids(1, 16, seed=9)

    def rule(length, **packing):
        return Attend(kind=kind, block=3, length=length, **packing)

    def logits(clean, other, positions, attend):
        two = kind == "two_stream"
        tokens = torch.cat([other, clean], 1) if two else clean
        positions = torch.cat([positions, positions], 1) if two else positions
        return model.head(model.read(tokens, positions=positions, attend=attend)).unflatten(1, (2 if two else 1, -1))

    together = logits(row, noisy, places, rule(16, documents=documents, places=places))
    start = 0
    for n in lengths:
        piece = slice(start, start + n)
        alone = logits(row[:, piece], noisy[:, piece], torch.arange(n)[None], rule(n))
        close(together[:, :, piece], alone)
        start += n
    assert together.isfinite().all()


@torch.no_grad()
def test_blocks_of_one_are_causal_and_one_block_is_full():
    model, x = build(), ids(2, 13)
    close(model(x, attend=Attend(kind="blocks", block=1)), model(x, attend=Attend(kind="causal")))
    close(model(x, attend=Attend(kind="blocks", block=13)), model(x, attend=Attend()))
    mixed = model(x, attend=Attend(kind="blocks", block=torch.tensor([1, 13])))
    close(mixed, torch.cat([model(x[:1], attend=Attend(kind="causal")), model(x[1:], attend=Attend())]))


@torch.no_grad()
def test_two_streams_are_one_noisy_block_after_clean_ones():
    model, clean, noisy, size = build(), ids(2, 10), ids(2, 10, seed=5), 4
    attend = Attend(kind="two_stream", block=size, length=10)
    positions = torch.arange(10).repeat(2).expand(2, -1)
    out = model.head(model.read(torch.cat([noisy, clean], 1), positions=positions, attend=attend))
    blocks = Attend(kind="blocks", block=size)
    close(out[:, 10:], model(clean, attend=blocks))
    for start in range(0, 10, size):
        stop = min(start + size, 10)
        row = torch.cat([clean[:, :start], noisy[:, start:stop]], 1)
        close(out[:, start:stop], model(row, attend=blocks)[:, start:])


@pytest.mark.parametrize("kind", ["full", "causal"])
@torch.no_grad()
def test_fillers_are_seen_by_nobody(kind):
    model, x = build(), ids(2, 9)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, -1, -1, -1, -1]])
    out = model(x, positions=positions, attend=Attend(kind=kind))
    close(out[1, :5], model(x[1:, :5], attend=Attend(kind=kind))[0])
    close(out[0], model(x[:1], attend=Attend(kind=kind))[0])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("attention", ["plain", "flex"])
@torch.no_grad()
def test_backends_agree_through_the_network(attention):
    documents, places = pack((6, 5), 1)
    attend = Attend(kind="blocks", block=2, documents=documents, places=places)
    x = ids(1, 12)
    outs = [build(attention=name).float()(x, positions=places, attend=attend)[:, :11] for name in ("sdpa", attention)]
    close(*outs, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_and_reach_everything(variant):
    documents, places = pack((6, 5), 1)
    attend = Attend(kind="causal", documents=documents, places=places)
    grads = []
    for attention in ("plain", "sdpa"):
        model = build(attention=attention, **VARIANTS[variant])
        features = model.read(ids(1, 12), positions=places, attend=attend)
        model.head(features[documents != NOBODY]).logsumexp(-1).sum().backward()
        grads.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, grad in grads[0].items():
        close(grads[1][name], grad, atol=1e-8)
        k_bias = name.endswith("k_proj.bias")  # moves all scores of a query alike, up to the rotation
        assert grad.abs().max() > 0 or k_bias, name


def test_a_mask_is_made_once_a_forward(monkeypatch):
    made = []
    mask = Sight.mask
    monkeypatch.setattr(Sight, "mask", lambda self: made.append(1) or mask(self))
    build(depth=4)(ids(1, 8), attend=Attend(kind="blocks", block=4))
    assert made == [1]


@torch.no_grad()
def test_forward_is_head_of_read_under_the_native_rule():
    model, x = build(traits=Traits(sees="blocks", block=4)), ids(2, 8)
    positions = torch.arange(8).expand(2, -1)
    features = model.read(x, positions=positions, attend=Attend(kind="blocks", block=4))
    close(model(x), model.head(features), atol=0)
    close(model(x)[0, 3], model.head(features[0, 3:4])[0], atol=1e-12)


def test_fresh_weights_follow_the_seed_and_start_near_the_uniform_guess():
    shape = Shape(**{**SIZES, "width": 64, "depth": 6})
    one, same, other = (Transformer(shape, Vocab(size=29), Traits(), seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.embed_tokens.weight, other.embed_tokens.weight)
    assert not torch.equal(one.layers[0].mlp.up_proj.weight, one.layers[1].mlp.up_proj.weight)
    x = ids(4, 32)
    loss = torch.nn.functional.cross_entropy(one(x).flatten(0, 1), x.flatten())
    assert abs(loss.item() - math.log(29)) < 0.3


def test_fresh_weights_do_not_touch_the_shared_generator():
    state = torch.random.get_rng_state()
    Transformer(Shape(**SIZES), Vocab(size=29), Traits(), seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"depth": 0}, BadInput, "depth of at least 1"),
        ({"heads": 5}, BadInput, "must divide width"),
        ({"kv_heads": 3}, BadInput, "kv_heads must divide heads"),
        ({"kv_heads": -2}, BadInput, "kv_heads must divide heads"),
        ({"rotary_dim": 3}, BadInput, "rotary_dim must be even"),
        ({"rotary_dim": 10}, BadInput, "rotary_dim must be even"),
        ({"rope_theta": float("nan")}, BadInput, "rope_theta"),
        ({"norm": "rns"}, UnknownName, "did you mean 'rms'"),
        ({"mlp": "moe"}, UnknownName, "no mlp called"),
        ({"activation": "relu"}, UnknownName, "no activation called"),
    ],
)
def test_bad_shapes(wrong, error, words):
    with pytest.raises(error, match=f"(?i){words}"):
        Shape(**{**SIZES, **wrong})


def test_what_it_can_not_be():
    with pytest.raises(UnknownName, match="attention backend"):
        build(attention="flash")
    with pytest.raises(Unsupported, match="time"):
        build(traits=Traits(clock=True))
    with pytest.raises(BadInput, match="30 ids"):
        Transformer(Shape(**SIZES), Vocab(size=30), Traits())
    with pytest.raises(TooLong, match="at most 64 positions, got 65"):
        build()(ids(1, 65))
    with pytest.raises(TooLong, match="at most 64 positions, got 65"):
        build().cache(1, 65)
