"""A run and its folder: it goes on exactly, ends when told, refuses what it is not."""

import json
import os
import signal
from io import StringIO

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from toy import raw, recipe

from unmask.base.errors import BadCheckpoint, BadInput, BadRecipe, TrainingFailed
from unmask.models.load import load
from unmask.text.tokenizer import Tokenizer
from unmask.train import recipe as recipes
from unmask.train import resume
from unmask.train.loop import Trainer
from unmask.train.run import cool, train


@pytest.fixture
def console():
    return Console(file=StringIO(), width=200)


def said(console):
    return console.file.getvalue()


def tensors(folder, step):
    file = folder / "checkpoints" / f"step-{step}" / "state.safetensors"
    return {name: tensor.clone() for name, tensor in load_file(file).items()}  # not mapped: tests tear files


def steps(folder):
    return sorted(int(p.name.removeprefix("step-")) for p in (folder / "checkpoints").glob("step-*"))


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


def interrupted(monkeypatch, at):
    """SIGTERM comes to this process while step `at` is done."""
    fair = Trainer.step

    def step(self):
        if self.progress.step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return fair(self)

    monkeypatch.setattr(Trainer, "step", step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of 6 steps, and what it said."""
    folder = tmp_path_factory.mktemp("whole")
    console = Console(file=StringIO(), width=200)
    outcome = train(recipe(folder), folder / "run", console=console, sample=lambda model, tokenizer: "a sample")
    return folder, outcome, console.file.getvalue()


def test_a_run_leaves_a_model_metrics_and_its_recipe(whole):
    folder, outcome, _ = whole
    run = folder / "run"
    assert (outcome.step, outcome.signal, outcome.exit_code) == (6, None, 0)
    model, tokenizer = load(outcome.model), Tokenizer.load(outcome.model)
    assert model.vocab == tokenizer.vocab
    assert (model.traits.sees, model.traits.speaks) == ("all", "here")
    averages = {n.removeprefix("average."): t for n, t in tensors(run, 6).items() if n.startswith("average.")}
    assert same(averages, dict(model.named_parameters()))
    assert recipes.load(run / "recipe.yaml") == recipe(folder)
    assert steps(run) == [4, 5, 6]  # the newest three; 5 is where the rate falls
    told = metrics(run)
    losses = [row for row in told if "loss" in row]
    assert [row["step"] for row in losses] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "lr", "grad_norm", "tokens", "tokens_per_s", "s"} <= losses[0].keys()
    assert [row["step"] for row in told if "held_out_bits_per_byte" in row] == [3, 6]
    assert outcome.bits_per_byte == told[-1]["held_out_bits_per_byte"]


def test_a_piped_run_is_told_in_plain_lines(whole):
    lines = whole[2].splitlines()
    assert any(line.startswith("step 1/6  loss ") and "tokens/s" in line and "left" in line for line in lines)
    assert "\x1b" not in whole[2]


def test_a_terminal_run_shows_a_bar(tmp_path):
    console = Console(file=StringIO(), force_terminal=True, width=120)
    train(recipe(tmp_path, steps=2), tmp_path / "run", console=console)
    assert "training" in said(console)
    assert "held-out" in said(console)


def test_sigterm_saves_at_the_step_border_and_the_resume_is_bitwise_the_same(whole, tmp_path, monkeypatch, console):
    folder, _, _ = whole
    with monkeypatch.context() as patch:
        interrupted(patch, 2)
        outcome = train(recipe(folder), tmp_path / "run", console=console)
    assert (outcome.step, outcome.signal, outcome.exit_code) == (3, signal.SIGTERM, 143)
    assert steps(tmp_path / "run") == [2, 3]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    outcome = train(recipe(folder), tmp_path / "run", console=console)
    assert "going on from step 3" in said(console)
    assert "not bitwise" not in said(console)
    assert outcome.step == 6
    assert same(tensors(tmp_path / "run", 6), tensors(folder / "run", 6))
    kept = [
        {k: r[k] for k in ("step", "loss", "lr", "grad_norm", "tokens")}
        for r in metrics(tmp_path / "run")
        if "loss" in r
    ]
    assert kept == [{k: r[k] for k in kept[0]} for r in metrics(folder / "run") if "loss" in r]


def test_a_finished_run_given_again_does_nothing(whole, console):
    folder, first, _ = whole
    before = metrics(folder / "run")
    outcome = train(recipe(folder), folder / "run", console=console)
    assert (outcome.step, outcome.bits_per_byte) == (6, pytest.approx(first.bits_per_byte))
    assert [row for row in metrics(folder / "run") if "loss" in row] == [row for row in before if "loss" in row]


def test_a_torn_checkpoint_costs_the_steps_since_the_one_before(tmp_path, console):
    train(recipe(tmp_path), tmp_path / "run", console=console)
    expected = tensors(tmp_path / "run", 6)
    torn = tmp_path / "run" / "checkpoints" / "step-6" / "state.safetensors"
    torn.write_bytes(torn.read_bytes()[:1000])
    train(recipe(tmp_path), tmp_path / "run", console=console)
    assert "step-6 is torn" in said(console)
    assert "going on from step 5" in said(console)
    assert same(tensors(tmp_path / "run", 6), expected)
    assert [row["step"] for row in metrics(tmp_path / "run") if "loss" in row] == [1, 2, 3, 4, 5, 6]


def test_a_longer_run_goes_on_from_before_the_rate_fell(tmp_path, console):
    train(recipe(tmp_path, steps=10, keep=1), tmp_path / "run", console=console)
    assert steps(tmp_path / "run") == [8, 10]
    train(recipe(tmp_path, steps=20, keep=1), tmp_path / "run", console=console)
    assert "had begun to fall (train.steps was 10)" in said(console)
    assert "going on from step 8" in said(console)
    train(recipe(tmp_path, steps=20), tmp_path / "whole", console=console)
    assert same(tensors(tmp_path / "run", 20), tensors(tmp_path / "whole", 20))


def test_a_run_that_kept_nothing_from_before_the_fall_says_so(tmp_path, console):
    train(recipe(tmp_path, keep_before_decay=False, keep=1), tmp_path / "run", console=console)
    with pytest.raises(BadRecipe, match=r"no checkpoint of .* fits.*train\.steps"):
        train(recipe(tmp_path, steps=30), tmp_path / "run", console=console)


def test_a_copy_cools_down_while_the_run_stays_as_it_is(whole, tmp_path, console):
    folder, _, _ = whole
    long = recipe(folder, steps=1000, save_every=4)
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, 3)
        train(long, tmp_path / "run", console=console)
    before = sorted(p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*"))
    outcome = cool(tmp_path / "run", tmp_path / "cooled", 3, console=console)
    assert outcome.step == 7
    rates = [row["lr"] for row in metrics(tmp_path / "cooled") if "lr" in row]
    assert len(rates) == 3
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0
    assert before == sorted(p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*"))
    assert cool(tmp_path / "run", tmp_path / "cooled", 3, console=console).step == 7
    with pytest.raises(BadCheckpoint):
        cool(tmp_path / "nothing", tmp_path / "x", 3)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("model.width=64", r"model\.width \(32 then, 64 now\)"),
        ("objective.times=iid", r"objective\.times"),
        ("data.length=16", r"data\.length"),
        ("tokenizer.size=280", r"tokenizer\.size"),
        ("optimizer.name=adamw", r"optimizer\.name"),
        ("train.rows=8", r"train\.rows"),
        ("train.seed=1", r"train\.seed"),
    ],
)
def test_another_recipe_is_refused_with_the_keys_that_differ(whole, setting, named):
    folder, _, _ = whole
    with pytest.raises(BadRecipe, match=named):
        train(recipes.Recipe.of(recipes.override(raw(folder), [setting])), folder / "run")


def test_a_run_may_begin_with_another_of_its_kind_only(whole, tmp_path, console):
    folder, _, _ = whole
    train(recipe(folder, steps=8), tmp_path / "run", start=folder / "run" / "checkpoints" / "step-4", console=console)
    assert "going on from step 4" in said(console)
    with pytest.raises(BadRecipe, match=r"objective\.name"):
        train(recipe(folder, "ar"), tmp_path / "other", start=folder / "run", console=console)
    with pytest.raises(BadCheckpoint):
        train(recipe(folder), tmp_path / "third", start=folder / "nothing", console=console)


def test_other_text_under_the_same_paths_is_refused(tmp_path, console):
    made = recipe(tmp_path, steps=2)
    train(made, tmp_path / "run", console=console)
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write("".join(json.dumps({"text": f"another text {i}"}) + "\n" for i in range(20)))
    with pytest.raises(BadRecipe, match="another text than when the run was begun"):
        train(made, tmp_path / "run", console=console)


def test_one_process_a_folder(whole):
    folder, _, _ = whole
    with resume.alone(folder / "run"), pytest.raises(TrainingFailed, match="another process"):
        train(recipe(folder), folder / "run")


def test_a_missing_source_is_said(tmp_path):
    with pytest.raises(BadInput):
        train(
            recipes.Recipe.of(recipes.override(raw(tmp_path), [f"data.sources.0.path={tmp_path}/no"])), tmp_path / "run"
        )


def test_what_changes_the_last_bits_is_said(whole, console):
    folder, _, _ = whole
    state = resume.newest(recipe(folder), folder / "run")[0]
    machine = state.about["machine"]
    assert resume.differences(state, machine) == []
    assert "threads 1 then, 2 now" in resume.differences(state, machine | {"threads": "2"})[0]
