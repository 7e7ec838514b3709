"""A decoder is a window, a few policies and a way to draw: built by name, by spelling, or from a model's defaults."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from unmask.base.canvas import Canvas
from unmask.base.denoiser import Cache
from unmask.base.errors import BadInput, UnknownName, Unsupported
from unmask.base.step import Edit, Plan, Proposal, State, Turn
from unmask.base.vocab import Traits, Vocab
from unmask.decode import ahead, growth, policies, windows
from unmask.decode.effort import DIAL, EFFORTS, STRIDE, Effort, moved
from unmask.decode.growth.row import Rule
from unmask.decode.options import AUTO, OPTIONS, check
from unmask.decode.parts import merged
from unmask.decode.presets import PRESETS, Preset
from unmask.decode.propose import Sampling
from unmask.decode.windows.draft import WIDEST
from unmask.decode.windows.shadows import spare

_COMMITS = {"threshold": "threshold", "factor": "factor", "steps": "quota"}
"""Which policy an option selects, in order of precedence, where the decoder takes the surest offers first."""
BLOCKS = (1, 2, 4, 8)
"""How many blocks may be written at the same time where that is left open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Everything that decides how a canvas is filled.

    Args:
        window, policies, sampling, guidance: where to look, what to write, how to draw.
        stride: steps of its budget that a forward takes.
        lookahead: steps that are guessed and checked in the same forward (`unmask.decode.ahead`).
        ends: ids that end a text.
        growth: how the length of a gap with bounds is found; None where no gap may have any.
        effort: where on the dial its numbers are; None where it has none that effort could move.
        audit: every so many forwards over what is kept, drift is measured (`unmask.decode.audit`); it decides nothing.
        chosen: names and numbers of options that were left open (`AUTO`), as this decoder has them.
        choices: where options are left open, the decoders that one is to be taken from before anything is written.
    """

    window: windows.Window
    policies: tuple[policies.Policy, ...]
    sampling: Sampling
    guidance: float = 0.0
    lookahead: int = 0
    ends: tuple[int, ...] = ()
    stride: int = 1
    growth: Rule | None = None
    effort: Effort | None = None
    audit: int = 0
    chosen: tuple[tuple[str, int], ...] = ()
    choices: tuple["Decoder", ...] = ()

    @property
    def revises(self) -> bool:
        """Whether a written position may change again before its region is sealed."""
        return any(p.revises for p in self.policies)

    @property
    def anew(self) -> bool:
        """Whether all that it has written in a region is written again each step."""
        return any(getattr(p, "anew", False) for p in self.policies)

    @property
    def reads(self) -> frozenset[str]:
        """Statistics of offers that its policies look at."""
        return frozenset[str]().union(*(getattr(policy, "reads", ()) for policy in self.policies))

    @property
    def watches(self) -> bool:
        """Whether it renews what it keeps by how far that has moved (`unmask.decode.staleness`)."""
        return getattr(self.window, "drift", None) is not None

    @property
    def adapts(self) -> bool:
        """Whether it takes what a forward costs into account, if it is told."""
        return isinstance(self.window, windows.Draft) and self.window.block is None

    def asks(self, plan: Plan) -> Tensor:
        """(R, T) bool: the targets that its policies may change, and therefore need an offer for."""
        may = (plan.state == State.OPEN) | (plan.state == State.DONE) if self.revises else plan.state == State.OPEN
        choosy = [policy for policy in self.policies if policies.choosy(policy)]
        parted = self.lookahead or isinstance(self.window, windows.Many)  # policies see other plans then
        if len(choosy) == len(self.policies) and not parted:
            may = may & torch.stack([policy.asks(plan) for policy in choosy]).any(0)
        return may & (plan.targets >= 0)

    def room(self, length: int, origin: int, traits: Traits) -> int:
        """Positions to write for a row of `length`: up to the end of its last block where the window pads.

        `origin` is its first open position.
        """
        block = getattr(self.window, "block", None) or traits.unit
        start = origin % block if block and isinstance(self.window, windows.Canvases) else 0
        return start + -(-(length - start) // block) * block if self.window.pads and block else length

    def spare(self, length: int, traits: Traits) -> int:
        """Slots of a cache behind the last position of a row of `length` that shadows may take."""
        texts = self.lookahead + int(getattr(self.window, "shadows", False))
        own = WIDEST if isinstance(self.window, windows.Draft) else traits.unit
        block = getattr(self.window, "block", None) or own
        return spare(texts, min(block + 1, length)) if self.window.caches and texts else 0

    def look(self, canvas: Canvas, traits: Traits, cache: Cache | None, rows: Tensor | None = None) -> Plan:
        """What the next forward of some rows (R,) looks at; None is all that are not done."""
        plan = self.window(canvas, traits, cache, rows)
        if not self.lookahead:
            return plan
        whole, shift = getattr(self.window, "guessed", "") == "row", int(traits.speaks == "next")
        return ahead.guess(plan, canvas, self.policy, self.lookahead, whole=whole, shift=shift)

    def decide(self, offer: Proposal, plan: Plan) -> Turn:
        """What is made of an offer; the plan and the offer of a turn are of the text as it stands."""
        if self.lookahead:
            return ahead.decide(offer, plan, self.policy, self.lookahead, self.ends)
        if isinstance(self.window, windows.Many):
            parts = self.window.apart(plan)
            return Turn(plan, offer, merged(parts, self.policy(parts.offer(offer), parts.plan(plan)), plan))
        return Turn(plan, offer, self.policy(offer, plan))

    @property
    def numbers(self) -> dict[str, Any]:
        """Those that effort moves."""
        own = {name: getattr(part, name) for part in self.policies for name in _names(part) if name in DIAL}
        return {} if self.effort is None else {STRIDE: self.stride, **own}

    def at(self, effort: Effort, *, but: Collection[str] = ()) -> "Decoder":
        """The same decoder with another effort; numbers named in `but` stay as they are."""
        if self.effort is None:
            return self
        start = self.effort
        new: dict[str, Any] = {k: v if k in but else moved(k, v, start, effort) for k, v in self.numbers.items()}
        chain = [replace(p, **{k: new[k] for k in _names(p) if k in new}) for p in self.policies]  # type: ignore[type-var]
        return replace(self, policies=tuple(chain), stride=new[STRIDE], effort=effort)

    @property
    def easier(self) -> tuple["Decoder", ...]:
        """The same decoder with less and less effort, where that makes a difference."""
        found = [self]
        for effort in EFFORTS[: EFFORTS.index(self.effort)][::-1] if self.effort else ():
            found += [other] if (other := self.at(effort)).numbers != found[-1].numbers else []
        return tuple(found[1:])

    def policy(self, offer: Proposal, plan: Plan) -> Edit:
        """What all policies make of an offer for one text a row."""
        edit = Edit.nothing(plan)
        for policy in self.policies:
            edit = policy(offer, plan, edit)
        return edit


def build(
    name: str | None,
    *,
    traits: Traits,
    vocab: Vocab,
    defaults: Mapping[str, Any] | None = None,
    internal: Mapping[str, Any] | None = None,
    **options: Any,
) -> Decoder:
    """The decoder that a name and options ask for.

    Args:
        name: a preset ("llada"), a spelling ("block x threshold + edit"), or None for the model's own default.
        traits, vocab: of the model it is for.
        defaults: the model's own settings, with its decoder's name under "decoder"; used where `name` is None.
        internal: fields of the parts that are no options (what is forbidden, before where no end of text may stand).
        options: see `unmask.decode.options.OPTIONS`; None counts as not given. `steps` without a threshold or factor
            selects the quota policy, a threshold or factor selects its own, where the decoder takes the surest first.
            `effort` moves the numbers that were not given, see `unmask.decode.effort`. With one that is `AUTO`
            the decoder has `choices`; the only one is taken.
    Raises:
        UnknownName: no such preset, window, policy or option.
        BadInput: a value out of range, or an option that this decoder has no use for.
        Unsupported: the model can't be read through this window.
    """
    left = [k for k, v in options.items() if k in OPTIONS and OPTIONS[k].auto and isinstance(v, str) and v == AUTO]
    if left:
        again = partial(build, name, traits=traits, vocab=vocab, defaults=defaults, internal=internal)
        return _open(again, options, left, traits)
    given = {k: v for k, v in options.items() if v is not None}
    for option in given:
        if option not in OPTIONS:
            raise UnknownName("option", option, OPTIONS)
    if "threshold" in given and "factor" in given:
        raise BadInput("threshold and factor are two rules for the same choice; give one of them")
    own = dict(defaults or {}) if name is None else {}
    preset = _preset(name or own.pop("decoder", None) or ("ar" if traits.sees == "left" else "fast-dllm"))
    chain, settings = list(preset.policies), {**preset.settings, **own}
    if chain[0] in _COMMITS.values():
        chosen = next((policy for option, policy in _COMMITS.items() if option in given), chain[0])
        chain[0] = chosen
    parts = [windows.TABLE[preset.window], *(policies.TABLE[p] for p in chain), Sampling]
    rule = growth.TABLE.get(str(check("lengths", given.get("lengths", settings.get("lengths", growth.TRY)))))
    ruled = [part for part in (rule,) if part is not None]
    takes = {f.name for part in (*parts, *ruled) for f in fields(part)} & set(OPTIONS) | {"guidance", "lengths"}
    takes |= {"lookahead"} if _guessable(parts[0], parts[1:-1], traits) else set()
    dial = "steps" in takes and chain[0] != "everything"  # else nothing is left to choose: a forward takes all it sees
    takes |= {"effort"} if dial else set()
    takes |= set() if windows.TABLE[preset.window].exact else {"audit"}
    useless = sorted(set(given) - takes - {"lookahead"})  # why that can't be is said by `_fits`
    if useless:
        what = f"{preset.window} x {' + '.join(chain)}"
        raise BadInput(f"{useless[0]} has no effect on this decoder ({what}); it takes {', '.join(sorted(takes))}")
    values = {k: check(k, v) for k, v in {**settings, **given}.items() if k in {*takes, "lookahead"}}
    everything = {
        "mask": vocab.mask,
        "size": vocab.size,
        "ends": vocab.ends,
        "eos": vocab.eos,
        "expand": vocab.expand,
        "delete": vocab.delete,
        "traits": traits,
        "shadows": any(getattr(part, "shadows", False) is True for part in parts[1:]),
        **(internal or {}),
        **values,
    }

    def make(part: Any) -> Any:
        return part(**{f.name: everything[f.name] for f in fields(part) if everything.get(f.name) is not None})

    window, *chain_made, sampling = (make(part) for part in parts)
    window.check(traits)
    decoder = Decoder(
        window=window,
        policies=tuple(chain_made),
        sampling=sampling,
        guidance=float(values.get("guidance") or 0.0),
        lookahead=int(values.get("lookahead") or 0),
        ends=vocab.ends,
        growth=None if rule is None else make(rule),
        effort="medium" if dial else None,
        audit=int(values.get("audit") or 0),
    )
    _fits(decoder, f"{preset.window} x {' + '.join(chain)}", traits)
    effort: Any = values.get("effort") or "medium"  # checked above
    return decoder.at(effort, but={*given, *([STRIDE] if "steps" in given else [])})


def _open(make: Callable[..., Decoder], options: Mapping[str, Any], left: list[str], traits: Traits) -> Decoder:
    """A decoder with some options left open.

    Sizes are those that the model was trained to read: that is what they may be chosen among by speed alone.

    Raises:
        BadInput: a window that reads no blocks, whose regions no model was trained for.
    """
    plain = make(**{**options, **dict.fromkeys(left)})
    if left == ["block"] and plain.adapts:  # as wide as pays, all by itself
        return plain
    if "block" in left and not plain.window.pads:
        raise BadInput(
            f"block={AUTO} chooses among the blocks that a model was trained to read, and this decoder's window reads "
            "none; give a number, or a decoder of the windows block, many or canvas"
        )
    sizes = sorted({*traits.reads, traits.unit}, key=lambda size: (size != traits.unit, size))  # its own comes first
    among = {"block": sizes, "blocks": BLOCKS}
    found = []
    for numbers in product(*(among[name] for name in left)):
        chosen = dict(zip(left, numbers, strict=True))
        found.append(replace(make(**{**options, **chosen}), chosen=tuple(chosen.items())))
    return found[0] if len(found) == 1 else replace(found[0], chosen=(), choices=tuple(found))


def _fits(decoder: Decoder, name: str, traits: Traits) -> None:
    """Raise Unsupported for parts that don't go together."""
    window, chain = decoder.window, decoder.policies
    if isinstance(chain[0], policies.Replace):
        raise Unsupported(f"edit replaces what another policy has written, and nothing is written before it in {name}")
    drafts = isinstance(window, windows.Draft)
    if drafts != any(isinstance(policy, policies.Verify) for policy in chain) or (drafts and len(chain) > 1):
        raise Unsupported(f"the window draft and the policy verify only go with each other, not {name}")
    if any(getattr(policy, "shadows", False) for policy in chain) and not getattr(window, "shadows", False):
        raise Unsupported(f"the policy wino needs the window whole or block, not {name}")
    if isinstance(window, windows.Many) and decoder.revises:
        raise Unsupported(f"a block is begun behind text that stays, so {name} can't take tokens back")
    if decoder.lookahead and not _guessable(window, chain, traits):
        raise Unsupported(
            f"steps are guessed for the windows whole and block, policies that take nothing back and networks without "
            f"a clock, not for {name}; leave lookahead out"
        )


def _guessable(window: Any, chain: Sequence[Any], traits: Traits) -> bool:
    """Whether steps of these parts, made or not, can be guessed ahead."""
    return hasattr(window, "guessed") and not traits.clock and not any(policy.revises for policy in chain)


def _names(part: Any) -> list[str]:
    return [f.name for f in fields(part)]


def _preset(name: str) -> Preset:
    """A preset by name, or the one that a spelling `window x policy + policy` describes."""
    if name in PRESETS:
        return PRESETS[name]
    spelled = re.fullmatch(r"\s*([\w-]+)\s*(?:\sx\s|×)\s*(.+?)\s*", name)
    if not spelled:
        raise UnknownName("decoder", name, [*PRESETS, "WINDOW x POLICY + POLICY"])
    window, chain = spelled[1], [p.strip().replace("-", "_") for p in re.split(r"[+,]", spelled[2])]
    if window not in windows.TABLE:
        raise UnknownName("window", window, windows.TABLE)
    for policy in chain:
        if policy not in policies.TABLE:
            raise UnknownName("policy", policy, policies.TABLE)
    return Preset(window, tuple(chain), "spelled out")
