"""What is written into a hole is judged as it would be by hand, and intervals are as wide as they have to be."""

import gzip
import json

import pytest

from unmask.base.errors import BadInput
from unmask.evals.infill import Task, around, interval, judged, parses, similarity, tasks

ROW = {
    "prompt": "def f(x):\n",
    "canonical_solution": "    return x\n",
    "suffix": "\n\nf(1)\n",
    "test": "",
    "entry_point": "f",
}
LINE = Task("t", "p", "def f(x):\n", "    return x", "\n\n\nf(1)\n", True)


def kept(path, *names):
    text = "\n".join(json.dumps({**ROW, "task_id": name}) for name in names) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["some.jsonl", "some.jsonl.gz"])
def test_tasks_are_read_and_the_end_of_a_line_is_given(tmp_path, name):
    line, span = tasks(
        kept(tmp_path / name, "SingleLineInfilling/HumanEval/7/L2", "RandomSpanInfillingLight/HumanEval/8/1")
    )
    assert line == Task("SingleLineInfilling/HumanEval/7/L2", "HumanEval/7", LINE.before, LINE.hole, LINE.behind, True)
    assert (span.problem, span.hole, span.behind) == ("HumanEval/8", "    return x\n", "\n\nf(1)\n")
    assert not span.is_line
    for task in (line, span):  # nothing is lost
        assert task.before + task.hole + task.behind == "def f(x):\n    return x\n\n\nf(1)\n"


@pytest.mark.parametrize("content", ["nothing of the kind", '{"task_id": "SingleLineInfilling/a/b"}', "[1]"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "some.jsonl").write_text(content)
    with pytest.raises(BadInput, match="human-eval-infilling"):
        tasks(tmp_path / "some.jsonl")
    with pytest.raises(BadInput, match="other"):
        tasks(tmp_path / "other.jsonl.gz")


@pytest.mark.parametrize(
    ("num_before", "num_behind", "room", "kept"),
    [(9, 9, 6, (3, 3)), (9, 9, 7, (4, 3)), (9, 1, 6, (5, 1)), (1, 9, 6, (1, 5)), (2, 2, 6, (2, 2)), (5, 0, 3, (3, 0))],
)
def test_context_is_cut_alike_on_both_sides_and_no_room_is_wasted(num_before, num_behind, room, kept):
    before, behind = list(range(num_before)), list(range(100, 100 + num_behind))
    left, right = around(before, behind, room)
    assert (len(left), len(right)) == kept
    assert left == before[num_before - len(left) :]
    assert right == behind[: len(right)]


def test_a_text_is_judged_in_its_place():
    same = judged(LINE, "    return x  ")
    assert (same.exact, same.similarity, same.parses) == (1, 1, 1)
    other = judged(LINE, "    return y")  # the same but for one character of twelve
    assert (other.exact, other.similarity, other.parses) == (0, pytest.approx(22 / 24), 1)
    assert judged(LINE, "return x").as_dict() == {"exact": 0, "similarity": pytest.approx(16 / 20), "parses": 0}
    assert judged(LINE, "").similarity == 0


def test_similarity_leaves_no_character_out_for_being_common():
    assert similarity("a" * 300, "a" * 300 + "b" * 300) == pytest.approx(600 / 900)


@pytest.mark.parametrize(
    ("program", "good"),
    [
        ("x = 1", True),
        ("x = '\\d'", True),
        ("x = ", False),
        ("x = 1\0", False),
        ("(" * 5000, False),
        ("'\ud800'", False),
    ],
)
def test_whatever_is_no_program_does_not_parse(program, good, recwarn):
    assert parses(program) is good
    assert not recwarn.list


def test_an_interval_is_that_of_a_mean():
    values = [0.0, 1.0] * 200
    low, high = interval(values, list(range(400)))
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / 20, abs=0.01)
    assert high == pytest.approx(0.5 + 1.96 * 0.5 / 20, abs=0.01)
    assert interval([0.25] * 9, list(range(9))) == (0.25, 0.25)
    assert interval(values, list(range(400)), seed=1) != (low, high)


def test_what_is_alike_is_drawn_together():
    """Ten copies of a value tell no more than one: the interval is that of the forty."""
    few = [float(i % 2) for i in range(40)]
    groups = [f"problem {i}" for i in range(40)]
    assert interval([v for v in few for _ in range(10)], [g for g in groups for _ in range(10)]) == pytest.approx(
        interval(few, groups)
    )


def test_an_interval_of_nothing():
    with pytest.raises(BadInput, match="0 and 0"):
        interval([], [])
    with pytest.raises(BadInput, match="2 and 1"):
        interval([1.0, 2.0], ["a"])
