"""An evaluation as tables: on the screen and in results.md."""

from typing import Any

from hrpo.common.console import print_table
from hrpo.common.markdown import inline
from hrpo.common.markdown import table as markdown_table

Table = tuple[list[str], list[list[str]]]
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
    """Print the tables."""
    print_table(_title(results), *_results(results, brief=True))
    if results["comparisons"]:
        print_table(f"differences; {len(results['comparisons'])} comparisons", *_comparisons(results))


def markdown(results: dict[str, Any]) -> str:
    """Return results.md."""
    settings = results["settings"]
    parts = [f"# {inline(_title(results))}\n", LEGEND + "\n", *markdown_table(*_results(results, brief=False))]
    if results["comparisons"]:
        parts += ["\n## Differences\n", COMPARED.format(count=len(results["comparisons"])) + "\n"]
        parts += markdown_table(*_comparisons(results))
    parts += ["\n## Writing\n", WRITING + "\n", *markdown_table(*_writing(results))]
    parts += ["\n## Settings\n", "Fixed before the first question; all of them: `settings.json`.\n"]
    parts += markdown_table(
        ["", "checkpoint", "step", "mode", "tau", "top_k", "tokens at most", "prompt", "shots"],
        [
            [
                label,
                entry["checkpoint"],
                str(entry["step"]),
                *(str(entry["decoding"][name]) for name in ("latent_mode", "temperature", "top_k", "max_new_tokens")),
                entry["prompt"],
                str(entry["shots"]),
            ]
            for label, entry in settings["checkpoints"].items()
        ],
    )
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    parts.append(f"\nSeed {settings['seed']}, batch {settings['batch']}, {settings['device']}; {versions}.")
    return "\n".join(parts) + "\n"


def _title(results: dict[str, Any]) -> str:
    tasks = results["settings"]["tasks"]
    return "; ".join(f"{name}: {task['problems']:,} of {task['of']:,} test problems" for name, task in tasks.items())


def _results(results: dict[str, Any], *, brief: bool) -> Table:
    """Return the table of numbers; a brief one has no lenient accuracy, and no interval of pass@k."""
    samples = results["settings"]["samples"]
    with_metric = any("metric" in model["greedy"] for _, _, model in _models(results))
    lenient = [] if brief else ["lenient %"]
    header = ["task", "model", "greedy %", *lenient]
    header += [f"avg@{samples} %", *lenient, f"pass@{samples} %"] if samples else []
    header += (["metric"] if with_metric else []) + ["tokens", "cut off %", "format %", "hidden"]
    rows = []
    for task, label, model in _models(results):
        row, last = [task, label], model.get("sampled", model["greedy"])
        for numbers in model.values():
            row += [_share(numbers, key) for key in ("accuracy", "lenient_accuracy")[: 1 if brief else 2]]
        if samples:
            chance, interval = (last[name][str(samples)] for name in ("pass_at", "pass_at_interval"))
            row.append(_percent(chance) if brief else _percent(chance, interval))
        if with_metric:
            row.append(f"{last['metric']:.3f}" if "metric" in last else "-")
        row += [f"{last['length']:.1f}", *(_percent(last[key]) for key in ("truncation_rate", "format_rate"))]
        rows.append([*row, f"{last['hidden_ratio']:.3f}"])
    return header, rows


def _writing(results: dict[str, Any]) -> Table:
    rows = []
    for task, label, model in _models(results):
        writing = model.get("sampled", model["greedy"])["writing"]
        named = [
            ", ".join(f"{name} {_percent(share)}" for name, share in list(writing[kind].items())[:3]) or "-"
            for kind in ("scripts", "languages")
        ]
        shares = [_percent(writing[name]) for name in ("mixed_scripts", "repeated_delimiter", "loops")]
        rows.append([task, label, *named, *shares])
    return ["task", "model", "scripts", "languages", "mixed scripts", "several ####", "loops"], rows


def _comparisons(results: dict[str, Any]) -> Table:
    rows = [
        [
            row["task"],
            f"{row['first']} - {row['second']}",
            row["how"],
            "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in (row["difference"], *row["interval"]))),
            *(_p(row[name]) for name in ("p", "p_holm")),
        ]
        for row in results["comparisons"]
    ]
    return ["task", "models", "decoding", "points [95 %]", "p", "p Holm"], rows


def _models(results: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(task, label, model) for task, models in results["tasks"].items() for label, model in models.items()]


def _share(numbers: dict[str, Any], key: str) -> str:
    return _percent(numbers[key], numbers[f"{key}_interval"])


def _percent(share: float, interval: tuple[float, float] | None = None) -> str:
    if interval is None:
        return f"{100 * share:.1f}"
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * value for value in (share, *interval)))


def _p(value: float) -> str:
    return "<.0001" if value < 0.0001 else f"{value:.4f}"
