"""Runs that differ in some settings, each from several seeds under one budget."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hrpo.algorithms import ALGORITHMS
from hrpo.common import files
from hrpo.common.console import console
from hrpo.common.errors import InputError
from hrpo.common.signals import Stop
from hrpo.config.load import parse
from hrpo.config.schema import TrainConfig
from hrpo.experiments.cross_mode import answer_in_modes, check_decode, trained_model
from hrpo.experiments.results import decoded_result, load_result, read_evaluation, result_of_run
from hrpo.experiments.summary import Run, markdown, plot_curves, summarize
from hrpo.reports.comparisons import Comparison
from hrpo.reports.results import RunResult
from hrpo.storage.run_dir import changed_settings, check_run_folder
from hrpo.training.setup import latent_of
from hrpo.training.train import train
from hrpo.training.validate import check_config


def of_modes(config: TrainConfig, modes: Sequence[str]) -> dict[str, TrainConfig]:
    """Return an arm for each latent mode, and for each algorithm that is named, with the same settings otherwise."""
    return {
        mode: dataclasses.replace(config, algorithm=mode)
        if mode in ALGORITHMS
        else dataclasses.replace(config, algorithm="hrpo", latent=dataclasses.replace(config.latent, mode=mode))
        for mode in modes
    }


def compare(
    arms: Mapping[str, TrainConfig],
    seeds: Sequence[int],
    results: str = "",
    report: str = "comparison",
    *,
    decode: Mapping[str, list[str]] | None = None,
    stop: Stop | None = None,
) -> Comparison:
    """Train what is not trained yet, and write REPORT.json, REPORT.md and REPORT.png.

    A run whose result is stored is not trained again, whether its folder is there or not; one that was stopped goes on.
    All do the same number of updates: `check.patience` is off, so that none stops early.

    Args:
        arms: settings by the arm's name; the first is what the others are compared with. `{arm}` in a run's name
            stands for that.
        seeds: of the runs of each.
        results: the folder for the comparison, and for each finished run's result, NAME.json; "" is the runs' folder.
        report: what the comparison is called there.
        decode: modes in which the models of an arm answer the test problems once more, by the arm's name; each is an
            arm of its own, ARM as MODE, with a result of its own. It needs the run's folder.
        stop: as in `train`.

    Returns:
        What REPORT.json holds.

    Raises:
        InputError: a setting cannot be used, or a run's folder or result is of other settings; nothing has been
            trained then.

    """
    runs = plan_runs(arms, seeds)
    folder = Path(results or next(iter(arms.values())).output_dir)
    files.check_writable(folder, "results")
    places = {key: folder / run.run_folder.relative_to(run.output_dir) for key, run in runs.items()}
    stored = {key: _stored(_place(places[key]), dataclasses.asdict(run)) for key, run in runs.items()}
    decoded = _plan_decoding(runs, decode or {}, stored, places)
    _check_names(places, decoded, folder, report)
    finished = _train_missing(runs, stored, places, stop)
    finished |= _decode_missing(runs, decoded, finished, places)
    comparison = summarize(finished)
    files.write_text(folder / f"{report}.json", json.dumps(comparison.to_json(), indent=1) + "\n")
    plot_curves(finished, folder / f"{report}.png")
    files.write_text(folder / f"{report}.md", markdown(comparison, report))
    return comparison


def plan_runs(arms: Mapping[str, TrainConfig], seeds: Sequence[int]) -> dict[Run, TrainConfig]:
    """Return the settings of each run, seed by seed.

    Raises:
        InputError: see `compare`.

    """
    if not arms:
        raise InputError("modes", "needs at least one")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError("seeds", "needs at least one, and each once")
    runs = {(arm, seed): _run(config, arm, seed) for seed in seeds for arm, config in arms.items()}
    if len({run.run_folder for run in runs.values()}) < len(runs):
        raise InputError("name", "needs {arm} (or {mode}) and {seed}, so that each run has a folder of its own")
    first = next(iter(runs.values()))
    for (arm, _), run in runs.items():
        if (run.max_steps, run.eval.problems) != (first.max_steps, first.eval.problems):
            raise InputError(f"arms.{arm}", "max_steps and eval.problems must be the same for all arms, one budget")
        if not run.eval.problems:
            raise InputError("eval.problems", "a comparison needs test problems")
        check_config(run)
        there = run.run_folder / "config.yaml"
        check_run_folder(run.run_folder, dataclasses.asdict(run), resume=there.exists())
        if "after" in read_evaluation(run.run_folder):
            _check_problems(parse(there.read_text()), run.eval.problems, run.run_folder)
    return runs


def _check_problems(settings: dict[str, Any], compared: int, place: Path) -> None:
    """Refuse what was evaluated on other test problems than those that are compared; a resumed run may change them."""
    problems = settings["eval"]["problems"]
    if problems != compared:
        raise InputError(
            "eval.problems", f"{place} has answers to {problems}", f"give {problems}, or other names (name, results)"
        )


def _run(config: TrainConfig, arm: str, seed: int) -> TrainConfig:
    check = dataclasses.replace(config.check, patience=0)
    return dataclasses.replace(config, name=config.name.replace("{arm}", arm), seed=seed, check=check)


def _plan_decoding(
    runs: Mapping[Run, TrainConfig],
    decode: Mapping[str, list[str]],
    stored: Mapping[Run, RunResult | None],
    places: Mapping[Run, Path],
) -> dict[Run, dict[str, RunResult | None]]:
    """Return the runs that are decoded once more: the modes, and the results that are stored already."""
    arms = list(dict.fromkeys(arm for arm, _ in runs))
    for arm in decode:
        if arm not in arms:
            raise InputError("decode", f"there is no arm {arm}", f"the arms are {', '.join(arms)}")
    decoded = dict[Run, dict[str, RunResult | None]]()
    for key in (key for arm in decode for key in runs if key[0] == arm):
        run, modes = runs[key], decode[key[0]]
        check_decode(run.run_folder.name, latent_of(run.algorithm, run.latent).mode, modes)
        decoded[key] = {mode: _stored(_place(places[key], mode), dataclasses.asdict(run)) for mode in modes}
        trained = stored[key] is not None or "after" in read_evaluation(run.run_folder)
        if trained and None in decoded[key].values():
            trained_model(run.run_folder, run.max_steps)  # is there
    return decoded


def _check_names(
    places: Mapping[Run, Path], decoded: Mapping[Run, Mapping[str, Any]], folder: Path, report: str
) -> None:
    """Refuse names of runs, arms or the report that would share a file or an arm."""
    again = [(key, mode) for key, modes in decoded.items() for mode in modes]
    results = [_place(place) for place in places.values()] + [_place(places[key], mode) for key, mode in again]
    if len(set(results)) < len(results) or {_arm(key, mode) for key, mode in again} & {arm for arm, _ in places}:
        raise InputError("name", "a run, or an arm, is called as another one is that is decoded once more", "rename it")
    if not report or Path(report).name != report or folder / f"{report}.json" in results:
        raise InputError("report", f"{report!r} must be a file's name, without its ending, and no run's")


def _train_missing(
    runs: Mapping[Run, TrainConfig],
    stored: Mapping[Run, RunResult | None],
    places: Mapping[Run, Path],
    stop: Stop | None,
) -> dict[Run, RunResult]:
    """Return the result of each run; those that are not stored are trained, and stored."""
    finished = dict[Run, RunResult]()
    for number, ((arm, seed), run) in enumerate(runs.items(), 1):
        result = stored[arm, seed]
        if result is None:
            console.print(f"run {number} of {len(runs)}: {arm}, seed {seed}, in {run.run_folder}")
            if "after" not in read_evaluation(run.run_folder):
                train(run, resume=(run.run_folder / "config.yaml").exists(), stop=stop)
            fix = "delete it, and it is trained again"
            result = result_of_run(run.run_folder, dataclasses.asdict(run), "name", fix)
            _store(result, _place(places[arm, seed]))
        finished[arm, seed] = result
    return finished


def _decode_missing(
    runs: Mapping[Run, TrainConfig],
    decoded: Mapping[Run, Mapping[str, RunResult | None]],
    finished: Mapping[Run, RunResult],
    places: Mapping[Run, Path],
) -> dict[Run, RunResult]:
    """Return the result of each run in each mode that it is decoded in; what is not stored is made, and stored."""
    results = dict[Run, RunResult]()
    for key, stored in decoded.items():
        modes, run = dict(stored), runs[key]
        missing = [mode for mode, found in modes.items() if found is None]
        if missing:
            checkpoint, trust = trained_model(run.run_folder, run.max_steps), run.model.trust_remote_code
            answered = answer_in_modes(checkpoint, missing, run.task, run.eval, run.seed, trust_remote_code=trust)
            for mode, numbers, answers in answered:
                modes[mode] = result = decoded_result(finished[key], mode, numbers, answers)
                _store(result, _place(places[key], mode))
        results |= {(_arm(key, mode), key[1]): found for mode, found in modes.items() if found is not None}
    return results


def _arm(key: Run, mode: str) -> str:
    return f"{key[0]} as {mode}"


def _place(run: Path, mode: str | None = None) -> Path:
    """Return the file of a run's result, or of its result in another mode."""
    return run.with_name(run.name + (f"-as-{mode}" if mode else "") + ".json")


def _store(result: RunResult, path: Path) -> None:
    files.write_text(path, json.dumps(result.to_json()) + "\n")


def _stored(path: Path, settings: dict[str, Any]) -> RunResult | None:
    """Return the result that a file holds, of a run with these settings; None where there is no file."""
    if not path.is_file():
        return None
    fix = "delete it, and its run is looked at again"
    result = load_result(files.read_json(path, "results", fix), path, "results", fix)
    changed = changed_settings(result.settings, settings)
    if changed:
        raise InputError("results", f"{path} is of other settings ({', '.join(changed)} differ)", "give another folder")
    _check_problems(result.settings, settings["eval"]["problems"], path)
    if not result.evaluation.after:
        raise InputError("results", f"{path} is damaged (it was not evaluated after training)", fix)
    return result
