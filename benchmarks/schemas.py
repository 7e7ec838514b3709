"""Which JSON schemas are accepted, and whether all that is written under them is valid.

Two collections: the JSON-Schema-Test-Suite (the Debian package json-schema-test-suite, whose latest is draft 7) and
`tests/constrain/corpus`, two hundred schemas as people write them. For each one that is accepted, `tiny` and a network
of one layer that has learnt nothing write texts with six decoders, more are drawn from all that fit without a network,
and `jsonschema` judges them: as draft 2020-12 with
formats, and as the draft that the schema names (the suite: draft 7), if that is another. What is refused is counted by
the keyword that is named.

    python benchmarks/schemas.py --suite /usr/share/json-schema-test-suite/tests/draft7 --out benchmarks/results/schemas

With `--progress FILE` a schema that is done is not done again; `--minutes` ends a run early, `--every N` takes each
N-th schema, `--samples 0` leaves the decoders out. The tables say how many texts were really written.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import torch
from report import parser, report

from unmask.base.errors import OverBudget, UnknownName, UnmaskError
from unmask.constrain.automata.automaton import Automaton
from unmask.constrain.automata.vocabulary import Vocabulary
from unmask.constrain.holes import Holes, Span
from unmask.constrain.spec import Constraint, Schema
from unmask.lm.load import load
from unmask.lm.model import LanguageModel
from unmask.models.backbone import Transformer

CORPUS = Path(__file__).parents[1] / "tests/constrain/corpus"
DECODERS: dict[str, dict[str, Any]] = {
    "block threshold": {"decoder": "fast-dllm", "block": 16, "threshold": 0.8, "temperature": 1.0},
    "whole ancestral": {"decoder": "mdlm", "steps": 12},
    "random order": {"decoder": "whole x quota", "rank": "random", "temperature": 1.0, "steps": 20},
    "remask": {"decoder": "remdm", "steps": 12},
    "edit": {
        "decoder": "block x threshold + edit",
        "block": 16,
        "threshold": 0.5,
        "edit_threshold": 0.3,
        "temperature": 1.0,
    },
    "left to right": {"decoder": "ar", "temperature": 1.0},
}
MORE = 24
"""Tokens beyond the shortest text."""
LONGEST = 480
"""Tokens of a text; `tiny` holds 512."""


def schemas(suite: Path | None) -> Iterator[tuple[str, str, Any]]:
    """Collection, name and schema of each."""
    for file in sorted(suite.glob("*.json")) if suite else ():
        for case in json.loads(file.read_text()):
            yield "suite", f"{file.stem}: {case['description']}", case["schema"]
    for file in sorted(CORPUS.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            case = json.loads(line)
            yield "corpus", f"{file.stem}: {case['name']}", case["schema"]


def judges(collection: str, schema: Any) -> list[Any]:
    """Validators by every draft that a schema may be read by."""
    older = collection == "suite" or "draft-07" in json.dumps(schema)
    kinds = [jsonschema.Draft7Validator] if older else []
    if '"items": [' not in json.dumps(schema):  # no word of draft 2020-12
        kinds.append(jsonschema.Draft202012Validator)
    return [kind(schema, format_checker=kind.FORMAT_CHECKER) for kind in kinds]


def reason(error: UnmaskError) -> str:
    """What a schema was refused for, in a few words."""
    said = str(error)
    if isinstance(error, OverBudget):
        return "takes more than the budget"
    if isinstance(error, UnknownName):
        return " ".join(said.split("; known")[0].split()[1:])
    for pattern in (r"no JSON text is valid", r"keyword '[^']+'", r"reference", r"regex", r"multipleOf", r"opposite"):
        if found := re.search(pattern, said):
            return {"reference": "reference out of the document", "regex": "pattern: " + said.split("' ")[-1]}.get(
                found[0], found[0]
            )
    return said[:60]


def drawn(automaton: Automaton, words: Vocabulary, length: int, count: int) -> list[str]:
    """Texts of all that fit, each token as likely as the next: what is rare in a model's texts is not rare here."""
    holes, at = Holes(words.tokens), torch.arange(length)
    holes.enter(0, [Span(automaton=automaton, start=0, stop=length, ends=True)])
    flat, zero = torch.zeros(length, len(words), dtype=torch.float64), torch.zeros_like(at)
    found = []
    for seed in range(count):
        ids = holes.sample(zero, at, flat, torch.full_like(at, seed), zero)
        found.append(b"".join(words.tokens[i] for i in ids.tolist()).decode())
    return found


