"""Losses and their gradients by logits equal those of the published code, on its own noised texts and logits.

The golden file fixes what is random: clean and noisy tokens, times, logits. The weights are ours.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unmask.base.batch import Batch
from unmask.base.vocab import Traits, Vocab
from unmask.noise import times
from unmask.noise.absorb import Levels, Units, levels
from unmask.noise.schedules import LogLinear
from unmask.noise.times import Times
from unmask.objectives.block import Block
from unmask.objectives.loss import Noised
from unmask.objectives.masked import Masked

GOLDEN = Path(__file__).parents[1] / "golden"
TENSORS = load_file(GOLDEN / "objectives.safetensors")
MASKS = {"mdlm": 97, "bd3lm": 97, "radd": 96, "llada": 126}
BLOCKS = {"bd3lm_nelbo_block": 4, "bd3lm_noadaln_nelbo_block": 6, "bd3lm_eps_above_half": 6}
TIMES = Times(stratified=False, counts=False)


class Told:
    """A network that says what the golden file says, whatever it reads; logits are its features."""

    traits = Traits()

    def __init__(self, logits: Tensor, mask: int | None) -> None:
        self.logits = logits.double().requires_grad_()
        self.vocab = Vocab(size=logits.shape[-1], mask=mask)

    def read(self, tokens, *, positions, attend, t=None):
        length = self.logits.shape[1]
        return torch.nn.functional.pad(self.logits, (0, 0, 0, tokens.shape[1] - length), value=float("nan"))

    def head(self, features):
        return features


class Case:
    """One case, and its noise levels as our own code has them."""

    def __init__(self, name: str, *, subs: bool = True) -> None:
        self.mask, self.block = MASKS[name.partition("_")[0]], BLOCKS.get(name)
        for key in ("x0", "xt", "t", "logits", "total", "grad_logits"):
            setattr(self, key, TENSORS[f"{name}.{key}"])
        self.extra = {k.partition(".")[2]: v for k, v in TENSORS.items() if k.startswith(f"{name}.")}
        place = torch.arange(self.x0.shape[1]).expand_as(self.x0)
        row = torch.zeros_like(place)
        self.batch = Batch(tokens=self.x0, documents=row, places=place, samples=place[:, 0])
        self.model = Told(self.logits, self.mask if subs else None)

    def units(self, counts: Tensor | None = None) -> Units:
        counts = torch.ones_like(self.x0, dtype=torch.bool) if counts is None else counts
        return Units.of(self.batch.documents, self.batch.places, counts, self.block)

    def noised(self, units: Units, level: Levels) -> Noised:
        hidden = self.xt == self.mask
        assert torch.equal(self.xt, self.x0.masked_fill(hidden, self.mask))
        weight = units.spread(level.weight).masked_fill(~hidden, 0)
        counts = units.index >= 0
        return Noised(batch=self.batch, noisy=self.xt, weight=weight, counts=counts, block=self.block)

    def same(self, total: Tensor, *, value: bool = True, rel: float = 1e-9) -> None:
        """The total and its gradient by the logits are those of the file."""
        (grad,) = torch.autograd.grad(total, self.model.logits)
        if value:
            assert total.item() == pytest.approx(self.total.item(), rel=rel)
        scale = float(self.grad_logits.abs().max())
        assert scale > 0
        assert float((grad - self.grad_logits).abs().max()) < rel * scale


def test_mdlm():
    """Its log-linear schedule keeps 1e-3 at t = 1, which cancels out of the weight."""
    case = Case("mdlm_nelbo")
    units = case.units()
    noised = case.noised(units, levels(units.size, TIMES, LogLinear(eps=1e-3), case.t.double()))
    loss = Masked()(case.model, noised, noised.tokens)
    case.same(loss.total)
    assert torch.allclose(loss.nats, case.extra["loss_per_token"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", BLOCKS)
def test_bd3(name):
    """Every block has a time of its own; clipped to times above a half, its code weighs all masks alike."""
    case = Case(name)
    units, t = case.units(), case.extra["t_block"].flatten().double()
    assert torch.equal(units.spread(t).float(), case.t)
    level = levels(units.size, TIMES, LogLinear(), t, "none" if name == "bd3lm_eps_above_half" else "elbo")
    noised = case.noised(units, level)
    loss = Block(block=case.block)(case.model, noised, noised.tokens)
    case.same(loss.total)
    assert torch.allclose(loss.nats, case.extra["loss_per_token"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["radd_t_DSE", "radd_t_DCE", "radd_lambda_DCE"])
def test_radd_in_time(name):
    """Three ways to write one integral. `t_DCE` keeps a term without parameters: only its gradient is the bound's."""
    case = Case(name)
    units = case.units()
    schedule = LogLinear() if name == "radd_lambda_DCE" else LogLinear(eps=1e-3)
    noised = case.noised(units, levels(units.size, TIMES, schedule, case.t.double()))
    loss = Masked()(case.model, noised, len(case.x0))  # its total is a mean over rows
    case.same(loss.total, value=name != "radd_t_DCE")
    if name == "radd_t_DCE":
        assert loss.total.item() != pytest.approx(float(case.total), rel=1e-3)
    else:
        assert torch.allclose(loss.nats.sum(1), case.extra["loss_per_sample"], rtol=1e-9, atol=0)


def test_radd_exact_counts():
    """Exactly k of L are masked and weigh L / k; its code rounds to float32."""
    case = Case("radd_k_DCE")
    units, k = case.units(), case.t
    assert torch.equal((case.xt == case.mask).sum(1), k)
    law = Times(stratified=False, counts=True)
    level = levels(units.size, law, LogLinear(), (k - 0.5) / case.x0.shape[1])
    assert torch.equal(level.count, k)
    case.same(Masked()(case.model, case.noised(units, level), len(case.x0)).total, rel=1e-6)


def llada_levels(case: Case, units: Units) -> Levels:
    """Its mask probabilities are our law "iid", up to their float32; for the weights we start from its own numbers."""
    told = case.extra["p_mask"][:, 0].double()
    drawn = levels(units.size, times.TABLE["iid"], LogLinear(), case.t.double())
    assert torch.allclose(drawn.probability, told, rtol=1e-6)
    return levels(units.size, TIMES, LogLinear(), told)


def test_llada_pretraining():
    """It leaves the mask in the vocabulary, so its loss is an upper bound."""
    case = Case("llada_pretrain", subs=False)
    units = case.units()
    level = llada_levels(case, units)
    loss = Masked()(case.model, case.noised(units, level), case.x0.numel())
    case.same(loss.total)
    strict = Case("llada_pretrain")
    assert Masked()(strict.model, strict.noised(units, level), strict.x0.numel()).total.item() < loss.total.item()


def test_llada_finetuning():
    """Prompts are not noised; every row is divided by the length of its answer, and rows are averaged."""
    case = Case("llada_sft", subs=False)
    prompts = case.extra["prompt_lengths"]
    answer = case.batch.places >= prompts[:, None]
    units = case.units(answer)
    level = llada_levels(case, units)
    noised = case.noised(units, level)
    rows = []
    for b, size in enumerate(answer.sum(1).tolist()):
        part, alone = noised.part(b, b + 1), Told(case.logits[b : b + 1], None)
        alone.logits = case.model.logits[b : b + 1]
        rows.append(Masked()(alone, part, size).total)
        assert part.tokens == size
    case.same(torch.stack(rows).mean())
