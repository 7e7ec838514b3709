"""A folder comes back as it went out, and whatever is wrong with one is one clear line."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_backbone import VARIANTS, build, ids

from unmask.base.errors import BadCheckpoint, BadInput, UnknownName, UnmaskError, Unsupported
from unmask.base.vocab import Traits
from unmask.models.load import CONFIG, INDEX, WEIGHTS, load, save


@pytest.fixture
def folder(tmp_path):
    save(build().float(), tmp_path / "model")
    return tmp_path / "model"


def edit(folder, **changes):
    """Change some keys of config.json; None takes one away."""
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def shard(folder):
    """The same weights in two files under an index."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, folder / file)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {n: file for file, some in parts.items() for n in some}}))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("traits", [Traits(), Traits(sees="blocks", block=4, reads=(1, 16), speaks="next")])
def test_round_trip(tmp_path, variant, traits):
    model = build(traits=traits, **VARIANTS[variant]).float()
    model.defaults = {"policy": "threshold", "threshold": 0.9, "steps": 8}
    save(model, tmp_path)
    back = load(tmp_path, "cpu")
    assert (back.shape, back.vocab, back.traits, back.defaults) == (
        model.shape,
        model.vocab,
        model.traits,
        model.defaults,
    )
    assert {k: v.dtype for k, v in back.state_dict().items()} == dict.fromkeys(model.state_dict(), torch.float32)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in back.state_dict().items())
    assert not back.training
    assert all(weight.requires_grad for weight in back.parameters())
    with torch.no_grad():
        assert torch.equal(back(ids(2, 8)), model(ids(2, 8)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]


def test_the_file_speaks_hugging_face(folder):
    config = json.loads((folder / CONFIG).read_text())
    assert config["model_type"] == "unmask"
    assert config["architectures"] == ["UnmaskForMaskedDiffusion"]
    assert (config["hidden_size"], config["num_hidden_layers"], config["mask_token_id"]) == (32, 2, 0)
    assert "model.layers.1.self_attn.q_proj.weight" in load_file(folder / WEIGHTS)


def test_dtypes(tmp_path):
    model = build()
    save(model, tmp_path, dtype="bfloat16")
    assert json.loads((tmp_path / CONFIG).read_text())["dtype"] == "bfloat16"
    assert {x.dtype for x in load_file(tmp_path / WEIGHTS).values()} == {torch.bfloat16}
    assert {x.dtype for x in load(tmp_path, "cpu").parameters()} == {torch.float32}
    assert {x.dtype for x in load(tmp_path, "cpu", "bfloat16").parameters()} == {torch.bfloat16}
    assert {x.dtype for x in load(tmp_path, "cpu", torch.float64).parameters()} == {torch.float64}
    assert {x.dtype for x in model.parameters()} == {torch.float64}


def test_shards(folder):
    whole = load(folder, "cpu").state_dict()
    shard(folder)
    parts = load(folder, "cpu").state_dict()
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_a_loaded_model_does_not_hang_on_its_file(folder):
    model = load(folder, "cpu")
    before = model.embed_tokens.weight.clone()
    with (folder / WEIGHTS).open("r+b") as file:
        file.write(b"\xff" * os.path.getsize(folder / WEIGHTS))
    assert torch.equal(model.embed_tokens.weight, before)


def test_a_save_that_fails_leaves_the_old_model(folder, monkeypatch):
    before = load(folder, "cpu").state_dict()
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(build(seed=2).float(), folder)
    monkeypatch.undo()
    after = load(folder, "cpu").state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def rewrite(folder, change):
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}  # not mapped
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


