"""Grammars: their notations, their loops and their depth, against all strings up to a length from slow recognisers."""

import ast
import json
from functools import cache, partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.base.errors import BadInput, OverBudget, UnknownName, Unsupported
from unmask.base.step import State
from unmask.constrain.automata.budget import Budget, Meter
from unmask.constrain.automata.vocabulary import Vocabulary
from unmask.constrain.compile import compile_here, compile_in_child
from unmask.constrain.grammar.notation import COMMON
from unmask.constrain.holes import Holes, Span
from unmask.constrain.spec import Constraint, Grammar

MOST = 5
"""Letters of the strings that are tried."""
ARITHMETIC = """
start: sum
sum: product (("+" | "-") product)*
product: atom (("*" | "/") atom)*
atom: NUMBER | "-" atom | "(" sum ")"
NUMBER: "0" | /[1-9][0-9]{0,5}/
"""
JSON = r"""
root   ::= value
value  ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws ( string ws ":" ws value ws ("," ws string ws ":" ws value ws)* )? "}"
array  ::= "[" ws ( value ws ("," ws value ws)* )? "]"
string ::= "\"" ( [^"\\\x00-\x1F] | "\\" ( ["\\/bfnrt] | "u" [0-9a-fA-F]{4} ) )* "\""
number ::= "-"? ( "0" | [1-9] [0-9]{0,15} ) ( "." [0-9]+ )? ( [eE] [-+]? [0-9]+ )?
ws     ::= [ \t\n]{0,2}
"""


def accepts(text: str, *strings: str, depth: int = 3) -> list[bool]:
    language = Grammar(text, depth).language(Meter())
    return [language.accepts(string.encode()) for string in strings]


def strings(letters: str, most: int = MOST) -> list[str]:
    return ["".join(some) for count in range(most + 1) for some in product(letters, repeat=count)]


# slow recognisers: sets of all strings up to MOST letters, from rules as the test has them

Item = str | tuple[str, "Item"]
"""A small letter, the name of a rule, or an operator and an item."""
Plain = dict[str, list[tuple[Item, ...]]]


def written(rules: Plain) -> str:
    def item(one: Item) -> str:
        if isinstance(one, tuple):
            return f"({item(one[1])}){one[0]}"
        return one.lower() if one.isupper() else f'"{one}"'

    text = "".join(f"{name.lower()}: {' | '.join(' '.join(map(item, way)) for way in rules[name])}\n" for name in rules)
    return f"start: {next(iter(rules)).lower()}\n{text}"


def joined(one, other):
    return {a + b for a in one for b in other if len(a + b) <= MOST}


def read(way, of):
    found = {""}
    for one in way:
        if isinstance(one, tuple):
            inner = read((one[1],), of)
            more = inner if one[0] == "?" else starred(inner)
            words = joined(inner, more) if one[0] == "+" else more | {""}
        else:
            words = of(one) if one.isupper() else {one}
        found = joined(found, words)
    return found


def starred(words):
    found, grown = set(), {""}
    while grown - found:
        found |= grown
        grown = joined(found, words)
    return found


def all_texts(rules: Plain) -> set[str]:
    """All texts of a grammar: sets that grow until nothing is new."""
    found = {name: set() for name in rules}
    while True:
        grown = {name: {t for way in ways for t in read(way, found.__getitem__)} for name, ways in rules.items()}
        if grown == found:
            return found[next(iter(rules))]
        found = grown


def shallow_texts(rules: Plain, depth: int) -> set[str]:
    """The texts that have a tree in which no rule lies inside itself more than `depth` times."""

    @cache
    def of(name, around):
        if around.count(name) > depth:
            return frozenset()
        inside = tuple(sorted((*around, name)))
        return frozenset(t for way in rules[name] for t in read(way, lambda called: of(called, inside)))

    return set(of(next(iter(rules)), ()))


ITEMS = st.recursive(st.sampled_from("xyABC"), lambda inner: st.tuples(st.sampled_from("?*+"), inner), max_leaves=2)
GRAMMARS = st.fixed_dictionaries(
    {name: st.lists(st.lists(ITEMS, max_size=3).map(tuple), min_size=1, max_size=3) for name in "ABC"}
)


@settings(max_examples=100, deadline=None)
@given(GRAMMARS, st.integers(0, 2))
def test_all_that_is_shallow_and_nothing_that_is_not_of_the_grammar(rules, depth):
    found = found_texts(rules, depth)
    assert shallow_texts(rules, depth) <= found <= all_texts(rules)


def found_texts(rules: Plain, depth: int) -> set[str]:
    """What the automaton accepts of all strings up to MOST letters."""
    try:
        language = Grammar(written(rules), depth).language(Meter())
    except BadInput as error:
        if "has no text" not in str(error):
            raise
        return set()
    return {text for text in strings("xy") if language.accepts(text.encode())}


