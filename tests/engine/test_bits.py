"""The probe says yes where rows have the same bits in any company, and no where a kernel is not like that."""

import json

import pytest
import torch
import torch.nn.functional as F

from unmask.base.vocab import Traits, Vocab
from unmask.cli import bench, main
from unmask.engine import bits
from unmask.models.backbone import Shape, Transformer

STRICT = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="other libraries make no such promise")


def network(**traits):
    traits = {"sees": "all", "reads": (1, 4), **traits}
    shape = Shape(vocab_size=48, width=64, depth=1, heads=4, kv_heads=2, hidden=96, max_length=220, qk_norm=True)
    return Transformer(shape, Vocab(size=48, mask=0, eos=1), Traits(**traits), seed=5).eval()


class Split:
    """A network whose head adds up in two parts where it is asked about few rows, as fast libraries do."""

    def __init__(self, model, few):
        self.model, self.few = model, few

    def __getattr__(self, name):
        return getattr(self.model, name)

    def head(self, features):
        if len(features) >= self.few:
            return self.model.head(features)
        weight, half = self.model.embed_tokens.weight, features.shape[-1] // 2
        return F.linear(features[:, :half], weight[:, :half]) + F.linear(features[:, half:], weight[:, half:])


@STRICT
def test_all_ways_of_a_mixture_are_tried_and_are_the_same():
    model = network()
    found = bits.probe(model)
    assert found.unlike == []
    assert {way for way, _, _ in bits._requests(model)} == {way or "default" for way, _ in bits.WAYS}
    assert {before for _, before, _ in bits._requests(model)} == {3, 36, 180, 204}
    assert found.texts == 4 * 5 * 3
    assert found.tokens == found.texts * bits.LENGTH


@STRICT
@pytest.mark.parametrize("traits", [{"sees": "left", "speaks": "next", "reads": ()}, {"sees": "blocks", "block": 4}])
def test_others_are_tried_in_the_ways_that_they_have(traits):
    found = bits.probe(network(**traits))
    assert found.unlike == []
    assert found.tokens > 0


def test_a_kernel_that_depends_on_the_number_of_rows_is_found():
    found = bits.probe(Split(network(), few=4))
    assert {one.way for one in found.unlike} >= {"ar"}  # one row of the head alone, several in company
    assert {one.company for one in found.unlike} >= {"all at once"}
    assert all(0 < one.apart < 1e-5 for one in found.unlike)


def test_the_command_says_yes_or_no(monkeypatch, capsys):
    said = [bits.Bits(6, 90, []), bits.Bits(6, 90, [bits.Unlike("ar", 36, "all at once", 2e-7, True)])]
    monkeypatch.setattr(bench.company, "probe", lambda model: said[0])
    for found, code, words in zip(
        said[:], (0, 1), ("torch: yes, 90 tokens", "torch: no, company changes"), strict=True
    ):
        said[0] = found
        with pytest.raises(SystemExit) as ended:
            main(["bench", "bits"])
        assert ended.value.code == code
        assert words in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["bench", "bits", "--json"])
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["same"], told["backend"], told["unlike"][0]["way"]) == (False, "torch", "ar")
