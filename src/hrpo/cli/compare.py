"""Put several runs side by side: compare, report."""

import dataclasses
import json
from typing import Any

from jsonargparse import Namespace

from hrpo.cli.parser import Command, Parser, refuse_empty
from hrpo.cli.quiet import quiet_libraries
from hrpo.cli.train import train_config
from hrpo.common.errors import InputError
from hrpo.common.output import say
from hrpo.common.signals import listening
from hrpo.config.schema import CompareConfig, TrainConfig


def _compare_options(parser: Parser) -> None:
    parser.usage = "hrpo compare --config FILE [--modes [MODE,MODE]] [--seeds [N,N]] [--section.field VALUE ...]"
    parser.add_argument("--config", action="config", help="a YAML file of settings; what follows it overrides it")
    parser.add_class_arguments(CompareConfig)
    parser.add_class_arguments(TrainConfig)


def _run_compare(args: Namespace) -> None:
    config = train_config(args)
    refuse_empty({field.name: getattr(args, field.name) for field in dataclasses.fields(CompareConfig)})
    for arm in (*args.arms, *args.decode):
        if not isinstance(arm, str):  # 0.98, which YAML takes for a number
            raise InputError("arms", "an arm's name is text", f'write "{arm}", in quotes')
    for arm, changes in args.arms.items():
        if "seed" in changes:
            raise InputError(f"arms.{arm}", "seed is not an arm's own", "give seeds for all of them")
    arms = {name: _changed(dataclasses.asdict(config), name, changes) for name, changes in args.arms.items()}
    with listening(lambda: "the same command goes on") as stop:
        quiet_libraries()
        from hrpo.experiments.summary import show
        from hrpo.experiments.sweep import compare, of_modes

        arms = arms or of_modes(config, args.modes)
        comparison = compare(arms, args.seeds, args.results, args.report, decode=args.decode, stop=stop)
    show(comparison)


def _changed(settings: dict[str, Any], arm: str, changes: dict[str, Any]) -> TrainConfig:
    """Return settings with those of an arm, given by their dotted names."""
    parser = Parser(prog=f"hrpo compare: arms.{arm}")
    parser.add_class_arguments(TrainConfig)
    words = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in changes.items()]
    parser.set_defaults(settings)
    return TrainConfig(**parser.instantiate(parser.parse_args(words)).as_dict())


def _report_options(parser: Parser) -> None:
    parser.usage = "hrpo report RUN [RUN ...] [--out FILE]"
    parser.add_argument("runs", nargs="+", type=str, help="run folders, or results that hrpo compare kept")
    parser.add_argument("--out", default="report.html", help="the page; a .md and a .png are written beside it")


def _run_report(args: Namespace) -> None:
    quiet_libraries()
    from hrpo.experiments.report import report

    for path in report(args.runs, args.out):
        say(path)


COMMANDS: dict[str, Command] = {
    "compare": (_compare_options, _run_compare, "train several latent modes on several seeds, and compare them"),
    "report": (_report_options, _run_report, "put several runs on one page: curves, numbers, tests, answers"),
}
