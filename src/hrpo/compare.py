"""Runs that differ in some settings, each from several seeds under one budget, and what that shows."""

import dataclasses
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hrpo import __version__, files
from hrpo.checkpoints import changed_settings, check_run_folder
from hrpo.config import Contender, LatentMode, TrainConfig
from hrpo.curves import SMOOTH, plot
from hrpo.decoded import check_decode, trained_model
from hrpo.decoded import decode as decode_run
from hrpo.errors import InputError
from hrpo.files import read_lines
from hrpo.progress import clock, console, markdown_table, print_table
from hrpo.ranges import check_config
from hrpo.run import train
from hrpo.settings import parse
from hrpo.statistics import holm, mean_interval, paired_t
from hrpo.stop import Stop

# What an arm is told by: its name, which answers, which of their numbers.
MEASURES = {
    "greedy": ("greedy accuracy", "greedy", "accuracy"),
    "sampled": ("sampled accuracy", "sampled", "accuracy"),
    "length": ("length", "sampled", "length"),
    "hidden_ratio": ("hidden ratio", "sampled", "hidden_ratio"),
}
TESTED = ("greedy", "sampled")
CURVES = {
    "reward": "mean reward",
    "length": "completion length (tokens)",
    "hidden_ratio": "hidden ratio",
    "kl": "KL to the initial model (k3)",
}
TRAINED = {"reward": ".3f", "length": ".1f", "hidden_ratio": ".4f", "kl": ".3f"}  # metric -> how it is written
WINDOW = 10  # updates at either end of training, at most half of them, whose means tell what has changed
DIGITS = 5  # that a kept metric has

Run = tuple[str, int]  # arm, seed
Result = dict[str, Any]  # what is kept of a run, see `result_in`


def of_modes(config: TrainConfig, modes: Sequence[Contender]) -> dict[str, TrainConfig]:
    """Return an arm for each latent mode, and for "sft" supervised fine-tuning, with the same settings otherwise."""
    return {
        mode: dataclasses.replace(config, objective="sft")
        if mode == "sft"
        else dataclasses.replace(config, objective="hrpo", latent=dataclasses.replace(config.latent, mode=mode))
        for mode in modes
    }


def compare(
    arms: Mapping[str, TrainConfig],
    seeds: Sequence[int],
    results: str = "",
    report: str = "comparison",
    *,
    decode: Mapping[str, list[LatentMode]] | None = None,
    stop: Stop | None = None,
) -> dict[str, Any]:
    """Train what is not trained yet, and write REPORT.json, REPORT.md and REPORT.png.

    A run whose result is kept is not trained again, whether its folder is there or not; one that was stopped goes on.
    All do the same number of updates: `check.patience` is off, so that none stops early.

    Args:
        arms: settings by the arm's name; the first is what the others are compared with. `{arm}` in a run's name
            stands for that.
        seeds: of the runs of each.
        results: the folder for the comparison, and for each finished run's result, NAME.json; "" is the runs' folder.
        report: what the comparison is called there.
        decode: modes in which the models of an arm answer the test problems once more, by the arm's name; each is an
            arm of its own, ARM as MODE, and a kept result too. It needs the run's folder.
        stop: as in `train`.

    Returns:
        What REPORT.json holds, see `summarize`.

    Raises:
        InputError: a setting cannot be used, or a run's folder or result is of other settings; nothing has been
            trained then.

    """
    runs = plan_runs(arms, seeds)
    folder = Path(results or next(iter(arms.values())).folder)
    files.check_writable(folder, "results")
    kept = {key: _kept(folder, run) for key, run in runs.items()}
    again = _plan_decoding(runs, decode or {}, kept, folder)
    places = [_place(folder, run) for run in runs.values()]
    places += [_place(folder, runs[arm, seed], mode) for arm, seed, mode in again]
    if len(set(places)) < len(places) or {arm for arm, _ in runs} & {f"{arm} as {mode}" for arm, _, mode in again}:
        raise InputError("name: a run, or an arm, is called as another one is that is decoded once more; rename it")
    if not report or Path(report).name != report or folder / f"{report}.json" in places:
        raise InputError(f"report: {report!r} must be a file's name, without its ending, and no run's")
    for place, ((arm, seed), run) in enumerate(runs.items(), 1):
        if kept[arm, seed] is None:
            console.print(f"run {place} of {len(runs)}: {arm}, seed {seed}, in {run.run_folder}")
            if "after" not in _evaluation(run.run_folder):
                train(run, resume=(run.run_folder / "config.yaml").exists(), stop=stop)
            fix = "delete it, and it is trained again"
            kept[arm, seed] = result_in(run.run_folder, dataclasses.asdict(run), "name", fix)
            files.write_text(_place(folder, run), json.dumps(kept[arm, seed]) + "\n")
    finished = {key: result for key, result in kept.items() if result is not None}
    for (arm, seed, mode), result in again.items():
        if result is None:
            result = decoded_result(runs[arm, seed], mode, finished[arm, seed])
            files.write_text(_place(folder, runs[arm, seed], mode), json.dumps(result) + "\n")
        finished[f"{arm} as {mode}", seed] = result
    comparison = summarize(finished)
    files.write_text(folder / f"{report}.json", json.dumps(comparison, indent=1) + "\n")
    plot_curves(finished, folder / f"{report}.png")
    files.write_text(folder / f"{report}.md", markdown(comparison, report))
    return comparison


