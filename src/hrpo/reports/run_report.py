"""report.md of a run: what came out, the curves as a picture, some completions."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from hrpo.common import files
from hrpo.common.files import read_lines
from hrpo.common.markdown import block, code, inline, table
from hrpo.storage.retention import BEST, ranked, scores

CURVES = {
    "reward": "mean reward",
    "nll": "-log p per token of the solutions (nats)",
    "signal": "share of groups with a signal",
    "format_rate": "completions with one delimiter",
    "length": "completion length (tokens)",
    "hidden_ratio": "hidden ratio",
    "kl": "KL to the initial model (k3)",
    "grad_norm": "gradient norm before clipping",
    "tokens_per_second": "completion tokens per second",
}
SAMPLES = 8


def write_report(folder: Path) -> None:
    """Write report.md and curves.png from the files of a run folder."""
    metrics = read_lines(folder / "metrics.jsonl")
    evaluation = json.loads((folder / "evaluation.json").read_text()) if (folder / "evaluation.json").is_file() else {}
    plot_curves(metrics, folder / "curves.png")
    parts = [f"# {inline(folder.name)}\n", result_markdown(evaluation, metrics), _best(folder)]
    parts += ["\n## Curves\n\n![curves](curves.png)\n"]
    parts += ["\n## Last completions\n", *(_sample(row) for row in read_lines(folder / "samples.jsonl")[-SAMPLES:])]
    parts += ["\n## Settings\n\n", block((folder / "config.yaml").read_text(), "yaml")]
    files.write_text(folder / "report.md", "".join(parts))


def _best(folder: Path) -> str:
    """Return a line about the checkpoint that does best on the held-out training problems; empty without them."""
    if not (best := ranked(folder)):
        return ""
    score = scores(folder)[int(best[0].name.removeprefix("checkpoint-"))]
    return f"\nOn held-out training problems `{best[0].name}` does best, {score:.1%} (greedy): `{BEST}` links to it.\n"


def problems_of(evaluation: dict[str, Any]) -> int:
    """Return how many test problems a run was evaluated on."""
    return max((part["greedy"]["problems"] for part in evaluation.values() if part), default=0)


def result_rows(evaluation: dict[str, Any], metrics: list[dict[str, Any]]) -> list[list[str]]:
    """Return the rows of the final table: what, before, after."""
    before, after = evaluation.get("before", {}), evaluation.get("after", {})
    rows = []
    for how in ("greedy", "sampled"):
        for label, key in (("accuracy", "accuracy"), ("lenient accuracy", "lenient_accuracy")):
            cells = [_percent(part[how], key) if how in part else "-" for part in (before, after)]
            rows.append([f"{how} {label}", *cells])
        if "metric" in before.get(how, {}) or "metric" in after.get(how, {}):
            rows.append([f"{how} metric", *(_number(part.get(how, {})) for part in (before, after))])
    for label, key, form in (
        ("sampled length (tokens)", "length", "{:.1f}"),
        ("completions with one delimiter", "format_rate", "{:.1%}"),
        ("hidden ratio", "hidden_ratio", "{:.4f}"),
    ):
        rows.append([label, *(form.format(p["sampled"][key]) if "sampled" in p else "-" for p in (before, after))])
    for label, key, form in (
        ("training reward", "reward", "{:.3f}"),
        ("groups with a signal", "signal", "{:.0%}"),
        ("training nll (nats per token)", "nll", "{:.3f}"),
    ):
        values = [row[key] for row in metrics if key in row]  # not in updates where it was not finite
        if values:
            rows.append([label, form.format(values[0]), form.format(values[-1])])
    return rows


def summary_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return the rows of an evaluation's table: what, greedy, sampled."""
    columns = [result["greedy"], result["sampled"]]
    rows = [["problems", *(str(column["problems"]) for column in columns)]]
    for label, key in (("accuracy [95 %]", "accuracy"), ("lenient accuracy [95 %]", "lenient_accuracy")):
        rows.append([label, *(_percent(column, key) for column in columns)])
    if any("metric" in column for column in columns):
        rows.append(["metric [95 %]", *(_number(column) for column in columns)])
    for label, key, form in (
        ("length (tokens)", "length", "{:.1f}"),
        ("cut off at the limit", "truncation_rate", "{:.1%}"),
        ("one delimiter", "format_rate", "{:.1%}"),
        ("hidden ratio", "hidden_ratio", "{:.4f}"),
    ):
        rows.append([label, *(form.format(column[key]) for column in columns)])
    return rows


def result_markdown(evaluation: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    """Return the final table in Markdown, with what it was measured on."""
    problems = problems_of(evaluation)
    seconds = sum(row.get("rollout_seconds", 0) + row["update_seconds"] for row in metrics)
    lines = ["", *table(["", "before, first update", "after, last update"], result_rows(evaluation, metrics))]
    held_out = f"{problems} held-out problems, 95 % intervals (Wilson) in brackets"
    lines += ["", f"{held_out}; {len(metrics)} updates in {seconds:.0f} s.", ""]
    return "\n".join(lines)


def plot_curves(metrics: list[dict[str, Any]], path: Path) -> None:
    """Draw one panel a metric over the updates, and its mean over ten of them."""
    names = [name for name in CURVES if any(name in row for row in metrics)]
    rows = -(-len(names) // 2)
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(9, 2.2 * rows), layout="constrained")
        for panel, name in zip(figure.subplots(rows, 2, squeeze=False).flat, names, strict=False):
            known = [row for row in metrics if name in row]  # not where it was not finite
            steps, values = [row["step"] for row in known], [row[name] for row in known]
            smooth = [sum(values[max(0, i - 9) : i + 1]) / min(i + 1, 10) for i in range(len(values))]
            panel.plot(steps, values, color="#0072B2", alpha=0.3, linewidth=1)
            panel.plot(steps, smooth, color="#0072B2", linewidth=1.8)
            panel.set_title(CURVES[name], fontsize=9, loc="left")
            panel.set_xlabel("update")
            panel.grid(alpha=0.2)
        for panel in figure.axes[len(names) :]:
            panel.remove()
        with files.new_file(path, "wb") as file:
            figure.savefig(file, dpi=120)


def _percent(summary: dict[str, Any], key: str) -> str:
    low, high = summary[f"{key}_interval"]
    return f"{summary[key]:.1%} [{low:.1%}, {high:.1%}]"


def _number(summary: dict[str, Any]) -> str:
    if "metric" not in summary:
        return "-"
    low, high = summary["metric_interval"]
    return f"{summary['metric']:.3f} [{low:.3f}, {high:.3f}]"


def _sample(row: dict[str, Any]) -> str:
    reward = "none" if row["reward"] is None else f"{row['reward']:g}"
    return f"\nUpdate {row['step']}, reward {reward}, gold {code(str(row['gold']))}:\n\n{block(row['completion'])}"
