"""Every objective of the table trains through a whole run, and what it leaves can be loaded and asked."""

import io
import json

import pytest
from rich.console import Console

import unmask
from small_run import recipe
from unmask.base.vocab import Traits
from unmask.lm.model import LanguageModel
from unmask.objectives import TABLE
from unmask.train.run import TRAITS, train

OBJECTIVES = {
    "masked": ({}, Traits(sees="all")),
    "block": ({"block": 8}, Traits(sees="blocks", block=8)),
    "mixture": ({"blocks": [1, 4, None]}, Traits(sees="all", reads=(1, 4))),
    "ar": ({}, Traits(sees="left", speaks="next")),
}


def test_none_is_left_out():
    assert OBJECTIVES.keys() == TABLE.keys() == TRAITS.keys()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_from_recipe_to_text(tmp_path, name):
    options, traits = OBJECTIVES[name]
    asked = []

    def sample(model, tokenizer):
        asked.append(LanguageModel(model, tokenizer).generate("def ", length=4).text)
        return asked[-1]

    chosen = recipe(tmp_path, objective={"name": name, **options}, train__steps=12, train__sample_every=5)
    outcome = train(chosen, tmp_path / "run", sample=sample, console=Console(file=io.StringIO()))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert [(row["step"], row["sample"]) for row in rows if "sample" in row] == [(5, asked[0]), (10, asked[1])]
    assert 0 < outcome.bits_per_byte < 8
    lm = unmask.load(outcome.model, device="cpu")
    assert lm.model.traits == traits
    assert lm.model.max_length == 32
    out = lm.generate("def ", length=6)
    assert out.text.startswith("def ")
    assert out.text == "def " + out.completion
