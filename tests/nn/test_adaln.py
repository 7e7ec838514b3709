"""Adaptive layer norm is its formulas."""

import math

import torch

from unmask.nn.adaln import WAVES, Condition, Modulation, modulate


def silu(x):
    return x / (1 + (-x).exp())


def test_a_number_is_told_in_waves_cosines_first():
    condition = Condition(3)
    numbers = torch.tensor([0.0, 0.3, 17.5])
    frequencies = [10000 ** (-k / (WAVES // 2)) for k in range(WAVES // 2)]
    waves = torch.tensor([[f(n * w) for f in (math.cos, math.sin) for w in frequencies] for n in numbers.tolist()])
    with torch.no_grad():
        inner = silu(waves @ condition.inner.weight.T + condition.inner.bias)
        expected = silu(inner @ condition.outer.weight.T + condition.outer.bias)
        torch.testing.assert_close(condition(numbers), expected, rtol=0, atol=1e-5)


def test_numbers_may_be_of_another_precision_than_the_weights():
    condition = Condition(4).bfloat16()
    assert condition(torch.tensor([0.5, 2.0], dtype=torch.float64)).dtype == torch.bfloat16


def test_a_modulation_is_one_map_cut_into_vectors():
    modulation, condition = Modulation(3, 4, 2), torch.randn(5, 3)
    shift, scale = modulation(condition)
    assert shift.shape == scale.shape == (5, 4)
    whole = condition @ modulation.weight.T + modulation.bias
    torch.testing.assert_close(torch.cat([shift, scale], -1), whole)
    x = torch.randn(5, 7, 4)
    for row in range(5):
        torch.testing.assert_close(
            modulate(x, shift[:, None], scale[:, None])[row], x[row] * (1 + whole[row, 4:]) + whole[row, :4]
        )
