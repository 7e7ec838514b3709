"""`unmask models` in this process, and a published folder to try it on: fixtures to import."""

import json

import pytest

from small_model import model_of
from small_tokenizers import CHATML, byte_level
from small_tokenizers import write as write_files
from unmask.base.vocab import Vocab
from unmask.cli import main
from unmask.models.load import save


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
