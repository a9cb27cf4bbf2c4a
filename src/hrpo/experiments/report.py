"""`hrpo report`: several runs on one page, HTML and Markdown: curves, final numbers, tests, answers, settings."""

import base64
import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from hrpo.common import files
from hrpo.common.console import clock
from hrpo.common.errors import InputError
from hrpo.common.files import read_lines
from hrpo.common.markdown import block, inline
from hrpo.common.markdown import table as markdown_table
from hrpo.common.statistics import holm, mcnemar, mean_interval, paired_bootstrap
from hrpo.config.load import parse
from hrpo.experiments.results import HOWS, Result, checked, result_in
from hrpo.experiments.summary import difference_rows, p_value, summarize
from hrpo.reports.curves import SMOOTH, plot
from hrpo.storage.run_dir import differences

CURVES = {
    "reward": "mean reward",
    "nll": "-log p per token of the solutions (nats)",
    "accuracy": "accuracy on test problems, greedy, before and after",
    "length": "completion length (tokens)",
    "hidden_ratio": "hidden ratio",
    "kl": "KL to the initial model (k3, nats)",
    "entropy": "entropy of a token (nats)",
    "tokens_per_second": "completion tokens per second",
}
SHOWN = 5  # test problems whose answers are shown
NOT_SETTINGS = ("name", "output_dir", "seed")
# What a seed's test problems depend on.
ASKED = ("task.name", "task.path", "task.test_path", "task.min_terms", "task.max_terms", "eval.problems")
STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
pre { white-space: pre-wrap; margin: 0; font: 13px/1.4 ui-monospace, monospace; }
details pre { background: var(--faint); padding: .8rem; }
img { max-width: 100%; background: white; border-radius: 4px; }
"""


@dataclasses.dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but their seed."""

    label: str
    runs: dict[int, Result]  # by seed
    folders: dict[int, Path]  # of those that are there

    @property
    def finished(self) -> dict[int, Result]:
        """Those that were evaluated after training."""
        return {seed: result for seed, result in self.runs.items() if "after" in result["evaluation"]}


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: a title, and a table, a picture, or text as it is."""

    title: str
    note: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    picture: Path | None = None
    text: str = ""


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
        raise InputError(f"--out: {out!r} names no file; give one, such as report.html")
    files.check_writable(page.parent, "--out")
    picture = page.with_name(page.name + ".png")
    title = " and ".join(arm.label for arm in arms) if len(arms) < 3 else f"{len(arms)} arms"
    parts = [Section("Curves", _curves_note(arms), picture=picture), *_numbers(arms), *_answers(arms), *_settings(arms)]
    plot({arm.label: list(arm.runs.values()) for arm in arms}, CURVES, picture)
    written = page.with_name(page.name + ".md"), page.with_name(page.name + ".html")
    files.write_text(written[0], _markdown(title, parts))
    files.write_text(written[1], _html(title, parts))
    return [*written, picture]


def arms_of(paths: Sequence[str]) -> list[Arm]:
    """Return the runs, those of the same settings together, in the order of their first.

    Raises:
        InputError: see `report`.

    """
    arms: dict[str, tuple[dict[str, Any], dict[int, Result], dict[int, Path]]] = {}
    for path in map(Path, paths):
        result = _read(path)
        settings = {name: value for name, value in result["settings"].items() if name not in NOT_SETTINGS}
        _, runs, folders = arms.setdefault(json.dumps(settings, sort_keys=True), (settings, {}, {}))
        seed = result["settings"]["seed"]
        if seed in runs:
            raise InputError(f"RUN: {path} has the settings and the seed of another one; name each run once")
        runs[seed] = result
        if path.is_dir():
            folders[seed] = path
    found = list(arms.values())
    names = _differing([settings for settings, _, _ in found])
    return [
        Arm(
            ", ".join(f"{name.rpartition('.')[2]} {_value(settings, name)}" for name in names)
            or next(iter(runs.values()))["run"],
            runs,
            folders,
        )
        for settings, runs, folders in found
    ]


def _read(path: Path) -> Result:
    fix = "name a run folder, or a result that hrpo compare kept"
    if path.is_dir():
        config, metrics = path / "config.yaml", path / "metrics.jsonl"
        if not config.is_file():
            raise InputError(f"RUN: {path} is no run folder; {fix}")
        if not metrics.is_file() or not metrics.stat().st_size:
            raise InputError(f"RUN: {path} has no update yet; wait for its first one")
        try:
            settings = parse(config.read_text())
        except (ValueError, yaml.YAMLError) as error:
            raise InputError(f"RUN: {config} is damaged ({error}); {fix}") from error
        return result_in(path, settings, "RUN", fix)
    if not path.is_file():
        raise InputError(f"RUN: no file or folder {path}; {fix}")
    result = files.read_json(path, "RUN", fix)
    if not isinstance(result, dict) or not {"run", "settings", "evaluation", "metrics"} <= result.keys():
        raise InputError(f"RUN: {path} is no result of a run; {fix}")
    if "decoded" in result:
        raise InputError(f"RUN: {path} is of a run that was decoded once more, and no run of its own; {fix}")
    return checked(result, path, "RUN", fix)


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


def _numbers(arms: Sequence[Arm]) -> list[Section]:
    """Return the table of final numbers, and that of tests where something can be tested."""
    done = [arm for arm in arms if arm.finished]
    header = ["", *(f"{how} {when}" for how in HOWS for when in ("before", "after")), "length", "hidden", "updates"]
    rows = []
    for arm in arms:
        if not arm.finished:
            rows.append([arm.label, *["-"] * 6, str(max(r["metrics"]["step"][-1] for r in arm.runs.values()))])
            continue
        row = [arm.label]
        for how in HOWS:
            row += [f"{_mean(arm, 'before', how, 'accuracy'):.1%}", _accuracy(arm, how)]
        row += [
            f"{_mean(arm, 'after', 'sampled', name):{form}}"
            for name, form in (("length", ".1f"), ("hidden_ratio", ".3f"))
        ]
        seconds = [
            sum(sum(r["metrics"].get(n, [])) for n in ("rollout_seconds", "update_seconds")) for r in arm.runs.values()
        ]
        rows.append(
            [*row, f"{next(iter(arm.runs.values()))['settings']['max_steps']} in {clock(sum(seconds) / len(seconds))}"]
        )
    note = (
        "Strict accuracy: right, and exactly one ####. Brackets: 95 % intervals, over seeds where there are several "
        "(Student's t, cut to 0..100 %; where every seed has the same value it has no width, which is no certainty), "
        "else over the test problems (Wilson). Length and hidden: of sampled answers."
    )
    parts = [Section("After training", note, header, rows)]
    if len(done) < 2:
        return parts
    if not _same_problems(done):
        return [*parts, Section("Differences", "The arms were asked different test problems: nothing is paired.")]
    seeds = [set(arm.finished) for arm in done]
    if all(other == seeds[0] for other in seeds) and len(seeds[0]) > 1:
        tested = summarize({(arm.label, seed): arm.finished[seed] for arm in done for seed in sorted(seeds[0])})
        rows = difference_rows(tested)
        note = (
            "Paired by seed: t-test, p corrected for the number of these tests (Holm). Where a difference is the same "
            "in every seed, p is that of flipping signs, 2^(1 - seeds)."
        )
    elif all(other == seeds[0] for other in seeds):
        rows = _tests_over_problems(done, next(iter(seeds[0])))
        note = (
            "One seed each, so these speak of these models, not of other trainings: McNemar's exact test over the test "
            "problems, the interval by a bootstrap, p corrected for the number of these tests (Holm)."
        )
    else:
        return [*parts, Section("Differences", "The arms were trained from different seeds: nothing is paired.")]
    return [*parts, Section("Differences", note, ["difference", "of", "points [95 %]", "p", "p (Holm)"], rows)]


def _same_problems(arms: Sequence[Arm]) -> bool:
    settings = [next(iter(arm.runs.values()))["settings"] for arm in arms]
    counts = {result["evaluation"]["after"]["greedy"]["problems"] for arm in arms for result in arm.finished.values()}
    return len({tuple(_value(part, name) for name in ASKED) for part in settings}) == 1 == len(counts)


def _tests_over_problems(arms: Sequence[Arm], seed: int) -> list[list[str]]:
    right = {arm.label: [int(mark) for mark in arm.finished[seed]["right"]["after"]["greedy"]] for arm in arms}
    first, *others = right
    found = [paired_bootstrap(right[other], right[first]) for other in others]
    ps = [mcnemar([*map(bool, right[other])], [*map(bool, right[first])]) for other in others]
    return [
        [
            f"{other} - {first}",
            "greedy accuracy",
            "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in (one.difference, *one.interval))),
            p_value(p),
            p_value(corrected),
        ]
        for other, one, p, corrected in zip(others, found, ps, holm(ps), strict=True)
    ]


def _mean(arm: Arm, when: str, how: str, name: str) -> float:
    values = [result["evaluation"][when][how][name] for result in arm.finished.values()]
    return float(sum(values) / len(values))


def _accuracy(arm: Arm, how: str) -> str:
    found = [result["evaluation"]["after"][how] for result in arm.finished.values()]
    values = [part["accuracy"] for part in found]
    low, high = mean_interval(values) if len(values) > 1 else found[0]["accuracy_interval"]
    return f"{sum(values) / len(values):.1%} [{max(low, 0):.1%}, {min(high, 1):.1%}]"


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
    return [Section("Answers to the same test problems", f"Greedy, seed {seed}.", header, rows)]


def _judged(answer: Mapping[str, Any]) -> str:
    return f"{'right' if answer['strict'] else 'wrong'}, {answer['length']} tokens\n{answer['completion']}"


def _settings(arms: Sequence[Arm]) -> list[Section]:
    settings = [next(iter(arm.runs.values()))["settings"] for arm in arms]
    names = [name for name in _differing(settings) if name not in NOT_SETTINGS]
    rows = [[name, *(_value(part, name) for part in settings)] for name in names]
    parts = [Section("Settings that differ", "", ["", *(arm.label for arm in arms)], rows)] if rows else []
    first = yaml.safe_dump(settings[0], sort_keys=False)
    return [*parts, Section(f"All settings of {arms[0].label}", text=first)]


# ---- pages --------------------------------------------------------------------------------------------------------


def _markdown(title: str, parts: Sequence[Section]) -> str:
    lines = [f"# {inline(title)}"]
    for part in parts:
        lines += ["", f"## {inline(part.title)}", "", inline(part.note)]
        if part.picture:
            lines += ["", f"![curves]({quote(part.picture.name)})"]
        if part.header:
            lines += ["", *markdown_table(part.header, part.rows)]
        if part.text:
            lines += ["", block(part.text, "yaml").rstrip()]
    return "\n".join(lines) + "\n"


def _html(title: str, parts: Sequence[Section]) -> str:
    body = [f"<h1>{html.escape(title)}</h1>"]
    for part in parts:
        heading = html.escape(part.title)
        if part.text:
            body.append(f"<details><summary>{heading}</summary><pre>{html.escape(part.text)}</pre></details>")
            continue
        body += [f"<h2>{heading}</h2>", f"<p>{html.escape(part.note)}</p>"]
        if part.picture:
            data = base64.b64encode(part.picture.read_bytes()).decode()
            body.append(f'<img alt="curves of the runs over their updates" src="data:image/png;base64,{data}">')
        if part.header:
            head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in part.header)
            rows = "".join("<tr>" + "".join(f"<td>{_pre(cell)}</td>" for cell in row) + "</tr>" for row in part.rows)
            body.append(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>')
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{meta}<title>{html.escape(title)}</title><style>{STYLE}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _pre(cell: str) -> str:
    text = html.escape(cell)
    return f"<pre>{text}</pre>" if "\n" in cell else text
