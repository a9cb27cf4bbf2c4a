"""Look at tasks, and find passages for their questions: tasks, retrieve."""

from typing import Literal

from jsonargparse import Namespace

from hrpo.cli.parser import Command, Parser
from hrpo.cli.quiet import quiet_libraries
from hrpo.common.errors import named_by
from hrpo.common.output import say


def _tasks_options(parser: Parser) -> None:
    parser.usage = "hrpo tasks [NAME] [--path PATH]"
    parser.add_argument("name", nargs="?", default="", help="a task, to see three of its prompts; else all are listed")
    parser.add_argument("--path", default="", help="a file of problems, or a folder of one or several benchmarks")


def _run_tasks(args: Namespace) -> None:
    from hrpo.tasks.listing import list_tasks, show_task

    with named_by({"task.name": "NAME", "task.path": "--path", "task.test_path": "--path"}):
        for line in show_task(args.name, args.path) if args.name else list_tasks(args.path):
            say(line)


def _retrieve_options(parser: Parser) -> None:
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


def _run_retrieve(args: Namespace) -> None:
    quiet_libraries()
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


COMMANDS: dict[str, Command] = {
    "tasks": (_tasks_options, _run_tasks, "list the tasks, or show some prompts of one"),
    "retrieve": (_retrieve_options, _run_retrieve, "index passages, and find some for a task's questions"),
}
