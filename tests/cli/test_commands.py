"""The command line as a person, a pipe and a program meet it."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from unmask.cli import COMMANDS
from unmask.cli.view import target
from unmask.decode.effort import Eased


def test_a_process():
    args = [sys.executable, "-m", "unmask", "generate", "--length", "8", "--eos", "forbid"]
    done = subprocess.run(args, input="def add(", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def add(")
    bad = subprocess.run([*args, "--steps", "0"], input="x", capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "unmask: steps is a whole number from 1, not 0\n"


FIELDS = {"text", "completion", "tokens", "forwards", "tokens_per_forward", "seconds"}


def test_generate(unmask, as_json):
    out = as_json("generate", "def add(", "--length", "16", "--steps", "8", "--eos", "forbid")
    assert out.keys() >= FIELDS
    assert (out["tokens"], out["forwards"], out["tokens_per_forward"]) == (16, 8, 2.0)
    assert out["text"] == "def add(" + out["completion"]
    plain = unmask("generate", "def add(", "--length", "16", "--steps", "8", "--eos", "forbid")
    assert plain.stdout == out["text"] + "\n"
    piped = unmask("generate", "--length", "16", "--steps", "8", "--eos", "forbid", stdin="def add(")
    assert piped.stdout == plain.stdout
    many = as_json("generate", "x", "-n", "2", "--length", "4", "--temperature", "1")
    assert len(many) == 2


def test_effort_and_targets(unmask, as_json):
    exact = ("generate", "def add(", "--length", "24", "--eos", "forbid")
    own, medium, instant = (
        as_json(*exact),
        as_json(*exact, "--effort", "medium"),
        as_json(*exact, "--effort", "instant"),
    )
    assert own["token_ids"] == medium["token_ids"]
    assert instant["forwards"] < own["forwards"]
    assert own["eased"] is None
    easy, hard = (as_json(*exact, "--latency-s", seconds) for seconds in ("1000000", "0.000001"))
    assert easy["token_ids"] == own["token_ids"]
    assert easy["eased"] | {"took_s": 0} == {
        "target_s": 1e6,
        "took_s": 0,
        "steps": 0,
        "effort": "medium",
        "numbers": {},
        "kept": True,
    }
    assert (hard["eased"]["effort"], hard["eased"]["kept"]) == ("instant", False)
    assert hard["eased"]["steps"] > 0
    assert hard["eased"]["numbers"].keys() == {"stride", "threshold"}
    for bad, said in (
        (("--effort", "most"), "effort is one of instant, low, medium, high, not 'most'"),
        (("--latency-s", "0"), "latency_s is a number of seconds above 0, not 0.0"),
        (("--effort", "low", "--decoder", "ar"), "effort has no effect on this decoder"),
    ):
        done = unmask(*exact, *bad)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr


def test_figures_tell_what_became_of_a_target():
    missed = Eased(target_s=0.5, took_s=0.75, steps=7, effort="low", numbers={"stride": 2, "threshold": 0.75})
    assert target(missed) == (
        "the target of 0.5 s was missed (0.75 s), 7 steps with less effort, down to low (stride 2, threshold 0.75)"
    )
    kept = Eased(target_s=2.0, took_s=0.75, steps=0, effort="medium")
    assert target(kept) == "the target of 2 s was kept (0.75 s), with full effort"


class TestChat:
    def test_one_message(self, unmask, as_json):
        out = as_json("chat", "tiny", "What is a word?", "--length", "12", "--system", "Be brief.")
        assert out.keys() >= FIELDS
        assert out["text"] == "System:\nBe brief.\n\nUser:\nWhat is a word?\n\nAssistant:\n" + out["completion"]
        plain = unmask("chat", "tiny", "What is a word?", "--length", "12", "--system", "Be brief.")
        assert plain.stdout == out["completion"] + "\n"
        same = ("--chat", "--length", "12", "--steps", "12")
        assert unmask("generate", "hi", *same).stdout == as_json("generate", "hi", *same)["completion"] + "\n"
        assert as_json("generate", "hi", *same)["text"].startswith("User:\nhi\n")

    def test_a_pipe_is_a_conversation(self, unmask):
        lines = "hello\n\nand then?\n/reset\nhello\n/exit\nnever\n"
        done = unmask("chat", "--length", "8", "--json", "--seed", "3", "--temperature", "0.5", stdin=lines)
        assert done.returncode == 0
        first, second, third = (json.loads(line) for line in done.stdout.splitlines())
        assert second["text"].startswith("User:\nhello\n\nAssistant:\n" + first["completion"].strip())
        assert second["text"].count("User:") == 2
        assert third["text"] == first["text"]
        plain = unmask("chat", "--length", "8", "--seed", "3", "--temperature", "0.5", stdin="hello\n")
        assert plain.stdout == first["completion"] + "\n"

    def test_a_conversation_that_is_too_long_ends_a_pipe_in_one_line(self, unmask):
        done = unmask("chat", "--length", "4", stdin="word " * 600)
        assert (done.returncode, done.stdout) == (2, "")
        assert "holds 512" in done.stderr

    def test_a_terminal(self):
        parent, child = pty.openpty()
        env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
        args = [sys.executable, "-m", "unmask", "chat", "--length", "8", "--system", "word " * 480]
        process = subprocess.Popen(args, stdin=child, stdout=child, stderr=child, env=env)
        os.close(child)
        said = iter([b"hello\n", b"/foo\n", b"word " * 60 + b"\n", b"/reset\n", b"bye\n", b"\x04"])
        seen = new = b""
        while True:
            try:
                part = os.read(parent, 65536)
            except OSError:
                break
            if not part:
                break
            seen, new = seen + part, new + part
            if new.endswith(b"> "):  # a prompt: the next line is typed
                os.write(parent, next(said))
                new = b""
        assert next(said, None) is None
        assert process.wait() == 0
        text = seen.decode(errors="replace")
        assert text.count("tokens per forward") == 2  # what could not be answered is said, and the talk goes on
        for word in ("/reset forgets", "░", "masks left", "there is no command /foo", "holds 512"):
            assert word in text


def test_an_audit(unmask, as_json):
    same = ["x = ", "--length", "12", "--eos", "forbid", "--decoder", "fast-dllm-dual", "--block", "6"]
    out = as_json("generate", *same, "--audit", "2")
    drift = out["drift"]
    assert 0 < drift["steps"] == len(drift["looks"]) <= out["forwards"] // 2
    assert 0 < drift["mean_tv"] <= drift["max_tv"] < 1
    plain = as_json("generate", *same)
    assert "drift" not in plain
    assert (plain["text"], plain["forwards"]) == (out["text"], out["forwards"])
    assert "audit has no effect" in unmask("generate", "x", "--audit", "2").stderr


def test_a_block_that_is_left_open(unmask, as_json):
    same = ["x = ", "--length", "20", "--decoder", "d2f", "--threshold", "0.5"]
    out = as_json("generate", *same, "--block", "auto", "--blocks", "auto")
    assert set(out["chosen"]) == {"block", "blocks"}
    numbers = [word for name, number in out["chosen"].items() for word in (f"--{name}", str(number))]
    again = as_json("generate", *same, *numbers)
    assert "chosen" not in again
    assert (again["token_ids"], again["forwards"]) == (out["token_ids"], out["forwards"])


def test_figures_tell_of_an_audit():
    from unmask.cli.view import figures
    from unmask.decode.audit import Drift, Look
    from unmask.decode.trace import Trace
    from unmask.lm.results import Output, Stats

    look = Look(turn=3, targets=5, mean_tv=0.25, max_tv=0.5, mean_kl=0.125, flips=2)
    output = Output(
        text="",
        completion="",
        tokens=[],
        finish_reason="stop",
        logprobs=[],
        changes=[],
        holes=[],
        trace=Trace(),
        stats=Stats(4, 1.0, 0.0, 0, drift=Drift(2, [look])),
    )
    assert "1 audited steps: total variation 0.25 (at most 0.5), 2 of 5 best" in figures(output)


def test_infill_fill_refine(as_json, tmp_path):
    out = as_json("infill", "def f():\n", "\n    return a", "--length", "2-6")
    assert out["text"] == "def f():\n" + out["completion"] + "\n    return a"
    out = as_json("fill", "Dear {{name:1-3}}, {{:4}}.")
    assert [hole["name"] for hole in out["holes"]] == ["name", None]
    text = "first line\r\nsecond line\n"
    file = tmp_path / "text"
    file.write_bytes(text.encode())
    out = as_json("refine", "--file", str(file), "--span", "0:5", "--span", "12:18")
    assert " line\r\n" in out["text"]
    assert out["text"].endswith(" line\n")


def test_score_models_config(unmask, as_json):
    out = as_json("score", "import os\n", "--samples", "8")
    assert out["nats"] > 0
    assert out["bits_per_byte"] > 0
    assert out["bound"]
    assert {"tokens", "forwards", "seconds"} <= out.keys()
    assert "upper bound" in unmask("score", "import os", "--samples", "4").stdout
    names = [m["name"] for m in as_json("models")]
    assert "tiny" in names
    assert as_json("models", "tiny")["parameters"] > 1e6
    assert as_json("config", "recipes/tiny.yaml", "--set", "train.steps=7")["train"]["steps"] == 7
    assert "optimiser steps" in unmask("config", "recipes/tiny.yaml", "--explain").stdout


def test_demo(unmask, as_json):
    jobs = as_json("demo")
    assert all(job["held"] for job in jobs)
    assert {job["model"] for job in jobs} == {"tiny", "tiny-ar (left context only)"}
    assert "per forward" in unmask("demo").stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["generate", ""], "the prompt is empty"),
        (["generate", "x", "--length", "5000"], "holds 512"),
        (["generate", "x", "--length", "many"], "a length is"),
        (["generate", "x", "--model", "nope"], "no model called 'nope'"),
        (["generate", "x", "--model", "./nope"], "no folder"),
        (["generate", "x", "--decoder", "lada"], "Did you mean 'llada'"),
        (["generate", "x", "--temperature", "-1"], "temperature is 0 or more"),
        (["generate", "x", "--block", "0"], "block is a whole number from 1, or auto, not 0"),
        (["generate", "x", "--block", "wide"], "block is a whole number from 1, or auto, not 'wide'"),
        (["generate", "x", "--decoder", "llada", "--block", "auto"], "block=auto chooses among"),
        (["generate", "x", "--stepz", "4"], "No such option: --stepz"),
        (["generate", "x", "--pin", "five=a"], "a pin is POSITION=TEXT"),
        (["generate", "--file", "nope.txt"], "there is no such file"),
        (["chat", "nope"], "no model called 'nope'"),
        (["chat", "tiny", " "], "the message is empty"),
        (["chat", "tiny", "x", "--length", "0"], "a length is"),
        (["generate", " ", "--chat"], "the prompt is empty"),
        (["fill", "{{a:0}}"], "at least 1 token"),
        (["fill", "{{a"], "code point 0"),
        (["fill", "no hole"], "no hole"),
        (["infill", "a", "b", "--length", "0"], "a length is"),
        (["infill", "a", "b", "--length", "9-3"], "ends before it begins"),
        (["refine", "abc", "--span", "2:9"], "3 code points"),
        (["refine", "abc", "--span", "two"], "start:end"),
        (["refine", "abc"], "no spans"),
        (["score", ""], "empty"),
        (["train", "nope.yaml"], "no recipe at nope.yaml"),
        (["train", "recipes/tiny.yaml", "--set", "train.stepz=3"], "Did you mean 'steps'"),
        (["frobnicate"], "No such command"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(unmask, args, says):
    done = unmask(*args)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_a_torn_checkpoint_is_one_line(unmask, tmp_path):
    (tmp_path / "config.json").write_text("{not json")
    done = unmask("generate", "x", "--model", str(tmp_path))
    assert done.returncode == 2
    assert "can't be read as JSON" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_help(unmask, name):
    done = unmask(name, "--help")
    assert done.returncode == 0
    assert "Usage: unmask " + name in done.stdout


@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_sees_the_canvas_fill(colour):
    """Kinds of positions can be told apart with and without colour."""
    parent, child = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    env = {**env, **({} if colour else {"NO_COLOR": "1"})}
    args = ["generate", "def add(", "--length", "24", "--decoder", "remdm", "--steps", "24", "--eta", "0.3"]
    process = subprocess.Popen([sys.executable, "-m", "unmask", *args], stdout=child, stderr=child, env=env)
    os.close(child)
    seen = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    assert process.wait() == 0
    text = seen.decode(errors="replace")
    for sign in ("░", "◌", "masks left", "tokens per forward"):
        assert sign in text
    assert "\x1b[4" in text or ";4" in text  # drafts are underlined
    assert ("\x1b[4;33m" in text) == colour


def test_imports_are_lazy():
    code = "import sys, unmask, unmask.cli; assert 'torch' not in sys.modules, 'torch was imported'"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class TestBench:
    def test_a_setting_beside_token_by_token(self, as_json, tmp_path):
        small = ["--lengths", "8", "--rows", "1,2", "--repeat", "1", "--out", str(tmp_path)]
        told = as_json("bench", "decode", "--setting", "block x quota block=16 steps=4", *small)
        assert told["model"] == "tiny"
        assert [(one["decoder"], one["rows"]) for one in told["speeds"]] == [
            (name, rows) for rows in (1, 2) for name in ("ar", "block x quota block=16 steps=4")
        ]
        assert json.loads((tmp_path / "speed.json").read_text()) == told
        assert (tmp_path / "speed.png").stat().st_size > 10_000

    def test_a_table_for_people(self, unmask):
        done = unmask("bench", "decode", "--lengths", "4", "--rows", "1", "--repeat", "1")
        assert done.returncode == 0
        assert all(word in done.stdout for word in ("decoder", "forwards", "tok/s", "default", "ar"))

    @pytest.mark.parametrize(
        ("wrong", "told"),
        [
            (["--rows", "1,x"], "1,x"),
            (["--lengths", "0"], "numbers above 0"),
            (["--setting", "llada steps"], "llada steps"),
            (["--setting", "llada stepz=3"], "stepz"),
        ],
    )
    def test_what_it_can_not_read(self, unmask, wrong, told):
        done = unmask("bench", "decode", *wrong)
        assert done.returncode == 2
        assert told in done.stderr
        assert done.stderr.count("\n") == 1


class TestConstraints:
    def test_what_the_text_has_to_be(self, as_json, tmp_path):
        file = tmp_path / "person.json"
        file.write_text('{"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}')
        told = as_json("generate", "Person: ", "--length", "20", "--schema", str(file))
        assert list(json.loads(told["completion"])) == ["age"]
        told = as_json("generate", "Is it? ", "--choice", "yes", "--choice", "no")
        assert told["completion"] in ("yes", "no")
        told = as_json("infill", "a ", " b", "--regex", "[0-9]{3}", "--length", "1-9", "--banned", "7")
        assert re.fullmatch("a [0-689]{3} b", told["text"])
        sums = tmp_path / "sums.lark"
        sums.write_text('start: N ("+" N)*\nN: /[0-9]/\n')
        told = as_json("generate", "1 + 2: ", "--length", "7", "--grammar", str(sums))
        assert re.fullmatch(r"[0-9](\+[0-9])*", told["completion"])
        told = as_json("infill", "a ", " b", "--length", "3", "--grammar", str(sums))
        assert re.fullmatch(r"a [0-9](\+[0-9])* b", told["text"])
        told = as_json("fill", "No. {{:3}}.", "--grammar", str(sums))
        assert re.fullmatch(r"No\. [0-9](\+[0-9])*\.", told["text"])
        told = as_json("fill", "No. {{:3}}.", "--regex", "[0-9]{3}")
        assert re.fullmatch(r"No\. [0-9]{3}\.", told["text"])

    def test_refusals(self, unmask, tmp_path):
        broken = tmp_path / "broken.json"
        broken.write_text("{")
        for args, says in (
            (("--schema", str(broken)), "broken.json is no JSON"),
            (("--schema", str(tmp_path / "none.json")), "there is no such file"),
            (("--grammar", str(tmp_path / "none.lark")), "there is no such file"),
            (("--grammar", str(broken)), "the grammar, line 1, column 1"),
            (("--regex", "[a-z]{90}", "--length", "2"), "the shortest text that fits has"),
        ):
            done = unmask("generate", "a", *args)
            assert (done.returncode, done.stdout) == (2, "")
            assert says in done.stderr


def test_a_text_that_grows(as_json):
    rule = ("--decoder", "daedal", "--start", "6", "--insert", "3", "--tail", "4")
    out = as_json("generate", "def f(", "--length", "2-20", *rule)
    assert out["tokens"] <= out["length"] <= 20
    assert out["length"] >= 6
