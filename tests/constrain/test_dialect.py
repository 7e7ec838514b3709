import re

import pytest

from unmask.base.errors import BadInput, Unsupported
from unmask.constrain.automata.budget import Meter
from unmask.constrain.automata.dialect import translate
from unmask.constrain.automata.regex import found_in
from unmask.constrain.spec import Choices, Constraint, Regex, Schema, Template


@pytest.mark.filterwarnings("ignore::FutureWarning")  # Python may get set operations one day
@pytest.mark.parametrize(
    ("pattern", "fit", "unfit"),
    [
        (r"(?s)<!--.*-->", ["<!--a\nb-->"], ["<!--"]),
        (r"a(?s:.)b.", ["a\nbc"], ["a\nb\n"]),
        (r"(?i)a(?-i:b)", ["Ab"], ["AB"]),
        (r"[+--]", ["+", ",", "-"], ["."]),
        (r"[^--/]", ["a"], ["-", ".", "/"]),
        (r"[a&&b~~[c]+", ["a&", "~[b"], ["d"]),
        (r"[a\-z-]+", ["a-z"], ["b"]),
        (r"[^\W\d_]+", ["abc"], ["a1", "a_", "a\u0301", "é"]),
        (r"[^\D\S]", [], ["1", " "]),
        (r"[\S]+", ["a-"], ["\x1e", " "]),
        (r"\W", ["-"], ["²", "é", "a"]),
        (r"a{2, 3}", ["a{2, 3}"], ["aa", "aaa"]),
        (r"{{\w+}}|{", ["{{a}}", "{"], ["a"]),
        (r"x{0,2}?y*?", ["", "xxyy"], ["xxx"]),
        (r"^^a$$", ["a"], ["", "aa"]),
        (r"^(^a|^b$)$|^c", ["a", "b", "c"], ["ab", "bc"]),
        (r"\A(?:^|x)a\Z", ["a", "xa"], ["xxa"]),
        (r"[\x00-\x7f]+", ["ab"], ["\x02a", "\x03"]),
        (r"(?P<n>a)(?P<m>b)(c)", ["abc"], ["ab"]),
        (r"\.\ \#", [". #"], []),
        (r"^(?=.*[A-Z])(?=.*\d)(?!.*(?:a|[)]b)).{4,}$", ["xX12"], ["xx12", "X1", "aX12", "X12)b"]),
        (r"(?!no|$)\w*", ["yes", "nix"], ["", "no", "nobody"]),
    ],
)
def test_what_a_regex_means_is_what_python_says(pattern, fit, unfit):
    language = Constraint(body=Regex(pattern)).language(Meter()) if fit else None  # None: no text fits
    for text in fit:
        assert re.fullmatch(pattern, text), text
        assert language.accepts(text.encode()), text
    for text in unfit:
        assert language is None or not language.accepts(text.encode()), text


@pytest.mark.parametrize(
    ("pattern", "fit", "unfit"),
    [
        (r"[\w-.]+", ["a-."], ["`", "/"]),  # a dash beside a class is a dash, as browsers have it
        (r"[\s-x]", [" ", "-", "x"], ["a", "A"]),
        (r"\ud83d\ude00|\u{1F601}", ["😀", "😁"], []),
        (r"\P{L}[\P{L}a][^\P{Lu}]", ["1aA", "--Ä"], ["a1A", "1ba", "\x02aA"]),
        (r"[\p{L}\p{N}_-]+", ["é1-_"], ["+"]),
    ],
)
def test_what_only_ecma_262_reads(pattern, fit, unfit):
    language = Constraint(body=Regex(pattern)).language(Meter())
    assert [text for text in [*fit, *unfit] if language.accepts(text.encode())] == fit


def test_found_in_a_text():
    for pattern, yes, no in ((r"^^a|b$", ["ab", "a", "xb"], ["xa"]), (r"(^|,)a(,|$)", ["a", "b,a", "a,b"], ["ba"])):
        language = found_in(pattern, Meter())
        assert [text for text in [*yes, *no] if language.accepts(text.encode())] == yes


@pytest.mark.parametrize(
    ("pattern", "error", "said"),
    [
        ("a++b", Unsupported, "character 1, has a possessive"),
        ("a{2}+", Unsupported, "possessive"),
        ("(?>a)", Unsupported, "atomic"),
        ("a(?=b)", Unsupported, "character 1, looks around"),
        ("(?(1)a|b)", Unsupported, "what a group has found"),
        (r"(a)\1", Unsupported, "refers back"),
        (r"(?<a>b)\k<a>", Unsupported, r"refers back \(\\k"),
        ("(?m)^a$", Unsupported, "flag 'm'"),
        ("(?x) a", Unsupported, "flag 'x'"),
        ("(?-u:a)", Unsupported, "flag 'u'"),
        (r"\bword", Unsupported, "word border"),
        (r"\012", Unsupported, "octal"),
        (r"\ud83d", Unsupported, "surrogate"),
        ("[[:digit:]]", Unsupported, "POSIX"),
        ("a{,3}", Unsupported, r"write \{0,"),
        ("[]a]", Unsupported, "first in a class"),
        (r"\q", Unsupported, r"escape \\q"),
        ("a**", BadInput, "character 2, repeats a repetition"),
        ("a{2}{3}", BadInput, "repeats a repetition"),
        ("*a", BadInput, "character 0, repeats nothing"),
        ("(|+)", BadInput, "character 2, repeats nothing"),
        ("a{3,2}", BadInput, "from 3 down to 2"),
        ("[z-a]", BadInput, "backwards"),
        (r"\u{110000}", BadInput, "10FFFF"),
        (r"\x4", BadInput, "digits"),
        ("(a", BadInput, "character 0, opens a group"),
        ("a)", BadInput, "never opened"),
        ("[a", BadInput, "without an end"),
        ("a\\", BadInput, "backslash"),
        ("[\\", BadInput, "backslash"),
        ("(?<", BadInput, "not known"),
    ],
)
def test_what_is_refused_is_named_with_its_place(pattern, error, said):
    with pytest.raises(error, match=said):
        translate(pattern)


def test_what_is_banned_hides_behind_no_mark():
    language = Constraint(body=Regex(r"[\x00-\x7f]*"), banned=("a",)).language(Meter())
    assert language.accepts(b"b")
    for text in (b"a", b"\x02a", b"a\x03", b"\x01a\x02"):
        assert not language.accepts(text)


def test_given_texts_hold_no_mark_and_no_half_of_a_pair():
    for asked in (
        Constraint(body=Choices(("\x01",))),
        Constraint(contains=("a\ud800",)),
        Constraint(banned=("\udfff",)),
        Constraint(body=Template(("\x02", Regex("a")))),
    ):
        with pytest.raises(BadInput, match=r"U\+(0001|D800|DFFF|0002)"):
            asked.language(Meter())


def test_patterns_of_a_schema_are_of_the_same_dialect():
    schema = {"type": "string", "pattern": r"^[\w-\.]+@([\w-]+\.)+[\w-]{2,4}$"}
    language = Constraint(body=Schema.of(schema)).language(Meter())
    assert language.accepts(b'"a-b@c-d.org"')
    assert not language.accepts(b'"a`b@c.org"')
