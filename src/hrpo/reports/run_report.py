"""report.md of a run: what came out, the curves as a picture, some completions."""

import json
from pathlib import Path
from typing import Any

from hrpo.common import files
from hrpo.common.files import read_lines
from hrpo.common.markdown import block, code, inline
from hrpo.common.metrics import read_metrics
from hrpo.reports.plots import plot_run
from hrpo.reports.results import DecodeMode, Evaluation
from hrpo.reports.tables import Table, run_rows
from hrpo.storage.retention import BEST, ranked, scores

SAMPLES = 8


def write_report(folder: Path) -> None:
    """Write report.md and curves.png from the files of a run folder."""
    metrics = read_metrics(folder)
    evaluation = json.loads((folder / "evaluation.json").read_text()) if (folder / "evaluation.json").is_file() else {}
    plot_run(metrics, folder / "curves.png")
    parts = [f"# {inline(folder.name)}\n", result_markdown(evaluation, metrics), _best(folder)]
    parts += ["\n## Curves\n\n![curves](curves.png)\n"]
    parts += ["\n## Last completions\n", *(_sample(row) for row in read_lines(folder / "samples.jsonl")[-SAMPLES:])]
    parts += ["\n## Settings\n\n", block((folder / "config.yaml").read_text(), "yaml")]
    files.write_text(folder / "report.md", "".join(parts))


def problems_of(evaluation: dict[str, Any]) -> int:
    """Return how many test problems a run was evaluated on, from what evaluation.json holds."""
    phases = Evaluation.from_json(evaluation).phases()
    return max((part[DecodeMode.GREEDY].problems for part in phases.values()), default=0)


def result_rows(evaluation: dict[str, Any], metrics: list[dict[str, Any]]) -> list[list[str]]:
    """Return the rows of the final table: what, before, after; from what evaluation.json and metrics.jsonl hold."""
    return run_rows(Evaluation.from_json(evaluation), metrics)


def result_markdown(evaluation: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    """Return the final table in Markdown, with what it was measured on."""
    problems = problems_of(evaluation)
    seconds = sum(row.get("rollout_seconds", 0) + row["update_seconds"] for row in metrics)
    table = Table(["", "before, first update", "after, last update"], result_rows(evaluation, metrics))
    held_out = f"{problems} held-out problems, 95 % intervals (Wilson) in brackets"
    return "\n".join(["", *table.markdown(), "", f"{held_out}; {len(metrics)} updates in {seconds:.0f} s.", ""])


def _best(folder: Path) -> str:
    """Return a line about the checkpoint that does best on the held-out training problems; empty without them."""
    if not (best := ranked(folder)):
        return ""
    score = scores(folder)[int(best[0].name.removeprefix("checkpoint-"))]
    return f"\nOn held-out training problems `{best[0].name}` does best, {score:.1%} (greedy): `{BEST}` links to it.\n"


def _sample(row: dict[str, Any]) -> str:
    reward = "none" if row["reward"] is None else f"{row['reward']:g}"
    return f"\nUpdate {row['step']}, reward {reward}, gold {code(str(row['gold']))}:\n\n{block(row['completion'])}"