HEAD = "model.norm.weight"
BROKEN = {
    "no config": (lambda f: (f / CONFIG).unlink(), "config.json is missing"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no model.safetensors"),
    "config is no JSON": (lambda f: (f / CONFIG).write_text("{"), "can't be read as JSON"),
    "config is binary": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), "can't be read as JSON"),
    "config is nested too deep": (lambda f: (f / CONFIG).write_text("[" * 100000), "can't be read as JSON"),
    "config is a list": (lambda f: (f / CONFIG).write_text("[]"), "one JSON object"),
    "empty weights": (lambda f: cut(f / WEIGHTS, 0), "torn"),
    "torn header": (lambda f: cut(f / WEIGHTS, 20), "torn"),
    "torn data": (lambda f: cut(f / WEIGHTS, 5000), "torn"),
    "absurd header": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 64), "torn"),
    "missing tensor": (lambda f: rewrite(f, lambda t: t.pop(HEAD)), f"missing {HEAD}"),
    "unexpected tensor": (lambda f: rewrite(f, lambda t: t.update(extra=torch.ones(1))), "unexpected extra"),
    "wrong shape": (lambda f: rewrite(f, lambda t: t.update({HEAD: torch.ones(3)})), r"shape \[3\], expected \[32\]"),
    "integers": (lambda f: rewrite(f, lambda t: t.update({HEAD: torch.ones(32).int()})), "floating-point"),
    "a key missing": (lambda f: edit(f, hidden_size=None), "lacks hidden_size"),
    "a key unknown": (lambda f: edit(f, sliding_window=128), "mean nothing here: sliding_window"),
    "a size of text": (lambda f: edit(f, hidden_size="32"), "hidden_size must be int, got '32'"),
    "a size of truth": (lambda f: edit(f, hidden_size=True), "hidden_size must be int, got True"),
    "a size of zero": (lambda f: edit(f, hidden_size=0), "at least 1"),
    "sizes that lie": (lambda f: edit(f, intermediate_size=41), "mlp.down_proj.weight has shape"),
    "absurd width": (lambda f: edit(f, hidden_size=10**12, intermediate_size=10**12), "config.json"),
    "absurd depth": (lambda f: edit(f, num_hidden_layers=10**12), "10{12} layers, but there are"),
    "heads": (lambda f: edit(f, num_attention_heads=3), "must divide"),
    "norm": (lambda f: edit(f, norm="batch"), "norm must be 'rms' or 'layer' or 'layer_no_bias', got 'batch'"),
    "theta": (lambda f: edit(f, rope_theta=float("nan")), "rope_theta"),
    "mask outside": (lambda f: edit(f, mask_token_id=29), "mask_token_id must be an id below 29"),
    "mask of text": (lambda f: edit(f, mask_token_id="<mask>"), "mask_token_id must be int or NoneType"),
    "more ids than rows": (lambda f: edit(f, num_tokens=40), "only 29 rows"),
    "traits": (lambda f: edit(f, traits={"sees": "everything"}), "sees must be 'left' or 'all' or 'blocks'"),
    "traits unknown": (lambda f: edit(f, traits={"hears": "all"}), "traits has no hears"),
    "traits no object": (lambda f: edit(f, traits=[1]), "traits must be an object"),
    "no block": (lambda f: edit(f, traits={"sees": "blocks"}), "sizes of at least 1"),
    "decoder": (lambda f: edit(f, decoder="llada"), "decoder must be an object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_checkpoints_are_one_clear_line(folder, case):
    damage, words = BROKEN[case]
    damage(folder)
    with pytest.raises(BadCheckpoint, match=words) as caught:
        load(folder, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {HEAD: "../a.safetensors"}}, "weight_map from tensors to files of this folder"),
        ({"weight_map": {HEAD: 3}}, "weight_map"),
        ({}, "weight_map"),
        ({"weight_map": {HEAD: "c.safetensors"}}, "c.safetensors is missing"),
        ({"weight_map": {HEAD: "a.safetensors"}}, "missing model"),
        ({"weight_map": {"x": "a.safetensors", "y": "a2.safetensors", "z": "b.safetensors"}}, "repeats model"),
    ],
)
def test_bad_indices(folder, index, words):
    shard(folder)
    (folder / "a2.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(BadCheckpoint, match=words):
        load(folder, "cpu")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_pickles_are_refused(folder, name):
    (folder / WEIGHTS).rename(folder / name)
    with pytest.raises(Unsupported, match=rf"pickled weights \({name}\)"):
        load(folder, "cpu")


def test_unknown_families_and_places(folder, tmp_path):
    with pytest.raises(BadCheckpoint, match="no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UnknownName, match="no dtype called"):
        load(folder, "cpu", "bfloat")
    with pytest.raises(BadInput, match="no device called"):
        load(folder, "gpu0")
    with pytest.raises(Unsupported, match="does not see it"):
        load(folder, "cuda:99")
    with pytest.raises(BadInput, match="a file stands there"):
        save(build(), folder / CONFIG)
    edit(folder, model_type="mamba")
    with pytest.raises(Unsupported, match=r"no family for model_type 'mamba'; nearest: llama.*; known: .*unmask"):
        load(folder, "cpu")
    assert issubclass(Unsupported, UnmaskError)
