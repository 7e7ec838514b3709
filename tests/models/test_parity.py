"""The backbone computes what published code computes: same weights, same tokens, same logits, under every backend."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unmask.base.attend import Attend
from unmask.models.load import load

SDAR = Path(__file__).parents[1] / "golden" / "sdar"
RULES = {"block_causal": None, "block_causal_2x": Attend(kind="blocks", block=8), "full": Attend()}


@pytest.fixture(scope="module", params=["plain", "sdpa"])
def model(request):
    found = load(SDAR, device="cpu")
    found.attention = request.param
    return found


@pytest.fixture(scope="module")
def golden():
    return load_file(SDAR / "golden.safetensors")


def same(found, wanted):
    """Up to the float32 of the file itself."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", RULES)
@torch.no_grad()
def test_whole_rows(model, golden, case):
    tokens, given = golden[f"{case}.input_ids"], golden[f"{case}.attention_mask"].bool()
    same(model(tokens, attend=RULES[case]), golden[f"{case}.logits"])
    same(model(tokens, attend=Attend(kind="given", given=given)), golden[f"{case}.logits"])


@torch.no_grad()
def test_over_a_cache(model, golden):
    tokens, prefix = golden["cached.input_ids"], golden["cached.prefix_logits"].shape[1]
    attend, cache, found = Attend.native(model.traits), model.cache(1, tokens.shape[1]), []
    for piece in (slice(0, prefix), slice(prefix, None)):
        positions = torch.arange(tokens.shape[1])[None, piece]
        keep = torch.full_like(positions, piece.start == 0).bool()
        features = model.read(tokens[:, piece], positions=positions, attend=attend, cache=cache, keep=keep)
        found.append(model.head(features))
    same(found[0], golden["cached.prefix_logits"])
    same(found[1], golden["cached.block_logits"])
    assert cache.held.tolist() == [prefix]
