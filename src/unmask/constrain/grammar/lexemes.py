r"""Texts of grammars cut into pieces: names, texts, classes of letters, signs; and where each stands, for errors.

It does not know rules.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from unmask.base.errors import BadInput

LAST = 0x10FFFF
"""The last code point."""
_SIGNS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"} | {sign: sign for sign in "\\\"'/[]-^."}
_CODES = {"x": 2, "u": 4, "U": 8}
"""Digits of escapes."""
LARK = re.compile(
    r"""(?P<blank>[ \t\r\n]+|(?://|\#)[^\n]*)
    |(?P<string>"(?:\\.|[^"\\\n])*")
    |(?P<regex>/(?:\\.|[^/\\\n])+/[a-z]*)
    |(?P<name>_*[A-Za-z][A-Za-z0-9_]*)
    |(?P<number>[0-9]+)
    |(?P<sign>->|\.\.|[:|()\[\]?*+~%!.,])""",
    re.X,
)
GBNF = re.compile(
    r"""(?P<blank>[ \t\r\n]+|\#[^\n]*)
    |(?P<string>"(?:\\.|[^"\\\n])*")
    |(?P<letters>\[(?:\\.|[^\]\\\n])*\])
    |(?P<count>\{[ ]*[0-9]+[ ]*(?:,[ ]*[0-9]*[ ]*)?\})
    |(?P<name>[A-Za-z][A-Za-z0-9_-]*)
    |(?P<sign>::=|[|()?*+.])""",
    re.X,
)


@dataclass(frozen=True, slots=True)
class Lexeme:
    """A piece of a text: its kind, which for a sign is the sign; where it is, and whether it begins a line."""

    kind: str
    text: str
    at: int
    begins: bool


@dataclass(frozen=True, slots=True)
class Source:
    """The text of a grammar."""

    text: str

    def where(self, at: int) -> str:
        """A place, in words."""
        return f"line {self.text.count(chr(10), 0, at) + 1}, column {at - self.text.rfind(chr(10), 0, at)}"

    def fail(self, at: int, said: str, kind: Callable[[str], Exception] = BadInput) -> NoReturn:
        """Raise an error about a place."""
        raise kind(f"the grammar, {self.where(at)}: {said}") from None

    def cut(self, notation: re.Pattern[str]) -> list[Lexeme]:
        """All pieces, and one of the kind "end".

        Raises:
            BadInput: a sign that the notation does not have.
        """
        found, at, begins = [], 0, True
        while at < len(self.text):
            match = notation.match(self.text, at)
            if match is None:
                self.fail(at, f"{self.text[at]!r} is no part of the notation, or what it opens has no end")
            kind, piece = str(match.lastgroup), match[0]
            if kind == "blank":
                begins |= "\n" in piece
            else:
                found.append(Lexeme(piece if kind == "sign" else kind, piece, at, begins))
                begins = False
            at = match.end()
        return [*found, Lexeme("end", "", at, True)]

    def literal(self, lexeme: Lexeme) -> str:
        """What stands between quotes; raises as `_codes`, and for what no constraint allows."""
        text = "".join(chr(code) for code, _ in self._codes(lexeme, lexeme.text[1:-1]))
        if any("\x01" <= letter <= "\x03" for letter in text):
            self.fail(lexeme.at, "no text of a constraint holds the characters U+0001 to U+0003")
        return text

    def letters(self, lexeme: Lexeme) -> tuple[tuple[int, int], ...]:
        """The ranges of a class in brackets; raises as `_codes`."""
        body = lexeme.text[1:-1]
        negated = body.startswith("^")
        codes = self._codes(lexeme, body[1:] if negated else body)
        ranges, at = [], 0
        while at < len(codes):
            first = last = codes[at][0]
            if at + 2 < len(codes) and codes[at + 1] == (ord("-"), False):
                last, at = codes[at + 2][0], at + 2
                if last < first:
                    self.fail(lexeme.at, f"the range {chr(first)!r} to {chr(last)!r} runs backwards")
            ranges.append((first, last))
            at += 1
        return _others(ranges) if negated else tuple(ranges)

    def _codes(self, lexeme: Lexeme, body: str) -> list[tuple[int, bool]]:
        """The code points of a text, and whether they were escaped.

        Raises:
            BadInput: an escape that there isn't, or no character.
        """
        found, at = [], 0
        while at < len(body):
            sign, at = body[at], at + 1
            if sign != "\\":
                found.append((ord(sign), False))
                continue
            sign, at = body[at], at + 1
            if sign in _CODES:
                digits, at = body[at : at + _CODES[sign]], at + _CODES[sign]
                if not re.fullmatch(f"[0-9a-fA-F]{{{_CODES[sign]}}}", digits) or int(digits, 16) > LAST:
                    self.fail(lexeme.at, f"\\{sign} takes {_CODES[sign]} digits of a code point, got {digits!r}")
                found.append((int(digits, 16), True))
            elif sign in _SIGNS:
                found.append((ord(_SIGNS[sign]), True))
            else:
                self.fail(lexeme.at, f"there is no escape \\{sign}; write \\\\ for a backslash")
        if any(0xD800 <= code <= 0xDFFF for code, _ in found):
            self.fail(lexeme.at, "half of a surrogate pair is no character; write \\U and eight digits")
        return found


def _others(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The characters in none of some ranges."""
    found, begin = [], 0
    for first, last in sorted(ranges):
        if first > begin:
            found.append((begin, first - 1))
        begin = max(begin, last + 1)
    return (*found, (begin, LAST)) if begin <= LAST else tuple(found)
