r"""Texts of grammars as rules: a part of Lark's notation, and llama.cpp's GBNF, which is told by its `::=`.

    start: sum                          root ::= sum
    sum: product ("+" product)*         sum ::= product ("+" product)*
    product: NUMBER | "(" sum ")"       product ::= [0-9]+ | "(" sum ")"
    NUMBER: /[0-9]+/

A text fits if there is some way to read it. There is no lexer, so priorities have no meaning, and neither has what is
said about trees (`?rule`, `!rule`, `-> name`): all of that is read and changes nothing. It does not know automata.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from unmask.base.errors import BadInput, UnknownName, Unsupported
from unmask.constrain.grammar.lexemes import GBNF, LARK, LAST, Lexeme, Source
from unmask.constrain.grammar.rules import Alt, Letters, Node, Pattern, Ref, Repeat, Rules, Seq, Text

LONGEST = 100_000
"""Characters of a grammar; what anyone writes has no more, nor `MOST` rules, nor groups `DEEPEST` in each other."""
MOST = 1000
DEEPEST = 24
_POWER = r"[eE][+\-]?[0-9]+"
_DECIMAL = r"([0-9]+\.[0-9]*|\.[0-9]+)"
_FLOAT = f"([0-9]+{_POWER}|{_DECIMAL}({_POWER})?)"
COMMON = {
    "CNAME": "[_a-zA-Z][_a-zA-Z0-9]*",
    "CPP_COMMENT": "//[^\n]*",
    "CR": "\r",
    "C_COMMENT": r"/\*([^*]|\*+[^*/])*\*+/",
    "DECIMAL": _DECIMAL,
    "DIGIT": "[0-9]",
    "ESCAPED_STRING": r'"([^"\\\n]|\\[^\n])*"',
    "FLOAT": _FLOAT,
    "HEXDIGIT": "[0-9a-fA-F]",
    "INT": "[0-9]+",
    "LCASE_LETTER": "[a-z]",
    "LETTER": "[a-zA-Z]",
    "LF": "\n",
    "NEWLINE": "(\r?\n)+",
    "NUMBER": f"([0-9]+|{_FLOAT})",
    "SH_COMMENT": "#[^\n]*",
    "SIGNED_FLOAT": rf"[+\-]?{_FLOAT}",
    "SIGNED_INT": r"[+\-]?[0-9]+",
    "SIGNED_NUMBER": rf"[+\-]?([0-9]+|{_FLOAT})",
    "SQL_COMMENT": "--[^\n]*",
    "UCASE_LETTER": "[A-Z]",
    "WORD": "[a-zA-Z]+",
    "WS": "[ \t\f\r\n]+",
    "WS_INLINE": "[ \t]+",
}
"""What `%import common.NAME` gives, as regexes; letters are ASCII."""
_SPACED, _SKIP = "%start", "%ignore"
"""Rules that no text can name: the start behind what may be skipped, and what may be skipped."""
_OFTEN: dict[str, tuple[int, int | None]] = {"?": (0, 1), "*": (0, None), "+": (1, None)}


def read(text: str) -> Rules:
    """The rules that a text says; the start is `start`, or `root` in GBNF.

    Raises:
        BadInput: no grammar, with the line and column at which it is none.
        UnknownName: no rule to start with.
        Unsupported: a part of the notation that can't be honoured, by name.
    """
    if len(text) > LONGEST:
        raise BadInput(f"a grammar has at most {LONGEST} characters, got {len(text)}")
    is_gbnf = re.search(r"^[ \t]*[A-Za-z][A-Za-z0-9_-]*[ \t]*::=", text, re.M) is not None
    source = Source(text)
    return _Reader(source, source.cut(GBNF if is_gbnf else LARK), is_gbnf).rules()


@dataclass(slots=True)
class _Reader:
    """Reads pieces from left to right.

    Args:
        found: rules so far; and what may be skipped, and which rules were referred to.
        at: how many pieces were read.
        rule: the name of the rule that is read.
        depth: groups that are open.
    """

    source: Source
    pieces: list[Lexeme]
    is_gbnf: bool
    found: dict[str, Node] = field(default_factory=dict)
    skipped: list[Node] = field(default_factory=list)
    asked: dict[str, Lexeme] = field(default_factory=dict)
    at: int = 0
    rule: str = ""
    depth: int = 0

    def rules(self) -> Rules:
        """All of them."""
        while self._next.kind != "end":
            if self._next.kind == "%":
                self._directive()
            else:
                self._rule()
        start = "root" if self.is_gbnf else "start"
        if start not in self.found:
            raise UnknownName("rule of the grammar", start, self.found)
        for name, piece in self.asked.items():
            if name not in self.found:
                self._fail(piece, str(UnknownName("rule", name, self.found)))
        if not self.skipped:
            return Rules(start, self.found)
        spaced = {name: node if _is_terminal(name) else _spaced(node) for name, node in self.found.items()}
        skip: dict[str, Node] = {
            _SKIP: Repeat(Alt(tuple(self.skipped)), 0, None),
            _SPACED: Seq((Ref(_SKIP), Ref(start))),
        }
        return Rules(_SPACED, spaced | skip)

    @property
    def _next(self) -> Lexeme:
        return self.pieces[self.at]

    def _take(self, *kinds: str) -> Lexeme | None:
        """The next piece if it is of one of these kinds."""
        piece = self._next
        if piece.kind not in kinds:
            return None
        self.at += 1
        return piece

    def _want(self, kind: str, what: str) -> Lexeme:
        piece = self._take(kind)
        if piece is None:
            self._fail(self._next, f"expected {what}, got {self._next.text or 'the end'!r}")
        return piece

    def _fail(self, piece: Lexeme, said: str, kind: Callable[[str], Exception] = BadInput) -> NoReturn:
        self.source.fail(piece.at, said, kind)

    # rules

    def _at_head(self) -> bool:
        """Whether a rule or a directive begins here."""
        at = self.at
        if not self.pieces[at].begins or self.pieces[at].kind == "%":
            return self.pieces[at].begins
        while self.pieces[at].kind in ("?", "!"):
            at += 1
        kinds = [piece.kind for piece in self.pieces[at : at + 4]]
        return kinds[:2] in (["name", ":"], ["name", "::="]) or kinds == ["name", ".", "number", ":"]

    def _rule(self) -> None:
        while self._take("?", "!"):
            pass
        piece, sign = self._want("name", "the name of a rule"), "::=" if self.is_gbnf else ":"
        if self._take("."):
            self._want("number", "a priority")
        self._want(sign, f"'{sign}' behind the name of a rule")
        self.rule = piece.text
        self._define(piece, piece.text, self._ways())
        if self._next.kind != "end" and not self._at_head():
            self._fail(self._next, f"{self._next.text!r} belongs to no rule")

    def _define(self, piece: Lexeme, name: str, node: Node) -> None:
        if name in self.found:
            self._fail(piece, f"there is a rule {name!r} already; write its alternatives as one rule, with |")
        if len(self.found) == MOST:
            self._fail(piece, f"a grammar has at most {MOST} rules")
        self.found[name] = node

    def _directive(self) -> None:
        begin = self._want("%", "a directive")
        name = self._want("name", "the name of a directive").text
        if name == "ignore":
            self.rule = "IGNORED"
            self.skipped.append(self._ways())
        elif name == "import":
            self._import(begin)
        else:
            self._fail(begin, f"the directive %{name} can't be honoured; there are %ignore and %import", Unsupported)

    def _import(self, begin: Lexeme) -> None:
        library, what = self._want("name", "the name of a library").text, "the name of a terminal"
        if library != "common":
            self._fail(begin, f"the library {library!r} can't be honoured; there is 'common'", Unsupported)
        if self._take("("):
            names = [self._want("name", what)]
            while self._take(","):
                names.append(self._want("name", what))
            self._want(")", "')' behind the names")
            given = None
        else:
            self._want(".", "a dot behind the name of the library")
            names = [self._want("name", what)]
            given = self._want("name", "a name") if self._take("->") else None
        for piece in names:
            if piece.text not in COMMON:
                self._fail(piece, str(UnknownName("terminal of 'common'", piece.text, COMMON)))
            self._define(piece, (given or piece).text, Pattern(COMMON[piece.text], self.source.where(piece.at)))

    # what a rule says

    def _ways(self) -> Node:
        ways = [self._seq()]
        while self._take("|"):
            ways.append(self._seq())
        return ways[0] if len(ways) == 1 else Alt(tuple(ways))

    def _seq(self) -> Node:
        parts = []
        while self._next.kind not in ("|", ")", "]", "->", "end") and not self._at_head():
            parts.append(self._repeated())
        if self._take("->"):
            self._want("name", "the name of an alternative")
        return parts[0] if len(parts) == 1 else Seq(tuple(parts))

    def _repeated(self) -> Node:
        node = self._atom()
        if not self._at_head() and (piece := self._take(*_OFTEN, "~", "count")):
            low, high = _OFTEN.get(piece.kind) or self._counts(piece)
            if high is not None and high < low:
                self._fail(piece, f"a repetition runs from low to high, got {low} to {high}")
            node = Repeat(node, low, high)
        return node

    def _counts(self, piece: Lexeme) -> tuple[int, int | None]:
        """How often: behind `~`, or in braces."""
        if piece.kind == "~":
            low = self._number()
            return low, self._number() if self._take("..") else low
        first, comma, last = piece.text.strip("{}").partition(",")
        low = self._whole(piece, first)
        return low, (self._whole(piece, last) if last.strip() else None) if comma else low

    def _atom(self) -> Node:
        piece = self._next
        self.at += 1
        match piece.kind:
            case "(":
                return self._grouped(piece, ")")
            case "[":
                return Repeat(self._grouped(piece, "]"), 0, 1)
            case "string":
                return self._string(piece)
            case "regex":
                return self._regex(piece)
            case "letters":
                return Letters(self.source.letters(piece))
            case "." if self.is_gbnf:
                return Letters(((0, LAST),))
            case "name":
                if not self.is_gbnf and _is_terminal(self.rule) and not _is_terminal(piece.text):
                    self._fail(piece, f"a terminal ({self.rule}) can't hold a rule ({piece.text}); make it a rule")
                self.asked.setdefault(piece.text, piece)
                return Ref(piece.text)
            case ":" | "::=":
                self._fail(piece, "a rule begins on a line of its own")
        self._fail(piece, f"expected a text, a name or a group, got {piece.text!r}")

    def _grouped(self, piece: Lexeme, closing: str) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            self._fail(piece, f"groups stand at most {DEEPEST} deep in each other; give one of them a name")
        node = self._ways()
        self._want(closing, f"{closing!r} for the {piece.text!r} of {self.source.where(piece.at)}")
        self.depth -= 1
        return node

    def _string(self, piece: Lexeme) -> Node:
        text = self.source.literal(piece)
        if not self.is_gbnf and self._take(".."):
            last = self.source.literal(self._want("string", "the last letter of a range"))
            if len(text) != 1 or len(last) != 1 or last < text:
                self._fail(piece, f"a range goes from one letter up to another, got {text!r} to {last!r}")
            return Letters(((ord(text), ord(last)),))
        flag, end = self._next, piece.at + len(piece.text)
        if not self.is_gbnf and (flag.kind, flag.text, flag.at) == ("name", "i", end):
            self.at += 1
            return Text(text, fold=True)
        return Text(text)

    def _regex(self, piece: Lexeme) -> Node:
        body, _, flags = piece.text[1:].rpartition("/")
        if flags.strip("i"):
            self._fail(piece, f"the flags {flags!r} can't be honoured; a regex may have i", Unsupported)
        return Pattern(f"(?i:{body})" if flags else body, self.source.where(piece.at))

    def _number(self) -> int:
        piece = self._want("number", "a number")
        return self._whole(piece, piece.text)

    def _whole(self, piece: Lexeme, digits: str) -> int:
        if len(digits.strip()) > 9:
            self._fail(piece, "a repetition has at most nine digits")
        return int(digits)


def _is_terminal(name: str) -> bool:
    """Whether Lark takes a name for a terminal."""
    return name.lstrip("_")[:1].isupper()


def _spaced(node: Node) -> Node:
    """A rule in which something may be skipped behind every terminal."""
    match node:
        case Ref(name) if not _is_terminal(name):
            return node
        case Seq(parts):
            return Seq(tuple(_spaced(part) for part in parts))
        case Alt(ways):
            return Alt(tuple(_spaced(way) for way in ways))
        case Repeat(inner, low, high):
            return Repeat(_spaced(inner), low, high)
    return Seq((node, Ref(_SKIP)))
