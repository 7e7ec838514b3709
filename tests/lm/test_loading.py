"""Names to models: folders, hub ids and what comes in packages; and models back into folders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

import unmask
from small_model import model_of
from small_tokenizers import CHATML, byte_level
from small_tokenizers import write as write_files
from unmask.base.errors import BadCheckpoint, BadInput, UnknownName, Unsupported
from unmask.base.vocab import Vocab
from unmask.lm.load import bundled, locate
from unmask.lm.save import BESIDE
from unmask.models.load import CONFIG, INDEX, WEIGHTS, save

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINTS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with everything that publishers put beside weights."""
    folder, inner = tmp_path_factory.mktemp("published"), byte_level()

    class Like:
        vocab = Vocab(size=280, mask=inner.token_to_id("<|mdm_mask|>"), eos=inner.token_to_id(CHATML[0]))

    save(model_of(Like), folder)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": CHATML[0]}
    write_files(folder, inner, tokenizer_config=settings, generation_config={"eos_token_id": 262})
    (folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}: ")
    (folder / "README.md").write_text("# A model")
    (folder / "modeling_own.py").write_text("raise SystemExit('this must not run')")
    return folder


def cached(home, published, repo="someone/small-model", commit=COMMIT):
    """The hub's cache with one model in it, as its library lays it out."""
    place = home / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir()
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    for number, file in enumerate(sorted(published.iterdir())):
        if file.suffix != ".py":
            shutil.copy(file, place / "blobs" / str(number))
            (snapshot / file.name).symlink_to(place / "blobs" / str(number))
    return snapshot


def in_a_process(code, **env):
    """The hub's library looks at its environment when it is imported."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


class TestHub:
    def test_what_was_fetched_once_loads_without_a_network(self, published, tmp_path):
        snapshot = cached(tmp_path, published)
        code = """
import unmask
lm = unmask.load("someone/small-model")
print(lm.name, lm.source)
print(unmask.load(lm.name).name, unmask.load("someone/small-model", revision="main").name)
print(lm.generate("he", length=4, chat=True).text)
name = "someone/small-model"
for name, how in [("someone/other", {}), (name, {"revision": "v2"}), (f"{name}@v2", {})]:
    try:
        unmask.load(name, **how)
    except unmask.errors.Unsupported as error:
        print(error)
