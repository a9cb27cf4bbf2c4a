"""`benchmarks/gpu.py` goes to its end on the pretended GPU, and starts where nothing but its four libraries is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
NOT_THERE = ["jsonargparse", "math_verify", "statsmodels", "rich", "matplotlib", "gguf", "datasets", "trl", "pyarrow"]


def test_a_bare_machine_has_what_it_needs():
    code = f"import sys; sys.modules.update(dict.fromkeys({NOT_THERE})); import benchmarks.gpu"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_it_says_so():
    command = [sys.executable, "-m", "benchmarks.gpu", "--parts", "facts"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 1
    assert "there is no GPU here; --pretend goes through it without one" in done.stderr
    assert json.loads(done.stdout) == {"part": "facts", "failed": "exit code 1"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="a pretended GPU needs a C++ compiler")
@pytest.mark.skipif(torch.version.cuda is not None, reason="a pretended GPU needs a PyTorch without CUDA")
def test_all_of_it_on_a_pretended_gpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--pretend", "--out", str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert {line["part"] for line in lines} == {"facts", "laws", "decode", "update", "step", "profile"}
    assert all(line.get("holds", True) for line in lines)
    assert sum(line["part"] == "decode" for line in lines) == 16
