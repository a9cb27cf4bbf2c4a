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
from hrpo.experiments.cross_mode import check_decode, trained_model
from hrpo.experiments.results import Result, checked, decoded_results, evaluation_in, result_in
from hrpo.experiments.summary import Run, markdown, plot_curves, summarize
from hrpo.storage.run_dir import changed_settings, check_run_folder
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
    folder = Path(results or next(iter(arms.values())).output_dir)
    files.check_writable(folder, "results")
    kept = {key: _kept(folder, run) for key, run in runs.items()}
    again = _plan_decoding(runs, decode or {}, kept, folder)
    places = [_place(folder, run) for run in runs.values()]
    places += [_place(folder, runs[key], mode) for key, modes in again.items() for mode in modes]
    decoded = {f"{arm} as {mode}" for (arm, _), modes in again.items() for mode in modes}
    if len(set(places)) < len(places) or decoded & {arm for arm, _ in runs}:
        raise InputError("name: a run, or an arm, is called as another one is that is decoded once more; rename it")
    if not report or Path(report).name != report or folder / f"{report}.json" in places:
        raise InputError(f"report: {report!r} must be a file's name, without its ending, and no run's")
    for place, ((arm, seed), run) in enumerate(runs.items(), 1):
        if kept[arm, seed] is None:
            console.print(f"run {place} of {len(runs)}: {arm}, seed {seed}, in {run.run_folder}")
            if "after" not in evaluation_in(run.run_folder):
                train(run, resume=(run.run_folder / "config.yaml").exists(), stop=stop)
            fix = "delete it, and it is trained again"
            kept[arm, seed] = result_in(run.run_folder, dataclasses.asdict(run), "name", fix)
            files.write_text(_place(folder, run), json.dumps(kept[arm, seed]) + "\n")
    finished = {key: result for key, result in kept.items() if result is not None}
    for key, modes in again.items():
        missing = [mode for mode, found in modes.items() if found is None]
        for mode, result in decoded_results(runs[key], missing, finished[key]) if missing else ():
            files.write_text(_place(folder, runs[key], mode), json.dumps(result) + "\n")
            modes[mode] = result
        arm, seed = key
        finished |= {(f"{arm} as {mode}", seed): found for mode, found in modes.items() if found is not None}
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
        if (run.max_steps, run.eval.problems) != (first.max_steps, first.eval.problems):
            raise InputError(f"arms.{arm}: max_steps and eval.problems must be the same for all arms, one budget")
        if not run.eval.problems:
            raise InputError("eval.problems: a comparison needs test problems")
        check_config(run)
        there = run.run_folder / "config.yaml"
        check_run_folder(run.run_folder, run, resume=there.exists())
        if "after" in evaluation_in(run.run_folder):
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
    decode: Mapping[str, list[str]],
    kept: Mapping[Run, Result | None],
    folder: Path,
) -> dict[Run, dict[str, Result | None]]:
    """Return the runs that are decoded once more: the modes, and the results that are kept already."""
    arms = list(dict.fromkeys(arm for arm, _ in runs))
    for arm in decode:
        if arm not in arms:
            raise InputError(f"decode: there is no arm {arm}; the arms are {', '.join(arms)}")
    again = dict[Run, dict[str, Result | None]]()
    for key in (key for arm in decode for key in runs if key[0] == arm):
        run, modes = runs[key], decode[key[0]]
        check_decode(run, modes)
        again[key] = {mode: _kept(folder, run, mode) for mode in modes}
        trained = kept[key] is not None or "after" in evaluation_in(run.run_folder)
        if trained and None in again[key].values():
            trained_model(run)  # is there
    return again


def _place(folder: Path, run: TrainConfig, mode: str | None = None) -> Path:
    name = run.run_folder.relative_to(run.output_dir)
    return folder / name.with_name(name.name + (f"-as-{mode}" if mode else "") + ".json")


def _kept(folder: Path, run: TrainConfig, mode: str | None = None) -> Result | None:
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
