"""Train a model, or check what training it would be like: train, check, sft."""

import dataclasses

from jsonargparse import Namespace

from hrpo.cli.parser import Command, Parser, refuse_empty
from hrpo.cli.quiet import quiet_libraries
from hrpo.common.signals import listening
from hrpo.config.schema import TrainConfig


def _train_options(parser: Parser) -> None:
    parser.usage = f"{parser.prog} [--config FILE] [--section.field VALUE ...] [--resume | --dry-run]"
    parser.add_argument("--config", action="config", help="a YAML file of settings; what follows it overrides it")
    parser.add_argument("--resume", action="store_true", help="go on from the run's newest checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="validate, print the plan, load no weights")
    parser.add_class_arguments(TrainConfig)


def _run_train(args: Namespace) -> None:
    config = train_config(args)
    if args.dry_run:
        quiet_libraries()
        from hrpo.training.plan import show_plan

        show_plan(config, resume=args.resume)
        return
    folder = config.run_folder
    begun = folder / "config.yaml"
    with listening(lambda: "--resume goes on" if begun.exists() else "the same command begins the run") as stop:
        quiet_libraries()
        from hrpo.common.console import console, print_table
        from hrpo.common.metrics import read_metrics
        from hrpo.reports.run_report import problems_of, result_rows
        from hrpo.training.setup import latent_of
        from hrpo.training.train import train

        evaluation = train(config, resume=args.resume, stop=stop)
    mode = latent_of(config.algorithm, config.latent).mode
    title = f"{problems_of(evaluation)} held-out problems of {config.task.name}, {mode}; 95 % intervals"
    print_table(
        title,
        ["", "before", "after"],
        result_rows(evaluation, read_metrics(folder)),
    )
    console.print(f"report: {folder / 'report.md'}")


def train_config(args: Namespace) -> TrainConfig:
    """Return the settings of a run.

    Raises:
        InputError: one has no value.
    """
    values = args.as_dict()
    config = TrainConfig(**{field.name: values[field.name] for field in dataclasses.fields(TrainConfig)})
    refuse_empty(dataclasses.asdict(config))
    return config


def _check_options(parser: Parser) -> None:
    parser.usage = "hrpo check [--config FILE] [--section.field VALUE ...]"
    parser.add_argument("--config", action="config", help="a YAML file of settings; what follows it overrides it")
    parser.add_class_arguments(TrainConfig)


def _run_check(args: Namespace) -> None:
    quiet_libraries()
    from hrpo.training.preflight import check_run, show

    checked = check_run(train_config(args))
    if checked is not None:
        show(checked)


def _run_sft(args: Namespace) -> None:
    args.algorithm = "sft"
    _run_train(args)


COMMANDS: dict[str, Command] = {
    "train": (_train_options, _run_train, "train a model with HRPO or GRPO"),
    "check": (_check_options, _run_check, "measure on a few prompts what a training run would be like"),
    "sft": (_train_options, _run_sft, "fine-tune a model on written solutions: a warm start"),
}
