r"""What users and schemas write as a regex, in the dialect of Rust's `regex`, which compiles it.

The dialect is the part that ECMA-262, Python and Rust have in common; \d and \w mean ASCII, as in ECMA-262, and what is
negated leaves out all that any of the three would. Everything is written anew, a character as its number, so that
nothing that Rust alone gives a meaning to gets through. The anchors, which no automaton of whole strings has, become
two bytes at the ends of the text. What is no regular language (look-around, back references, word borders), and what
the three read unlike each other, is refused by name and place.

It does not know automata.
"""

import re
from dataclasses import dataclass, field
from typing import NoReturn

from unmask.base.errors import BadInput, Unsupported

FIRST, LAST = "\x02", "\x03"
"""What stands for the ends of a text while anchors are looked for."""
LONGEST = 20_000
"""Characters of a regex; more is no regex that anyone wrote."""
_MARK = r"\x01-\x03"
_SETS = {  # as members of a class: what all readers hold for one
    "d": "0-9",
    "w": "0-9A-Za-z_",
    "s": r" \t\n\r\x0b\x0c",
    "D": rf"[^\d{_MARK}]",
    "W": rf"[^\w\p{{N}}{_MARK}]",
    "S": rf"[^\s\x1c-\x1f\x{{feff}}{_MARK}]",
}
_WIDEST = {  # in a negated class: what any reader holds for one
    "d": r"\d",
    "w": r"\w\p{N}",
    "s": r"\s\x1c-\x1f\x{feff}",
    "D": "[^0-9]",
    "W": "[^0-9A-Za-z_]",
    "S": r"[^ \t\n\r\x0b\x0c]",
}
_LETTERS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_DIGITS = {"x": 2, "u": 4, "U": 8}
_COUNT = re.compile(r"\{([0-9]+)(,([0-9]*))?\}")
_GROUP = re.compile(r"\(\?(?:P?<([^\W\d]\w*)>|([a-zA-Z]*)(-[a-zA-Z]+)?(:|\)))")
_REFUSED = {  # by how a group begins
    "(?=": "looks around, which no automaton does",
    "(?!": "looks around, which no automaton does",
    "(?<=": "looks around, which no automaton does",
    "(?<!": "looks around, which no automaton does",
    "(?P=": "refers back, which no automaton does",
    "(?>": "has an atomic group, which is not supported",
    "(?#": "has a comment, which is not supported",
    "(?(": "asks what a group has found, which no automaton does",
    "(?R": "calls itself, which no automaton does",
    "(?&": "calls a group, which no automaton does",
}


def translate(pattern: str) -> tuple[str, bool]:
    """A regex in Rust's dialect, and whether it has anchors, which become the two marks.

    Raises:
        BadInput: no regex, and where.
        Unsupported: what is no regular language, or is read in more than one way, and where.
    """
    if len(pattern) > LONGEST:
        raise BadInput(f"a regex has at most {LONGEST} characters, got {len(pattern)}")
    reading = _Reading(pattern)
    return reading.whole(), reading.anchored


def looks(pattern: str) -> tuple[list[tuple[bool, str]], str]:
    """What a regex looks ahead for at its very beginning, and the rest of it.

    Such a look is a condition on the whole text, so an automaton can say it. Where there is a choice outside of all
    brackets it is none, and nothing is taken off.

    Returns:
        (wanted, regex) of each look, as it would stand alone; and the regex without them.
    """
    begin = int(pattern.startswith("^"))
    at, found, opened, start = begin, list[tuple[bool, str]](), 0, begin
    while at < len(pattern):
        letter = pattern[at]
        if not opened and at == start and not pattern.startswith(("(?=", "(?!"), at):
            start = -1  # of the rest, which may hold no choice
        if letter == "\\":
            at += 1
        elif letter == "[":
            at = _class_end(pattern, at)
        elif letter == "(":
            opened += 1
        elif letter == ")":
            opened -= 1
            if not opened and start >= 0:
                found.append((pattern[start + 2] == "=", f"^(?:{pattern[start + 3 : at]})"))
                start, rest = at + 1, at + 1
        elif letter == "|" and not opened:
            return [], pattern
        at += 1
    return (found, pattern[:begin] + pattern[rest:]) if found else ([], pattern)


def _class_end(pattern: str, at: int) -> int:
    """Where a class in brackets ends; the last character if it does not."""
    at += 1
    while at < len(pattern) - 1 and pattern[at] != "]":
        at += 1 + (pattern[at] == "\\")
    return at


