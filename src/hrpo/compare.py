"""Several latent modes, trained from several seeds under one budget, and what that shows."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from hrpo import files
from hrpo.checkpoints import start_or_resume
from hrpo.config import CompareConfig, Contender, TrainConfig
from hrpo.errors import InputError
from hrpo.progress import clock, console, print_table
from hrpo.ranges import check_config
from hrpo.report import read_lines
from hrpo.run import train
from hrpo.statistics import holm, mean_interval, paired_t

MEASURES = {"greedy": "greedy accuracy", "sampled": "sampled accuracy"}  # which answers -> what it is called
CURVES = {"reward": "mean reward", "length": "completion length (tokens)", "kl": "KL to the initial model (k3)"}
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]  # Okabe and Ito's
SMOOTH = 5  # updates that a point of a curve is the mean of


def compare(config: TrainConfig, contest: CompareConfig) -> dict[str, Any]:
    """Train what is not trained yet, and write comparison.json, comparison.md and curves.png into the runs' folder.

    A run that is finished is taken as it is, and one that was stopped goes on. All do the same number of updates:
    `check.patience` is off, so that none stops early.

    Returns:
        What comparison.json holds, see `summarize`.

    Raises:
        InputError: a setting cannot be used, or a run's folder holds a run with other settings; nothing has been
            trained then.

    """
    runs = plan_runs(config, contest)
    for (mode, seed), run in runs.items():
        console.print(f"{mode}, seed {seed}: {run.run_folder}")
        if "after" not in evaluation_of(run):
            train(run, resume=(run.run_folder / "config.yaml").exists())
    comparison = summarize(contest, runs)
    folder = Path(config.folder)
    files.write_text(folder / "comparison.json", json.dumps(comparison, indent=1) + "\n")
    plot_curves(contest, runs, folder / "curves.png")
    files.write_text(folder / "comparison.md", markdown(comparison))
    return comparison


def plan_runs(config: TrainConfig, contest: CompareConfig) -> dict[tuple[Contender, int], TrainConfig]:
    """Return the settings of each run, seed by seed.

    Raises:
        InputError: see `compare`.

    """
    for name, values in (("modes", contest.modes), ("seeds", contest.seeds)):
        if not values or len(set(values)) < len(values):
            raise InputError(f"{name}: needs at least one, and each once")
    if not config.eval.problems:
        raise InputError("eval.problems: a comparison needs test problems")
    config = dataclasses.replace(config, check=dataclasses.replace(config.check, patience=0))
    runs = {(mode, seed): _run(config, mode, seed) for seed in contest.seeds for mode in contest.modes}
    if len({run.run_folder for run in runs.values()}) < len(runs):
        raise InputError("name: needs {mode} and {seed}, so that each run has a folder of its own")
    for run in runs.values():
        check_config(run)
        start_or_resume(run.run_folder, run, resume=(run.run_folder / "config.yaml").exists())
    return runs


def _run(config: TrainConfig, mode: Contender, seed: int) -> TrainConfig:
    if mode == "sft":
        return dataclasses.replace(config, objective="sft", seed=seed)
    latent = dataclasses.replace(config.latent, mode=mode)
    return dataclasses.replace(config, objective="hrpo", seed=seed, latent=latent)


def evaluation_of(run: TrainConfig) -> dict[str, Any]:
    """Return what a run has evaluated so far."""
    path = run.run_folder / "evaluation.json"
    evaluation: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return evaluation


def summarize(contest: CompareConfig, runs: dict[tuple[Contender, int], TrainConfig]) -> dict[str, Any]:
    """Return the comparison of finished runs.

    modes, seeds, updates, task, problems: what was compared.
    results: mode -> measure -> values by seed, before and after; mean after, and its t-interval over the seeds, cut to
        0..1; none for one seed.
    differences: of each other mode minus the first one, paired by seed: mean, t-interval, p of no difference, and p
        corrected for the number of all these tests (Holm). Empty for one seed.
    lengths, hidden_ratios: mode -> mean over the seeds, sampled answers after training.
    seconds: mode -> mean over the seeds, of all updates.
    """
    modes, seeds = contest.modes, contest.seeds
    evaluations = {key: evaluation_of(run) for key, run in runs.items()}
    several = len(seeds) > 1

    def values(mode: Contender, when: str, how: str, name: str) -> list[float]:
        return [evaluations[mode, seed][when][how][name] for seed in seeds]

    def mean(numbers: list[float]) -> float:
        return sum(numbers) / len(numbers)

    results: dict[str, Any] = {}
    for mode in modes:
        results[mode] = {}
        for how in MEASURES:
            after = values(mode, "after", how, "accuracy")
            results[mode][how] = {
                "before": values(mode, "before", how, "accuracy"),
                "after": after,
                "mean": mean(after),
                "interval": _bounded(mean_interval(after)) if several else None,
            }
    tests = [(mode, how) for mode in modes[1:] for how in MEASURES] if several else []
    found = [paired_t(results[mode][how]["after"], results[modes[0]][how]["after"]) for mode, how in tests]
    corrected = holm([difference.p for difference in found])
    first = runs[modes[0], seeds[0]]
    return {
        "modes": modes,
        "seeds": seeds,
        "updates": first.updates,
        "task": first.task.name,
        "problems": evaluations[modes[0], seeds[0]]["after"]["greedy"]["problems"],
        "results": results,
        "differences": [
            {"mode": mode, "measure": how, **difference._asdict(), "p_holm": p}
            for (mode, how), difference, p in zip(tests, found, corrected, strict=True)
        ],
        "lengths": {mode: mean(values(mode, "after", "sampled", "length")) for mode in modes},
        "hidden_ratios": {mode: mean(values(mode, "after", "sampled", "hidden_ratio")) for mode in modes},
        "seconds": {mode: mean([_seconds(runs[mode, seed]) for seed in seeds]) for mode in modes},
    }


def _bounded(interval: tuple[float, float]) -> tuple[float, float]:
    return max(interval[0], 0.0), min(interval[1], 1.0)  # Student's t knows no bounds, an accuracy has them


def _seconds(run: TrainConfig) -> float:
    rows = read_lines(run.run_folder / "metrics.jsonl")
    return float(sum(row.get("rollout_seconds", 0) + row["update_seconds"] for row in rows))


def result_rows(comparison: dict[str, Any]) -> list[list[str]]:
    """Return the table's rows: mode, the accuracies before and after, length, hidden ratio, time."""
    rows = []
    for mode in comparison["modes"]:
        row = [mode]
        for how in MEASURES:
            result = comparison["results"][mode][how]
            row.append(f"{sum(result['before']) / len(result['before']):.1%}")
            row.append(f"{result['mean']:.1%}{_interval(result['interval'])}")
        row.append(f"{comparison['lengths'][mode]:.1f}")
        row.append(f"{comparison['hidden_ratios'][mode]:.3f}")
        rows.append([*row, clock(comparison["seconds"][mode])])
    return rows