def plan_runs(arms: Mapping[str, TrainConfig], seeds: Sequence[int]) -> dict[Run, TrainConfig]:
    """Return the settings of each run, seed by seed.

    Raises:
        InputError: see `compare`.

    """
    if not arms:
        raise InputError("modes: needs at least one")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError("seeds: needs at least one, and each once")
    runs = {(arm, seed): _run(config, arm, seed) for seed in seeds for arm, config in arms.items()}
    if len({run.run_folder for run in runs.values()}) < len(runs):
        raise InputError("name: needs {arm} (or {mode}) and {seed}, so that each run has a folder of its own")
    first = next(iter(runs.values()))
    for (arm, _), run in runs.items():
        if (run.updates, run.eval.problems) != (first.updates, first.eval.problems):
            raise InputError(f"arms.{arm}: updates and eval.problems must be the same for all arms, one budget")
        if not run.eval.problems:
            raise InputError("eval.problems: a comparison needs test problems")
        check_config(run)
        there = run.run_folder / "config.yaml"
        check_run_folder(run.run_folder, run, resume=there.exists())
        if "after" in _evaluation(run.run_folder):
            _check_problems(parse(there.read_text()), run, run.run_folder)
    return runs


def _check_problems(settings: dict[str, Any], run: TrainConfig, place: Path) -> None:
    """Refuse what was evaluated on other test problems than those that are compared; a resumed run may change them."""
    problems = settings["eval"]["problems"]
    if problems != run.eval.problems:
        raise InputError(
            f"eval.problems: {place} has answers to {problems}; give {problems}, or other names (name, results)"
        )


def _run(config: TrainConfig, arm: str, seed: int) -> TrainConfig:
    check = dataclasses.replace(config.check, patience=0)
    return dataclasses.replace(config, name=config.name.replace("{arm}", arm), seed=seed, check=check)


def _plan_decoding(
    runs: Mapping[Run, TrainConfig],
    decode: Mapping[str, list[LatentMode]],
    kept: Mapping[Run, Result | None],
    folder: Path,
) -> dict[tuple[str, int, LatentMode], Result | None]:
    """Return what is to be decoded once more, mode by mode, and the results that are kept already."""
    arms = list(dict.fromkeys(arm for arm, _ in runs))
    again = dict[tuple[str, int, LatentMode], Result | None]()
    for arm, modes in decode.items():
        if arm not in arms:
            raise InputError(f"decode: there is no arm {arm}; the arms are {', '.join(arms)}")
        for (_, seed), run in ((key, run) for key, run in runs.items() if key[0] == arm):
            check_decode(run, modes)
            for mode in modes:
                again[arm, seed, mode] = _kept(folder, run, mode)
                if again[arm, seed, mode] is None and (kept[arm, seed] or "after" in _evaluation(run.run_folder)):
                    trained_model(run)
    return again


