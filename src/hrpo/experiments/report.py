"""`hrpo report`: several runs on one page, HTML and Markdown: curves, final numbers, tests, answers, settings."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hrpo.common import files
from hrpo.common.console import clock
from hrpo.common.errors import InputError
from hrpo.common.files import read_lines
from hrpo.common.statistics import holm, mcnemar, mean_interval, paired_bootstrap
from hrpo.config.load import parse
from hrpo.experiments.results import load_result, result_of_run
from hrpo.experiments.summary import cut, summarize
from hrpo.reports.page import Section, to_html, to_markdown
from hrpo.reports.plots import OF_REPORT, SMOOTH, plot_arms
from hrpo.reports.results import DecodeMode, RunResult
from hrpo.reports.tables import NONE, Table, differences_table, mean, number, p_value, points
from hrpo.storage.run_dir import differences

SHOWN = 5  # test problems whose answers are shown
UNIT = "points [95 %]"
NOT_SETTINGS = ("name", "output_dir", "seed")
# What a seed's test problems depend on.
ASKED = ("task.name", "task.path", "task.test_path", "task.min_terms", "task.max_terms", "eval.problems")


@dataclasses.dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but their seed."""

    label: str
    runs: dict[int, RunResult]  # by seed
    folders: dict[int, Path]  # of those that are there

    @property
    def finished(self) -> dict[int, RunResult]:
        """Those that were evaluated after training."""
        return {seed: result for seed, result in self.runs.items() if result.evaluation.after}

    @property
    def first(self) -> RunResult:
        """The first run; the settings of the others are the same."""
        return next(iter(self.runs.values()))


def report(paths: Sequence[str], out: str) -> list[Path]:
    """Write OUT.html, OUT.md and OUT.png about some runs.

    Args:
        paths: run folders, or results that `hrpo compare` kept.
        out: where to; an ending .html is not doubled.

    Returns:
        The three files.

    Raises:
        InputError: one is neither, or has no update yet.

    """
    arms = arms_of(paths)
    page = Path(out.removesuffix(".html"))
    if page.name in ("", ".."):
        raise InputError("--out", f"{out!r} names no file", "give one, such as report.html")
    files.check_writable(page.parent, "--out")
    picture = page.with_name(page.name + ".png")
    title = " and ".join(arm.label for arm in arms) if len(arms) < 3 else f"{len(arms)} arms"
    curves = Section("Curves", _curves_note(arms), picture=picture, alt="curves of the runs over their updates")
    sections = [curves, _numbers(arms), *_tests(arms), *_answers(arms), *_settings(arms)]
    plot_arms({arm.label: list(arm.runs.values()) for arm in arms}, OF_REPORT, picture)
    written = page.with_name(page.name + ".md"), page.with_name(page.name + ".html")
    files.write_text(written[0], to_markdown(title, sections))
    files.write_text(written[1], to_html(title, sections))
    return [*written, picture]


def arms_of(paths: Sequence[str]) -> list[Arm]:
    """Return the runs, those of the same settings together, in the order of their first.

    Raises:
        InputError: see `report`.

    """
    arms: dict[str, tuple[dict[str, Any], dict[int, RunResult], dict[int, Path]]] = {}
    for path in map(Path, paths):
        result = _read(path)
        settings = {name: value for name, value in result.settings.items() if name not in NOT_SETTINGS}
        _, runs, folders = arms.setdefault(json.dumps(settings, sort_keys=True), (settings, {}, {}))
        seed = result.settings["seed"]
        if seed in runs:
            raise InputError("RUN", f"{path} has the settings and the seed of another one", "name each run once")
        runs[seed] = result
        if path.is_dir():
            folders[seed] = path
    found = list(arms.values())
    names = _differing([settings for settings, _, _ in found])
    return [
        Arm(
            ", ".join(f"{name.rpartition('.')[2]} {_value(settings, name)}" for name in names)
            or next(iter(runs.values())).run,
            runs,
            folders,
        )
        for settings, runs, folders in found
    ]


def _read(path: Path) -> RunResult:
    fix = "name a run folder, or a result that hrpo compare kept"
    if path.is_dir():
        config, metrics = path / "config.yaml", path / "metrics.jsonl"
        if not config.is_file():
            raise InputError("RUN", f"{path} is no run folder", fix)
        if not metrics.is_file() or not metrics.stat().st_size:
            raise InputError("RUN", f"{path} has no update yet", "wait for its first one")
        try:
            settings = parse(config.read_text())
        except (ValueError, yaml.YAMLError) as error:
            raise InputError("RUN", f"{config} is damaged ({error})", fix) from error
        return result_of_run(path, settings, "RUN", fix)
    if not path.is_file():
        raise InputError("RUN", f"no file or folder {path}", fix)
    result = files.read_json(path, "RUN", fix)
    if not isinstance(result, dict) or not {"run", "settings", "evaluation", "metrics"} <= result.keys():
        raise InputError("RUN", f"{path} is no result of a run", fix)
    if "decoded" in result:
        raise InputError("RUN", f"{path} is of a run that was decoded once more, and no run of its own", fix)
    return load_result(result, path, "RUN", fix)


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({name for other in settings[1:] for name in differences(settings[0], other)})


def _value(settings: Any, name: str) -> str:
    for part in name.split("."):
        settings = settings.get(part, "-")
    return str(settings)


# ---- curves -------------------------------------------------------------------------------------------------------


def _curves_note(arms: Sequence[Arm]) -> str:
    seeds = "; ".join(f"{arm.label}: seeds {', '.join(map(str, sorted(arm.runs)))}" for arm in arms)
    return f"Mean over the seeds, {SMOOTH} updates at a time, and the band from their lowest to their highest. {seeds}."


