"""The command line: parse, call, print."""

import dataclasses
import difflib
import errno
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, Namespace

from hrpo.common.errors import (
    InputError,
    Interrupted,
    MainFailedError,
    OutputError,
    StoppedError,
    model_named_by,
    named_by,
)
from hrpo.common.files import is_full
from hrpo.common.output import failures_told, give_up_output, say, visible, warn
from hrpo.common.signals import listening
from hrpo.common.version import __version__
from hrpo.config.load import check_settings_file
from hrpo.config.schema import CompareConfig, TrainConfig
from hrpo.models.names import BUILT_IN_MODELS

# jsonargparse's words, and ours
UNKNOWN_OPTION = re.compile(
    r"unrecognized arguments: --([\w.-]+)|Group '(\w+)' does not accept option '([\w.]+)'|Option '([\w.]+)' is not"
)
PLAIN_WORDS = [
    (r"\s+", " "),
    (r'^Parser key "([\w.]+)": ?', r"\1: "),
    (r"^Unexpected config:.*", "--config: there is no such file"),
    (r"^config: File does not exist: '(.*)'", r"--config: there is no file \1"),
    (r"^config: Path is not a file: '(.*)'", r"--config: \1 is a folder, not a file of settings"),
    (r"^unrecognized arguments: (.*)", r"\1: not expected here; options begin with --, texts with spaces need quotes"),
    (r"^argument (\S+): ignored explicit argument (.*)", r"\1: takes no value, got \2"),
    (r"^(\w+): Unable to load config '(.*?)'.*", r"\1: no settings file \2; one setting is --\1.FIELD VALUE"),
    (r"a typing\.Literal\[(.*?)\]", r"one of \1"),
    (r"a <class 'int'>", "a whole number"),
    (r"a <class 'float'>", "a number"),
    (r"a <class 'bool'>", "true or false"),
    (r"a <class 'str'>", "text (quote it)"),
    (r"a <class 'dict'>", "names with their values, {NAME: VALUE}"),
    (
        r"Does not validate against any of the Union subtypes .*? Errors: - (.*) - Expected (.*) Given value type: .*?"
        r" Given value: (.*)",
        r"\1, or \2; got \3",
    ),
]
# Of the machine, not of the program: they end with a line too.
DISK_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG}
DISK_ERRORS |= {errno.EIO}