"""
        said = in_a_process(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
        name = f"someone/small-model@{COMMIT}"
        assert said[:2] == [f"{name} {snapshot}", f"{name} {name}"]
        assert said[2].startswith("he: ")
        assert said[3] == "someone/other is neither a folder nor in the hub's cache, and HF_HUB_OFFLINE is set"
        assert said[4] == said[5] == said[3].replace("someone/other", "someone/small-model@v2")

    def test_what_is_fetched(self, published, tmp_path, monkeypatch):
        """Tables first, at what was asked for; then the weights that they name, at the commit that that was."""
        remote, asked = cached(tmp_path, published), []
        (remote / WEIGHTS).unlink()
        tensors = load_file(published / WEIGHTS)
        names = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
        for file in set(names.values()):
            save_file({name: tensors[name] for name in tensors if names[name] == file}, remote / file)
        (remote / INDEX).write_text(json.dumps({"weight_map": names}))

        def fetch(repo, **how):
            asked.append((repo, how))
            return str(remote)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        lm = unmask.load("someone/small-model", revision="v1.0")
        assert lm.name == f"someone/small-model@{COMMIT}"
        (one, tables), (other, weights) = asked
        assert one == other == "someone/small-model"
        assert (tables["revision"], weights["revision"]) == ("v1.0", COMMIT)
        assert weights["allow_patterns"] == ["part-0.safetensors", "part-1.safetensors"]
        patterns = [*tables["allow_patterns"], *weights["allow_patterns"]]
        kept = {*huggingface_hub.utils.filter_repo_objects(
            ["config.json", "a.py", "modeling.json.py", "sub/config.json", "pytorch_model.bin", "chat_template.jinja",
             "merges.txt", "tokenizer.json", "part-0.safetensors", "consolidated.safetensors"],
            allow_patterns=patterns, ignore_patterns=tables["ignore_patterns"],
        )}  # fmt: skip
        assert kept == {"config.json", "chat_template.jinja", "merges.txt", "tokenizer.json", "part-0.safetensors"}
        unmask.load(lm.name)
        assert asked[2][1]["revision"] == COMMIT

    def test_only_pickles(self, published, tmp_path, monkeypatch):
        remote = cached(tmp_path, published)
        (remote / WEIGHTS).rename(remote / "pytorch_model.bin")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **how: str(remote))
        said = f"unmask models convert-format someone/x@{COMMIT} FOLDER --allow-pickle"
        with pytest.raises(Unsupported, match=f"no model.safetensors at 0123456789ab.*{said}"):
            unmask.load("someone/x")

    @pytest.mark.parametrize(
        ("raised", "error", "says"),
        [
            (errors.RepositoryNotFoundError, BadInput, "no folder a/b, and no model of that name on the hub"),
            (errors.GatedRepoError, Unsupported, "a/b is gated: accept its terms at https://huggingface.co/a/b"),
            (errors.RevisionNotFoundError, BadInput, "a/b has no branch, tag or commit 'v3'"),
            (errors.HfHubHTTPError, Unsupported, "can't be fetched from the hub: it broke"),
            (errors.LocalEntryNotFoundError, Unsupported, "a/b@v3 is neither a folder nor in .*can't be reached"),
            (errors.HFValidationError, BadInput, "neither a folder nor a hub id"),
            (ConnectionError, Unsupported, "can't be fetched from the hub: it broke"),
        ],
    )
    def test_errors(self, monkeypatch, raised, error, says):
        class Response:
            headers, request, status_code = {}, None, 404

        def fetch(repo, **how):
            raise (
                raised("it broke", response=Response())
                if issubclass(raised, errors.HfHubHTTPError)
                else raised("it broke")
            )

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        with pytest.raises(error, match=says) as caught:
            unmask.load("a/b", revision="v3")
        assert type(caught.value) is error

    def test_a_cache_that_lacks_something_is_asked_for_what_it_has(self, published, tmp_path, monkeypatch):
        remote = cached(tmp_path, published)

        def fetch(repo, **how):
            raise errors.IncompleteSnapshotError("a file is missing", snapshot_path=str(remote))

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        assert unmask.load("someone/small-model").tokenizer is not None
        (remote / CONFIG).unlink()
        with pytest.raises(BadCheckpoint, match=r"config\.json is missing"):
            unmask.load("someone/small-model")


class TestNames:
    def test_a_folder_comes_before_the_hub(self, published, tmp_path, monkeypatch):
        shutil.copytree(published, tmp_path / "someone" / "thing")
        monkeypatch.chdir(tmp_path)
        assert unmask.load("someone/thing").name == "thing"
        assert unmask.load(Path("someone") / "thing").name == "thing"

    def test_every_bundled_one(self):
        assert {"tiny", "tiny-ar"} <= set(bundled())
        for name in bundled():
            assert locate(name).name == name

    @pytest.mark.parametrize(
        ("name", "how", "error", "says"),
        [
            ("tinny", {}, UnknownName, "Did you mean 'tiny'"),
            ("./nope", {}, BadCheckpoint, "there is no folder ./nope"),
            ("/nowhere/at/all", {}, BadCheckpoint, "there is no folder /nowhere/at/all"),
            ("a/b/c", {}, BadCheckpoint, "there is no folder a/b/c"),
            ("nope.gguf", {}, BadCheckpoint, "there is no file nope.gguf"),
            ("tiny", {"revision": "v1"}, BadInput, "revision= is for a hub id"),
            ("a/b@v1", {"revision": "v1"}, BadInput, "revision= is for a hub id"),
            ("tiny", {"quantize": "int3"}, Unsupported, "'int3'; known: int8"),
            ("", {}, UnknownName, "no model called ''"),
        ],
    )
    def test_bad_ones(self, name, how, error, says):
        with pytest.raises(error, match=says):
            unmask.load(name, **how)


def raw(folder):
    """The bytes of every tensor."""
    return {name: (x.dtype, x.shape, x.reshape(-1).view(torch.uint8).tolist()) for name, x in folder.items()}


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_published_folder_comes_back_byte_for_byte(tmp_path, name, dtype):
    tensors = {key: value.to(dtype) for key, value in load_file(GOLDEN / name / WEIGHTS).items()}
    (tmp_path / "theirs").mkdir()
    shutil.copy(GOLDEN / name / CONFIG, tmp_path / "theirs")
    save_file(tensors, tmp_path / "theirs" / WEIGHTS)
    unmask.load(tmp_path / "theirs", device="cpu").save(tmp_path / "ours")
    assert raw(load_file(tmp_path / "ours" / WEIGHTS)) == raw(tensors)
    assert (tmp_path / "ours" / CONFIG).read_bytes() == (GOLDEN / name / CONFIG).read_bytes()
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [CONFIG, WEIGHTS]


class TestSave:
    def test_what_stands_beside_the_weights_goes_along(self, published, tmp_path):
        lm = unmask.load(published)
        lm.save(tmp_path / "a")
        names = {path.name for path in published.iterdir()} & {CONFIG, WEIGHTS, *BESIDE}
        assert {path.name for path in (tmp_path / "a").iterdir()} == names
        for name in names:
            assert (tmp_path / "a" / name).read_bytes() == (published / name).read_bytes(), name
        back = unmask.load(tmp_path / "a")
        assert back.model.vocab == lm.model.vocab
        assert back.generate("he", length=4, chat=True).tokens == lm.generate("he", length=4, chat=True).tokens

    def test_in_its_own_place(self, published, tmp_path):
        folder = shutil.copytree(published, tmp_path / "a")
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        unmask.load(folder).save(folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_another_dtype(self, published, tmp_path):
        unmask.load(published).save(tmp_path, dtype="bfloat16")
        assert {x.dtype for x in load_file(tmp_path / WEIGHTS).values()} == {torch.bfloat16}
        assert json.loads((tmp_path / CONFIG).read_text())["dtype"] == "bfloat16"

    def test_a_fresh_one(self, lm, tmp_path):
        lm.save(tmp_path)
        back = unmask.load(tmp_path)
        assert back.generate("def f(", length=8).tokens == lm.generate("def f(", length=8).tokens

    def test_rounded_weights_are_not_saved(self, published, tmp_path):
        with pytest.raises(Unsupported, match="rounded by quantize='int8'"):
            unmask.load(published, quantize="int8").save(tmp_path / "a")
        assert not (tmp_path / "a").exists()


def test_quantize(published):
    small, whole = unmask.load(published, quantize="int8"), unmask.load(published)
    tokens = torch.arange(24).view(2, 12)
    worst = float((small.logits(tokens) - whole.logits(tokens)).abs().max())
    assert 0 < worst < 0.1 * float(whole.logits(tokens).abs().max())
    assert small.generate("he", length=4).tokens
