"""Print the tables of docs/architectures.md: python scripts/architectures.py.

Takes the tiny random models of tests/architectures.py through law 1: half a minute on one CPU core.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from architectures import tables

print(tables())
