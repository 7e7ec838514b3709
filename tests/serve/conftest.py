"""Servers to ask, for all tests of this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from serving import http, live, process, serving, toy  # noqa: F401
