import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from worlds import TOKENS, VOCABULARY

from unmask.base.errors import BadInput, OverBudget, Unsupported
from unmask.constrain.automata.budget import Budget, Meter
from unmask.constrain.automata.vocabulary import Vocabulary
from unmask.constrain.compile import Cache, Child, compile_here, compile_in_child
from unmask.constrain.spec import Anything, Choices, Constraint, Either, Regex, Schema, Several, Template, Unlike


def accepts(asked: Constraint, *texts: str) -> list[bool]:
    language = asked.language(Meter())
    return [language.accepts(text.encode()) for text in texts]


def test_bodies_and_conditions():
    assert accepts(Constraint(body=Choices(("ja", "nein"))), "ja", "nein", "j", "jan") == [True, True, False, False]
    form = Template(("Name: ", Regex(r"\w+"), "\nAge: ", Schema.of({"type": "integer", "minimum": 0}), "."))
    assert accepts(Constraint(body=form), "Name: Ada\nAge: 36.", "Name: \nAge: 36.", "Name: A\nAge: -1.") == [
        True,
        False,
        False,
    ]
    both = Constraint(contains=("ab", "ba"))
    assert accepts(both, "abba", "ab ba", "aba", "baab") == [True, True, False, False]
    assert accepts(Constraint(banned=("ab", "c")), "", "ba", "xaby", "c") == [True, True, False, False]
    assert accepts(Constraint(characters=(2, 3)), "a", "éé", "☃☃☃", "abcd") == [False, True, True, False]
    assert accepts(Constraint(words=(2, 2)), "one", "one two", " one  two ", "a b c") == [False, True, True, False]
    assert accepts(Constraint(lines=(2, 3)), "a", "a\nb", "\n\n", "\n\n\n") == [False, True, True, False]
    assert accepts(Constraint(body=Anything()), "", "\n", "𝒳") == [True, True, True]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Constraint(body=Regex("[0-9]+"), contains=("x",)), r"contains=\['x'\]"),
        (Constraint(body=Choices(("ab",)), banned=("b",)), "banned 'b'"),
        (Constraint(body=Choices(("ab",)), characters=(3, 9)), "characters=3 to 9"),
        (Constraint(body=Choices(("a b",)), words=(3, 3)), "words=3 to 3"),
        (Constraint(lines=(3, 2)), "low to high"),
        (Constraint(banned=("",)), "at least one letter"),
        (Constraint(body=Choices(())), "at least one text"),
        (Constraint(body=Regex("c")), "no tokens of this vocabulary"),
    ],
)
def test_what_cannot_be_is_told_with_the_condition(asked, said):
    with pytest.raises(BadInput, match=said):
        compile_here(asked, VOCABULARY)


def test_every_spelling_stays_possible():
    """`ab` as one token or two, and a letter whose bytes are cut in two."""
    found = compile_here(Constraint(body=Regex("abé|aé")), VOCABULARY)
    state = {(): 0}
    spellings = set()
    while state:
        ids, here = state.popitem()
        for token in range(2, len(TOKENS)):
            after = int(found.after[found.class_of[token]][here])
            if after >= 0:
                state[(*ids, token)] = after
                if found.accept[after]:
                    spellings.add(tuple(TOKENS[t] for t in (*ids, token)))
    cut = (b"\xc3", b"\xa9")
    assert spellings == {(b"a", b"b", *cut), (b"ab", *cut), (b"a", *cut), (b"a\xc3", b"\xa9")}


def test_outlines_core_still_needs_the_byte_behind():
    """`own` and `full` go around its fault; when this test fails, the detour can go."""
    from outlines_core import Index
    from outlines_core import Vocabulary as Words

    index = Index("(ab)*", Words(256, {bytes([byte]): [byte] for byte in range(256)}))
    assert ord("a") not in index.get_transitions()[index.get_initial_state()]
    assert accepts(Constraint(body=Regex("(ab)*")), "", "abab", "aba") == [True, True, False]


def test_a_child_finds_the_same():
    asked = Constraint(body=Regex("(ab|é)*a?"), banned=("aba",))
    here, there = compile_here(asked, VOCABULARY), compile_in_child(asked, VOCABULARY)
    for name in ("class_of", "after", "accept"):
        assert (getattr(here, name) == getattr(there, name)).all()
    for error, wrong in ((Unsupported, Regex("a(?=a)")), (BadInput, Choices(()))):
        with pytest.raises(error):
            compile_in_child(Constraint(body=wrong), VOCABULARY)
    with pytest.raises(OverBudget, match="states"):
        compile_in_child(Constraint(characters=(0, 999)), VOCABULARY, Budget(states=50))


@pytest.mark.parametrize(
    ("pattern", "budget", "named"),
    [
        ("([^x]*){3}[01].{20}x", Budget(time_s=1.0), "time_s|num_bytes"),
        ("a{4000}", Budget(states=500, time_s=5.0), "states|time_s"),
        ("(((a{50}){50}){50}){50}", Budget(time_s=1.0, num_bytes=1 << 28), "time_s|num_bytes"),
        (r"\W{200}", Budget(states=1000, time_s=2.0), "states|time_s"),
    ],
)
def test_regexes_that_explode_end_at_the_budget(pattern, budget, named):
    with pytest.raises((OverBudget, Unsupported), match=f"{named}|size"):
        compile_here(Constraint(body=Regex(pattern)), VOCABULARY, budget)


