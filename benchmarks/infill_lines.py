r"""Infilling a held-out line of code: does the right context help, does trying lengths, and how to pick among them.

Lines of held-out documents are cut out, indentation and all, and written anew, greedily: by a masked model with both
contexts, at the true number of tokens and at unknown length; by the same model from the left context alone; and by its
autoregressive twin, until the end of the line. Exact match and edit similarity (difflib ratio) compare the stripped
line. The left context is the same for all. Lines have 8 to 60 characters, stripped, at most as many tokens as the range
allows, and six lines of context or more on both sides.

    python benchmarks/infill_lines.py --model tiny --twin tiny-ar --data data/tiny/code.jsonl \
        --out benchmarks/results/infill_lines

The second table compares ways to pick among candidate lengths, on the same candidates: all of them are filled, and
each way picks one. "any (mean)" is a pick at random, "best possible" one that knows the answer.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from report import described, documents, parser, report

from unmask.base import seeds
from unmask.base.attend import Attend
from unmask.base.canvas import Canvas
from unmask.base.step import State
from unmask.decode.decoder import build
from unmask.decode.lengths import candidates
from unmask.decode.loop import denoise
from unmask.evals.infill import around, similarity
from unmask.lm.load import load
from unmask.lm.model import LanguageModel
from unmask.objectives.likelihood import likelihood
from unmask.objectives.loss import nll
from unmask.text.tokenizer import Tokenizer

AROUND = 6
"""Lines of context on both sides, at least."""
SHORTEST, LONGEST = 8, 60  # characters of a line, stripped


@dataclass(frozen=True, slots=True)
class Case:
    """Ids of the context on both sides and of the line between."""

    before: list[int]
    line: list[int]
    behind: list[int]
    text: str


@dataclass(slots=True)
class Candidate:
    """One filled gap, and what is known of it without knowing the answer.

    Args:
        ids: what was written.
        total: nats of its tokens at the steps that wrote them.
        first: mean nats of the best tokens in the first forward, all of them masked.
        behind: mean nats of the first tokens behind the gap, each masked alone, given the filled gap.
        bound: the masked bound on what is written and the tokens behind it, together.
        chain: the exact log-likelihood of the same, token by token; None where the model does not read like that.
        after: of the tokens behind it alone, given what is written, token by token.
    """

    ids: list[int]
    total: float = 0.0
    first: float = 0.0
    behind: float = 0.0
    bound: float = 0.0
    chain: float | None = None
    after: float = 0.0


SUFFIX, JOINT = 4, 32
"""Tokens behind the gap that are asked about: one by one, and together with the gap."""
OURS = "suffix given the hole (the library's)"
PICKS: dict[str, Callable[[Candidate], float]] = {
    OURS: lambda c: c.behind,
    "mean log-probability": lambda c: c.total / len(c.ids),
    "total log-probability": lambda c: c.total,
    "first-step confidence": lambda c: c.first,
    "mean log-probability + suffix": lambda c: c.total / len(c.ids) + c.behind,
    "total log-probability + suffix": lambda c: c.total + SUFFIX * c.behind,
    "bound on hole and suffix": lambda c: c.bound,
    "likelihood of hole and suffix, token by token": lambda c: c.chain if c.chain is not None else 0.0,
    "likelihood of suffix given hole, token by token": lambda c: c.after,
}


def lines(texts: Sequence[str], tokenizer: Tokenizer, args: argparse.Namespace, positions: int) -> list[Case]:
    """Seeded lines; every document gives one before any gives two."""
    found = []
    for number, text in enumerate(texts):
        parts = text.splitlines(keepends=True)
        for at in range(AROUND, len(parts) - AROUND):
            if SHORTEST <= len(parts[at].strip()) <= LONGEST and parts[at].endswith("\n"):
                found.append((number, at))
    coins = seeds.uniform(seeds.key(args.seed, "lines", *torch.tensor(found).T))
    given: dict[int, int] = {}
    order: list[tuple[int, int, tuple[int, int]]] = []
    for i in coins.argsort().tolist():
        number = found[i][0]
        order.append((given.get(number, 0), len(order), found[i]))
        given[number] = given.get(number, 0) + 1
    cases: list[Case] = []
    for _, _, (number, at) in sorted(order):
        parts = texts[number].splitlines(keepends=True)
        line = parts[at].rstrip("\r\n")
        pieces = ["".join(parts[:at]), line, parts[at][len(line) :] + "".join(parts[at + 1 :])]
        before, inside, behind = tokenizer.encode_many(pieces)
        if len(inside) > args.range[1]:
            continue
        start = [] if tokenizer.vocab.bos is None else [tokenizer.vocab.bos]
        left, right = around([*start, *before], behind, positions - len(inside))
        cases.append(Case(left, inside, right, line.strip()))
        if len(cases) == args.n:
            break
    return cases


def fill(lm: LanguageModel, case: Case, lengths: Sequence[int], *, right: bool, decoder: dict[str, Any]) -> tuple:
    """Candidates, one a length, and forwards."""
    behind = case.behind if right else []
    vocab = lm.model.vocab
    rows = [
        (case.before + [0] * n + behind, [False] * len(case.before) + [True] * n + [False] * len(behind))
        for n in lengths
    ]
    assert vocab.mask is not None
    canvas = Canvas.of(rows, mask=vocab.mask)
    forbidden = tuple(i for i in (vocab.bos, vocab.pad, vocab.eos) if i is not None)
    made = build(**decoder, traits=lm.model.traits, vocab=vocab, internal={"forbidden": forbidden})
    found = [Candidate([]) for _ in lengths]
    for number, turn in enumerate(denoise(lm.model, canvas, made)):
        written = turn.offer.is_open & (turn.edit.state == State.DONE)
        sums = turn.offer.log_prob.where(written, 0).sum(1).tolist()
        for row, nats in zip(turn.plan.rows.tolist(), sums, strict=True):
            found[row].total += nats
        if number == 0:  # every row takes part, and all of its gap is open
            for row, nats in enumerate(turn.offer.log_prob.where(turn.offer.is_open, 0).sum(1).tolist()):
                found[row].first = nats / lengths[row]
    at = len(case.before)
    for row, n in enumerate(lengths):
        found[row].ids = canvas.tokens[row, at : at + n].tolist()
    return found, int(canvas.forwards.max())


@torch.inference_mode()
def suffix(lm: LanguageModel, case: Case, candidate: Candidate) -> float:
    """Mean nats of the first tokens behind the gap, each masked alone."""
    count, at = min(SUFFIX, len(case.behind)), len(case.before) + len(candidate.ids)
    tokens = torch.tensor(case.before + candidate.ids + case.behind).repeat(count, 1)
    each = torch.arange(count)
    targets = tokens[each, at + each]
    assert lm.model.vocab.mask is not None
    tokens[each, at + each] = lm.model.vocab.mask
    place = torch.arange(tokens.shape[1]).expand_as(tokens)
    features = lm.model.read(tokens, positions=place, attend=Attend(kind="full"))
    return -float(nll(lm.model.head(features[each, at + each]), targets, lm.model.vocab.mask).mean())


def joint(lm: LanguageModel, case: Case, candidate: Candidate, estimator: str, *, hole: bool = True) -> float:
    """Log-likelihood, in nats, of the tokens behind the hole, and with `hole` of those in it; all under equal draws."""
    at, n = len(case.before), len(candidate.ids) + min(JOINT, len(case.behind))
    first = at if hole else at + len(candidate.ids)
    tokens = torch.tensor(case.before + candidate.ids + case.behind)
    place = torch.arange(len(tokens))
    asked = (place >= first) & (place < at + n)
    return -likelihood(lm.model, tokens, asked, estimator, samples=16).nats


def left_to_right(lm: LanguageModel, case: Case, most: int, **settings: Any) -> tuple[list[int], int, str]:
    """A line from its left context alone, until its end: tokens, forwards, text."""
    out = lm.generate([case.before], length=most, stop="\n", temperature=0.0, **settings)[0]
    return out.tokens, out.stats.forwards, out.completion


def close(text: str, truth: str) -> tuple[float, float]:
    """Exact match and edit similarity, both stripped."""
    text = text.strip()
    return float(text == truth), similarity(text, truth)


def summary(name: str, scores: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """A row: means and their standard errors."""
    both = torch.tensor(scores, dtype=torch.float64)
    mean, error = both.mean(0).tolist(), (both.std(0) / len(both) ** 0.5).tolist()
    found = {"": name, "exact match": mean[0], "±": error[0], "edit similarity": mean[1], "± ": error[1]}
    return {k: v if isinstance(v, str) else round(v, 4) for k, v in found.items()}


def better(scores: Sequence[tuple[float, float]], base: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Edit similarity against another way on the same lines."""
    gain = torch.tensor(scores, dtype=torch.float64)[:, 1] - torch.tensor(base, dtype=torch.float64)[:, 1]
    return {
        "similarity to the library's": round(float(gain.mean()), 4),
        "±  ": round(float(gain.std()) / len(gain) ** 0.5, 4),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="tiny", help="a model that sees both sides")
    options.add_argument("--twin", default="tiny-ar", help="its autoregressive twin")
    options.add_argument("--data", nargs="+", required=True, help="JSONL files of code; their held-out documents count")
    options.add_argument("--n", type=int, default=200, help="lines (200)")
    options.add_argument("--positions", type=int, default=0, help="positions of a canvas; those of the model if 0")
    options.add_argument("--range", type=int, nargs=2, default=[1, 24], help="lengths where it is unknown (1 24)")
    options.add_argument("--tries", type=int, default=8, help="candidate lengths at most (8)")
    options.add_argument("--decoder", default="llada", help="of the masked model (llada: a token a forward)")
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    lm, twin = (load(name, device="cpu", dtype="float32") for name in (args.model, args.twin))
    facts = described(args.model, lm), described(args.twin, twin)
    tokenizer, decoder = lm.tokenizer, {"name": args.decoder, "temperature": 0.0}
    assert tokenizer is not None
    positions = args.positions or min(lm.model.max_length, twin.model.max_length) - args.range[1]
    cases = lines(documents(args.data), tokenizer, args, positions)
    ways = ("both contexts, true length", "both contexts, range", "left only, true length", "left only, to line end")
    scores: dict[str, list[tuple[float, float]]] = {}
    spent: dict[str, tuple[int, int]] = {}

    def note(name: str, text: str, truth: str, tokens: int, forwards: int) -> None:
        scores.setdefault(name, []).append(close(text, truth))
        spent[name] = spent.get(name, (0, 0))[0] + tokens, spent.get(name, (0, 0))[1] + forwards

    lengths = [n for (n,) in candidates([tuple(args.range)], most=args.tries)]
    picked: dict[str, list[tuple[float, float]]] = {}
    for number, case in enumerate(cases, start=1):
        for name, right in ((f"DLM, {ways[0]}", True), (f"DLM, {ways[2]}", False)):
            (one,), forwards = fill(lm, case, [len(case.line)], right=right, decoder=decoder)
            note(name, tokenizer.decode(one.ids), case.text, len(one.ids), forwards)
        tried, forwards = fill(lm, case, lengths, right=True, decoder=decoder)
        for one in tried:
            one.behind, one.bound = suffix(lm, case, one), joint(lm, case, one, "exact-k")
            if 1 in lm.model.traits.reads:
                one.chain = joint(lm, case, one, "ar")
                one.after = joint(lm, case, one, "ar", hole=False)
        each = [close(tokenizer.decode(one.ids), case.text) for one in tried]
        for name, worth in PICKS.items():
            if "token by token" in name and tried[0].chain is None:
                continue
            picked.setdefault(name, []).append(each[max(range(len(tried)), key=lambda i: worth(tried[i]))])
        picked.setdefault("any (mean)", []).append(
            (sum(e[0] for e in each) / len(each), sum(e[1] for e in each) / len(each))
        )
        picked.setdefault("best possible", []).append(max(each))
        best = max(tried, key=PICKS[OURS])
        note(f"DLM, {ways[1]}", tokenizer.decode(best.ids), case.text, len(best.ids), forwards)
        for model, name, settings in ((lm, f"DLM, {ways[3]}", decoder), (twin, f"AR twin, {ways[3]}", {"name": "ar"})):
            ids, forwards, text = left_to_right(model, case, args.range[1], decoder=settings["name"])
            note(name, text, case.text, len(ids), forwards)
        if number % 20 == 0:
            print(f"{number} of {len(cases)} lines", flush=True)
    per_forward = {name: {"tokens/forward": round(n / forwards, 3)} for name, (n, forwards) in spent.items()}
    rows = [{**summary(name, found), **per_forward[name]} for name, found in scores.items()]
    chosen = [{**summary(name, found), **better(found, picked[OURS])} for name, found in picked.items()]
    report(
        args.out,
        "Infilling held-out lines of code",
        {"Lines:": rows, f"Ways to pick among the lengths {', '.join(map(str, lengths))}:": chosen},
        model=facts[0],
        twin=facts[1],
        lines=f"{len(cases)}, mean {sum(len(c.line) for c in cases) / len(cases):.1f} tokens; canvases of {positions}",
        decoder=f"{args.decoder}, temperature 0",
    )


if __name__ == "__main__":
    main()
