"""Where documents come from: a table of source kinds.

A source knows its files and how to read documents out of them, always in the same order. It does not know tokens,
splits or training.
"""

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from unmask.base.errors import BadInput, UnknownName, Unsupported


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text that is learned as a whole.

    Args:
        text: never empty.
        source: the path or pattern it was asked for by.
        id: where it stands: a file, or a file and a line, row or part.
    """

    text: str
    source: str
    id: str


class Source(Protocol):
    """Anything documents come from; a frozen dataclass whose fields are the keys a recipe may use."""

    path: str

    def files(self) -> list[Path]:
        """The files, in the order they are read; BadInput where there is none."""
        ...

    def documents(self) -> Iterator[Document]:
        """The documents, always in the same order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Text files, UTF-8; each is a document, or several where a separator is given.

    Args:
        path: a file or a pattern ("books/**/*.txt").
        separator: what stands between two documents of a file, such as "\\n\\n"; it belongs to neither.
    """

    path: str
    separator: str | None = None

    def __post_init__(self) -> None:
        if self.separator == "":
            raise BadInput("a separator is at least one character; leave it out to take each file as one document")

    def files(self) -> list[Path]:
        """See `Source`."""
        return matching(self.path)

    def documents(self) -> Iterator[Document]:
        """See `Source`."""
        for file in self.files():
            text = read_text(file)
            parts = [text] if self.separator is None else text.split(self.separator)
            for number, part in enumerate(parts, start=1):
                if part.strip():
                    name = str(file) if self.separator is None else f"{file}:part {number}"
                    yield Document(text=part, source=self.path, id=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Jsonl:
    """JSON Lines: an object a line, the text under `field`. Blank lines and empty texts are left out.

    Args:
        path: a file or a pattern.
        field: the key that holds the text.
    """

    path: str
    field: str = "text"

    def files(self) -> list[Path]:
        """See `Source`."""
        return matching(self.path)

    def documents(self) -> Iterator[Document]:
        """See `Source`."""
        for file in self.files():
            with file.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.strip():
                        continue
                    text = self._text(line, f"{file}, line {number}")
                    if text.strip():
                        yield Document(text=text, source=self.path, id=f"{file}:{number}")

    def _text(self, line: bytes, place: str) -> str:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{place}: expected a JSON object, got {line[:40]!r} ({error})") from error
        if not isinstance(row, dict):
            raise BadInput(f"{place}: expected a JSON object, got {type(row).__name__}")
        if self.field not in row:
            raise BadInput(f"{place}: no field {self.field!r}; its fields are {', '.join(map(repr, row)) or 'none'}")
        return _string(row[self.field], f"{place}: field {self.field!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parquet:
    """Parquet files, the text in one column. Empty texts are left out.

    Args:
        path: a file or a pattern.
        column: the column that holds the text.
    """

    path: str
    column: str = "text"

    def files(self) -> list[Path]:
        """See `Source`."""
        return matching(self.path)

    def documents(self) -> Iterator[Document]:
        """See `Source`."""
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise Unsupported('reading Parquet needs pyarrow; pip install "unmask[data]"') from error
        for file in self.files():
            try:
                table = parquet.ParquetFile(file)
                columns = table.schema_arrow.names
                if self.column not in columns:
                    known = ", ".join(map(repr, columns))
                    raise BadInput(f"{file}: no column {self.column!r}; its columns are {known}")
                number = 0
                for piece in table.iter_batches(batch_size=1024, columns=[self.column]):
                    for value in piece.column(0).to_pylist():
                        number += 1
                        text = _string(value, f"{file}, row {number}: column {self.column!r}")
                        if text.strip():
                            yield Document(text=text, source=self.path, id=f"{file}:{number}")
            except (ArrowException, OSError) as error:
                raise BadInput(f"{file}: expected a Parquet file ({str(error).splitlines()[0]})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A folder of source code, each file a document.

    Left out: hidden folders, `__pycache__`, `node_modules`, links, empty files, and files that are no UTF-8.

    Args:
        path: the folder.
        suffixes: endings of the files to take.
    """

    path: str
    suffixes: tuple[str, ...] = (".py",)

    def __post_init__(self) -> None:
        wrong = [s for s in self.suffixes if not s.startswith(".")]
        if isinstance(self.suffixes, str) or not self.suffixes or wrong:
            raise BadInput(f'suffixes is a list of endings with their dot, such as [".py", ".pyi"], got {self.suffixes!r}')

    def files(self) -> list[Path]:
        """See `Source`."""
        root = Path(self.path).expanduser()
        if not root.is_dir():
            what = "is a file; give the folder it is in" if root.exists() else "does not exist"
            raise BadInput(f"code is read from a folder, and {root} {what}")
        found = []
        for folder, names, files in root.walk() if hasattr(root, "walk") else _walk(root):
            names[:] = sorted(n for n in names if not n.startswith(".") and n not in ("__pycache__", "node_modules"))
            found += [folder / f for f in sorted(files) if f.endswith(tuple(self.suffixes)) and not (folder / f).is_symlink()]
        if not found:
            raise BadInput(f"{root} holds no file that ends in {', '.join(self.suffixes)}")
        return found

    def documents(self) -> Iterator[Document]:
        """See `Source`."""
        for file in self.files():
            try:
                text = read_text(file)
            except _NotText:
                continue
            if text.strip():
                yield Document(text=text, source=self.path, id=str(file))


