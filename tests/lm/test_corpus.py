"""Schemas as people write them, by every kind of decoder: all that is written is valid."""

import json
from pathlib import Path

import jsonschema
import pytest
from test_constraints import DECODERS

import unmask
from unmask.constrain.spec import Constraint, Schema
from unmask.lm.model import LanguageModel
from unmask.models.backbone import Transformer

CORPUS = [
    json.loads(line)["schema"]
    for file in sorted((Path(__file__).parents[1] / "constrain/corpus").glob("*.jsonl"))
    for line in file.read_text().splitlines()[4::16]
]
MORE = 12
"""Tokens beyond the shortest text."""


@pytest.fixture(scope="module")
def models():
    tiny = unmask.load("tiny")
    network = Transformer(tiny.model.shape, tiny.model.vocab, tiny.model.traits, seed=2)
    untrained = LanguageModel(network, tiny.tokenizer, name="untrained")
    untrained.controls.automata = tiny.controls.automata
    return [tiny, untrained]


@pytest.mark.parametrize("name", DECODERS)
def test_every_text_is_valid(models, name):
    for i, schema in enumerate(CORPUS):
        lm = models[i % 2]
        asked = Constraint(body=Schema.of(schema, depth=1))
        length = lm.controls.automata.get(asked, lm.controls.vocabulary).shortest + MORE
        checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
        for out in lm.generate("As JSON: ", length=length, constraint=asked, n=2, seed=i, **DECODERS[name]):
            checker.validate(json.loads(out.completion))
