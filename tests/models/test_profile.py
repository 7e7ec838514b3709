"""What a user declares about a checkpoint whose files do not tell it."""

import pytest
import torch
from test_families import TINY, invent, write

from unmask.base.attend import Attend
from unmask.base.errors import BadCheckpoint
from unmask.base.vocab import Traits
from unmask.models.load import load, save

LLAMA = TINY["llama"] | {"eos_token_id": 2}
DIFFULLAMA = {"traits": {"sees": "all"}, "mask_token_id": 7, "decoder": {"decoder": "mdlm", "steps": 64}}


def declare(tmp_path, told):
    return write(tmp_path / "declared", LLAMA | {"unmask": told}, invent("llama", torch.float32))


@torch.no_grad()
def test_a_user_declares_what_no_file_tells(tmp_path):
    plain = load(write(tmp_path / "plain", LLAMA, invent("llama", torch.float32)), "cpu")
    model = load(declare(tmp_path, DIFFULLAMA), "cpu")
    assert model.traits == Traits(sees="all", speaks="next")
    assert (model.vocab.mask, model.defaults) == (7, {"decoder": "mdlm", "steps": 64})
    assert (plain.traits.sees, model.vocab.eos, plain.vocab.eos) == ("left", 2, 2)
    tokens = torch.arange(24).view(2, 12)
    assert torch.equal(model(tokens), plain(tokens, attend=Attend()))
    assert not torch.allclose(model(tokens), plain(tokens))
    save(model, tmp_path / "again")
    again = load(tmp_path / "again", "cpu")
    assert (again.traits, again.vocab, again.defaults) == (model.traits, model.vocab, model.defaults)
    part = load(declare(tmp_path, {"traits": {"sees": "blocks", "block": 4, "speaks": "here"}}), "cpu")
    assert (part.traits, part.vocab.mask) == (Traits(sees="blocks", block=4), None)
    assert part.defaults == {"decoder": "ar"}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"trait": {}}, "unmask has no trait; it has traits, mask_token_id, decoder"),
        ({"traits": {"hears": "all"}}, "traits has no hears"),
        ({"traits": {"sees": "every"}}, "sees must be 'left' or 'all' or 'blocks'"),
        ({"traits": {"sees": "blocks"}}, "sizes of at least 1"),
        ({"traits": [1]}, "traits must be an object"),
        ({"mask_token_id": 10**6}, "mask_token_id must be an id below"),
        ({"mask_token_id": "<mask>"}, "mask_token_id must be an id below"),
        ({"decoder": "sdar"}, "decoder must be an object"),
        ("sdar", "unmask must be an object"),
    ],
)
def test_bad_declarations(tmp_path, told, words):
    with pytest.raises(BadCheckpoint, match=words):
        load(declare(tmp_path, told), "cpu")
