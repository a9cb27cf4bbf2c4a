"""Bring models in and out: export, push, import-release, model."""

from jsonargparse import Namespace

from hrpo.cli.parser import Command, Parser
from hrpo.cli.quiet import quiet_libraries
from hrpo.common.errors import model_named_by
from hrpo.common.output import say, warn
from hrpo.models.names import BUILT_IN_MODELS


def _export_options(parser: Parser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, or a run folder for its newest one")
    parser.add_argument("--out", required=True, help="a new folder for the whole model, its gate and a model card")
    parser.add_argument("--dtype", default="", help="store the weights in this; left out, in what the base has")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the base model")


def _run_export(args: Namespace) -> None:
    quiet_libraries()
    from hrpo.hub.export import export

    say(export(args.checkpoint, args.out, dtype=args.dtype, trust_remote_code=args.trust_remote_code))


def _push_options(parser: Parser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, a run folder, or an exported model")
    parser.add_argument("--repo", required=True, help="where to on the Hub: owner/name")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--merged", action="store_true", help="upload whole weights, the adapter merged into them")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the base model")


def _run_push(args: Namespace) -> None:
    quiet_libraries()
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


def _import_release_options(parser: Parser) -> None:
    parser.usage = "hrpo import-release DIR --out DIR [options]"
    parser.add_argument("folder", help="an adapter folder as the paper's original release writes it")
    parser.add_argument("--out", required=True, help="a new folder for the checkpoint")
    parser.add_argument("--base", default="", help="the model that it was trained from; left out, the one it names")
    parser.add_argument("--task", default="", help="the task that it was trained on, so that it can be evaluated")
    parser.add_argument("--temperature", type=float, default=0.5, help="that it was trained at")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="length limit that it was trained with")
    parser.add_argument("--r_min", type=float, default=0.99, help="that it was started with; it is only remembered")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the base model")


def _run_import_release(args: Namespace) -> None:
    quiet_libraries()
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


def _model_options(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", default="", help="the model to fetch; without a name they are listed")


def _run_model(args: Namespace) -> None:
    from hrpo.models.names import fetch

    if args.name:
        with model_named_by("NAME"):
            say(fetch(args.name, say=warn))
        return
    for name, model in BUILT_IN_MODELS.items():
        say(f"{name:15} {model.description} ({model.licence}; {model.source})")


COMMANDS: dict[str, Command] = {
    "export": (_export_options, _run_export, "write a checkpoint as a plain model folder, its adapter merged"),
    "push": (_push_options, _run_push, "upload a checkpoint to the Hub, with a model card"),
    "import-release": (_import_release_options, _run_import_release, "read a model that the paper's release trained"),
    "model": (_model_options, _run_model, "list the models known by name, or fetch one"),
}
