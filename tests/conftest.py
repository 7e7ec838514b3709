"""Puts this folder on the path, so that every test can say `from exact import ExactDenoiser`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
