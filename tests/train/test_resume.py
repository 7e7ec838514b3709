"""A run that was stopped, killed or starved of disk ends where the uninterrupted one ends, to the bit."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from small_run import raw_recipe, recipe, texts, write_corpus
from unmask.base.errors import BadCheckpoint, TrainingFailed
from unmask.train import checkpoint
from unmask.train.run import train

ROOT = Path(__file__).parent.parent.parent
TIMES = {"s", "at", "seconds", "seconds_per_step", "tokens_per_s"}


def run(chosen, folder, **options):
    """The outcome and what was told."""
    told = Console(file=io.StringIO(), width=500)
    return train(chosen, folder, console=told, **options), told.file.getvalue()


def last(folder):
    state, _ = checkpoint.newest(folder / "checkpoints")
    assert state is not None
    return state


def steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def metrics(folder):
    """Rows without clocks."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def assert_same(a, b):
    """Two run folders hold the same weights, average, optimiser state, counts and shipped model."""
    one, two = last(a), last(b)
    assert one.tensors.keys() == two.tensors.keys()
    kinds = {name.partition(".")[0] for name in one.tensors}
    assert kinds == {"model", "average", "optimizer"}
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, two.tensors[name]), name
    assert {**one.about, "seconds": 0} == {**two.about, "seconds": 0}
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (a / "model" / file).read_bytes() == (b / "model" / file).read_bytes()


def tear(path):
    file = path / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


class StopAfter(Console):
    """A console that has the process ask itself to stop once a step is told of."""

    def __init__(self, step, number):
        super().__init__(file=io.StringIO(), width=500)
        self.stop_at, self.number = f"step {step}/", number

    def print(self, *args, **kwargs):
        super().print(*args, **kwargs)
        if str(args[0]).startswith(self.stop_at):
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("stop", [1, 13])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, optimizer, stop):
    chosen = recipe(tmp_path, optimizer__name=optimizer)
    whole, _ = run(chosen, tmp_path / "whole")
    first = train(chosen, tmp_path / "parts", console=StopAfter(stop, signal.SIGTERM))
    assert (first.step, first.signal) == (stop, signal.SIGTERM)
    assert last(tmp_path / "parts").about["step"] == stop
    second, told = run(chosen, tmp_path / "parts")
    assert f"going on from step {stop}" in told
    assert (second.step, second.signal) == (24, None)
    assert second.bits_per_byte == whole.bits_per_byte
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert [r for r in metrics(tmp_path / "parts") if "loss" in r] == [
        r for r in metrics(tmp_path / "whole") if "loss" in r
    ]


def test_an_interrupt_saves_too(tmp_path):
    outcome = train(recipe(tmp_path), tmp_path / "run", console=StopAfter(4, signal.SIGINT))
    assert (outcome.step, outcome.signal) == (4, signal.SIGINT)
    assert steps(tmp_path / "run") == [4]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_killed_at_random_moments(tmp_path):
    """The benchmark, small: processes of their own, SIGKILL."""
    script = ROOT / "benchmarks" / "kill_resume.py"
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "3", "--steps", "24", "--save-every", "3", "--out", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout
    assert_same(tmp_path / "uninterrupted", tmp_path / "killed")


def test_sigterm_through_the_command_line(tmp_path):
    file, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(raw_recipe(tmp_path, train__steps=100_000, train__save_every=50_000)))
    command = [sys.executable, "-m", "unmask", "train", str(file), "--out", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step 3/"):
                break
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143, out + err
    assert err == ""
    state = last(folder)
    assert 3 <= state.about["step"] < 100_000
    assert f"step {state.about['step']}, held-out" in out
    assert (folder / "model" / "model.safetensors").is_file()


class TestTornCheckpoints:
    @pytest.fixture
    def killed(self, tmp_path):
        """A run stopped after step 12, with checkpoints of steps 6 and 12."""
        train(recipe(tmp_path), tmp_path / "run", console=StopAfter(12, signal.SIGTERM))
        assert steps(tmp_path / "run") == [6, 12]
        return tmp_path / "run"

    def test_the_newest_is_passed_over_with_a_word(self, tmp_path, killed):
        tear(killed / "checkpoints" / "step-12")
        _, told = run(recipe(tmp_path), killed)
        assert re.search(r"checkpoint \S+step-12 is torn", told)
        assert "going on from step 6" in told
        run(recipe(tmp_path), tmp_path / "whole")
        assert_same(killed, tmp_path / "whole")

    def test_all_torn_begins_again(self, tmp_path, killed):
        for path in (killed / "checkpoints").glob("step-*"):
            tear(path)
        _, told = run(recipe(tmp_path), killed)
        assert told.count("is torn") == 2
        assert "going on" not in told
        run(recipe(tmp_path), tmp_path / "whole")
        assert_same(killed, tmp_path / "whole")

    def test_a_torn_one_does_not_push_out_whole_ones(self, tmp_path, killed):
        tear(killed / "checkpoints" / "step-12")
        chosen = recipe(tmp_path, train__keep=1, train__save_every=3, train__keep_before_decay=False)
        train(chosen, killed, console=StopAfter(9, signal.SIGTERM))
        assert last(killed).about["step"] == 9

    def test_a_draft_is_ignored_and_cleaned(self, tmp_path, killed):
        checkpoints = killed / "checkpoints"
        draft = checkpoints / ".step-18.0badcafe"
        shutil.copytree(checkpoints / "step-12", draft)
        _, told = run(recipe(tmp_path), killed)
        assert "going on from step 12" in told
        assert "torn" not in told
        assert not draft.exists()

    def test_metrics_go_back_to_the_checkpoint(self, tmp_path, killed):
        """A killed run had told of steps that are done again, and maybe of half a one."""
        with (killed / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 13, "loss": 99.0}) + '\n{"step": 14, "lo')
        run(recipe(tmp_path), killed)
        told = [row["step"] for row in metrics(killed) if "loss" in row]
        assert told == list(range(1, 25))


