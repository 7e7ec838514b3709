"""What calls give back, and the settings that all writing calls share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict

from unmask.decode.audit import Drift
from unmask.decode.effort import Eased
from unmask.decode.reading import Cell
from unmask.decode.trace import Change, Trace
from unmask.text.layout import Layout


class Watched(Protocol):
    """Rows while they are written.

    Attributes:
        layouts: what each row means.
    """

    layouts: list[Layout]

    @property
    def num_forwards(self) -> int:
        """Of the network, so far."""
        ...

    def cells(self, row: int) -> list[Cell]:
        """A row as it stands."""
        ...


class Settings(TypedDict, total=False):
    """What every writing call takes besides its text.

    `decoder` is a preset's name or "window x policy + policy"; its options are given by name beside it, see
    `unmask.decode.options`. `watch` is called after every forward, with what is being written. With `latency_s`, the
    text should be done in so many seconds: while it is late it is written with less effort, so its tokens depend on how
    fast this machine is just now; `Stats.eased` says what was done. What the text has to be is said by `schema`,
    `regex`, `grammar`, `choices`, `contains`, `banned` or `constraint`, see `unmask.lm.control`.

    `logit_bias` maps token ids to numbers from -100 to 100, which are added to what the network says before anything
    else is made of it: all decoders see the model as if it spoke so, within what a constraint allows. `top_logprobs` (0
    to 20) asks for so many of the most probable tokens beside each that is written, in `Output.top_logprobs`. Like all
    log-probabilities that are told, they are of the distribution that tokens are taken from: with the bias, within
    top-k, top-p and the constraint, at temperature 1.
    """

    decoder: str | None
    seed: int
    watch: Callable[["Watched"], None] | None
    latency_s: float | None
    logit_bias: Mapping[int, float] | None
    top_logprobs: int | None
    effort: str | None
    steps: int | None
    block: int | Literal["auto"] | None
    threshold: float | None
    factor: float | None
    bound: float | None
    doubt: float | None
    blocks: int | Literal["auto"] | None
    begin: float | None
    press: float | None
    lookahead: int | None
    rank: str | None
    timetable: str | None
    eos_last: bool | None
    cache: str | None
    refresh: int | None
    drift: float | None
    audit: int | None
    leap: str | None
    remask: str | None
    eta: float | None
    edit_threshold: float | None
    rounds: int | None
    settle: float | None
    t_max: float | None
    t_min: float | None
    strict: bool | None
    lengths: str | None
    start: int | None
    insert: int | None
    unsure: float | None
    enough: float | None
    ended: float | None
    tail: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    guidance: float | None
    schema: Any
    regex: str | None
    grammar: Any
    choices: Sequence[str] | None
    contains: str | Sequence[str] | None
    banned: str | Sequence[str] | None
    constraint: Any


@dataclass(frozen=True, slots=True)
class Stats:
    """What an output cost.

    Args:
        forwards: of the network, for this text; candidates of other lengths ride in the same ones.
        seconds: of the call that this text came from.
        tokens_per_forward: tokens of the completion per forward.
        edits: written tokens that were taken back or written over.
        eased: what became of its target of seconds, if it had one.
        drift: with `audit`, how far offers over an approximate cache were from those of full forwards; these forwards
            are not counted among `forwards`.
        chosen: numbers that were taken for options given as "auto", by name. With them in its place the same request
            gives the same tokens, here and anywhere else; None where nothing was left open.
        length: positions that the text's gaps had in the end, whatever of them became text.
    """

    forwards: int
    seconds: float
    tokens_per_forward: float
    edits: int
    eased: Eased | None = None
    drift: Drift | None = None
    chosen: Mapping[str, int] | None = None
    length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One text that was written.

    Args:
        text: everything, fixed parts included; None where there is no tokenizer.
        completion: what was written (the gaps one after the other); None where there is no tokenizer.
        tokens: ids of the completion.
        finish_reason: "stop" an end of text, a stop string, or gaps that are full; "length" the canvas is used up.
        logprobs: nats of each token at the step that wrote it, given what the model saw then; 0 for pinned tokens.
        changes: what wrote each token, its step among other things; None for pinned tokens.
        holes: name (if it has one) and text of each gap.
        trace: every change, in order.
        stats: what it cost.
    """

    text: str | None
    completion: str | None
    tokens: list[int]
    finish_reason: Literal["stop", "length"]
    logprobs: list[float]
    changes: list[Change | None]
    holes: list[tuple[str | None, str | None]]
    trace: Trace
    stats: Stats

    @property
    def top_logprobs(self) -> list[list[tuple[int, float]]]:
        """For each token, the most probable ones at the step that wrote it, as (id, nats), falling.

        As many as `top_logprobs` asks for, or fewer if no more may stand there; none for pinned tokens. The token
        itself need not be one of them.
        """
        return [[] if change is None else list(change.ranked) for change in self.changes]


@dataclass(frozen=True, slots=True)
class StreamStep:
    """A moment of a stream.

    Args:
        text: committed text of the completion; it only grows.
        delta: what is new in it.
        draft: the whole completion as it stands, masks as "▒"; it may still change.
        forwards: so far.
        output: the result, in the last step.
    """

    text: str
    delta: str
    draft: str
    forwards: int
    output: Output | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """An estimate of -log p(text).

    Args:
        nats: the estimate.
        stderr: its standard error, nats; 0 where it is exact.
        bits_per_byte: nats / ln 2 / bytes of the text; None where there is no tokenizer.
        tokens: tokens that were scored.
        forwards: of the network.
        bound: whether the expected value is an upper bound of -log p rather than its value.
    """

    nats: float
    stderr: float
    bits_per_byte: float | None
    tokens: int
    forwards: int
    bound: bool
