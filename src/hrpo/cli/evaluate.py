"""Ask a trained model, and look at its answers: eval, generate, inspect."""

from jsonargparse import Namespace

from hrpo.cli.parser import Command, Parser
from hrpo.cli.quiet import quiet_libraries
from hrpo.common.errors import model_named_by, named_by
from hrpo.common.output import say


def _eval_options(parser: Parser) -> None:
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


def _run_eval(args: Namespace) -> None:
    quiet_libraries()
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


def _generate_options(parser: Parser) -> None:
    parser.usage = "hrpo generate --checkpoint DIR [options] PROMPT [PROMPT ...]"
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, a run folder, or a plain model")
    parser.add_argument("prompts", nargs="+", type=str, help="questions, asked as in training")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--sample", action="store_true", help="sample instead of taking the likeliest token")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--trace", action="store_true", help="a line per token: gate and strongest latent candidates")


def _run_generate(args: Namespace) -> None:
    quiet_libraries()
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


def _inspect_options(parser: Parser) -> None:
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


def _run_inspect(args: Namespace) -> None:
    quiet_libraries()
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


COMMANDS: dict[str, Command] = {
    "eval": (_eval_options, _run_eval, "evaluate checkpoints on test problems, and compare them"),
    "generate": (_generate_options, _run_generate, "ask a checkpoint something, and look at its latents"),
    "inspect": (_inspect_options, _run_inspect, "write a page with all that went into each token, to look at"),
}
