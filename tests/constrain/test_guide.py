"""The code of docs/control.md runs, and the keywords that it lists are those there are."""

import re
import subprocess
import sys
from pathlib import Path

from unmask.constrain.schema.keywords import GENERAL, KEYWORDS
from unmask.constrain.schema.strings import FORMATS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/control.md").read_text()


def test_the_code_runs():
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.S))
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_lists_are_whole():
    said = {
        word for block in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.S)) for word in block.split()
    }
    assert {*GENERAL, *frozenset().union(*KEYWORDS.values())} <= said
    listed = re.search(r"Formats: ([^.]+)\.", PAGE)
    assert listed is not None
    assert set(listed[1].split(", ")) == set(FORMATS)
