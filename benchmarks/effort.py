r"""The quality dial: what each effort takes and what it gives, for every kind of decoder.

Lines of held-out code are written anew between both contexts, at their true length and at temperature 0 (exact match
and edit similarity, as in infill_lines.py), by decoders that see both sides; and held-out documents are continued by a
fixed number of tokens, as the decoder draws. How likely the autoregressive twin holds a continuation is told in nats a
token, and beside it the entropy of its tokens, as dull repetitions are always likely. Differences are paired with
"medium", which is the decoder as it is.

    python benchmarks/effort.py --data data/tiny/code.jsonl --out benchmarks/results/effort
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from infill_lines import close, lines
from report import described, documents, parser, report

from unmask.decode.decoder import build
from unmask.decode.effort import EFFORTS
from unmask.decode.reading import Filled
from unmask.decode.session import Session
from unmask.lm.load import load
from unmask.lm.model import LanguageModel
from unmask.objectives.likelihood import likelihood
from unmask.text.layout import Fixed, Gap, Layout, lay

DECODERS: dict[str, dict[str, Any]] = {
    "the model's own": {},
    "llada": {"name": "llada"},
    "whole x factor": {"name": "whole x factor"},
    "whole x entropy_bound": {"name": "whole x entropy_bound"},
    "mdlm": {"name": "mdlm", "temperature": 0.5},
    "sdar, block=16": {"name": "sdar", "block": 16},
}
BATCH, PROMPT = 16, 32
"""Rows written together, and tokens of a document that are given."""


def write(lm: LanguageModel, layouts: Sequence[Layout], options: dict[str, Any]) -> list[Filled]:
    """What becomes of each row."""
    vocab = lm.model.vocab
    forbidden = tuple(i for i in (vocab.bos, vocab.pad) if i is not None)
    decoder = build(
        options.get("name"),
        traits=lm.model.traits,
        vocab=vocab,
        defaults=lm.model.defaults,
        internal={"forbidden": forbidden, "no_end_before": math.inf},
        **{k: v for k, v in options.items() if k != "name"},
    )
    found: list[Filled] = []
    for at in range(0, len(layouts), BATCH):
        rows = layouts[at : at + BATCH]
        session = Session(lm.model, rows, decoder, range(at, at + len(rows)))
        for _ in session.run():
            pass
        found += session.results()
    return found


def nats(twin: LanguageModel, prompt: Sequence[int], text: Sequence[int]) -> float:
    """Of a token of the text, read left to right."""
    tokens = torch.tensor([*prompt, *text])
    return likelihood(twin.model, tokens, torch.arange(len(tokens)) >= len(prompt), "ar").nats / len(text)


def entropy(text: Sequence[int]) -> float:
    """Nats, of how often each token stands in the text."""
    return -sum(n / len(text) * math.log(n / len(text)) for n in Counter(text).values())


def mean(values: Sequence[float]) -> tuple[float, float]:
    """And its standard error."""
    found = torch.tensor(values, dtype=torch.float64)
    return round(float(found.mean()), 3), round(float(found.std()) / len(found) ** 0.5, 3)


def rows_of(
    name: str,
    forwards: dict[str, list[int]],
    sizes: Sequence[int],
    worth: dict[str, list[float]],
    what: str,
    **more: Any,
) -> list[dict[str, Any]]:
    """A row of the table for each effort."""
    found = []
    for effort in EFFORTS:
        gain = [a - b for a, b in zip(worth[effort], worth["medium"], strict=True)]
        found.append(
            {
                "decoder": name,
                "effort": effort,
                "forwards": mean(forwards[effort])[0],
                "tokens/forward": round(sum(sizes) / sum(forwards[effort]), 2),
                what: mean(worth[effort])[0],
                "to medium": mean(gain)[0],
                "±": mean(gain)[1],
                **{key: mean(values[effort])[0] for key, values in more.items()},
            }
        )
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="tiny", help="a masked model")
    options.add_argument("--twin", default="tiny-ar", help="the autoregressive model that judges")
    options.add_argument("--data", nargs="+", required=True, help="JSONL files of code; their held-out documents count")
    options.add_argument("--decoders", nargs="*", default=list(DECODERS), help="some of them (all)")
    options.add_argument("--n", type=int, default=96, help="lines, and documents (96)")
    options.add_argument("--length", type=int, default=64, help="tokens of a continuation (64)")
    options.add_argument("--positions", type=int, default=128, help="positions of a canvas with a line (128)")
    options.add_argument("--range", type=int, nargs=2, default=[1, 24], help="tokens of a line (1 24)")
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    lm, twin = (load(name, device="cpu", dtype="float32") for name in (args.model, args.twin))
    facts = described(args.model, lm), described(args.twin, twin)
    tokenizer, texts = lm.tokenizer, documents(args.data)
    assert tokenizer is not None
    cases = lines(texts, tokenizer, args, args.positions)
    holes = [lay([_given(c.before), Gap(length=len(c.line)), _given(c.behind)]) for c in cases]
    ids = [[*tokenizer.start, *some][:PROMPT] for some in tokenizer.encode_many(texts[: args.n])]
    tails = [lay([_given(some), Gap(length=args.length)]) for some in ids]
    infilled, continued = [], []
    for name in args.decoders:
        how = DECODERS[name]
        spent: dict[str, list[int]] = {}
        worth: dict[str, list[float]] = {}
        exact: dict[str, list[float]] = {}
        spread: dict[str, list[float]] = {}
        for effort in EFFORTS if "block" not in how else ():
            found = write(lm, holes, {**how, "temperature": 0.0, "effort": effort})
            near = [close(tokenizer.decode(f.gaps[0]), c.text) for f, c in zip(found, cases, strict=True)]
            spent[effort], worth[effort] = [f.forwards for f in found], [similar for _, similar in near]
            exact[effort] = [same for same, _ in near]
        if spent:
            sizes = [len(c.line) for c in cases]
            infilled += rows_of(name, spent, sizes, worth, "edit similarity", **{"exact match": exact})
        for effort in EFFORTS:
            found = write(lm, tails, {**how, "effort": effort})
            spent[effort] = [f.forwards for f in found]
            worth[effort] = [nats(twin, some, f.gaps[0]) for some, f in zip(ids, found, strict=True)]
            spread[effort] = [entropy(f.gaps[0]) for f in found]
        sizes = [args.length] * len(tails)
        continued += rows_of(name, spent, sizes, worth, "nats a token", **{"entropy of tokens": spread})
        print(f"{name} is done", flush=True)
    report(
        args.out,
        "Effort",
        {
            f"{len(cases)} held-out lines of code between both contexts, temperature 0:": infilled,
            f"{len(tails)} held-out documents continued by {args.length} tokens, judged by the twin:": continued,
        },
        model=facts[0],
        twin=facts[1],
    )


def _given(ids: Sequence[int]) -> Fixed:
    return Fixed(ids=tuple(ids), text=None)


if __name__ == "__main__":
    main()
