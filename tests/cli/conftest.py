"""The command line in a process of the tests."""

import io
import json
from dataclasses import dataclass

import pytest

from unmask.cli import main


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def unmask(capfd, monkeypatch):
    """The command line in this process, as torch takes a second to import; `test_a_process` starts a real one."""

    def run(*args, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        monkeypatch.setenv("COLUMNS", "100")
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(args))
        out, err = capfd.readouterr()
        return Done(ended.value.code or 0, out, err)

    return run


@pytest.fixture
def as_json(unmask):
    def run(*args, **kwargs):
        done = unmask(*args, "--json", **kwargs)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
