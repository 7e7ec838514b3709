"""Sections of a message between tags, as Mercury's edit and apply endpoints have them.

    <|current_file_content|> ... <|code_to_edit|> ... <|cursor|> ... <|/code_to_edit|> ... <|/current_file_content|>

It does not know models.
"""

import difflib
import re
from dataclasses import dataclass

from unmask.base.errors import BadInput

CURSOR = "<|cursor|>"
_ELLIPSIS = re.compile(r"\s*(#|//|--|/\*|<!--|;|%)\s*\.\.\..*")
"""A comment that stands for lines that stay as they are."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A file whose region is to be written anew.

    Args:
        before: all that stands before what is written: context, the file, and the region up to the cursor.
        kept: the region up to the cursor, which is part of the answer.
        region: what is written anew.
        after: the file behind the region.
    """

    before: str
    kept: str
    region: str
    after: str


def section(text: str, name: str) -> str | None:
    """What stands between <|name|> and <|/name|>; None where there is no such section.

    Raises:
        BadInput: a section that is open twice, or not closed.
    """
    start, end = f"<|{name}|>", f"<|/{name}|>"
    if start not in text:
        return None
    if text.count(start) > 1 or text.count(end) != 1 or text.index(end) < text.index(start):
        raise BadInput(f"the section {start} is opened once and closed once, by {end}")
    return text[text.index(start) + len(start) : text.index(end)]


def edit(text: str) -> Edit:
    """The parts of a message of /v1/edit/completions.

    Raises:
        BadInput: a section is missing or torn.
    """
    file = section(text, "current_file_content")
    region = section(text, "code_to_edit")
    if file is None or region is None or "<|code_to_edit|>" not in file:
        raise BadInput("an edit has a <|current_file_content|> section, and in it a <|code_to_edit|> section")
    others = [section(text, name) for name in ("recently_viewed_code_snippets", "edit_diff_history")]
    context = "".join(f"{other.strip()}\n\n" for other in others if other and other.strip())
    head, _, rest = file.partition("<|code_to_edit|>")
    tail = rest.partition("<|/code_to_edit|>")[2]
    if region.count(CURSOR) > 1 or CURSOR in head + tail:
        raise BadInput(f"{CURSOR} stands once, inside of <|code_to_edit|>, or nowhere")
    kept, cursor, region_ = region.partition(CURSOR)
    if not cursor:
        kept, region_ = "", region
    return Edit(context + head + kept, kept, region_, tail)


def apply(text: str) -> str:
    """The merged text of a message of /v1/apply/completions.

    A comment with three dots in the update stands for lines of the original that stay. Each stretch of the update
    between such comments takes the place of the lines from its first line to its last one in the original.

    Raises:
        BadInput: a section is missing, or a stretch begins or ends with a line that the original does not have.
    """
    original, update = section(text, "original_code"), section(text, "update_snippet")
    if original is None or update is None:
        raise BadInput("an apply has an <|original_code|> section and an <|update_snippet|> section")
    old, merged = original.splitlines(keepends=True), list[str]()
    stretches = _stretches(update)
    if len(stretches) == 1:
        return update
    at = 0
    for i, stretch in enumerate(stretches):
        if stretch:
            start = at + _find(old[at:], stretch) if i else at
            end = start + _find(old[start:], stretch[::-1]) + 1 if i < len(stretches) - 1 else len(old)
            merged += [*old[at:start], *stretch]
            at = end
    return "".join([*merged, *old[at:]])


def _stretches(update: str) -> list[list[str]]:
    """Lines of an update between the comments that stand for what stays, without blank lines at their borders."""
    found: list[list[str]] = [[]]
    for line in update.splitlines():
        if _ELLIPSIS.fullmatch(line):
            found.append([])
        elif line.strip() or found[-1]:
            found[-1].append(line + "\n")
    for stretch in found:
        while stretch and not stretch[-1].strip():
            stretch.pop()
    return found


def _find(lines: list[str], stretch: list[str]) -> int:
    """Where the first line of a stretch that says something stands among lines."""
    wanted = next((line for line in stretch if line.strip()), "")
    plain = [line.strip() for line in lines]
    if wanted.strip() in plain:
        return plain.index(wanted.strip())
    close = difflib.get_close_matches(wanted.strip(), plain, n=1, cutoff=0.6)
    if not close:
        raise BadInput(
            f"the update's line {wanted.strip()[:60]!r} has no place in the original; begin and end with lines of it"
        )
    return plain.index(close[0])