# ---- numbers ------------------------------------------------------------------------------------------------------


def _numbers(arms: Sequence[Arm]) -> Section:
    """Return the table of final numbers."""
    phases = [f"{mode} {phase}" for mode in DecodeMode for phase in ("before", "after")]
    note = (
        "Strict accuracy: right, and exactly one ####. Brackets: 95 % intervals, over seeds where there are several "
        "(Student's t, cut to 0..100 %; where every seed has the same value it has no width, which is no certainty), "
        "else over the test problems (Wilson). Length and hidden: of sampled answers."
    )
    table = Table(["", *phases, "length", "hidden", "updates"], [_numbers_row(arm) for arm in arms])
    return Section("After training", note, table)


def _numbers_row(arm: Arm) -> list[str]:
    finished = list(arm.finished.values())
    if not finished:
        return [arm.label, *[NONE] * 6, str(max(run.metrics["step"][-1] for run in arm.runs.values()))]
    row = [arm.label]
    for mode in DecodeMode:
        before = [run.evaluation.before[mode].accuracy for run in finished]
        after = [run.evaluation.after[mode].accuracy for run in finished]
        several = len(after) > 1
        interval = mean_interval(after) if several else finished[0].evaluation.after[mode].accuracy_interval
        row += [number(mean(before), ".1%"), number(mean(after), ".1%", cut(interval))]
    sampled = [run.evaluation.after[DecodeMode.SAMPLED] for run in finished]
    row.append(number(mean([scores.length for scores in sampled]), ".1f"))
    row.append(number(mean([scores.hidden_ratio for scores in sampled]), ".3f"))
    return [*row, f"{arm.first.settings['max_steps']} in {clock(mean([run.seconds for run in arm.runs.values()]))}"]


def _tests(arms: Sequence[Arm]) -> list[Section]:
    """Return the table of tests, where something can be tested, or why nothing can."""
    done = [arm for arm in arms if arm.finished]
    if len(done) < 2:
        return []
    if not _same_problems(done):
        return [Section("Differences", "The arms were asked different test problems: nothing is paired.")]
    seeds = set(done[0].finished)
    if any(set(arm.finished) != seeds for arm in done):
        return [Section("Differences", "The arms were trained from different seeds: nothing is paired.")]
    if len(seeds) > 1:
        tested = summarize({(arm.label, seed): arm.finished[seed] for arm in done for seed in sorted(seeds)})
        note = (
            "Paired by seed: t-test, p corrected for the number of these tests (Holm). Where a difference is the same "
            "in every seed, p is that of flipping signs, 2^(1 - seeds)."
        )
        return [Section("Differences", note, differences_table(tested, UNIT))]
    note = (
        "One seed each, so these speak of these models, not of other trainings: McNemar's exact test over the test "
        "problems, the interval by a bootstrap, p corrected for the number of these tests (Holm)."
    )
    return [Section("Differences", note, _tests_over_problems(done, next(iter(seeds))))]


def _same_problems(arms: Sequence[Arm]) -> bool:
    asked = {tuple(_value(arm.first.settings, name) for name in ASKED) for arm in arms}
    counts = {run.evaluation.after[DecodeMode.GREEDY].problems for arm in arms for run in arm.finished.values()}
    return len(asked) == 1 == len(counts)


def _tests_over_problems(arms: Sequence[Arm], seed: int) -> Table:
    right = {arm.label: [int(mark) for mark in arm.finished[seed].right["after"][DecodeMode.GREEDY]] for arm in arms}
    first, *others = right
    found = [paired_bootstrap(right[other], right[first]) for other in others]
    ps = [mcnemar([*map(bool, right[other])], [*map(bool, right[first])]) for other in others]
    rows = [
        [f"{other} - {first}", "greedy accuracy", points(one.difference, one.interval), p_value(p), p_value(corrected)]
        for other, one, p, corrected in zip(others, found, ps, holm(ps), strict=True)
    ]
    return Table(["difference", "of", UNIT, "p", "p (Holm)"], rows)


# ---- answers and settings -----------------------------------------------------------------------------------------


def _answers(arms: Sequence[Arm]) -> list[Section]:
    """Return the greedy answers to the first test problems of a seed that all have: before, and after each arm."""
    seeds = set.intersection(*(set(arm.folders) & set(arm.finished) for arm in arms))
    if not seeds or not _same_problems(arms):
        return []
    seed = min(seeds)
    before, *after = (
        read_lines(arm.folders[seed] / f"answers-{when}-greedy.jsonl")[:SHOWN]
        for when, arm in [("before", arms[0]), *(("after", arm) for arm in arms)]
    )
    rows = [
        [f"{answers[0]['question']}\n\ngold: {answers[0]['gold']}", *(_judged(answer) for answer in answers)]
        for answers in zip(before, *after, strict=True)
    ]
    header = ["problem", "before training", *(f"after: {arm.label}" for arm in arms)]
    return [Section("Answers to the same test problems", f"Greedy, seed {seed}.", Table(header, rows))]


def _judged(answer: Mapping[str, Any]) -> str:
    return f"{'right' if answer['strict'] else 'wrong'}, {answer['length']} tokens\n{answer['completion']}"


def _settings(arms: Sequence[Arm]) -> list[Section]:
    settings = [arm.first.settings for arm in arms]
    names = [name for name in _differing(settings) if name not in NOT_SETTINGS]
    rows = [[name, *(_value(part, name) for part in settings)] for name in names]
    table = Table(["", *(arm.label for arm in arms)], rows)
    whole = Section(f"All settings of {arms[0].label}", text=yaml.safe_dump(settings[0], sort_keys=False))
    return [Section("Settings that differ", table=table), whole] if rows else [whole]
