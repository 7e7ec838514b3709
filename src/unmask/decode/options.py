"""The options of decoding: one table for checking, for the command line's help and for every other menu."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from unmask.base.errors import BadInput
from unmask.decode.effort import EFFORTS
from unmask.decode.growth import TABLE, TRY
from unmask.decode.policies.rank import Rank
from unmask.decode.policies.timetable import Timetable

Value = float | int | str | bool | None
AUTO = "auto"
"""The value of an option that is to be chosen by what a forward costs here."""


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: its type, what values it may have, what it does, whether it may be `AUTO` (`Decoder.choices`)."""

    kind: type
    fits: Callable[[float], bool]
    values: str
    help: str
    names: tuple[str, ...] = ()
    auto: bool = False

    @property
    def either(self) -> str:
        """What values it may have, in words, `AUTO` among them where it is one."""
        return f"{self.values}, or {AUTO}" if self.auto else self.values


def _named(values: tuple[str, ...], help: str) -> Option:
    return Option(str, lambda v: True, "one of " + ", ".join(values), help, values)


OPTIONS: dict[str, Option] = {
    "effort": _named(EFFORTS, "less writes more tokens a forward; medium is the decoder as it is"),
    "steps": Option(int, lambda v: v >= 1, "a whole number from 1", "forwards for the canvas, or for each block"),
    "block": Option(
        int, lambda v: v >= 1, "a whole number from 1", "positions written before the next ones are", auto=True
    ),
    "threshold": Option(float, lambda v: 0 < v <= 1, "above 0, at most 1", "probability from which a token is taken"),
    "factor": Option(float, lambda v: v > 0, "above 0", "how much is taken at once; more is bolder"),
    "bound": Option(float, lambda v: v >= 0, "0 or more nats", "entropy that may be taken at once"),
    "edit_threshold": Option(
        float, lambda v: 0 <= v <= 1, "between 0 and 1", "probability above which a written token is replaced"
    ),
    "settle": Option(
        float, lambda v: v >= 0, "0 or more nats", "mean entropy below which text that holds still is done"
    ),
    "rounds": Option(int, lambda v: v >= 0, "a whole number from 0", "forwards for editing once all is written"),
    "doubt": Option(
        float, lambda v: 0 <= v <= 1, "between 0 and 1", "probability below which a written token is taken back"
    ),
    "blocks": Option(
        int, lambda v: v >= 1, "a whole number from 1", "blocks that are written at the same time", auto=True
    ),
    "begin": Option(float, lambda v: 0 <= v <= 1, "between 0 and 1", "share of a block that the next one waits for"),
    "press": Option(
        float, lambda v: 0 <= v <= 1, "between 0 and 1", "share of a block from which the next one has to go on"
    ),
    "lookahead": Option(
        int, lambda v: v >= 0, "a whole number from 0", "steps that are guessed and checked in the same forward"
    ),
    "eta": Option(float, lambda v: 0 <= v <= 1, "between 0 and 1", "strength of remasking"),
    "leap": _named(("euler", "analytic"), "whether a step along a score keeps its first rates or integrates them"),
    "remask": _named(("cap", "rescale"), "how the strength of remasking is meant"),
    "rank": _named(get_args(Rank), "which open positions come first"),
    "timetable": _named(get_args(Timetable), "how the steps are shared out over what is open"),
    "eos_last": Option(
        bool, lambda v: True, "true or false", "whether an end of text is written only when all else is"
    ),
    "cache": _named(("prefix", "dual"), "what is kept of a full forward: what lies before the block, or all but it"),
    "refresh": Option(
        int,
        lambda v: v >= 1,
        "a whole number from 1",
        "forwards of a block from one that renews what is kept to the next",
    ),
    "drift": Option(
        float,
        lambda v: 0 < v <= 1,
        "above 0, at most 1",
        "how far the first layer may turn (1 - cosine) before what is kept is renewed",
    ),
    "audit": Option(
        int, lambda v: v >= 1, "a whole number from 1", "measure drift at every n-th forward over what is kept"
    ),
    "lengths": _named(
        (TRY, *TABLE), "how the length of a text is found: several are tried, or the text grows while it is written"
    ),
    "start": Option(int, lambda v: v >= 1, "a whole number from 1", "positions that a text that grows has at first"),
    "insert": Option(int, lambda v: v >= 2, "a whole number from 2", "positions that take the place of one"),
    "unsure": Option(
        float, lambda v: 0 <= v <= 1, "between 0 and 1", "probability below which one gives way to several"
    ),
    "enough": Option(
        float, lambda v: 0 <= v <= 1, "between 0 and 1", "certainty of an end from which a text is long enough to begin"
    ),
    "ended": Option(
        float, lambda v: 0 <= v <= 1, "between 0 and 1", "certainty of an end from which nothing gives way any more"
    ),
    "tail": Option(int, lambda v: v >= 1, "a whole number from 1", "ends of text that this certainty is the mean of"),
    "strict": Option(bool, lambda v: True, "true or false", "whether a probability must exceed the threshold"),
    "t_max": Option(float, lambda v: v > 0, "above 0", "what logits are divided by at the first step"),
    "t_min": Option(float, lambda v: v > 0, "above 0", "what logits are divided by at the end"),
    "temperature": Option(float, lambda v: v >= 0, "0 or more", "0 takes the best token, 1 draws from the model"),
    "top_k": Option(int, lambda v: v >= 0, "a whole number from 0", "tokens that may be drawn; 0 is all"),
    "top_p": Option(float, lambda v: 0 < v <= 1, "above 0, at most 1", "probability mass that may be drawn from"),
    "guidance": Option(float, lambda v: v >= 0, "0 or more", "w of classifier-free guidance, u + (w + 1)(c - u)"),
}


def check(name: str, value: object) -> Value:
    """An option's value in its own type.

    Raises:
        BadInput: wrong type or outside its range.
    """
    option = OPTIONS[name]
    if option.auto and isinstance(value, str) and value == AUTO:
        return AUTO
    match option.kind(), value:
        case (bool(), bool()) | (str(), str()):
            right = not option.names or value in option.names
        case ((int() | float()), (int() | float())) if not isinstance(value, bool):
            right = abs(value) < 1 << 62 and option.fits(value) and option.kind(value) == value
        case _:
            right = False
    if not right:
        vast = isinstance(value, int | float) and abs(value) >= 1 << 62
        raise BadInput(f"{name} is {option.either}{', and less than 2**62' if vast else ''}, not {value!r}")
    return option.kind(value)  # type: ignore[no-any-return]
