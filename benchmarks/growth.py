r"""Lengths that are found while a text is written, against lengths that are tried and lengths that are known.

Held-out lines of code, as in infill_lines.py, between both contexts, greedily, a token a forward: at the true length;
at one length for all (a prior that knows how long lines are); at several lengths of which the library picks one; and by
rules that need no training, which are here and not in the library because of what this table says of them:

- insertion: a mask whose best token has less than so much probability gives way to two (DAEDAL's second phase,
  arXiv 2508.00819, with nothing behind the gap that says when to stop);
- first confidence: of all lengths, the one whose masks are surest in a first forward, compared with what is usual at
  that length (CAL, arXiv 2602.00476; what is usual is the mean over the other half of the lines).

Then ends of held-out documents, continued: DAEDAL's growth against a canvas of the upper bound. Forwards are counted
for each row, so a text of which seven lengths are tried has the forwards of all seven.

    python benchmarks/growth.py --data data/tiny/code.jsonl --n 20 --out benchmarks/results/growth
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from infill_lines import Case, close, fill, lines, suffix, summary
from report import described, documents, parser, report

from unmask.base.attend import Attend
from unmask.base.step import State, Turn
from unmask.base.vocab import Vocab
from unmask.decode.decoder import Decoder, build
from unmask.decode.growth.row import Growing, Resize
from unmask.decode.lengths import candidates
from unmask.decode.session import Session
from unmask.lm.load import load
from unmask.lm.model import LanguageModel
from unmask.text.layout import Fixed, Gap, Layout, lay


@dataclass(frozen=True, slots=True)
class Insertion:
    """A mask that the model has no word for gives way to two."""

    start: int
    unsure: float
    listens: ClassVar[int] = 0

    def check(self, layout: Layout, vocab: Vocab, *, constrained: bool) -> None:
        """Every row will do."""

    def may(self, row: Growing) -> tuple[bool, bool]:
        """The model has no tokens for it."""
        return False, False

    def __call__(self, row: Growing, turn: Turn, i: int) -> Resize | None:
        """One more position behind the least sure of those that stay open."""
        left = turn.offer.is_open[i] & (turn.edit.state[i] == State.OPEN)
        held = turn.offer.log_prob[i].exp().masked_fill(~left, torch.inf)
        if not row.room or float(held.min()) >= self.unsure:
            return None
        return Resize(source=row.with_new(int(turn.plan.targets[i, held.argmin()]) + 1, 1))


def write(lm: LanguageModel, case: Case, gap: Gap, decoder: Decoder) -> tuple[list[int], int]:
    """What is written into a gap, and forwards."""
    pieces = (Fixed(ids=tuple(case.before), text=None), gap, Fixed(ids=tuple(case.behind), text=None))
    session = Session(lm.model, [lay(pieces)], decoder, [0])
    for _ in session.run():
        pass
    (found,) = session.results()
    return found.gaps[0], found.forwards


@torch.inference_mode()
def confidences(lm: LanguageModel, case: Case, lengths: Sequence[int]) -> list[float]:
    """Mean probability of the best tokens of a gap of each length, all of it masked."""
    mask, found = lm.model.vocab.mask, []
    assert mask is not None
    for length in lengths:
        tokens, at = torch.tensor([case.before + [mask] * length + case.behind]), len(case.before)
        places = torch.arange(tokens.shape[1])[None]
        features = lm.model.read(tokens, positions=places, attend=Attend(kind="full"))
        logits = lm.model.head(features[0, at : at + length]).double()
        logits[:, mask] = -torch.inf
        found.append(float(logits.softmax(-1).amax(-1).mean()))
    return found


def infilled(lm: LanguageModel, cases: Sequence[Case], args: Any) -> list[dict[str, Any]]:
    """A row of the table for each way."""
    assert lm.tokenizer is not None
    vocab, (low, high) = lm.model.vocab, args.range
    forbidden = tuple(i for i in (vocab.bos, vocab.pad, vocab.eos) if i is not None)
    plain = build("llada", temperature=0.0, traits=lm.model.traits, vocab=vocab, internal={"forbidden": forbidden})
    median = int(torch.tensor([len(case.line) for case in cases]).median())
    tried = [n for (n,) in candidates([(low, high)])]
    every = list(range(low, high + 1))
    sure = torch.tensor([confidences(lm, case, every) for case in cases], dtype=torch.float64)
    half = torch.arange(len(cases)) % 2
    usual = torch.stack([sure[half != part].mean(0) for part in (0, 1)])
    ways: dict[str, list[tuple[list[int], int]]] = {}
    for i, case in enumerate(cases):
        found, _ = fill(lm, case, tried, right=True, decoder={"name": "llada", "temperature": 0.0})
        for one in found:
            one.behind = suffix(lm, case, one)
        best = max(found, key=lambda one: one.behind)
        calibrated = every[int((sure[i] / usual[half[i]]).argmax())]
        made = {
            "true length": write(lm, case, Gap(length=len(case.line)), plain),
            f"{median} positions for all": write(lm, case, Gap(length=median), plain),
            f"lengths {', '.join(map(str, tried))} tried": (best.ids, sum(tried) + len(tried)),
            "first confidence": write(lm, case, Gap(length=calibrated), plain),
        }
        made["first confidence"] = made["first confidence"][0], made["first confidence"][1] + len(every)
        for start, unsure in ((4, 0.1), (median, 0.02)):
            rule = replace(plain, growth=Insertion(start, unsure))
            gap = Gap(length=start, bounds=(low, high))
            made[f"insertion below {unsure}, from {start}"] = write(lm, case, gap, rule)
        for name, one in made.items():
            ways.setdefault(name, []).append(one)
    rows = []
    for name, written in ways.items():
        scores = [close(lm.tokenizer.decode(ids), case.text) for (ids, _), case in zip(written, cases, strict=True)]
        off = [abs(len(ids) - len(case.line)) for (ids, _), case in zip(written, cases, strict=True)]
        spent = sum(forwards for _, forwards in written) / len(cases)
        rows.append({**summary(name, scores), "off by": round(sum(off) / len(off), 2), "forwards": round(spent, 1)})
    return rows


def continued(lm: LanguageModel, texts: Sequence[str], args: Any) -> list[dict[str, Any]]:
    """Documents without their ends, written to the end, by whole canvases and by those that grow."""
    assert lm.tokenizer is not None
    prompts, left = [], []
    for number, ids in enumerate(lm.tokenizer.encode_many(list(texts))):
        rest = 8 + number * 7 % 41  # 8 to 48 tokens
        if rest + 32 <= len(ids):
            prompts.append([*lm.reader.start, *ids[-(rest + 64) : -rest]])
            left.append(rest)
        if len(prompts) == -(-args.n // 3):
            break
    ways: dict[str, dict[str, Any]] = {
        "a canvas of 64": {"decoder": "fast-dllm", "block": 32, "threshold": 0.9},
        "daedal, to 64, from 16": {"decoder": "daedal", "start": 16},
        "daedal, to 64, from 8 by 4, 8 ends": {"decoder": "daedal", "start": 8, "insert": 4, "tail": 8},
    }
    rows = []
    for name, settings in ways.items():
        outputs = lm.generate(prompts, length=64, temperature=0.0, **settings)
        sizes = torch.tensor([[out.stats.length, len(out.tokens), n] for out, n in zip(outputs, left, strict=True)])
        mean = sizes.double().mean(0).tolist()
        forwards = sum(out.stats.forwards for out in outputs) / len(outputs)
        ended = sum(out.finish_reason == "stop" for out in outputs)
        rows.append(
            {
                "": name,
                "positions": round(mean[0], 1),
                "tokens written": round(mean[1], 1),
                "tokens that were left": round(mean[2], 1),
                "ended by themselves": f"{ended} of {len(outputs)}",
                "forwards": round(forwards, 1),
            }
        )
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="tiny", help="a model that sees both sides")
    options.add_argument("--data", nargs="+", required=True, help="JSONL files of code; their held-out documents count")
    options.add_argument("--n", type=int, default=20, help="lines; a third as many documents (20)")
    options.add_argument("--positions", type=int, default=128, help="of a canvas with a line in it (128)")
    options.add_argument("--range", type=int, nargs=2, default=[1, 24], help="lengths where it is unknown (1 24)")
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    lm = load(args.model, device="cpu", dtype="float32")
    texts = documents(args.data)
    assert lm.tokenizer is not None
    cases = lines(texts, lm.tokenizer, args, args.positions)
    report(
        args.out,
        "Lengths that are found",
        {"Lines of code:": infilled(lm, cases, args), "Ends of documents:": continued(lm, texts, args)},
        model=described(args.model, lm),
        lines=f"{len(cases)}, mean {sum(len(c.line) for c in cases) / len(cases):.1f} tokens; few, so read the errors",
    )


if __name__ == "__main__":
    main()
