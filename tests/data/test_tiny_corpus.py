"""The corpus builder's own judgement: what is cleaned, what is a copy, whose licence will do."""

import importlib.util
import io
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny_corpus.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("tiny_corpus", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_corpus"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["tiny_corpus"]


PROSE = "Words that make sense, again and again.\n" * 8


def test_what_is_cleaned_and_what_is_dropped(recipe):
    assert recipe.clean(b"\xef\xbb\xbf" + PROSE.replace("\n", "  \r\n").encode()) == PROSE
    assert recipe.clean(b"short\n") is None
    assert recipe.clean(PROSE.encode("utf-16")) is None
    assert recipe.clean((PROSE + "x" * 501).encode()) is None
    assert recipe.clean(("# DO NOT EDIT\n" + PROSE).encode()) is None
    assert recipe.clean(b"0x1F, 0x2E, 0x3D,\n" * 40) is None


def test_copies_are_told_apart(recipe):
    lines = [f"this is line number {i} of a document of some length" for i in range(20)]
    is_new = recipe.Unique()
    assert is_new("\n".join(lines))
    assert not is_new("\n".join(lines))
    assert not is_new("\n".join([*lines[:18], "and two lines at the end that are not the same", "x"]))
    assert is_new("\n".join([*lines[:5], *(f"{line}, changed" for line in lines)]))


@pytest.mark.parametrize(
    ("path", "junk"),
    [
        ("flask/app.py", False),
        ("attr/_make.py", False),
        ("networkx/tests/x.py", True),
        ("test_a.py", True),
        ("a/conftest.py", True),
        ("encodings/cp1252.py", True),
        ("pip/_vendor/x.py", True),
    ],
)
def test_which_files_are_junk(recipe, path, junk):
    assert bool(recipe.JUNK.search(path)) == junk


def test_licences(recipe, capsys):
    archive = recipe.Archive(name="a", version="1", file=Path("a.whl"))
    assert recipe.licence_of(b"License-Expression: MIT OR Apache-2.0\n", archive) == "MIT OR Apache-2.0"
    assert recipe.licence_of(b"Classifier: License :: OSI Approved :: BSD License\n", archive) == "BSD License"
    for said in (b"License: GPL-3.0 or MIT\n", b"Name: a\n"):
        with pytest.raises(SystemExit) as stop:
            recipe.licence_of(said, archive)
        assert stop.value.code == 2
    assert "not known to be permissive" in capsys.readouterr().err


def test_character_vectors_of_r(recipe):
    lines = ["EMMA", "", "CHAPTER I"]
    body = b"X\n" + struct.pack(">iiii", 3, 0, 0, 5) + b"UTF-8" + struct.pack(">ii", 16, len(lines))
    body += b"".join(struct.pack(">ii", 0x40009, len(s)) + s.encode() for s in lines)
    block = struct.pack(">I", len(body)) + zlib.compress(body)
    assert list(recipe.character_vectors(block * 2)) == [lines, lines]


def test_files_of_a_debian_package(recipe, tmp_path):
    inside = io.BytesIO()
    with tarfile.open(fileobj=inside, mode="w:xz") as tar:
        item = tarfile.TarInfo("./usr/a.py")
        item.size = 3
        tar.addfile(item, io.BytesIO(b"a=1"))
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": inside.getvalue()}
    data = b"!<arch>\n"
    for name, content in members.items():
        data += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
            + content
            + b"\n" * (len(content) % 2)
        )
    (tmp_path / "a_1_all.deb").write_bytes(data)
    archive = recipe.deb("a", tmp_path)
    assert (archive.version, list(recipe.files_of_deb(archive))) == ("1", [("usr/a.py", b"a=1")])


def test_a_missing_command_is_named(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as stop:
        recipe.deb("python3.11-doc", tmp_path)
    assert stop.value.code == 2
    assert "can't fetch the Debian package python3.11-doc" in capsys.readouterr().err
