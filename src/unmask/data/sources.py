"""Where documents come from: one kind of source a function, one line in the table.

It does not know tokens. Documents come in an order that does not depend on the file system.
"""

import glob
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unmask.base.errors import BadInput, UnknownName, Unsupported

CODE = [
    ".py",
    ".pyi",
    ".js",
    ".ts",
    ".tsx",
    ".jsx",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".hpp",
    ".rs",
    ".go",
    ".java",
    ".kt",
    ".rb",
    ".sh",
    ".sql",
    ".md",
    ".rst",
    ".toml",
    ".yaml",
    ".yml",
    ".css",
    ".html",
]
"""Endings that count as source code in a folder."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from."""

    text: str
    origin: str


def _text(path: Path, field: str) -> Iterator[Document]:
    """A text file, or every *.txt and *.md below a folder; each file is a document."""
    files = _below(path, (".txt", ".md")) if path.is_dir() else [path]
    for file in files:
        yield Document(_read(file), str(file))


def _code(path: Path, field: str) -> Iterator[Document]:
    """Every source file below a folder, apart from hidden ones; files that are no UTF-8 are left out."""
    if not path.is_dir():
        raise BadInput(f"a source of kind code is a folder, and {path} is none; use kind text for one file")
    for file in _below(path, CODE):
        try:
            yield Document(file.read_text(encoding="utf-8"), str(file))
        except UnicodeDecodeError:
            continue


def _jsonl(path: Path, field: str) -> Iterator[Document]:
    """One JSON object a line, its text under `field`; a file, or every *.jsonl below a folder."""
    for file in _below(path, (".jsonl",)) if path.is_dir() else [path]:
        with file.open("rb") as lines:  # bytes, so that only "\n" ends a line and bad UTF-8 has a line number
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise BadInput(f"{file}, line {number}: not JSON ({error}); mend or remove the line") from error
                if not isinstance(row, dict) or not isinstance(row.get(field), str):
                    keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                    raise BadInput(f"{file}, line {number}: no text under {field!r}, it has {keys}; set `field`")
                yield Document(_whole(row[field], f"{file}, line {number}"), f"{file}:{number}")


def _parquet(path: Path, field: str) -> Iterator[Document]:
    """One row a document, its text in the column `field`; a file, or every *.parquet below a folder."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise Unsupported("Parquet files need pyarrow; install it with: pip install 'unmask[data]'") from error
    for file in _below(path, (".parquet",)) if path.is_dir() else [path]:
        number = 0
        try:
            table = parquet.ParquetFile(file)
            if field not in table.schema_arrow.names:
                names = ", ".join(table.schema_arrow.names)
                raise BadInput(f"{file} has no column {field!r}, it has {names}; set `field`")
            for batch in table.iter_batches(columns=[field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if not isinstance(text, str):
                        raise BadInput(f"{file}, row {number}: {field!r} is {type(text).__name__}, not text")
                    yield Document(text, f"{file}:{number}")
        except (ArrowException, OSError) as error:
            raise BadInput(f"{file} can't be read as Parquet after row {number}: {error}") from error


TABLE: dict[str, Callable[[Path, str], Iterator[Document]]] = {
    "text": _text,
    "code": _code,
    "jsonl": _jsonl,
    "parquet": _parquet,
}


@dataclass(frozen=True, slots=True)
class Source:
    """A place that documents come from: kind, path or pattern, and the field or column that holds the text."""

    kind: str
    path: str
    field: str = "text"


def read(sources: Sequence[Source]) -> Iterator[Document]:
    """All documents of all sources, in order; empty ones are left out.

    Raises:
        UnknownName: no such kind. BadInput: a path that is missing, holds nothing, or can't be read.
    """
    for source in sources:
        if source.kind not in TABLE:
            raise UnknownName("kind of source", source.kind, TABLE)
        found = False
        for path in paths(source):
            try:
                for document in TABLE[source.kind](path, source.field):
                    if document.text.strip():
                        found = True
                        yield document
            except OSError as error:
                raise BadInput(f"the source {source.path}: {error.filename or path}: {error.strerror}") from error
        if not found:
            raise BadInput(f"the source {source.path} (kind {source.kind}) holds no text; check the path and the kind")


def paths(source: Source) -> list[Path]:
    """The file or folder that a source names, or all that its pattern ("books/**/*.txt") matches, sorted.

    Raises:
        BadInput: there is none.
    """
    path = Path(source.path).expanduser()
    if path.exists():
        return [path]
    found = sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not found:
        what = "matches nothing" if glob.has_magic(source.path) else "does not exist"
        raise BadInput(f"the source {source.path} {what}; paths are seen from {Path.cwd()}")
    return found


def _below(folder: Path, endings: Sequence[str]) -> list[Path]:
    files = (p for p in folder.rglob("*") if p.suffix in endings and p.is_file())
    return sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} can't be read as UTF-8 text: {error}") from error


def _whole(text: str, place: str) -> str:
    """The text, if every code point is a character (JSON can spell half of a surrogate pair)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{place}: a lone surrogate at code point {error.start} is no character; remove it") from error
    return text