def _place(folder: Path, run: TrainConfig, mode: LatentMode | None = None) -> Path:
    name = run.run_folder.relative_to(run.folder)
    return folder / name.with_name(name.name + (f"-as-{mode}" if mode else "") + ".json")


def _kept(folder: Path, run: TrainConfig, mode: LatentMode | None = None) -> Result | None:
    path = _place(folder, run, mode)
    if not path.is_file():
        return None
    fix = "delete it, and its run is looked at again"
    result = checked(files.read_json(path, "results", fix), path, "results", fix)
    changed = changed_settings(result["settings"], run)
    if changed:
        raise InputError(f"results: {path} is of other settings ({', '.join(changed)} differ); give another folder")
    _check_problems(result["settings"], run, path)
    if "after" not in result["evaluation"]:
        raise InputError(f"results: {path} is damaged (it was not evaluated after training); {fix}")
    return result


def _evaluation(folder: Path) -> dict[str, Any]:
    path = folder / "evaluation.json"
    evaluation: dict[str, Any] = files.read_json(path, "results", "delete it") if path.is_file() else {}
    return evaluation


def result_in(folder: Path, settings: Any, field: str, fix: str) -> Result:
    """Return what is kept of a run, from its folder.

    settings: all of them; versions: of hrpo, torch and Python.
    evaluation: evaluation.json.
    right: "before" and "after" -> "greedy" and "sampled" -> a 1 or 0 for each test problem, strict; "" if not yet.
    metrics: name -> a value for each update, five digits; none that an update lacks, as a skipped one does.

    Raises:
        InputError: the folder is damaged; begins with `field` and ends with `fix`.

    """
    with _damage_told(folder, field, fix):
        rows = read_lines(folder / "metrics.jsonl")
        names = [name for name in rows[0] if all(name in row for row in rows)]
        result = {
            "run": folder.name,
            "settings": settings,
            "versions": _versions(),
            "evaluation": _evaluation(folder),
            "right": {
                when: {
                    how: "".join(str(int(row["strict"])) for row in read_lines(folder / f"answers-{when}-{how}.jsonl"))
                    for how in TESTED
                }
                for when in ("before", "after")
            },
            "metrics": {name: [_short(row[name]) for row in rows] for name in names},
        }
    return checked(result, folder, field, fix)


def checked(result: Any, place: Path, field: str, fix: str) -> Result:
    """Return a result as it is, looked through for what tables and curves read.

    Raises:
        InputError: something is missing, or of another kind; begins with `field` and ends with `fix`.

    """
    with _damage_told(place, field, fix):
        settings, metrics, numbers = result["settings"], result["metrics"], list[Any]()
        words = [result["run"], settings["task"]["name"]]
        if not metrics and "decoded" not in result:
            raise ValueError("it has no update")
        if "after" in result["evaluation"] and "before" not in result["evaluation"]:
            raise ValueError("it was not evaluated before training")
        for when, part in result["evaluation"].items():
            for how in TESTED:
                marks, problems = result["right"][when][how], part[how]["problems"]
                if not isinstance(marks, str) or len(marks) != problems or not set(marks) <= {"0", "1"}:
                    raise ValueError(f"not every answer {when} training, {how}, is marked as right or wrong")
                low, high = part[how]["accuracy_interval"]
                numbers += [low, high, *(part[how][name] for name in ("accuracy", "length", "hidden_ratio"))]
        for name, values in metrics.items():
            if len(values) != len(metrics["step"]) or not values:
                raise ValueError(f"{name} has not a value for each update")
            numbers += values
        numbers += [settings["seed"], settings["updates"], settings["eval"]["problems"]]
        if not all(isinstance(word, str) for word in words) or not all(isinstance(n, int | float) for n in numbers):
            raise ValueError("a name is no text, or a number none")
    found: Result = result
    return found