def written(case: tuple[str, str, Any], models: dict[str, LanguageModel], samples: int, draws: int) -> dict[str, Any]:
    """What became of one schema."""
    collection, name, schema = case
    row: dict[str, Any] = {"collection": collection, "name": name, "refused": None, "texts": {}, "invalid": []}
    asked = Constraint(body=Schema.of(schema, depth=2))
    lm = next(iter(models.values()))
    began = time.process_time()
    try:
        automaton = lm.controls.automata.get(asked, lm.controls.vocabulary)
    except UnmaskError as error:
        return row | {"refused": reason(error), "kind": type(error).__name__, "said": str(error)}
    row |= {"compile_s": time.process_time() - began, "states": automaton.size, "shortest": automaton.shortest}
    length = min(automaton.shortest + MORE, LONGEST)
    checkers = judges(collection, schema)
    texts = drawn(automaton, lm.controls.vocabulary, length, draws)
    row["texts"]["no network, any token as likely"] = len(texts)
    row["invalid"] += [text for text in texts if not _valid(text, checkers)]
    for who, model in models.items():
        for decoder, settings in DECODERS.items():
            if not samples or automaton.shortest > LONGEST:
                continue
            outs = model.generate(
                "As JSON: ", length=length, constraint=asked, n=max(samples, 2), seed=len(name), **settings
            )
            texts = [out.completion for out in outs[:samples]]
            row["texts"][f"{who}, {decoder}"] = len(texts)
            row["invalid"] += [text for text in texts if not _valid(text, checkers)]
    return row | {"seconds": time.process_time() - began}


def _valid(text: str, checkers: list[Any]) -> bool:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return False
    return all(checker.is_valid(value) for checker in checkers)


def tables(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Shares, and what is refused by what it is refused for."""
    shares, refused = [], []
    for collection in dict.fromkeys(row["collection"] for row in rows):
        mine = [row for row in rows if row["collection"] == collection]
        impossible = [row for row in mine if row["refused"] == "no JSON text is valid"]
        taken = [row for row in mine if row["refused"] is None]
        times = sorted(row["compile_s"] for row in taken)
        shares.append(
            {
                "collection": collection,
                "schemas": len(mine),
                "accepted": len(taken),
                "nothing is valid under": len(impossible),
                "refused": len(mine) - len(taken) - len(impossible),
                "written under by decoders": sum(len(row["texts"]) > 1 for row in taken),
                "texts": sum(sum(row["texts"].values()) for row in taken),
                "invalid": sum(len(row["invalid"]) for row in taken),
                "compile, median (s)": times[len(times) // 2] if times else 0.0,
                "compile, longest (s)": times[-1] if times else 0.0,
            }
        )
        reasons = Counter(row["refused"] for row in mine if row["refused"] and row not in impossible)
        refused += [{"collection": collection, "for": why, "schemas": count} for why, count in reasons.most_common()]
    texts: Counter[str] = Counter()
    for row in rows:
        texts.update(row["texts"])
    found = {"Share": shares}
    if refused:
        found["Refused"] = refused
    if texts:
        found["Texts"] = [{"who, decoder": name, "texts": count} for name, count in texts.items()]
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--suite", type=Path, help="a folder of the JSON-Schema-Test-Suite")
    options.add_argument("--samples", type=int, default=20, help="texts by each model and decoder (20)")
    options.add_argument("--draws", type=int, default=20, help="texts drawn without a network (20)")
    options.add_argument("--every", type=int, default=1, help="take each N-th schema (1)")
    options.add_argument("--minutes", type=float, default=float("inf"), help="begin no schema after that")
    options.add_argument("--progress", type=Path, help="keep what is done in this file, and go on from it")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    tiny = load("tiny", device="cpu")
    network = Transformer(replace(tiny.model.shape, depth=1), tiny.model.vocab, tiny.model.traits, seed=1)
    models = {"untrained": LanguageModel(network, tiny.tokenizer, name="untrained"), "tiny": tiny}
    tiny.controls.automata = models["untrained"].controls.automata
    done = {}
    if args.progress and args.progress.exists():
        lines = args.progress.read_text().splitlines()
        done = {(row["collection"], row["name"]): row for row in map(json.loads, lines)}
    until = time.monotonic() + 60 * args.minutes
    for case in list(schemas(args.suite))[:: args.every]:
        if case[:2] in done or time.monotonic() > until:
            continue
        row = done[case[:2]] = written(case, models, args.samples, args.draws)
        if row["invalid"]:
            print("INVALID", row["name"], row["invalid"][:3], flush=True)
        if args.progress:
            with args.progress.open("a") as file:
                file.write(json.dumps(row) + "\n")
    rows = list(done.values())
    about = {"longest text": f"{MORE} tokens beyond the shortest"}
    if args.progress:
        about["counts"] = "of all runs that kept their progress in the same file, with whatever samples they asked for"
    report(args.out, "JSON schemas: coverage and proof", tables(rows), **about)


if __name__ == "__main__":
    main()
