"""What the documents say is run: the README's Python, and CONTRIBUTING's ten-minute policy."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), flags=re.S)


def test_the_readme_runs():
    code = "\n".join(blocks("README.md", "python"))
    assert "unmask.load" in code
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_text_that_grows_in_the_documents_does():
    (code,) = [block for block in blocks("docs/decoding.md", "python") if "import unmask" in block]
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_readmes_commands_exist():
    from unmask.cli import COMMANDS

    said = set(re.findall(r"^unmask (\w+)", "\n".join(blocks("README.md", "bash")), flags=re.M))
    assert said
    assert said <= set(COMMANDS)


def test_the_policy_of_contributing_works():
    code = blocks("CONTRIBUTING.md", "python")[0]
    script = f"""
{code}
import unmask
from unmask.decode import policies
policies.TABLE["prefix"] = Prefix
out = unmask.load("tiny").generate("def f(", length=12, decoder="whole x prefix", threshold=0.8, eos="forbid")
assert len(out.tokens) == 12
order = [change.position for change in out.trace]
assert order == sorted(order)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
