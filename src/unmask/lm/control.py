"""What a text has to be: from the settings of a call to spans of the rows that are written.

| setting | the text |
|---|---|
| `schema` | is JSON that is valid under a schema: a dict, True (any JSON), or a `unmask.constrain.spec.Schema` |
| `regex` | is matched by a regex from end to end |
| `grammar` | is one of a grammar: its text in Lark's notation or in GBNF, or a `unmask.constrain.spec.Grammar` |
| `choices` | is one of several |
| `contains`, `banned` | holds some texts in this order, holds none of some; beside any of the others |
| `constraint` | fits a `unmask.constrain.spec.Constraint` or a body of one; of a template, by the names of its holes |

The text is the completion of `generate` and `stream`, and what is written into the gap of `infill`, `fill` and
`refine`. It does not know how rows are filled.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, Self, get_args

from unmask.base.canvas import Canvas
from unmask.base.errors import BadInput, Unsupported
from unmask.base.vocab import Vocab
from unmask.constrain.automata.automaton import Automaton, Ends
from unmask.constrain.automata.vocabulary import Vocabulary
from unmask.constrain.compile import Cache
from unmask.constrain.holes import Span
from unmask.constrain.spec import Anything, Body, Choices, Constraint, Grammar, Regex, Schema
from unmask.decode.control import contradiction
from unmask.lm.rows import Ask, Fits
from unmask.text.layout import Layout
from unmask.text.tokenizer import Tokenizer

CONSTRAINTS = ("schema", "regex", "grammar", "choices", "contains", "banned", "constraint")
"""Settings that say what a text has to be."""


def constrains(settings: Mapping[str, Any]) -> bool:
    """Whether any of `CONSTRAINTS` is given."""
    return any(settings.get(name) is not None for name in CONSTRAINTS)


class Automata(Protocol):
    """Where automata come from."""

    def get(self, asked: Constraint, vocabulary: Vocabulary) -> Automaton:
        """The automaton of a constraint; raises as `unmask.constrain.compile.compile_here`."""
        ...


class Controls:
    """Constraints of texts over one vocabulary; what was compiled before is remembered.

    Args:
        tokenizer: what spells tokens.
        vocab: the model's ids.
        name: of the model.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab: Vocab, name: str) -> None:
        self.tokenizer, self.vocab, self.name = tokenizer, vocab, name
        self.automata: Automata = Cache()

    def over(self, automata: Automata) -> Self:
        """The same, with automata that come from elsewhere."""
        found = copy.copy(self)
        found.automata = automata
        return found

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The bytes of every id of the model."""
        if self.tokenizer is None:
            raise Unsupported(f"{self.name} has no tokenizer, so nothing can be asked of its texts; pin ids instead")
        known = self.tokenizer.token_bytes
        return Vocabulary([*known, *[b""] * (self.vocab.size - len(known))], self.vocab.ends)

    def hold(self, ask: Ask, settings: Mapping[str, Any], *, may_end: bool = False) -> Ask:
        """The ask, with spans for all that the settings say, and without candidate lengths that can't be met.

        Args:
            ask: rows to write.
            settings: of the call.
            may_end: whether a text may be over before its positions are.
        Raises:
            BadInput, Unsupported, OverBudget: what is asked is no constraint, can't be honoured, or can't be met.
        """
        if not constrains(settings):
            return ask
        if ask.stops:
            raise BadInput("a stop string would cut the text that the constraint asks for; give one of the two")
        automata = self._automata(ask.texts[0][0], settings)
        may_end &= bool(self.vocab.ends)
        texts, spans = [], []
        for rows, early in zip(ask.texts, ask.no_end_before, strict=True):
            held = [
                tuple(
                    Span(
                        automaton=automaton,
                        start=gap.start,
                        stop=gap.stop,
                        ends=may_end,
                        least=int(early) - gap.start if may_end else 0,
                    )
                    for gap, automaton in zip(row.gaps, automata, strict=True)
                    if automaton is not None
                )
                for row in rows
            ]
            kept = [i for i, row in enumerate(rows) if len(rows) == 1 or self._possible(row, held[i])]
            if not kept:
                raise BadInput(f"the constraint can't be met with any length: {self._why(rows[-1], held[-1])}")
            texts.append([rows[i] for i in kept])
            spans.append([held[i] for i in kept])
        return replace(ask, texts=texts, spans=spans)

    def fits(self, settings: Mapping[str, Any]) -> Fits:
        """Whether a gap of a name may have so many tokens, pins aside; raises as `hold`."""

        def can(name: str | None, num_tokens: int) -> bool:
            asked = _asked(settings, name)
            return asked is None or bool(self._compiled(asked).completable(num_tokens, Ends())[0])

        return can

    def check(self, settings: Mapping[str, Any], name: str | None, low: int, high: int) -> None:
        """Raise BadInput if a gap of a name, of `low` to `high` tokens, can't be filled, pins aside; and as `hold`."""
        asked, can = _asked(settings, name), self.fits(settings)
        if asked is None or any(can(name, size) for size in range(low, high + 1)):
            return
        span, row = Span(automaton=self._compiled(asked), start=0, stop=high), ((0,) * high, (True,) * high)
        reason = contradiction([span], Canvas.of([row], mask=0), self.vocabulary.tokens)
        raise BadInput(f"the constraint can't be met with {low} to {high} tokens: {reason}")

    def _automata(self, row: Layout, settings: Mapping[str, Any]) -> list[Automaton | None]:
        """Of each gap; None where nothing is asked."""
        asked, names = settings.get("constraint"), [gap.name for gap in row.gaps]
        if isinstance(asked, Mapping):
            if others := [name for name in CONSTRAINTS if name != "constraint" and settings.get(name) is not None]:
                raise BadInput(f"{others[0]}= is of one text, and constraint= says it for each hole; give one of them")
            if unknown := [name for name in asked if name not in names]:
                raise BadInput(f"constraint= names a hole {unknown[0]!r}, and the holes are {names}")
        elif len(names) > 1:
            raise Unsupported(
                f"the text has {len(names)} gaps, and a constraint is of one; use fill with constraint={{name: ...}}"
            )
        each = [_asked(settings, name) for name in names]
        return [None if one is None else self._compiled(one) for one in each]

    def _compiled(self, asked: Constraint) -> Automaton:
        return self.automata.get(asked, self.vocabulary)

    def _possible(self, row: Layout, held: Sequence[Span]) -> bool:
        return self._why(row, held) is None

    def _why(self, row: Layout, held: Sequence[Span]) -> str | None:
        return contradiction(held, Canvas.of([(row.tokens, row.is_open)], mask=0), self.vocabulary.tokens)


