"""A run folder and a checkpoint that 0.1 wrote: they load, and the run goes on as it did."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from hrpo import HybridCausalLM
from hrpo.cli.main import main
from hrpo.common.metrics import LOGP_GAP, read_metrics, with_trl_names

KEPT = (
    Path(__file__).parents[1] / "golden" / "run-0.1"
)  # three updates of the embedded model, with the second's checkpoint


def test_its_checkpoint_loads():
    model = HybridCausalLM.from_pretrained(KEPT / "checkpoint-2")
    assert (model.settings.step, model.settings.latent_mode, model.settings.top_k) == (2, "hybrid", 50)
    assert model.settings.task["num_fewshot"] == 0  # "shots" in 0.1


def test_its_run_goes_on(tmp_path, capsys):
    """Its third update happens again from the checkpoint, with the same numbers but for the order of sums."""
    shutil.copytree(KEPT, tmp_path / "run-0.1")
    words = ["train", "--config", str(KEPT / "config.yaml"), "--output_dir", str(tmp_path), "--resume"]
    main(words)
    assert "updates is max_steps now" in capsys.readouterr().err
    rows, expected = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "run-0.1", KEPT)
    )
    assert rows[:2] == expected[:2]
    third = with_trl_names(expected[2])
    same = [name for name in third if "second" not in name and not name.startswith(LOGP_GAP)]
    assert {name: rows[2][name] for name in same} == pytest.approx({name: third[name] for name in same}, abs=1e-4)
    assert read_metrics(tmp_path / "run-0.1")[0] == with_trl_names(expected[0])
    assert yaml.safe_load((tmp_path / "run-0.1" / "config.yaml").read_text())["max_steps"] == 3
    assert (tmp_path / "run-0.1" / "checkpoint-3").is_dir()