LOOPS: list[Plain] = [
    {"A": [("x", "A"), ("y",)]},
    {"A": [("A", "x"), ("y",)]},
    {"A": [("A", "x"), ("B",)], "B": [("A", "y"), ("x",)]},
    {"A": [("x", "B"), ("y",)], "B": [("y", "A"), ("x", "C")], "C": [("B",), ()]},
    {"A": [("A", "x", "A"), ("y",)]},
    {"A": [("A", "A"), ("x",), ("y", "y")]},
    {"A": [("A", "x", "A"), ("x", "A"), ("A", "y"), ("y",)]},
    {"A": [("A", "x", "A"), ("B",), ("C",)], "B": [("A", "y")], "C": [("y",)]},
    {"A": [("B",), ("C",), ("y",)], "B": [("A", "x", "A")], "C": [("x", "A")]},
    {"A": [("A",), ("x", "B")], "B": [("B",), ("y", ("?", "A"))]},
    {"A": [(("?", "A"), "x")]},
    {"A": [("B", "x"), ("x",)], "B": [("C",)], "C": [("A", "y"), ("A",)]},
]
"""Rules that nest nowhere, whatever the depth."""


@pytest.mark.parametrize("rules", LOOPS)
def test_loops_have_no_bound(rules):
    assert found_texts(rules, 0) == all_texts(rules)


def nesting(text: str) -> int:
    """How deep parentheses nest; -1 where they don't match."""
    open_now = deepest = 0
    for letter in text:
        open_now += {"(": 1, ")": -1}.get(letter, 0)
        if open_now < 0:
            return -1
        deepest = max(deepest, open_now)
    return -1 if open_now else deepest


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize(
    "text",
    [
        'start: "(" start ")" start |',
        'start: start "(" start ")" |',
        'start: start start | "(" start ")" |',
        'start: ("(" start ")")*',
        'start: pair*\npair: "(" start ")"',
        'root ::= ("(" root ")")*',
    ],
)
def test_depth_is_what_lies_inside(text, depth):
    """However it is said, parentheses nest as deep as the rule lies inside itself, and side by side without end."""
    language = Grammar(text, depth).language(Meter())
    for string in strings("()", 8):
        assert language.accepts(string.encode()) == (0 <= nesting(string) <= depth), string


def test_arithmetic_is_what_python_reads():
    language = Grammar(ARITHMETIC, depth=2).language(Meter())
    signs = ast.Expression, ast.Constant, ast.UnaryOp, ast.USub, ast.BinOp, ast.Add, ast.Sub, ast.Mult
    for text in strings("1+-*()", 5):
        try:
            good = all(isinstance(node, signs) for node in ast.walk(ast.parse(text, mode="eval")))
        except SyntaxError:
            good = False
        assert language.accepts(text.encode()) == good, text
    assert language.accepts("+".join(["(1*-(2))"] * 50).encode())
    assert not language.accepts(b"((((1))))")


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ('start: "a"~2..3 "b"~2', ["aabb", "aaabb"], ["abb", "aaaabb", "aab"]),
        ('start: ["a"] ("b" | "c")+ "d"?', ["b", "abcd", "cc"], ["a", "bdd", ""]),
        ('start: "x".."z" "é"i', ["xé", "zÉ"], ["wé", "xe"]),
        ('start: "if"i | "ß"i', ["if", "IF", "iF", "ß"], ["i", "SS"]),
        ('start: /[a-c]+/ /x|y/i', ["abX", "cy"], ["x", "abz"]),
        ('start: A B\nA: "a" | C\nB.2: C "b"\nC: "c"', ["acb", "ccb"], ["ab", "cb"]),
        ('?start: a -> one\n | "(" start ")" -> two\n!a.3: "a"', ["a", "((a))"], ["(a", ""]),
        ('start: "a" // no "b"\n # nor "c"\n  | "\\x41\\u00e9\\n\\"\\\\"', ["a", 'Aé\n"\\'], ["b"]),
        ('start: "a" ("," "a")*\n%ignore " "', ["a,a", " a ,  a ", "a"], ["a a", "aa"]),
        ('start: WORD "=" N\nWORD: "a" "b"\nN: /1 1/\n%ignore " "', ["ab = 1 1"], ["a b=1 1", "ab=11"]),
        ('start: "a"\n%ignore " " | C\nC: "#"', ["# a#", "a"], ["#"]),
        ("start: INT FOO\n%import common.INT\n%import common.WS -> FOO", ["12 \n"], ["12"]),
        ("start: (SIGNED_NUMBER|CNAME)+\n%import common (SIGNED_NUMBER, CNAME)", ["-1.5e3", "_a1", "1e5"], ["-", "1é"]),
        ("start: ESCAPED_STRING C_COMMENT?\n%import common (ESCAPED_STRING, C_COMMENT)",
         ['"a\\"b"', '""/***/', '""/* a*b **/'], ['"a"b"', '"\\"', '""/*/']),
        ('start:\n  | "a"\n', ["", "a"], ["aa"]),
        ('start: a\na: \nb: c\nc: "x"', [""], ["x"]),
        ('root ::= [a-c^] [^a-c\\]\\n] "-"? .', ["ad-x", "^é☃", "c\\\n"], ["aaa", "a]x", "ad"]),
        ('root ::= x{2} | x{3,} y{0,1} # no\n|y{1,2}\nx ::= "x"\ny ::= "\\U0001F600"', ["xx", "xxx😀", "😀😀"], [""]),
        ('root ::= (\n  "a"\n  other-rule\n)\nother-rule ::= [0-9a-]+', ["a-9"], ["a", "ab"]),
        ('root ::= [\\x00-\\U0010FFFF]', ["a", "\x00", "😀"], ["", "\x01", "ab"]),
    ],
)  # fmt: skip
def test_notations(text, good, bad):
    for string in good:
        assert accepts(text, string) == [True], string
    for string in bad:
        assert accepts(text, string) == [False], string


