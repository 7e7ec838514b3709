import pytest
import torch
import torch.nn.functional as F

from unmask.nn.mlp import ACTIVATIONS, MLPS
from unmask.nn.norm import NORMS
from unmask.nn.rotary import rotate, turns


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=dtype)


def test_rms_norm_is_its_formula():
    norm = NORMS["rms"](6, 1e-3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(6.0))
    x = draw(2, 3, 6)
    torch.testing.assert_close(norm(x), x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * torch.arange(6.0))


@pytest.mark.parametrize("name", sorted(NORMS))
def test_norms_do_not_lose_half_precision_numbers(name):
    """Squares of large bfloat16 or float16 numbers are summed in float32."""
    norm, x = NORMS[name](64, 1e-5), draw(4, 64, dtype=torch.float32)
    torch.testing.assert_close(norm.half()((x * 3000).half()).float(), norm.float()(x), rtol=0, atol=5e-3)


def test_rotation_is_that_of_complex_numbers():
    x, positions = draw(2, 5, 3, 8, dtype=torch.float32), torch.tensor([[0, 1, 2, 3, 4], [7, 5, 0, 300, 1]])
    turned = rotate(x, *turns(positions, 8, 100.0))
    angle = positions[..., None, None] * 100.0 ** (-torch.arange(4) / 4)
    expected = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * angle)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], -1), rtol=0, atol=1e-4)


def test_only_distance_matters():
    q, k = draw(1, 1, 1, 16), draw(1, 2, 1, 16)[:, 1:]

    def product(i, j):
        at = [turns(torch.tensor([[p]]), 16, 1e4) for p in (i, j)]
        return (rotate(q, *at[0]) * rotate(k, *at[1])).sum()

    torch.testing.assert_close(product(3, 10), product(43, 50), rtol=0, atol=1e-5)
    assert abs(product(3, 10) - product(3, 11)) > 1e-3


def test_partial_rotation_leaves_the_rest_alone():
    x = draw(1, 3, 2, 8, dtype=torch.float32)
    turned = rotate(x, *turns(torch.tensor([[1, 2, 3]]), 4, 1e4), whole=False)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    whole = rotate(x[..., :4].contiguous(), *turns(torch.tensor([[1, 2, 3]]), 4, 1e4))
    assert torch.equal(turned[..., :4], whole)


def test_fillers_turn_like_position_zero():
    cos, sin = turns(torch.tensor([[-1, 0]]), 4, 1e4)
    assert torch.equal(cos[:, 0], cos[:, 1])
    assert torch.equal(sin, torch.zeros_like(sin))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("bias", [True, False])
def test_mlps_are_their_formulas(activation, bias):
    act = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}[activation]
    x = draw(3, 4)
    for name, mlp in ((name, kind(4, 6, activation, bias=bias).double()) for name, kind in MLPS.items()):
        inner = mlp.up_proj(x) * act(mlp.gate_proj(x)) if name == "gated" else act(mlp.up_proj(x))
        torch.testing.assert_close(mlp(x), mlp.down_proj(inner))
        assert any(key.endswith("bias") for key in mlp.state_dict()) == bias
