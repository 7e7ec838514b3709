"""A training run of a second: a corpus of small made-up programs, and a recipe with every knob turned down."""

import json
import random

from unmask.train.recipe import Recipe

WORDS = ["alpha", "beta", "gamma", "delta", "count", "total", "name", "value", "index", "naïve"]


def texts(count=120, seed=3):
    draw = random.Random(seed)
    made = []
    for number in range(count):
        lines = [f"def {draw.choice(WORDS)}_{number}({draw.choice(WORDS)}):"]
        for _ in range(draw.randint(1, 5)):
            a, b, c = draw.sample(WORDS, 3)
            lines.append(f"    {a} = {b} + {c} * {draw.randint(0, 9)}")
        made.append("\n".join([*lines, f"    return {a}"]) + "\n")
    return made


def write_corpus(folder, made=None):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in (made or texts())))
    return path


def raw_recipe(folder, **changes):
    """A recipe as YAML gives it; `changes` are whole sections or `section__key` values."""
    raw = {
        "model": {"width": 32, "depth": 1, "heads": 2, "hidden": 48},
        "tokenizer": {"size": 300},
        "data": {
            "sources": [{"kind": "jsonl", "path": str(write_corpus(folder))}],
            "length": 32,
            "held_out": 0.1,
        },
        "objective": {"name": "masked"},
        "optimizer": {"name": "muon", "lr": 0.01},
        "schedule": {"warmup": 5, "decay": 0.25},
        "train": {
            "steps": 24,
            "rows": 4,
            "save_every": 6,
            "evaluate_every": 12,
            "evaluate_rows": 8,
            "log_every": 1,
            "keep": 3,
            "threads": 1,
        },
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            raw[section][key] = value
        else:
            raw[section] = value
    return raw


def recipe(folder, **changes):
    return Recipe.of(raw_recipe(folder, **changes))
