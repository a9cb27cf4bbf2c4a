"""An evaluation as tables: on the screen and in results.md."""

from typing import Any

from hrpo.common.markdown import inline
from hrpo.reports.comparisons import Benchmark
from hrpo.reports.results import DecodeMode, ModeScores, Scores
from hrpo.reports.tables import ACCURACIES, Table, number, p_value, percent, points

LEGEND = (
    "Accuracy is strict: right, and exactly one `####`; lenient: right. Brackets: 95 % intervals, Wilson's for one "
    "answer to each problem, else a bootstrap over problems, widened by Wilson's where successes are rare. Tokens, cut "
    "off, format (one `####`) and hidden ratio are those of the samples, where there are any."
)
COMPARED = (
    "Differences of strict accuracy on the same problems; greedy: McNemar's exact test, sampled: paired bootstrap; "
    "p Holm: corrected for all {count} comparisons."
)
WRITING = (
    "Shares of the samples, where there are any, in percent. Scripts: with a letter of it, so that a text may count "
    "for several; mixed: in scripts that no language is written in alone. Languages: of texts with 40 letters or more, "
    "the likeliest by py3langid, three at most. Loops: ends in the same characters four times or more, 20 at least."
)


def show(results: dict[str, Any]) -> None:
    """Print the tables of what results.json holds."""
    found = Benchmark.from_json(results)
    _results(found, brief=True).show(_title(found))
    if found.comparisons:
        _comparisons(found).show(f"differences; {len(found.comparisons)} comparisons")


def markdown(results: dict[str, Any]) -> str:
    """Return results.md, from what results.json holds."""
    found = Benchmark.from_json(results)
    parts = [f"# {inline(_title(found))}\n", LEGEND + "\n", *_results(found, brief=False).markdown()]
    if found.comparisons:
        parts += ["\n## Differences\n", COMPARED.format(count=len(found.comparisons)) + "\n"]
        parts += _comparisons(found).markdown()
    parts += ["\n## Writing\n", WRITING + "\n", *_writing(found).markdown()]
    parts += ["\n## Settings\n", "Fixed before the first question; all of them: `settings.json`.\n"]
    parts += _settings(found).markdown()
    settings = found.settings
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    parts.append(f"\nSeed {settings['seed']}, batch {settings['batch']}, {settings['device']}; {versions}.")
    return "\n".join(parts) + "\n"


def _title(found: Benchmark) -> str:
    tasks = found.settings["tasks"]
    return "; ".join(f"{name}: {task['problems']:,} of {task['of']:,} test problems" for name, task in tasks.items())


def _results(found: Benchmark, *, brief: bool) -> Table:
    """Return the table of numbers; a brief one has no lenient accuracy, and no interval of pass@k."""
    samples = found.settings["samples"]
    with_metric = any(scores[DecodeMode.GREEDY].metric is not None for _, _, scores in _models(found))
    lenient = [] if brief else ["lenient %"]
    header = ["task", "model", "greedy %", *lenient]
    header += [f"avg@{samples} %", *lenient, f"pass@{samples} %"] if samples else []
    header += (["metric"] if with_metric else []) + ["tokens", "cut off %", "format %", "hidden"]
    rows = []
    for task, label, by_mode in _models(found):
        row, last = [task, label], _last(by_mode)
        for scores in by_mode.values():
            row += [_accuracy(scores, name) for name in ACCURACIES[: 1 if brief else 2]]
        if samples:
            row.append(_pass_at(last, str(samples), brief=brief))
        if with_metric:
            row.append(number(last.metric, ".3f"))
        row += [number(last.length, ".1f"), percent(last.truncation_rate), percent(last.format_rate)]
        rows.append([*row, number(last.hidden_ratio, ".3f")])
    return Table(header, rows)


def _accuracy(scores: Scores, name: str) -> str:
    return percent(getattr(scores, name), getattr(scores, f"{name}_interval"))


def _pass_at(scores: Scores, tries: str, *, brief: bool) -> str:
    return percent(scores.pass_at[tries], None if brief else scores.pass_at_interval[tries])


def _writing(found: Benchmark) -> Table:
    rows = []
    for task, label, by_mode in _models(found):
        writing = _last(by_mode).writing
        named = [
            ", ".join(f"{name} {percent(share)}" for name, share in list(writing[kind].items())[:3]) or "-"
            for kind in ("scripts", "languages")
        ]
        shares = [percent(writing[name]) for name in ("mixed_scripts", "repeated_delimiter", "loops")]
        rows.append([task, label, *named, *shares])
    return Table(["task", "model", "scripts", "languages", "mixed scripts", "several ####", "loops"], rows)


def _settings(found: Benchmark) -> Table:
    names = ("latent_mode", "temperature", "top_k", "max_new_tokens")
    rows = [
        [
            label,
            entry["checkpoint"],
            str(entry["step"]),
            *(str(entry["decoding"][name]) for name in names),
            entry["prompt"],
            str(entry["shots"]),
        ]
        for label, entry in found.settings["checkpoints"].items()
    ]
    return Table(["", "checkpoint", "step", "mode", "tau", "top_k", "tokens at most", "prompt", "shots"], rows)


def _comparisons(found: Benchmark) -> Table:
    rows = [
        [
            row.task,
            f"{row.first} - {row.second}",
            row.how,
            points(row.difference, row.interval),
            p_value(row.p, 4),
            p_value(row.p_holm, 4),
        ]
        for row in found.comparisons
    ]
    return Table(["task", "models", "decoding", "points [95 %]", "p", "p Holm"], rows)


def _models(found: Benchmark) -> list[tuple[str, str, ModeScores]]:
    return [(task, label, by_mode) for task, models in found.tasks.items() for label, by_mode in models.items()]


def _last(by_mode: ModeScores) -> Scores:
    """Return what the samples scored, where there are any, else the greedy answers."""
    return by_mode.get(DecodeMode.SAMPLED) or by_mode[DecodeMode.GREEDY]
