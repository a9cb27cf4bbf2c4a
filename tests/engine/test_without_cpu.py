"""The engine without its room for CPUs: PyTorch does everything, and the laws hold."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_laws_hold_without_the_accelerator(tmp_path):
    shutil.copytree(ROOT / "src" / "hrpo", tmp_path / "hrpo", ignore=shutil.ignore_patterns("cpu", "__pycache__"))
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "llama or golden"]
    laws = [str(ROOT / "tests" / name) for name in ("test_laws.py", "test_golden.py", "test_loss.py")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    where = "import hrpo, importlib.util as u; print(hrpo.__file__, u.find_spec('hrpo.engine.cpu'))"
    found = subprocess.run([sys.executable, "-c", where], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == f"{tmp_path / 'hrpo' / '__init__.py'} None\n"
    done = subprocess.run([sys.executable, *words, *laws], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
