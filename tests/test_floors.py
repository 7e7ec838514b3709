"""The house keeps its shape: lower floors never import higher ones, rooms of one floor never import each other."""

import ast
from pathlib import Path

import unmask

ROOT = Path(unmask.__file__).parent
FLOOR = {
    **dict.fromkeys(["base"], 1),
    **dict.fromkeys(["noise", "nn", "text", "constrain"], 2),
    **dict.fromkeys(["models", "data", "objectives", "decode"], 3),
    **dict.fromkeys(["engine", "train"], 4),
    **dict.fromkeys(["lm"], 5),
    **dict.fromkeys(["serve", "evals"], 6),
    **dict.fromkeys(["cli"], 7),
}
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("unmask."):
            found.add(node.module.split(".")[1])
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("unmask.")}
    return found


def test_every_room_has_a_floor():
    assert {room(f) for f in FILES} - {"__init__", "__main__"} <= set(FLOOR)


def test_no_arrow_runs_up_or_sideways():
    wrong = []
    for path in FILES:
        here = room(path)
        if here not in FLOOR:
            continue
        wrong += [
            f"{path.relative_to(ROOT)} imports unmask.{other}"
            for other in imports(path)
            if other != here and other in FLOOR and FLOOR[other] >= FLOOR[here]
        ]
    assert not wrong


def test_files_are_short_and_rooms_have_names():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 400, path
        assert not {"utils", "util", "common", "helpers", "misc"} & {*path.parts, path.stem}, path


def test_every_module_says_what_it_is_for():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
