"""The main job, as it stands in the README: it learns, on three seeds."""

import json
from pathlib import Path

import pytest

from hrpo.cli.main import main
from hrpo.reports.run_report import read_lines

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_quickstart_learns(seed, tmp_path):
    main(["train", "--config", str(RECIPE), "--seed", str(seed), "--output_dir", str(tmp_path)])
    folder = tmp_path / f"quickstart-hybrid-{seed}"
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for how in ("greedy", "sampled"):
        before, after = evaluation["before"][how], evaluation["after"][how]
        assert before["problems"] >= 500
        assert after["accuracy"] - before["accuracy"] >= 0.25
        assert before["accuracy_interval"][1] < after["accuracy_interval"][0]
    metrics = read_lines(folder / "metrics.jsonl")
    assert metrics[0]["frac_reward_zero_std"] <= 0.5
    assert max(row["sampling/sampling_logp_difference/max"] for row in metrics) < 1e-4
