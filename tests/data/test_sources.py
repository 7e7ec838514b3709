"""Every kind of source reads what it says, in a fixed order, and names the place of what it can't read."""

import json
import re
import sys

import pytest

from unmask.base.errors import BadInput, UnknownName, Unsupported
from unmask.data.sources import TABLE, Source, read


def texts(*sources):
    return [d.text for d in read(sources)]


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows)


@pytest.fixture
def shelf(tmp_path):
    (tmp_path / "books" / "old").mkdir(parents=True)
    (tmp_path / "books" / ".git").mkdir()
    for name, text in {
        "b.txt": "bee",
        "old/a.txt": "ay",
        "empty.txt": " \n",
        ".git/c.txt": "sea",
        "d.py": "d = 1",
    }.items():
        (tmp_path / "books" / name).write_text(text)
    return tmp_path / "books"


def test_text_is_a_file_a_folder_or_a_pattern(shelf):
    assert texts(Source("text", str(shelf / "b.txt"))) == ["bee"]
    assert texts(Source("text", str(shelf))) == ["bee", "ay"]
    assert texts(Source("text", f"{shelf}/**/a*.txt"), Source("text", f"{shelf}/*.py")) == ["ay", "d = 1"]


def test_code_is_a_folder_without_what_is_hidden_or_not_text(shelf):
    (shelf / "latin.py").write_bytes(b"# caf\xe9\n")
    assert texts(Source("code", str(shelf))) == ["d = 1"]
    with pytest.raises(BadInput, match="kind text for one file"):
        texts(Source("code", str(shelf / "d.py")))


def test_jsonl_takes_a_field(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(lines({"text": "one\u2028two", "n": 1}, {"text": ""}, {"text": "three"}) + "\n\n")
    found = list(read([Source("jsonl", str(file))]))
    assert [d.text for d in found] == ["one\u2028two", "three"]
    assert found[1].origin == f"{file}:3"
    file.write_text(lines({"body": "x"}))
    assert texts(Source("jsonl", str(tmp_path), "body")) == ["x"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (b'{"text": ', "line 2: not JSON"),
        (b'{"text": "caf\xe9"}', "line 2: not JSON"),
        (b"[1]", "line 2: no text under 'text', it has list"),
        (b'{"body": "x", "id": 3}', "line 2: no text under 'text', it has body, id"),
        (b'{"text": null}', "line 2: no text under 'text'"),
        (b'{"text": "a\\ud800"}', "line 2: a lone surrogate at code point 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, second, message):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "fine"}\n' + second)
    with pytest.raises(BadInput, match=f"{re.escape(str(file))}, {message}"):
        texts(Source("jsonl", str(file)))


def test_parquet_takes_a_column(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "rows.parquet"
    parquet.write_table(arrow.table({"text": ["a", "", "b"], "body": ["c", None, "d"]}), file)
    assert texts(Source("parquet", str(file))) == ["a", "b"]
    with pytest.raises(BadInput, match="row 2: 'body' is NoneType"):
        texts(Source("parquet", str(tmp_path), "body"))
    with pytest.raises(BadInput, match="no column 'words', it has text, body"):
        texts(Source("parquet", str(file), "words"))
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(BadInput, match="can't be read as Parquet"):
        texts(Source("parquet", str(file)))


def test_parquet_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Unsupported, match=r"pip install 'unmask\[data\]'"):
        texts(Source("parquet", str(tmp_path)))


@pytest.mark.parametrize("kind", TABLE)
def test_a_source_that_is_missing_or_empty(tmp_path, kind):
    with pytest.raises(BadInput, match="does not exist"):
        texts(Source(kind, str(tmp_path / "nowhere")))
    with pytest.raises(BadInput, match="matches nothing"):
        texts(Source(kind, f"{tmp_path}/*.none"))
    with pytest.raises(BadInput, match="holds no text"):
        texts(Source(kind, str(tmp_path)))


def test_unknown_kinds_and_text_that_is_none(tmp_path):
    with pytest.raises(UnknownName, match="Did you mean 'jsonl'"):
        texts(Source("json", str(tmp_path)))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match=r"a\.txt can't be read as UTF-8"):
        texts(Source("text", str(tmp_path)))