def test_the_cache_is_bounded_and_keyed_by_both():
    one, other = Constraint(body=Regex("a*")), Constraint(body=Regex("b*"))
    cache = Cache()
    first = cache.get(one, VOCABULARY)
    assert cache.get(Constraint(body=Regex("a*")), VOCABULARY) is first
    assert cache.get(one, Vocabulary(TOKENS[:4], ends=[1])) is not first
    assert len(cache) == 2
    small = Cache(num_bytes=first.num_bytes + len(repr(one)) + 1)
    kept = small.get(one, VOCABULARY)
    small.get(other, VOCABULARY)
    assert len(small) == 1
    assert small.get(one, VOCABULARY) is not kept
    assert len(Cache(num_bytes=1)) == 0
    tiny = Cache(num_bytes=1)
    tiny.get(one, VOCABULARY)
    assert len(tiny) == 0


def test_time_in_children_counts():
    """Many regexes, each within bounds, are not within them together."""
    slow = Template(tuple(Regex(f"(?:a|b|{i}){{1,300}}") for i in range(40)))
    with pytest.raises(OverBudget, match="time_s"):
        compile_here(Constraint(body=slow), VOCABULARY, Budget(time_s=0.5))


def test_texts_that_begin_otherwise():
    said = accepts(
        Constraint(body=Unlike('{"é')), "", "{", '{"', "{'", '"{', "x\n\u00a0\u2028", '{"e', '{"è', '{ "é', "\x1f"
    )
    assert all(said)
    assert accepts(Constraint(body=Unlike('{"é')), '{"é', '{"é and more\n') == [False, False]
    with pytest.raises(BadInput, match="every text begins"):
        Constraint(body=Unlike("")).language(Meter())


def test_several_of_a_kind():
    one = Either((Template(("<", Regex("a+"), ">")), Template(("<b>",))))
    several = Constraint(body=Several(one, ", "))
    assert all(accepts(several, "<a>", "<a>, <b>", "<b>, <aa>, <a>"))
    assert not any(accepts(several, "", "<a>,<b>", "<a>, ", ", <a>", "<a><b>"))
    assert len(several.language(Meter())) < 2 * len(Constraint(body=one).language(Meter()))  # not once for each


def test_one_of_several_kinds():
    either = Either((Regex("a+"), Template(("b", Choices(("c", "d"))))))
    assert accepts(Constraint(body=either), "aa", "bc", "bd", "b", "abc") == [True, True, True, False, False]
    with pytest.raises(BadInput, match="no text fits"):
        Constraint(body=Either(())).language(Meter())


SLOW = Constraint(body=Regex("([^x]*){3}[01].{24}x"))
PATIENT = Budget(time_s=60.0, states=1 << 30, num_bytes=1 << 33)


def alive(pid):
    """Whether a process runs, which one that nobody has asked for since it ended does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def group(leader):
    """Processes of a group that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] not in "ZX":
            found.append(stat.parent.name)
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@needs_proc
def test_a_child_that_is_given_up_is_gone_with_all_it_has_started():
    child, said = Child(), []

    def compile():
        try:
            child.compile(SLOW, VOCABULARY, PATIENT)
        except OverBudget as error:
            said.append(error)

    thread = threading.Thread(target=compile)
    thread.start()
    while child._process is None:
        time.sleep(0.01)
    leader = child._process.pid
    while len(group(leader)) < 2:  # itself, and the one that compiles its regex
        time.sleep(0.01)
    child.end()
    thread.join(30)
    assert said
    while group(leader):
        time.sleep(0.01)
    with pytest.raises(OverBudget, match="given up"):
        child.compile(SLOW, VOCABULARY)


@needs_proc
def test_a_child_does_not_outlive_who_asked_it():
    code = """
import os, sys, threading, time
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from test_compile import PATIENT, SLOW, VOCABULARY, Child, group
child = Child()
threading.Thread(target=child.compile, args=(SLOW, VOCABULARY, PATIENT), daemon=True).start()
while child._process is None or len(group(child._process.pid)) < 2:
    time.sleep(0.01)
print(child._process.pid, flush=True)
os._exit(9)
"""
    done = subprocess.run([sys.executable, "-c", code, __file__], capture_output=True, text=True, timeout=60)
    assert done.returncode == 9, done.stderr
    leader = int(done.stdout)
    while group(leader):
        time.sleep(0.01)
    assert not alive(leader)


@pytest.mark.parametrize(
    "wrong",
    [{"type": 5}, {"enum": 3}, {"properties": {"a": 4}}, {"required": 7}, {"items": 3}, {"pattern": []}],
    ids=str,
)
def test_schemas_that_are_none_are_told_as_such(wrong):
    with pytest.raises((BadInput, Unsupported)) as error:
        compile_in_child(Constraint(body=Schema.of(wrong)), VOCABULARY)
    assert not isinstance(error.value, OverBudget)


def test_what_nests_too_deep_is_told_as_such():
    value = []
    for _ in range(900):
        value = [value]
    with pytest.raises((BadInput, Unsupported), match="deep"):
        compile_in_child(Constraint(body=Schema.of({"const": value})), VOCABULARY)
