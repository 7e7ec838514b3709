"""unmask models convert-format: pickles, GGUF files and other layouts to safetensors."""

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from models_command import as_json, published, run  # noqa: F401
from safetensors.torch import load_file

import unmask
from small_gguf import tokens_of, twin
from small_tokenizers import CHATML, byte_level
from unmask.models import unpickle
from unmask.models.load import CONFIG, INDEX, WEIGHTS

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
CHECKPOINTS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))


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