def _asked(settings: Mapping[str, Any], name: str | None) -> Constraint | None:
    """What is asked of the gap of a name."""
    asked = settings.get("constraint")
    if isinstance(asked, Mapping):
        return None if name is None or asked.get(name) is None else _constraint({"constraint": asked[name]})
    return _constraint(settings) if constrains(settings) else None


def _constraint(settings: Mapping[str, Any]) -> Constraint:
    """What the settings ask of one text."""
    given = {name: settings[name] for name in CONSTRAINTS if settings.get(name) is not None}
    bodies = [name for name in given if name in _BODIES]
    if len(bodies) > 1:
        raise BadInput(f"{' and '.join(f'{name}=' for name in bodies)} say twice what the text is; give one of them")
    whole: Any = _BODIES[bodies[0]](given[bodies[0]]) if bodies else Anything()
    found = whole if isinstance(whole, Constraint) else Constraint(body=whole)
    contains, banned = (_texts(name, given.get(name, ())) for name in ("contains", "banned"))
    return replace(found, contains=(*found.contains, *contains), banned=(*found.banned, *banned))


def _schema(value: Any) -> Schema:
    return value if isinstance(value, Schema) else Schema.of(value)


def _regex(value: Any) -> Regex:
    if not isinstance(value, str):
        raise BadInput(f"a regex is a text, not {value!r}")
    return Regex(value)


def _grammar(value: Any) -> Grammar:
    return value if isinstance(value, Grammar) else Grammar(value)


def _body(value: Any) -> Any:
    if not isinstance(value, (Constraint, *get_args(Body))):
        kinds = ", ".join(kind.__name__ for kind in (Constraint, *get_args(Body)))
        raise BadInput(f"a constraint is one of {kinds} of unmask.constrain.spec, not {value!r}")
    return value


_BODIES = {
    "schema": _schema,
    "regex": _regex,
    "grammar": _grammar,
    "choices": lambda value: Choices(_texts("choices", value)),
    "constraint": _body,
}


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """A text, or several."""
    if not isinstance(value, Iterable) or (isinstance(value, str) and name == "choices"):
        raise BadInput(f"{name}= is a list of texts, not {value!r}")
    texts = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(text, str) for text in texts):
        raise BadInput(f"{name}= is a list of texts, not {value!r}")
    return texts
