"""The mixture of experts equals its formula, written out one position at a time."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from unmask.base.errors import BadInput
from unmask.nn.moe import Experts, MixtureMLP, Router

WIDTH = 5
PLAIN = Experts(num=8, chosen=3, hidden=4)
VARIANTS = {
    "softmax": PLAIN,
    "softmax, summing to 1": dataclasses.replace(PLAIN, normalise=True),
    "one expert": dataclasses.replace(PLAIN, num=1, chosen=1),
    "all experts": dataclasses.replace(PLAIN, chosen=8, score="sigmoid"),
    "shared": dataclasses.replace(PLAIN, shared=6, scale=2.5),
    "bias": dataclasses.replace(PLAIN, bias=True, score="sigmoid"),
    "groups": dataclasses.replace(PLAIN, groups=4, chosen_groups=2),
    "everything": Experts(
        num=12,
        chosen=4,
        hidden=4,
        shared=3,
        score="sigmoid",
        bias=True,
        normalise=True,
        scale=2.5,
        groups=3,
        chosen_groups=2,
    ),
}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(experts, activation="silu"):
    """A random mixture in float64, its bias strong enough to change what is chosen."""
    mixture = MixtureMLP(WIDTH, experts, activation).double()
    with torch.no_grad():
        for seed, weight in enumerate(mixture.parameters()):
            weight.copy_(draw(*weight.shape, seed=seed))
    return mixture


@torch.no_grad()
def choose(experts, router, x):
    """The weight of every chosen expert, for one position, by plain Python."""
    logits = router.weight @ x
    scores = logits.softmax(0) if experts.score == "softmax" else 1 / (1 + (-logits).exp())
    ranked = [float(s) for s in (scores + router.expert_bias if experts.bias else scores)]
    size = experts.num // experts.groups
    groups = [range(g * size, (g + 1) * size) for g in range(experts.groups)]
    best = sorted(groups, key=lambda group: sum(sorted(ranked[e] for e in group)[-2:]), reverse=True)
    open_ = [e for group in best[: experts.chosen_groups] for e in group]
    chosen = sorted(open_, key=lambda e: ranked[e], reverse=True)[: experts.chosen]
    total = sum(scores[e] for e in chosen) if experts.normalise else 1.0
    return {e: scores[e] / total * experts.scale for e in chosen}


@torch.no_grad()
def formula(experts, mixture, x):
    pool, out = mixture.experts, torch.zeros_like(x)
    for expert, weight in choose(experts, mixture.gate, x).items():
        inner = F.silu(pool.gate_proj[expert] @ x) * (pool.up_proj[expert] @ x)
        out = out + weight * (pool.down_proj[expert] @ inner)
    if experts.shared:
        shared = mixture.shared_experts
        out = out + shared.down_proj.weight @ (F.silu(shared.gate_proj.weight @ x) * (shared.up_proj.weight @ x))
    return out


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_its_formula(variant):
    experts = VARIANTS[variant]
    mixture, x = build(experts), draw(3, 7, WIDTH, seed=99)
    found = mixture(x).detach()
    assert found.shape == x.shape
    wanted = torch.stack([formula(experts, mixture, row) for row in x.flatten(0, 1)]).view_as(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_router_says_whom_it_chose(variant):
    experts, x = VARIANTS[variant], draw(20, WIDTH, seed=5)
    router = build(experts).gate
    chosen, weights = router(x)
    assert chosen.shape == weights.shape == (20, experts.chosen)
    for row, ids, values in zip(x, chosen.tolist(), weights.tolist(), strict=True):
        wanted = {e: float(w) for e, w in choose(experts, router, row).items()}
        assert dict(zip(ids, values, strict=True)) == pytest.approx(wanted)


def test_the_bias_chooses_and_does_not_weigh():
    experts = dataclasses.replace(PLAIN, bias=True)
    router, x = build(experts).gate.requires_grad_(False), draw(1, WIDTH)
    with torch.no_grad():
        router.expert_bias.zero_()
        worst = int(F.linear(x, router.weight).argmin())
        router.expert_bias[worst] = 100.0
    chosen, weights = router(x)
    assert int(chosen[0, 0]) == worst
    assert float(weights[0, 0]) == pytest.approx(float(F.linear(x, router.weight).softmax(-1)[0, worst]))
    assert not Router(WIDTH, experts).expert_bias.requires_grad


def test_gradients_reach_every_weight():
    experts = VARIANTS["everything"]
    mixture, x = build(experts), draw(4, WIDTH, seed=3).requires_grad_()
    names = [name for name, weight in mixture.named_parameters() if weight.requires_grad]

    def run(x, *weights):
        return torch.func.functional_call(mixture, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *(mixture.get_parameter(name) for name in names)))
    chosen = set(mixture.gate(x)[0].flatten().tolist())
    mixture(x).sum().backward()
    moved = mixture.experts.down_proj.grad.flatten(1).abs().sum(1) > 0
    assert {e for e in range(experts.num) if moved[e]} == chosen


def test_nobody_depends_on_the_others():
    mixture, x = build(VARIANTS["everything"]), draw(6, WIDTH, seed=8)
    alone = torch.cat([mixture(row[None]) for row in x])
    torch.testing.assert_close(mixture(x), alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(mixture(x.repeat(40, 1))[:6], alone, rtol=0, atol=1e-12)


def test_no_positions():
    assert build(VARIANTS["everything"])(torch.empty(0, WIDTH, dtype=torch.float64)).shape == (0, WIDTH)


def test_half_precision_chooses_as_float32_does():
    """Logits that bfloat16 can't tell apart are told apart, also where matrix products are bfloat16."""
    router = Router(2, dataclasses.replace(PLAIN, num=2, chosen=1))
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 2.0**-10]]))
    x = torch.tensor([[4.0, 1.0]])
    assert router(x)[0].tolist() == [[1]]
    assert router(x.bfloat16())[0].tolist() == [[1]]
    assert router.bfloat16()(x.bfloat16())[0].tolist() == [[1]]
    with torch.autocast("cpu", torch.bfloat16):
        assert router.float()(x)[0].tolist() == [[1]]


@torch.no_grad()
def test_half_precision_stays_near():
    mixture, x = build(VARIANTS["shared"]).float(), draw(16, WIDTH, seed=2).float()
    wanted = mixture(x)
    found = mixture.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chosen": 9}, "of 8 experts"),
        ({"chosen": 0}, "can't be chosen"),
        ({"hidden": 0}, "of width 0"),
        ({"shared": -1}, "width -1"),
        ({"score": "linear"}, "no score of experts called 'linear'"),
        ({"groups": 3}, "in 3 groups"),
        ({"groups": 4, "chosen_groups": 5}, "5 chosen"),
        ({"groups": 4, "chosen_groups": 1}, "fewer than the 3"),
        ({"groups": 8, "chosen_groups": 8}, "2 experts at least"),
    ],
)
def test_what_can_not_be(changes, words):
    with pytest.raises(BadInput, match=words):
        dataclasses.replace(PLAIN, **changes)