def difference_rows(comparison: dict[str, Any]) -> list[list[str]]:
    """Return the table's rows: which difference, of what, how much, p, p corrected."""
    return [
        [
            f"{row['mode']} - {comparison['modes'][0]}",
            MEASURES[row["measure"]],
            f"{100 * row['difference']:+.1f}{_points(row['interval'])}",
            f"{row['p']:.3f}",
            f"{row['p_holm']:.3f}",
        ]
        for row in comparison["differences"]
    ]


HEADER = ["mode", *(how + when for how in MEASURES for when in (" before", " after")), "length", "hidden ratio", "time"]
DIFFERENCES = ["difference", "of", "points", "p", "p (Holm)"]


def show(comparison: dict[str, Any]) -> None:
    """Print both tables."""
    print_table(_title(comparison), HEADER, result_rows(comparison))
    if comparison["differences"]:
        print_table("paired over seeds", DIFFERENCES, difference_rows(comparison))


def markdown(comparison: dict[str, Any]) -> str:
    """Return comparison.md."""
    parts = [f"# {_title(comparison)}\n", _table(HEADER, result_rows(comparison))]
    parts.append(
        "Mean over the seeds and its 95 % interval (Student's t, cut to 0..100 %); length and hidden ratio of sampled "
        "answers after training; time of all updates.\n"
    )
    if comparison["differences"]:
        parts.append(_table(DIFFERENCES, difference_rows(comparison)))
        parts.append(
            "Differences in percentage points, paired by seed, which a seed's problems, their order and the answers' "
            f"random numbers belong to; paired t-test, p corrected for {len(comparison['differences'])} tests.\n"
        )
    parts.append("![curves](curves.png)\n")
    parts.append(f"Mean over the seeds, {SMOOTH} updates at a time, and the band from their lowest to their highest.\n")
    return "\n".join(parts)


def _title(comparison: dict[str, Any]) -> str:
    seeds, problems = ", ".join(map(str, comparison["seeds"])), comparison["problems"]
    return f"Accuracy on {problems} problems of {comparison['task']}: {comparison['updates']} updates, seeds {seeds}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:.1%}, {interval[1]:.1%}]"


def _points(interval: tuple[float, float]) -> str:
    return f" [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"


def plot_curves(contest: CompareConfig, runs: dict[tuple[Contender, int], TrainConfig], path: Path) -> None:
    """Draw one panel a metric: a line and a band for each mode that has it."""
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(10, 3), layout="constrained")
        for panel, (name, title) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
            for mode, colour in zip(contest.modes, COLOURS, strict=False):
                rows = [read_lines(runs[mode, seed].run_folder / "metrics.jsonl") for seed in contest.seeds]
                if name not in rows[0][0]:
                    continue
                smooth = [_smooth([row[name] for row in lines]) for lines in rows]
                steps, points = [row["step"] for row in rows[0]], list(zip(*smooth, strict=True))
                panel.plot(steps, [sum(p) / len(p) for p in points], color=colour, linewidth=1.6, label=mode)
                panel.fill_between(steps, list(map(min, points)), list(map(max, points)), color=colour, alpha=0.2, lw=0)
            panel.set_title(title, fontsize=9, loc="left")
            panel.set_xlabel("update")
            panel.grid(alpha=0.2)
        figure.legend(*figure.axes[1].get_legend_handles_labels(), loc="outside upper center", ncols=7, frameon=False)
        draft = path.with_suffix(".tmp.png")
        figure.savefig(draft, dpi=120)
        draft.replace(path)


def _smooth(values: list[float]) -> list[float]:
    return [sum(values[max(0, i - SMOOTH + 1) : i + 1]) / min(i + 1, SMOOTH) for i in range(len(values))]