@contextmanager
def _damage_told(place: Path, field: str, fix: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{field}: {place} is damaged ({type(error).__name__}: {error}); {fix}") from error


def decoded_result(run: TrainConfig, mode: LatentMode, trained: Result) -> Result:
    """Return what is kept of a run decoded once more: `decoded`, the mode, and as "after" what came out in it."""
    numbers, answers = decode_run(run, mode)
    right = {how: "".join(str(int(answer.strict)) for answer in part) for how, part in answers.items()}
    return {
        "run": trained["run"],
        "decoded": mode,
        "settings": trained["settings"],
        "versions": _versions(),
        "evaluation": {**trained["evaluation"], "after": numbers},
        "right": {**trained["right"], "after": right},
        "metrics": {},
    }


def _versions() -> dict[str, str]:
    return {"hrpo": __version__, "torch": version("torch"), "python": platform.python_version()}


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def summarize(finished: Mapping[Run, Result]) -> dict[str, Any]:
    """Return the comparison of finished runs: each arm's, from the same seeds.

    arms, seeds, updates, task, problems: what was compared.
    results: arm -> measure -> values by seed, before and after; mean after, and its t-interval over the seeds, none for
        one seed. That of an accuracy is cut to 0..1.
    differences: of each other arm minus the first one, in accuracy, paired by seed: mean, t-interval, p of no
        difference, and p corrected for the number of all these tests (Holm). Empty for one seed.
    training: arm -> metric -> its mean in the first and in the last updates, by seed; what it changes by, and the
        t-interval of that over the seeds. Without the arms that were decoded once more.
    seconds: arm -> mean over the seeds, of all updates.
    """
    arms, seeds = list(dict.fromkeys(arm for arm, _ in finished)), list(dict.fromkeys(seed for _, seed in finished))
    several = len(seeds) > 1
    results: dict[str, Any] = {arm: {} for arm in arms}
    for arm in arms:
        for measure, (_, how, number) in MEASURES.items():
            before, after = (
                [finished[arm, seed]["evaluation"][when][how][number] for seed in seeds] for when in ("before", "after")
            )
            interval = mean_interval(after) if several else None
            if interval and number == "accuracy":  # Student's t knows no bounds, an accuracy has them
                interval = max(interval[0], 0.0), min(interval[1], 1.0)
            results[arm][measure] = {"before": before, "after": after, "mean": _mean(after), "interval": interval}
    tests = [(arm, measure) for arm in arms[1:] for measure in TESTED] if several else []
    found = [paired_t(results[arm][measure]["after"], results[arms[0]][measure]["after"]) for arm, measure in tests]
    corrected = holm([difference.p for difference in found])
    first = finished[arms[0], seeds[0]]
    return {
        "arms": arms,
        "seeds": seeds,
        "updates": first["settings"]["updates"],
        "task": first["settings"]["task"]["name"],
        "problems": first["evaluation"]["after"]["greedy"]["problems"],
        "results": results,
        "differences": [
            {"arm": arm, "measure": measure, **difference._asdict(), "p_holm": p}
            for (arm, measure), difference, p in zip(tests, found, corrected, strict=True)
        ],
        "training": {
            arm: changes for arm in arms if (changes := _training([finished[arm, seed]["metrics"] for seed in seeds]))
        },
        "seconds": {arm: _mean([_seconds(finished[arm, seed]) for seed in seeds]) for arm in arms},
    }


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def _training(runs: Sequence[dict[str, list[float]]]) -> dict[str, Any]:
    names = [name for name in TRAINED if all(name in metrics for metrics in runs)]
    return {name: _change([metrics[name] for metrics in runs]) for name in names}


def _change(curves: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return what a metric is at first and at last, of each run, and how that differs."""
    window = max(min(WINDOW, len(curves[0]) // 2), 1)
    first, last = [_mean(curve[:window]) for curve in curves], [_mean(curve[-window:]) for curve in curves]
    change = [after - before for before, after in zip(first, last, strict=True)]
    return {
        "updates": window,
        "first": first,
        "last": last,
        "change": _mean(change),
        "interval": mean_interval(change) if len(change) > 1 else None,
    }


def _seconds(result: Result) -> float:
    return float(sum(sum(result["metrics"].get(name, [])) for name in ("rollout_seconds", "update_seconds")))


def result_rows(comparison: dict[str, Any]) -> list[list[str]]:
    """Return the table's rows: arm, the accuracies before and after, length, hidden ratio, time."""
    rows = []
    for arm in comparison["arms"]:
        row, results = [arm], comparison["results"][arm]
        for measure in TESTED:
            row.append(f"{_mean(results[measure]['before']):.1%}")
            row.append(_with_interval(results[measure], "{:.1%}"))
        row.append(_with_interval(results["length"], "{:.1f}"))
        row.append(_with_interval(results["hidden_ratio"], "{:.3f}"))
        rows.append([*row, clock(comparison["seconds"][arm])])
    return rows


def _with_interval(result: dict[str, Any], form: str) -> str:
    mean, interval = form.format(result["mean"]), result["interval"]
    return mean if interval is None else f"{mean} [{form.format(interval[0])}, {form.format(interval[1])}]"


def difference_rows(comparison: dict[str, Any]) -> list[list[str]]:
    """Return the table's rows: which difference, of what, how much, p, p corrected."""
    return [
        [
            f"{row['arm']} - {comparison['arms'][0]}",
            MEASURES[row["measure"]][0],
            "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in (row["difference"], *row["interval"]))),
            p_value(row["p"]),
            p_value(row["p_holm"]),
        ]
        for row in comparison["differences"]
    ]


def p_value(p: float) -> str:
    """Return a p-value as tables show it."""
    return "<.001" if p < 0.001 else f"{p:.3f}"


def training_rows(comparison: dict[str, Any]) -> list[list[str]]:
    """Return the table's rows: arm, metric, its mean in the first and in the last updates, the change."""
    return [
        [
            arm,
            CURVES[name],
            f"{_mean(found['first']):{TRAINED[name]}}",
            f"{_mean(found['last']):{TRAINED[name]}}",
            _with_interval({**found, "mean": found["change"]}, f"{{:+{TRAINED[name]}}}"),
        ]
        for arm, metrics in comparison["training"].items()
        for name, found in metrics.items()
    ]


HEADER = ["arm", *(how + when for how in TESTED for when in (" before", " after")), "length", "hidden ratio", "time"]
DIFFERENCES = ["difference", "of", "points", "p", "p (Holm)"]
TRAINING = ["arm", "while training", "first updates", "last updates", "change"]


def show(comparison: dict[str, Any]) -> None:
    """Print both tables."""
    print_table(_title(comparison), HEADER, result_rows(comparison))
    if comparison["differences"]:
        print_table("paired over seeds", DIFFERENCES, difference_rows(comparison))


def markdown(comparison: dict[str, Any], report: str = "comparison") -> str:
    """Return REPORT.md."""
    parts = [f"# {_title(comparison)}\n", *markdown_table(HEADER, result_rows(comparison)), ""]
    parts.append(
        "Mean over the seeds and its 95 % interval (Student's t, for accuracies cut to 0..100 %); length and hidden "
        "ratio of sampled answers after training; time of all updates.\n"
    )
    if comparison["differences"]:
        parts += [*markdown_table(DIFFERENCES, difference_rows(comparison)), ""]
        parts.append(
            "Differences in percentage points, paired by seed, which a seed's problems, their order and the answers' "
            f"random numbers belong to; paired t-test, p corrected for {len(comparison['differences'])} tests.\n"
        )
    parts += [*markdown_table(TRAINING, training_rows(comparison)), ""]
    window = next(found["updates"] for metrics in comparison["training"].values() for found in metrics.values())
    parts.append(
        f"Means of the first and the last {window} updates, of sampled completions, over the seeds; the hidden ratio "
        "of an update in which nothing was mixed is 0.\n"
    )
    parts.append(f"![curves]({report}.png)\n")
    parts.append(f"Mean over the seeds, {SMOOTH} updates at a time, and the band from their lowest to their highest.\n")
    return "\n".join(parts)


def _title(comparison: dict[str, Any]) -> str:
    seeds, problems = ", ".join(map(str, comparison["seeds"])), comparison["problems"]
    return f"Accuracy on {problems} problems of {comparison['task']}: {comparison['updates']} updates, seeds {seeds}"


def plot_curves(finished: Mapping[Run, Result], path: Path) -> None:
    """Draw the curves of each arm."""
    arms: dict[str, list[Result]] = {}
    for (arm, _), result in finished.items():
        if result["metrics"]:  # what was decoded once more has none
            arms.setdefault(arm, []).append(result)
    plot(arms, CURVES, path)