class Parser(ArgumentParser):
    """Answers bad input with one line that names the field, and the closest name for an unknown one."""

    def error(self, message: str, *_: Any, **__: Any) -> NoReturn:
        """Exit with 2."""
        unknown = UNKNOWN_OPTION.search(message)
        if unknown is None:
            for pattern, words in PLAIN_WORDS:
                message = re.sub(pattern, words, message.strip())
            self.exit(2, f"{self.prog}: error: {message}\n")
        name = ".".join(group for group in unknown.groups() if group)
        options = [option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")]
        close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else "see --help"
        self.exit(2, f"{self.prog}: error: unknown option {name}; {hint}\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Exit with a message that may quote what the user gave."""
        super().exit(status, message and visible(message))

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse; a whole number too large for a float, of 400 digits say, is an error as any other."""
        try:
            settings: Namespace = super().parse_args(*args, **kwargs)
        except OverflowError as error:
            self.error(f"a number of the settings is too large ({error}); write it with fewer digits")
        return settings

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Look a settings file through, then read it."""
        check_settings_file(Path(path))
        settings: Namespace = super().parse_path(path, *args, **kwargs)
        return settings


def _train_parser(parser: Parser) -> None:
    parser.usage = f"{parser.prog} [--config FILE] [--section.field VALUE ...] [--resume | --dry-run]"
    parser.add_argument("--config", action="config", help="a YAML file of settings; what follows it overrides it")
    parser.add_argument("--resume", action="store_true", help="go on from the run's newest checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="validate, print the plan, load no weights")
    parser.add_class_arguments(TrainConfig)


def _train(args: Namespace) -> None:
    config = _train_config(args)
    if args.dry_run:
        _quiet()
        from hrpo.training.plan import show_plan

        show_plan(config, resume=args.resume)
        return
    folder = config.run_folder
    begun = folder / "config.yaml"
    with listening(lambda: "--resume goes on" if begun.exists() else "the same command begins the run") as stop:
        _quiet()
        from hrpo.common.console import console, print_table
        from hrpo.common.files import read_lines
        from hrpo.reports.run_report import problems_of, result_rows
        from hrpo.training.setup import latent_mode_of
        from hrpo.training.train import train

        evaluation = train(config, resume=args.resume, stop=stop)
    title = (
        f"{problems_of(evaluation)} held-out problems of {config.task.name}, {latent_mode_of(config)}; 95 % intervals"
    )
    print_table(title, ["", "before", "after"], result_rows(evaluation, read_lines(folder / "metrics.jsonl")))
    console.print(f"report: {folder / 'report.md'}")


def _train_config(args: Namespace) -> TrainConfig:
    values = args.as_dict()
    config = TrainConfig(**{field.name: values[field.name] for field in dataclasses.fields(TrainConfig)})
    _refuse_empty(dataclasses.asdict(config))
    return config


def _refuse_empty(settings: dict[str, Any]) -> None:
    for name in _empty(settings):
        raise InputError(f"{name}: has no value; give one, or leave it out")


def _empty(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of settings without a value, `lr:`, which jsonargparse lets pass within a section."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _empty(value, f"{prefix}{name}.")
        elif value is None:
            yield f"{prefix}{name}"


def _check_parser(parser: Parser) -> None:
    parser.usage = "hrpo check [--config FILE] [--section.field VALUE ...]"
    parser.add_argument("--config", action="config", help="a YAML file of settings; what follows it overrides it")
    parser.add_class_arguments(TrainConfig)


def _check(args: Namespace) -> None:
    _quiet()
    from hrpo.training.preflight import check_run, show

    checked = check_run(_train_config(args))
    if checked is not None:
        show(checked)


def _sft(args: Namespace) -> None:
    args.objective = "sft"
    _train(args)


def _compare_parser(parser: Parser) -> None:
    parser.usage = "hrpo compare --config FILE [--modes [MODE,MODE]] [--seeds [N,N]] [--section.field VALUE ...]"
    parser.add_argument("--config", action="config", help="a YAML file of settings; what follows it overrides it")
    parser.add_class_arguments(CompareConfig)
    parser.add_class_arguments(TrainConfig)


def _compare(args: Namespace) -> None:
    config = _train_config(args)
    _refuse_empty({field.name: getattr(args, field.name) for field in dataclasses.fields(CompareConfig)})
    for arm in (*args.arms, *args.decode):
        if not isinstance(arm, str):  # 0.98, which YAML takes for a number
            raise InputError(f'arms: an arm\'s name is text; write "{arm}", in quotes')
    for arm, changes in args.arms.items():
        if "seed" in changes:
            raise InputError(f"arms.{arm}: seed is not an arm's own; give seeds for all of them")
    arms = {name: _changed(config, name, changes) for name, changes in args.arms.items()}
    with listening(lambda: "the same command goes on") as stop:
        _quiet()
        from hrpo.experiments.summary import show
        from hrpo.experiments.sweep import compare, of_modes

        arms = arms or of_modes(config, args.modes)
        comparison = compare(arms, args.seeds, args.results, args.report, decode=args.decode, stop=stop)
    show(comparison)


def _changed(config: TrainConfig, arm: str, changes: dict[str, Any]) -> TrainConfig:
    """Return a config with the settings of an arm, given by their dotted names."""
    parser = Parser(prog=f"hrpo compare: arms.{arm}")
    parser.add_class_arguments(TrainConfig)
    words = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in changes.items()]
    parser.set_defaults(dataclasses.asdict(config))
    return TrainConfig(**parser.instantiate(parser.parse_args(words)).as_dict())


def _report_parser(parser: Parser) -> None:
    parser.usage = "hrpo report RUN [RUN ...] [--out FILE]"
    parser.add_argument("runs", nargs="+", type=str, help="run folders, or results that hrpo compare kept")
    parser.add_argument("--out", default="report.html", help="the page; a .md and a .png are written beside it")


def _report(args: Namespace) -> None:
    _quiet()
    from hrpo.experiments.report import report

    for path in report(args.runs, args.out):
        say(path)


def _eval_parser(parser: Parser) -> None:
    parser.usage = "hrpo eval --checkpoint DIR [DIR ...] [--tasks NAME,NAME] [--samples K] [options]"
    add = parser.add_argument
    add("--checkpoint", nargs="+", required=True, type=str, help="checkpoints, run folders (their newest), or models")
    add("--tasks", "--task", default="", help="tasks, separated by commas; left out, the one that was trained on")
    add("--path", default="", help="a folder of benchmarks, or a training file with its test file beside it")
    add("--test_path", default="", help="the test file, where it lies elsewhere")
    add("--problems", type=int, default=500, help="test problems of each task, from the first; 0 takes all")
    add("--samples", type=int, default=1, help="sampled answers to each problem; 0 leaves only the greedy one")
    add("--latent_mode", default="own", help="decode in these modes, separated by commas; own is the trained one")
    add("--prompt", default="own", help="ask in these ways: own as in training, direct for the answer alone, cot")
    add("--shots", type=int, default=0, help="worked examples before each question, of the training problems")
    add("--shots_path", default="", help="take the worked examples from this file")
    add("--scorer", default="", help="math_string judges mathematical answers as the release does; own does not")
    add("--max_new_tokens", type=int, default=0, help="length limit of a completion; 0 leaves each model its own")
    add("--batch", type=int, default=64, help="completions decoded at a time")
    add("--seed", type=int, default=-1, help="of problems, worked examples and samples; -1 takes the run's own")
    add("--out", default="", help="a folder for answers and results; left out, one in evaluations/")
    add("--trust_remote_code", action="store_true", help="run code that comes with a base model")


def _eval(args: Namespace) -> None:
    _quiet()
    from hrpo.evaluation.run import evaluate_checkpoints
    from hrpo.evaluation.tables import show

    lists = {
        name: [part.strip() for part in getattr(args, name).split(",") if part.strip()]
        for name in ("tasks", "latent_mode", "prompt")
    }
    paths = {"task.path": "--path", "task.test_path": "--test_path"}
    with named_by({"model.name": "--checkpoint", "task.name": "--tasks", **paths}):
        results = evaluate_checkpoints(
            args.checkpoint,
            tasks=lists["tasks"],
            path=args.path,
            test_path=args.test_path,
            problems=args.problems,
            samples=args.samples,
            latent_modes=lists["latent_mode"],
            prompts=lists["prompt"],
            shots=args.shots,
            shots_path=args.shots_path,
            scorer=args.scorer,
            max_new_tokens=args.max_new_tokens,
            batch=args.batch,
            seed=None if args.seed == -1 else args.seed,
            out=args.out,
            trust_remote_code=args.trust_remote_code,
        )
    show(results)


def _generate_parser(parser: Parser) -> None:
    parser.usage = "hrpo generate --checkpoint DIR [options] PROMPT [PROMPT ...]"
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, a run folder, or a plain model")
    parser.add_argument("prompts", nargs="+", type=str, help="questions, asked as in training")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--sample", action="store_true", help="sample instead of taking the likeliest token")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--trace", action="store_true", help="a line per token: gate and strongest latent candidates")


def _generate(args: Namespace) -> None:
    _quiet()
    from hrpo.evaluation.inference import complete

    with model_named_by("--checkpoint"):
        for text in complete(
            args.checkpoint,
            args.prompts,
            sample=args.sample,
            seed=args.seed,
            trace=args.trace,
            trust_remote_code=args.trust_remote_code,
        ):
            say(text)


def _inspect_parser(parser: Parser) -> None:
    parser.usage = "hrpo inspect --checkpoint DIR [DIR ...] [--task NAME] [-n N] --out FILE.html [options]"
    add = parser.add_argument
    add("--checkpoint", nargs="+", required=True, type=str, help="checkpoints, run folders (their newest), or models")
    add("--task", default="", help="whose test problems are asked; left out, the task that was trained on")
    add("--path", default="", help="a folder of benchmarks, or a training file with its test file beside it")
    add("--test_path", default="", help="the test file, where it lies elsewhere")
    add("--n", "-n", type=int, default=50, help="test problems, from the first; 0 takes all")
    add("--latent_mode", default="own", help="side by side in these modes, separated by commas: own, discrete, ...")
    add("--sample", action="store_true", help="sample instead of taking the likeliest token")
    add("--max_new_tokens", type=int, default=0, help="length limit of a completion; 0 leaves each model its own")
    add("--batch", type=int, default=64, help="completions decoded at a time")
    add("--seed", type=int, default=-1, help="of generated problems and of samples; -1 takes the run's own")
    add("--out", required=True, help="the HTML file; it needs nothing else, and replaces one that is there")
    add("--trust_remote_code", action="store_true", help="run code that comes with a base model")


def _inspect(args: Namespace) -> None:
    _quiet()
    from hrpo.inspection.run import inspect_checkpoints

    paths = {"task.path": "--path", "task.test_path": "--test_path"}
    with named_by({"model.name": "--checkpoint", "task.name": "--task", "--tasks": "--task", **paths}):
        inspect_checkpoints(
            args.checkpoint,
            args.out,
            task=args.task,
            path=args.path,
            test_path=args.test_path,
            problems=args.n,
            latent_modes=[part.strip() for part in args.latent_mode.split(",") if part.strip()],
            sample=args.sample,
            seed=None if args.seed == -1 else args.seed,
            max_new_tokens=args.max_new_tokens,
            batch=args.batch,
            trust_remote_code=args.trust_remote_code,
        )
    say(args.out)


def _export_parser(parser: Parser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, or a run folder for its newest one")
    parser.add_argument("--out", required=True, help="a new folder for the whole model, its gate and a model card")
    parser.add_argument("--dtype", default="", help="store the weights in this; left out, in what the base has")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the base model")


def _export(args: Namespace) -> None:
    _quiet()
    from hrpo.hub.export import export

    say(export(args.checkpoint, args.out, dtype=args.dtype, trust_remote_code=args.trust_remote_code))


def _push_parser(parser: Parser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, a run folder, or an exported model")
    parser.add_argument("--repo", required=True, help="where to on the Hub: owner/name")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--merged", action="store_true", help="upload whole weights, the adapter merged into them")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the base model")


def _push(args: Namespace) -> None:
    _quiet()
    from hrpo.hub.push import push_to_hub

    say(
        push_to_hub(
            args.checkpoint,
            args.repo,
            private=args.private,
            merged=args.merged,
            trust_remote_code=args.trust_remote_code,
        )
    )


def _import_release_parser(parser: Parser) -> None:
    parser.usage = "hrpo import-release DIR --out DIR [options]"
    parser.add_argument("folder", help="an adapter folder as the paper's original release writes it")
    parser.add_argument("--out", required=True, help="a new folder for the checkpoint")
    parser.add_argument("--base", default="", help="the model that it was trained from; left out, the one it names")
    parser.add_argument("--task", default="", help="the task that it was trained on, so that it can be evaluated")
    parser.add_argument("--temperature", type=float, default=0.5, help="that it was trained at")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="length limit that it was trained with")
    parser.add_argument("--r_min", type=float, default=0.99, help="that it was started with; it is only remembered")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the base model")


def _import_release(args: Namespace) -> None:
    _quiet()
    from hrpo.hub.import_release import import_release

    say(
        import_release(
            args.folder,
            args.out,
            base=args.base,
            task=args.task,
            temperature=args.temperature,
            max_new_tokens=args.max_new_tokens,
            r_min=args.r_min,
            trust_remote_code=args.trust_remote_code,
        )
    )


def _model_parser(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", default="", help="the model to fetch; without a name they are listed")


def _model(args: Namespace) -> None:
    from hrpo.models.names import fetch

    if args.name:
        with model_named_by("NAME"):
            say(fetch(args.name, say=warn))
        return
    for name, model in BUILT_IN_MODELS.items():
        say(f"{name:15} {model.description} ({model.licence}; {model.source})")


def _tasks_parser(parser: Parser) -> None:
    parser.usage = "hrpo tasks [NAME] [--path PATH]"
    parser.add_argument("name", nargs="?", default="", help="a task, to see three of its prompts; else all are listed")
    parser.add_argument("--path", default="", help="a file of problems, or a folder of one or several benchmarks")


def _tasks(args: Namespace) -> None:
    from hrpo.tasks.listing import list_tasks, show_task

    with named_by({"task.name": "NAME", "task.path": "--path", "task.test_path": "--path"}):
        for line in show_task(args.name, args.path) if args.name else list_tasks(args.path):
            say(line)


def _retrieve_parser(parser: Parser) -> None:
    build = Parser(description="index a corpus of passages")
    build.add_argument("--corpus", required=True, help="id, title, text: .jsonl, .tsv or .json, each also as .gz")
    build.add_argument("--index", required=True, help="a new folder for the index")
    build.add_argument("--retriever", type=Literal["bm25", "dense"], default="bm25", help="by words or by vectors")
    build.add_argument("--model", default="", help="of vectors: a folder or a name on the Hub; else the embedded one")
    build.add_argument("--vectors", default="", help="the passages' vectors made elsewhere: .npy or a FAISS index")
    build.add_argument("--query_prefix", type=str | None, help="before questions; left out, what the model wants")
    build.add_argument("--passage_prefix", type=str | None, help="before passages; left out, what the model wants")
    add = Parser(description="write the best passages beside each question of a task")
    add.add_argument("--task", required=True, help="nq, triviaqa, hotpotqa, 2wikimultihopqa, bamboogle or knowledge")
    add.add_argument("--index", required=True, help="the folder of an index")
    add.add_argument("--out", required=True, help="a JSONL file for training and evaluation")
    add.add_argument("--path", default="", help="a file of questions, or a folder with it; left out, the Hub")
    add.add_argument("--split", type=Literal["train", "test"], default="test", help="of the task")
    add.add_argument("-k", type=int, default=3, help="passages a question")
    actions = parser.add_subcommands(dest="action", metavar="build|add")
    actions.add_subcommand("build", build, help="index a corpus of passages")
    actions.add_subcommand("add", add, help="write the best passages beside each question of a task")


def _retrieve(args: Namespace) -> None:
    _quiet()
    from hrpo.common.console import console, print_table
    from hrpo.retrieval import add_passages, build_index
    from hrpo.retrieval.add import depths

    if args.action == "build":
        count = build_index(**args.build.as_dict())
        console.print(f"{args.build.index}: {count:,} passages, {args.build.retriever}")
        return
    count, table = add_passages(**args.add.as_dict())
    console.print(f"{args.add.out}: {count:,} questions")
    print_table("recall", ["", "questions", *(f"@{depth}" for depth in depths(args.add.k))], table)


COMMANDS: dict[str, tuple[Callable[[Parser], None], Callable[[Namespace], None], str]] = {
    "train": (_train_parser, _train, "train a model with HRPO or GRPO"),
    "check": (_check_parser, _check, "measure on a few prompts what a training run would be like"),
    "sft": (_train_parser, _sft, "fine-tune a model on written solutions: a warm start"),
    "compare": (_compare_parser, _compare, "train several latent modes on several seeds, and compare them"),
    "report": (_report_parser, _report, "put several runs on one page: curves, numbers, tests, answers"),
    "eval": (_eval_parser, _eval, "evaluate checkpoints on test problems, and compare them"),
    "generate": (_generate_parser, _generate, "ask a checkpoint something, and look at its latents"),
    "inspect": (_inspect_parser, _inspect, "write a page with all that went into each token, to look at"),
    "tasks": (_tasks_parser, _tasks, "list the tasks, or show some prompts of one"),
    "retrieve": (_retrieve_parser, _retrieve, "index passages, and find some for a task's questions"),
    "export": (_export_parser, _export, "write a checkpoint as a plain model folder, its adapter merged"),
    "push": (_push_parser, _push, "upload a checkpoint to the Hub, with a model card"),
    "import-release": (_import_release_parser, _import_release, "read a model that the paper's release trained"),
    "model": (_model_parser, _model, "list the models known by name, or fetch one"),
}
USAGE = "usage: hrpo {" + " | ".join(COMMANDS) + "} [options]"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; bad input exits with 2 and one line."""
    _open_streams()
    code = run_command(list(sys.argv[1:] if argv is None else argv))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from hrpo.common.distributed import leave

        leave(code)
    if code:
        sys.exit(code)


def run_command(words: list[str]) -> int:
    """Run a command and return the exit code that it ends with."""
    try:
        code = _run(words)
        with failures_told():
            sys.stdout.flush()
    except InputError as error:
        return _complain(_with_notes(error))
    except OutputError as error:
        give_up_output()
        if not isinstance(error.__cause__, BrokenPipeError):
            warn(f"hrpo: stopped: {_with_notes(error)}")
            return 3
        for note in _notes(error):  # else `hrpo tasks | head` ends as other programs do
            warn(f"hrpo: nobody reads on; {note}")
        return 128 + signal.SIGPIPE
    except MainFailedError:  # which says itself what is wrong
        return 1
    except StoppedError as error:
        warn(f"hrpo: stopped: {_with_notes(error)}")
        return 3
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return _complain(f"{error.filename or 'disk'}: {error.strerror}")
        if is_full(error):
            return _complain(f"disk: no room for what was to be written ({error}); make some, or name another folder")
        raise
    except Interrupted as error:
        warn(f"hrpo: interrupted; nothing is lost, {error}")
        return 4
    except KeyboardInterrupt:
        return 130
    return code


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        say("\n".join([USAGE, "", *(f"  {name:14} {summary}" for name, (_, _, summary) in COMMANDS.items())]))
        say("\n`hrpo COMMAND --help` lists a command's options.")
        return 0 if words else 2
    if words[0] == "--version":
        say(f"hrpo {__version__}")
        return 0
    if words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it is one of {', '.join(COMMANDS)}"
        raise InputError(f"unknown command {words[0]}; {hint}")
    add_arguments, run, summary = COMMANDS[words[0]]
    parser = Parser(prog=f"hrpo {words[0]}", description=summary)
    add_arguments(parser)
    run(parser.instantiate(parser.parse_args(words[1:])))
    return 0


def _open_streams() -> None:
    """Give standard streams that were closed (`>&-`) a place, and let others show letters they have no code for."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115  it stays open
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _quiet() -> None:
    """Our own progress is shown; the libraries' bars, and their notes to each other, are not."""
    import logging
    import warnings

    # At its import, bitsandbytes misses a kernel for weights packed as ours are not, see `keep_differentiable`.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each retry; what came of it is an error of ours
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")  # missing tensors: an error of ours


def _complain(message: str) -> int:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(5)  # the first process says it too, and its end ends this one: unless the fault is this one's alone
    warn(f"hrpo: error: {' '.join(message.split())}")  # one line, whatever a library says
    return 2


def _with_notes(error: BaseException) -> str:
    """Return what an error says, and what was noted on its way, such as where a run was saved."""
    return "; ".join([str(error), *_notes(error)])


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])