class TestNoRoom:
    def test_a_full_disk_ends_the_run_and_spares_what_is_there(self, tmp_path, monkeypatch):
        chosen, folder = recipe(tmp_path), tmp_path / "run"
        train(chosen, folder, console=StopAfter(6, signal.SIGTERM))
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
        with pytest.raises(TrainingFailed, match="MiB free and a checkpoint needs"):
            run(chosen, folder)
        monkeypatch.undo()
        assert steps(folder) == [6]
        assert last(folder).about["step"] == 6
        run(chosen, folder)
        run(chosen, tmp_path / "whole")
        assert_same(folder, tmp_path / "whole")

    def test_a_limit_met_while_writing(self, tmp_path):
        """The real thing: the system refuses to let a file grow."""
        script = f"""
import resource, signal, torch
from pathlib import Path
from unmask.base.errors import TrainingFailed
from unmask.train.checkpoint import State, newest, save
folder = Path({str(tmp_path)!r})
save(folder, 1, State({{"model.a": torch.ones(10)}}, {{}}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save(folder, 2, State({{"model.a": torch.ones(100_000)}}, {{}}))
except TrainingFailed:
    assert newest(folder)[0].about["step"] == 1
    print("refused", sorted(path.name for path in folder.iterdir()))
"""
        done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
        assert done.stdout == "refused ['step-1']\n", done.stdout + done.stderr


class TestAFinishedRun:
    @pytest.fixture
    def folder(self, tmp_path):
        run(recipe(tmp_path, train__steps=6), tmp_path / "run")
        return tmp_path / "run"

    def test_raising_the_steps_of_a_constant_rate_goes_on_from_the_end(self, tmp_path):
        flat = {"schedule": {"warmup": 2, "decay": 0.0}}
        run(recipe(tmp_path, **flat, train__steps=7), tmp_path / "grown")
        _, told = run(recipe(tmp_path, **flat, train__steps=15), tmp_path / "grown")
        assert "going on from step 7" in told
        run(recipe(tmp_path, **flat, train__steps=15), tmp_path / "whole")
        assert_same(tmp_path / "grown", tmp_path / "whole")

    def test_another_learning_rate_may_go_on(self, tmp_path, folder):
        outcome, _ = run(recipe(tmp_path, train__steps=8, optimizer__lr=0.001), folder)
        assert outcome.step == 8

    def test_a_touched_source_is_the_same_source(self, tmp_path, folder):
        write_corpus(tmp_path, texts())
        outcome, _ = run(recipe(tmp_path, train__steps=8), folder)
        assert outcome.step == 8

    def test_a_model_that_was_not_shipped_is_shipped(self, tmp_path, folder):
        """Killed after the last checkpoint and before the model folder was written: that holds an older model."""
        good = (folder / "model" / "model.safetensors").read_bytes()
        (folder / "model" / "model.safetensors").write_bytes(b"older")
        run(recipe(tmp_path, train__steps=6), folder)
        assert (folder / "model" / "model.safetensors").read_bytes() == good


class TestStart:
    def test_a_branch_is_the_run_it_came_from(self, tmp_path):
        """A checkpoint kept from before the decay goes on as the run did."""
        run(recipe(tmp_path), tmp_path / "long")
        assert 18 in steps(tmp_path / "long")  # a quarter of 24 steps decays
        _, told = run(recipe(tmp_path), tmp_path / "copy", start=tmp_path / "long" / "checkpoints" / "step-18")
        assert "going on from step 18" in told
        assert_same(tmp_path / "long", tmp_path / "copy")

    def test_the_folder_s_own_checkpoint_wins(self, tmp_path):
        run(recipe(tmp_path, train__steps=6), tmp_path / "a")
        flat = {"schedule": {"warmup": 2, "decay": 0.0}}
        run(recipe(tmp_path, **flat, train__steps=8), tmp_path / "b")
        _, told = run(recipe(tmp_path, **flat, train__steps=9), tmp_path / "b", start=tmp_path / "a")
        assert "going on from step 8" in told

    def test_no_checkpoint_there(self, tmp_path):
        with pytest.raises(BadCheckpoint, match="nowhere"):
            run(recipe(tmp_path), tmp_path / "run", start=tmp_path / "nowhere")


class TestWhatIsKept:
    def test_the_newest_and_the_one_before_the_decay(self, tmp_path):
        run(recipe(tmp_path, train__save_every=2, train__keep=2), tmp_path / "run")
        assert steps(tmp_path / "run") == [18, 22, 24]

    def test_only_the_newest(self, tmp_path):
        chosen = recipe(tmp_path, train__save_every=2, train__keep=2, train__keep_before_decay=False)
        run(chosen, tmp_path / "run")
        assert steps(tmp_path / "run") == [22, 24]

    def test_nothing_executable(self, tmp_path):
        run(recipe(tmp_path, train__steps=2), tmp_path / "run")
        names = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
        assert names <= {"", ".safetensors", ".json", ".jsonl", ".yaml", ".npy", ".bin"}