def test_every_common_terminal_is_a_regex():
    Grammar(f"start: {' | '.join(COMMON)}\n%import common ({', '.join(COMMON)})").language(Meter())


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ('start: "a" b', BadInput, "line 1, column 12: no rule called 'b'"),
        ('begin: "a"', UnknownName, "no rule of the grammar called 'start'; known: begin"),
        ('start: "a"\nstart: "b"', BadInput, "line 2, column 1: there is a rule 'start' already"),
        ('start: ("a"\nb: "b"', BadInput, r"line 2, column 1: expected '\)' for the '\(' of line 1, column 8, got 'b'"),
        ('start: "a" b: "b"', BadInput, "line 1, column 13: a rule begins on a line of its own"),
        ('start: "a")', BadInput, r"line 1, column 11: '\)' belongs to no rule"),
        ('start: "a', BadInput, "line 1, column 8: '\"' is no part"),
        ("start: a*b&", BadInput, "line 1, column 11: '&'"),
        ('start: "a"?*', BadInput, r"line 1, column 12: expected a text, a name or a group, got '\*'"),
        ('start: "a"~3..2', BadInput, "from low to high, got 3 to 2"),
        ('start: "a"~9999999999', BadInput, "nine digits"),
        ('start: "ab".."c"', BadInput, "one letter up to another"),
        ('start: "\\q"', BadInput, r"no escape \\q"),
        ('start: "\\ud800"', BadInput, "surrogate"),
        ('start: "\\x02"', BadInput, r"U\+0001 to U\+0003"),
        ('start: "\\x4"', BadInput, "takes 2 digits"),
        ("start: /a/s", Unsupported, "flags 's'"),
        ("\nstart: /(?=a)/ /b/", Unsupported, "line 2, column 8.*looks around"),
        ("start: /b/ /[/", BadInput, "line 1, column 12.*class without an end"),
        (r"start: /b/ /\p{Nix}/", Unsupported, "line 1, column 12"),
        ("start: A\nA: b\nb: A", BadInput, r"a terminal \(A\) can't hold a rule \(b\)"),
        ("start: A\n%declare A", Unsupported, "line 2, column 1: the directive %declare"),
        ("start: A\n%import python.A", Unsupported, "the library 'python'"),
        ("start: A\n%import common.A", BadInput, "terminal of 'common'"),
        ("start: A\n%import common.", BadInput, "expected the name of a terminal, got 'the end'"),
        ("root ::= [z-a]", BadInput, "runs backwards"),
        ("root ::= <think>", BadInput, "line 1, column 10: '<'"),
        ("start: start", BadInput, "has no text"),
        ('start: "(" start ")"', BadInput, "has no text"),
        ("", UnknownName, "start"),
        ("start: " + "(" * 30 + '"a"' + ")" * 30, BadInput, "groups stand at most 24 deep"),
        ('start: "a"\n' + "".join(f'a{i}: "a"\n' for i in range(1001)), BadInput, "at most 1000 rules"),
        ("start: a" + " " * 100_000, BadInput, "100000 characters"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(text, error, said):
    with pytest.raises(error, match=said):
        Grammar(text).language(Meter())


BEGINS, ENDS = (" | ".join(way.replace("I", str(i)) for i in range(200)) for way in ('start "I"', '"I" start'))
DENSE = " | ".join(f'"I" a{j} "{j}"' for j in range(12))


@pytest.mark.parametrize(
    "text",
    [
        'a0: "x" "y"\n' + "".join(f"a{i + 1}: a{i} a{i}\n" for i in range(40)) + "start: a40",
        'start: "a"~1..999999999',
        "start: a~999999999\na:",
        'start: ((("a"~60)~60)~60)~60',
        'start: "x" /[ab]*a[ab]{16}/ | "y" start "z" start',
        'start: ("a" | "b")* "a" ("a" | "b")~16',
        "start: " + " | ".join(f'"{c}" start "{c}"' for c in "abcdefgh") + " | \"x\"",
        "start: a0\n" + "".join(f"a{i}: {DENSE.replace('I', str(i))} | 'z'\n".replace("'", '"') for i in range(12)),
        "".join(f'a{i}: "(" a{i + 1} ")" | a{i} a{i} | a{i + 1}\n' for i in range(300)) + 'a300: a0 | "x"\nstart: a0',
        f'start: ({BEGINS}) (("u" | "v")~9) ({ENDS}) | "x"',
        "start: " + " ".join(f"/{'(a|b)' * 9}{i}+/" for i in range(400)),
    ],
    ids=["doubling", "repeat", "empty", "repeats", "regex", "subsets", "brackets", "dense", "deep", "cross", "many"],
)  # fmt: skip
def test_what_explodes_ends_at_the_budget(text):
    with pytest.raises(OverBudget):
        Grammar(text, depth=8).language(Meter(Budget(time_s=1.5, states=3000)))


def test_long_chains_are_no_deep_stacks():
    """Hundreds of rules, each of the next; and precedence, ten levels, unrolled 12 times."""
    chain = "start: a0\n" + "".join(f'a{i}: "x" a{i + 1} "y" | a{i + 1}\n' for i in range(400)) + 'a400: "z"'
    with pytest.raises(OverBudget):
        Grammar(chain).language(Meter(Budget(states=100)))
    assert accepts("start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(400)) + 'a400: "z"', "z") == [True]
    levels = "".join(f'a{i}: a{i + 1} ("{chr(65 + i)}" a{i + 1})*\n' for i in range(10))
    text = f'start: a0\n{levels}a10: "x" | "(" a0 ")"'
    assert accepts(text, "(" * 12 + "xAxJx" + ")" * 12, "(" * 13 + "x" + ")" * 13, depth=12) == [True, False]


def test_depth_is_checked():
    with pytest.raises(BadInput, match="depth is 0 to 32, got 33"):
        Grammar("start:", depth=33)
    with pytest.raises(BadInput, match="a grammar is a text"):
        Grammar(b"start:")


PIECES = [b"((", b"))", b"1", b"23", b"+-", b")*(", b"\xc3", b"\xa9", b'":', b'"]', b'{"']
VOCABULARY = Vocabulary([b"", b"", *(bytes([byte]) for byte in range(256)), *PIECES], ends=[1])


def test_a_child_finds_the_same_and_the_same_errors():
    asked = Constraint(body=Grammar(ARITHMETIC, depth=1), banned=("((",))
    here, there = compile_here(asked, VOCABULARY), compile_in_child(asked, VOCABULARY)
    for name in ("class_of", "after", "accept"):
        assert (getattr(here, name) == getattr(there, name)).all()
    with pytest.raises(BadInput, match="line 1, column 8: no rule called 'a'"):
        compile_in_child(Constraint(body=Grammar("start: a")), VOCABULARY)


DRAWN = [
    (ARITHMETIC, 24, b"(", partial(ast.parse, mode="eval")),
    (JSON, 32, b"{", json.loads),
]


@pytest.mark.parametrize(("text", "length", "sign", "reader"), DRAWN, ids=["arithmetic", "json"])
def test_drawn_texts_fit_around_what_stands_in_the_middle(text, length, sign, reader):
    """Against readers of their own: Python's of expressions, and of JSON."""
    automaton = compile_here(Constraint(body=Grammar(text)), VOCABULARY)
    middle = VOCABULARY.tokens.index(sign)
    holes = Holes(VOCABULARY.tokens)
    holes.enter(0, [Span(automaton=automaton, start=0, stop=length)])
    tokens = torch.zeros(1, length, dtype=torch.int64)
    state = torch.full((1, length), int(State.OPEN), dtype=torch.uint8)
    tokens[0, length // 2], state[0, length // 2] = middle, int(State.FIXED)
    holes.update(tokens, state)
    at = torch.tensor([i for i in range(length) if i != length // 2])
    uniform = torch.zeros(len(at), len(VOCABULARY), dtype=torch.float64)
    seen = set()
    for seed in range(20):
        tokens[0, at] = holes.sample(torch.zeros_like(at), at, uniform, torch.full_like(at, seed), torch.zeros_like(at))
        written = b"".join(VOCABULARY.tokens[i] for i in tokens[0].tolist()).decode()
        reader(written)
        seen.add(written)
    assert len(seen) == 20