SOURCES: dict[str, type[Source]] = {"text": Text, "jsonl": Jsonl, "parquet": Parquet, "code": Code}
"""Every kind of source, by the name that recipes use."""


class _NotText(BadInput):
    """A file that is no UTF-8."""


def source(options: Mapping[str, Any]) -> Source:
    """A source from what a recipe says: `kind`, `path` and the options of that kind.

    Raises:
        UnknownName: a kind or an option that does not exist.
        BadInput: `kind` or `path` is missing, or an option has a value of the wrong type.
    """
    given = dict(options)
    if "kind" not in given or "path" not in given:
        raise BadInput(f"a source says its kind ({', '.join(SOURCES)}) and its path, got {given!r}")
    kind = given.pop("kind")
    if kind not in SOURCES:
        raise UnknownName("kind of source", kind, SOURCES)
    known = [f.name for f in fields(SOURCES[kind])]  # type: ignore[arg-type]
    for name, value in given.items():
        if name not in known:
            raise UnknownName(f"option of the source {kind!r}", name, known)
        if name == "suffixes":
            given[name] = tuple(value) if isinstance(value, list) else value
        elif not isinstance(value, str) and not (name == "path" and isinstance(value, Path)):
            raise BadInput(f"the option {name!r} of a source is a string, got {value!r}")
    return SOURCES[kind](**given | {"path": str(given["path"])})


def documents(sources: Iterable[Source]) -> Iterator[Document]:
    """The documents of all sources, one source after the other.

    Raises:
        BadInput: a source that yields none.
    """
    for each in sources:
        empty = True
        for document in each.documents():
            empty = False
            yield document
        if empty:
            raise BadInput(f"the source {each.path} holds no text; give another path, or drop it")


def fingerprint(sources: Iterable[Source]) -> str:
    """Changes (hex) whenever what is read would change: the options or the content of a file, not where it lies."""
    digest = hashlib.sha256()
    for each in sources:
        options = {f.name: getattr(each, f.name) for f in fields(each) if f.name != "path"}  # type: ignore[arg-type]
        digest.update(json.dumps([type(each).__name__, options]).encode())
        for file in each.files():
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def matching(path: str) -> list[Path]:
    """The files that a path or a pattern means, sorted.

    Raises:
        BadInput: there is none, or it is a folder.
    """
    whole = Path(path).expanduser()
    if whole.is_file():
        return [whole]
    if whole.is_dir():
        raise BadInput(f"{whole} is a folder; give a file or a pattern such as {whole}/**/*.txt")
    found = sorted(f for f in map(Path, glob.glob(str(whole), recursive=True)) if f.is_file())
    if not found:
        what = "no file matches" if glob.has_magic(str(whole)) else "there is no file"
        raise BadInput(f"{what} {whole}; check the path (it is taken from {Path.cwd()})")
    return found


def read_text(file: Path) -> str:
    """The whole file, its line ends as they are.

    Raises:
        BadInput: it is no UTF-8, or can't be read.
    """
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise _NotText(f"{file}: expected UTF-8 text, got byte {error.object[error.start]:#04x} at {error.start}") from error
    except OSError as error:
        raise BadInput(f"{file} can't be read: {error.strerror}") from error


def _string(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{place}: expected a text, got {'nothing (null)' if value is None else type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{place}: holds a lone surrogate at code point {error.start}, which is no character") from error
    return value