@dataclass(slots=True)
class _Reading:
    """A regex, and how far it has been read.

    Args:
        dots: whether `.` means line ends, too, in each group that is open.
    """

    pattern: str
    at: int = 0
    anchored: bool = False
    dots: list[bool] = field(default_factory=lambda: [False])

    def whole(self) -> str:
        out, repeatable, opened = [], False, list[int]()
        while self.at < len(self.pattern):
            letter, begin = self.pattern[self.at], self.at
            if (count := self._count()) is not None:
                if not repeatable:
                    self._fail(begin, "repeats nothing", BadInput)
                out.append(count)
                repeatable = False
                continue
            repeatable = True
            self.at += 1
            if letter == "\\":
                out.append(self._outside())
            elif letter == "[":
                out.append(self._class())
            elif letter in "^$":
                out.append(self._anchor(FIRST if letter == "^" else LAST))
                repeatable = False
            elif letter == ".":
                out.append(f"[^{_MARK}]" if self.dots[-1] else rf"[^\n\r{_MARK}]")
            elif letter == "(":
                piece = self._group(begin)
                out.append(piece)
                opened += [begin] if not piece.endswith(")") else []
                repeatable = False
            elif letter == ")":
                if not opened:
                    self._fail(begin, "closes a group that was never opened", BadInput)
                opened.pop()
                self.dots.pop()
                out.append(")")
            elif letter == "|":
                out.append("|")
                repeatable = False
            else:
                out.append(_plain(ord(letter)))
        if opened:
            self._fail(opened[-1], f"opens a group that is not closed ({len(opened)} in all); add )", BadInput)
        return "".join(out)

    def _fail(self, at: int, said: str, kind: type[BadInput] | type[Unsupported] = Unsupported) -> NoReturn:
        shown = repr(self.pattern)
        raise kind(f"the regex {shown if len(shown) <= 100 else f'{shown[:97]}...'}, at character {at}, {said}")

    def _anchor(self, mark: str) -> str:
        self.anchored = True
        return mark

    def _count(self) -> str | None:
        """A repetition that begins here."""
        begin, rest = self.at, self.pattern[self.at : self.at + 24]
        if rest[:1] in ("*", "+", "?"):
            found, self.at = rest[0], begin + 1
        elif match := _COUNT.match(self.pattern, begin):
            low, comma, high = match.groups()
            if high and int(high) < int(low):
                self._fail(begin, f"counts from {low} down to {high}; swap them", BadInput)
            found, self.at = f"{{{int(low)}{',' if comma else ''}{int(high) if high else ''}}}", match.end()
        elif re.match(r"\{,[0-9]+\}", rest):
            self._fail(begin, "has a repetition without its least count, which not all read alike; write {0,...}")
        else:
            return None
        if self.pattern.startswith("?", self.at):  # lazy: the same texts
            self.at += 1
        elif self.pattern.startswith("+", self.at):
            self._fail(begin, "has a possessive repetition, which no automaton does; leave out the second sign")
        if self.pattern.startswith(("*", "+", "?"), self.at) or _COUNT.match(self.pattern, self.at):
            self._fail(self.at, "repeats a repetition; put brackets around the inner one", BadInput)
        return found

    def _group(self, begin: int) -> str:
        """How a group begins; or all of it, where it holds nothing but flags."""
        if not self.pattern.startswith("(?", begin):
            self.dots.append(self.dots[-1])
            return "(?:"
        for opening, said in _REFUSED.items():
            if self.pattern.startswith(opening, begin):
                self._fail(begin, said)
        match = _GROUP.match(self.pattern, begin)
        if match is None:
            self._fail(begin, "begins a group of a kind that is not known", BadInput)
        name, on, off, end = match.groups()
        self.at = match.end()
        if name:
            self.dots.append(self.dots[-1])
            return "(?:"
        on, off = on or "", (off or "")[1:]
        if others := set(on + off) - set("isu") | (set(off) & set("u")):
            self._fail(begin, f"has the flag {min(others)!r}, which is not supported; i and s are")
        dots = ("s" in on or self.dots[-1]) and "s" not in off
        flags = ("i" if "i" in on else "") + ("-i" if "i" in off else "")
        if end == ")":
            self.dots[-1] = dots
            return f"(?{flags})" if flags else "(?:)"
        self.dots.append(dots)
        return f"(?{flags}:"

    def _outside(self) -> str:
        """What an escape outside of a class becomes; its backslash has been read."""
        begin, letter = self.at - 1, self.pattern[self.at : self.at + 1]
        if letter and letter in "bB":
            self._fail(begin, f"asks for a word border (\\{letter}), which is not supported")
        if letter and letter in "AzZ":
            self.at += 1
            return self._anchor(FIRST if letter == "A" else LAST)
        code, members = self._escape(_SETS)
        return _plain(code) if code is not None else f"[{members}]"

    def _escape(self, sets: dict[str, str]) -> tuple[int | None, str]:
        """The character that an escape means, or the members of a class; its backslash has been read."""
        begin, letter = self.at - 1, self.pattern[self.at : self.at + 1]
        self.at += 1
        if not letter:
            self._fail(begin, "ends in a backslash; write \\\\ for one", BadInput)
        if letter in sets:
            return None, sets[letter]
        if letter in _DIGITS:
            return self._code(begin, letter), ""
        follows = self.pattern[self.at : self.at + 1]
        if letter == "0" and follows.isdigit():
            self._fail(begin, "has an octal escape, which not all read alike; write \\x and two digits")
        if letter.isdigit() and letter != "0":
            self._fail(begin, f"refers back (\\{letter}), which no automaton does")
        if letter in "kg" and follows in ("<", "{", "'"):
            self._fail(begin, f"refers back (\\{letter}), which no automaton does")
        if letter == "c" and follows.isascii() and follows.isalpha():
            self.at += 1
            return ord(follows) % 32, ""
        if letter in _LETTERS:
            return ord(_LETTERS[letter]), ""
        if letter in "pP":
            match = re.compile(r"[A-Z]|\{[A-Za-z_]+(=[A-Za-z_]+)?\}").match(self.pattern, self.at)
            if match is None:
                self._fail(begin, f"has \\{letter} without a name of a Unicode class in {{}}", BadInput)
            self.at = match.end()
            return None, f"\\p{match[0]}" if letter == "p" else f"[\\P{match[0]}--[{_MARK}]]"
        if letter.isalnum():
            self._fail(begin, f"has the escape \\{letter}, which is not supported")
        return ord(letter), ""

    def _code(self, begin: int, letter: str) -> int:
        """The code point of an escape by number; two halves of a surrogate pair are one."""
        braced = re.compile(r"\{([0-9A-Fa-f]{1,8})\}").match(self.pattern, self.at)
        plain = re.compile(f"([0-9A-Fa-f]{{{_DIGITS[letter]}}})").match(self.pattern, self.at)
        if (match := braced or plain) is None:
            self._fail(begin, "has an escape without its digits", BadInput)
        self.at, code = match.end(), int(match[1], 16)
        low = re.compile(r"\\u([Dd][C-Fc-f][0-9A-Fa-f]{2})").match(self.pattern, self.at)
        if 0xD800 <= code < 0xDC00 and low:
            self.at = low.end()
            return 0x10000 + ((code - 0xD800) << 10) + int(low[1], 16) - 0xDC00
        if 0xD800 <= code < 0xE000:
            self._fail(begin, "has half of a surrogate pair, which is no character; write the whole character")
        if code > 0x10FFFF:
            self._fail(begin, f"names the character {code:X}, and the last is 10FFFF", BadInput)
        return code

    def _class(self) -> str:
        """A class in brackets, whose first has been read; in a negated one the marks are no characters."""
        begin = self.at - 1
        negated = self.pattern.startswith("^", self.at)
        self.at += negated
        sets, out = (_WIDEST if negated else _SETS), list[str]()
        if self.pattern.startswith("]", self.at):
            # empty in ECMA-262, a bracket in Python and Rust: nobody means the one or the other
            self._fail(self.at, "has ']' first in a class; write \\] for the bracket")
        while not self.pattern.startswith("]", self.at):
            place = self.at
            first, members = self._member(begin, sets)
            if not self.pattern.startswith("-", self.at) or self.pattern.startswith("-]", self.at):
                out.append(members or _plain(first or 0))
                continue
            self.at += 1
            last, others = self._member(begin, sets)
            if first is None or last is None:  # a class at either end of a dash, which is one itself then
                out += [members or _plain(first or 0), _plain(ord("-")), others or _plain(last or 0)]
            elif last < first:
                self._fail(place, f"has the range {chr(first)!r} to {chr(last)!r}, which runs backwards", BadInput)
            else:
                out.append(f"{_plain(first)}-{_plain(last)}")
        self.at += 1
        inside = "".join(out)
        return f"[^{inside}{_MARK}]" if negated else f"[{inside}]"

    def _member(self, begin: int, sets: dict[str, str]) -> tuple[int | None, str]:
        """A character of a class, or the members of a class in it."""
        if self.at >= len(self.pattern):
            self._fail(begin, "has a class without an end; add ]", BadInput)
        letter = self.pattern[self.at]
        self.at += 1
        if letter != "\\":
            if letter == "[" and self.pattern.startswith((":", ".", "="), self.at):
                self._fail(self.at - 1, "has a class of POSIX, which not all read alike; write its letters")
            return ord(letter), ""
        if self.pattern.startswith("b", self.at):
            self.at += 1
            return 8, ""
        return self._escape(sets)


def _plain(code: int) -> str:
    """A character as Rust reads it anywhere."""
    letter = chr(code)
    return letter if letter.isascii() and letter.isalnum() else f"\\x{{{code:x}}}"
