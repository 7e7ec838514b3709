"""Checkpoints are whole or passed over."""

import json
from collections import namedtuple

import pytest
import torch

from unmask.base.errors import TrainingFailed
from unmask.train import checkpoint
from unmask.train.checkpoint import State

Usage = namedtuple("Usage", "total used free")


def state(step):
    return State({"a": torch.full((3,), float(step)), "b/c": torch.tensor(step)}, {"step": step, "x": [1, 2]})


def write(folder, *steps, **options):
    for step in steps:
        checkpoint.save(folder, step, state(step))


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_what_goes_in_comes_out(tmp_path):
    write(tmp_path, 3)
    found, passed_over = checkpoint.newest(tmp_path)
    assert passed_over == []
    assert found.about == {"step": 3, "x": [1, 2]}
    assert found.tensors["a"].tolist() == [3.0] * 3
    assert names(tmp_path) == ["step-3"]


def test_the_newest_is_by_number_not_by_name(tmp_path):
    write(tmp_path, 9, 10)
    assert checkpoint.newest(tmp_path)[0].about["step"] == 10


def test_nothing_there(tmp_path):
    assert checkpoint.newest(tmp_path / "none") == (None, [])


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["cut", "flip", "missing", "empty"])
def test_a_torn_one_is_passed_over_and_said(tmp_path, file, how):
    write(tmp_path, 1, 2)
    path = tmp_path / "step-2" / file
    content = path.read_bytes()
    match how:
        case "cut":
            path.write_bytes(content[:-1])
        case "flip":
            path.write_bytes(content[:5] + bytes([content[5] ^ 1]) + content[6:])
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
    found, passed_over = checkpoint.newest(tmp_path)
    assert found.about["step"] == 1
    assert len(passed_over) == 1
    assert "step-2" in passed_over[0]


def test_a_manifest_that_lists_too_little_is_torn(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "step-1" / "manifest.json").write_text(json.dumps({}))
    assert checkpoint.newest(tmp_path)[0] is None


def test_what_does_not_fit_is_passed_over_too(tmp_path):
    write(tmp_path, 1, 2, 3)
    found, passed_over = checkpoint.newest(tmp_path, lambda s: "too late" if s.about["step"] > 1 else None)
    assert found.about["step"] == 1
    assert len(passed_over) == 2
    assert all("too late" in line for line in passed_over)


def test_the_same_step_again_replaces(tmp_path):
    write(tmp_path, 1)
    checkpoint.save(tmp_path, 1, State({"a": torch.zeros(1)}, {"step": 1, "again": True}))
    checkpoint.prune(tmp_path, 1, keep=3)
    assert names(tmp_path) == ["step-1"]
    assert checkpoint.newest(tmp_path)[0].about["again"]


def test_pruning_leaves_the_newest_the_spare_and_what_lies_ahead(tmp_path):
    write(tmp_path, 1, 2, 3, 4, 5, 9)
    (tmp_path / ".step-7.half").mkdir()
    checkpoint.prune(tmp_path, 5, keep=2, spare=2)
    assert names(tmp_path) == ["step-2", "step-4", "step-5", "step-9"]


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: Usage(1, 1, 10))
    with pytest.raises(TrainingFailed, match="MiB free"):
        write(tmp_path, 2)
    assert names(tmp_path) == ["step-1"]


def test_a_disk_that_fills_up_meanwhile_leaves_the_older_one(tmp_path, monkeypatch):
    write(tmp_path, 1)

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(TrainingFailed, match="the disk is full"):
        write(tmp_path, 2)
    assert names(tmp_path) == ["step-1"]
