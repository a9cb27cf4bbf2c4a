"""The paper's benchmarks: formats, prompts, splits that never touch, what is refused; real files where they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import benchmark_rows
import pytest
from benchmark_rows import FILES, VARIANTS, jsonl, write, write_file
from steps import grows_no_faster

from hrpo.cli.main import main
from hrpo.common.errors import InputError
from hrpo.config.schema import TaskConfig
from hrpo.tasks import BENCHMARKS, TASKS, check_task, load_task
from hrpo.tasks.base import SYSTEM_PROMPT
from hrpo.tasks.benchmark import from_hub, parsed
from hrpo.tasks.choice import STEM
from hrpo.tasks.mathematics import last_boxed
from hrpo.tasks.row_files import read

DATA = Path(os.environ.get("HRPO_DATA", Path(__file__).parents[3] / "shared" / "data"))
KNOWN = sorted(BENCHMARKS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


def load(name, folder, **options):
    return load_task(TaskConfig(name, path=str(folder), **options))


# ---- rows and prompts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "train", "test", "dropped"),
    [
        ("gsm8k", 1, 1, {}),
        ("math", 3, 2, {"training problems without an answer": 1, "training problems that are test problems": 1}),
        ("math500", 0, 1, {}),
        ("mmlu_stem", 0, 2, {}),
        ("mmlu_arc", 2, 2, {"training problems that are test problems": 2}),  # one MMLU's, one ARC's
        ("arc_challenge", 1, 1, {"training problems that are test problems": 1}),
        ("nq", 1, 3, {"training problems that are test problems": 1}),
        ("triviaqa", 1, 1, {}),
        ("hotpotqa", 1, 1, {}),
        ("2wikimultihopqa", 1, 1, {}),
        ("bamboogle", 0, 1, {}),
        ("knowledge", 2, 4, {"training problems that are test problems": 1}),
    ],
)
def test_splits(folder, name, train, test, dropped):
    task = load(name, folder)
    assert (len(task.train), len(task.test), task.dropped) == (train, test, dropped)
    assert task.kind == TASKS[name].kind
    assert task.preamble == [{"role": "system", "content": SYSTEM_PROMPT}]
    assert bool(TASKS[name].train) == bool(task.train)
    only = load_task(TaskConfig(name, path=str(folder)), test_only=True)
    assert (only.train, only.test) == ([], task.test)


def test_choice_prompt(folder):
    example = load("mmlu_stem", folder).test[0]
    assert example.question == "Question: Which of these is a metal?\nOptions:\nA. wood\nB. iron\nC. salt\nD. ice"
    assert example.gold == "B"
    assert example.columns == {"stem": "Which of these is a metal?", "options": ["wood", "iron", "salt", "ice"]}
    (arc,) = load("arc_challenge", folder).train
    assert arc.question == "Question: Why is the sky blue?\nOptions:\nA. Paint.\nB. Scattering.\nC. Water."
    (race, _) = load("mmlu_arc", folder).train
    assert race.question.startswith(
        "Question: A long text, with commas.\nAnd lines. Who?\nOptions:\nA. Ann\nB. Bob, or"
    )


def test_knowledge_prompts(folder, tmp_path):
    assert load("nq", folder).test[0].question == "Question: who sang it?"
    passages = [{"title": "Ann", "text": "Ann sang\nit."}, {"title": "Bob", "text": "Bob did not."}]
    rows = [
        {"question": "who sang it", "answer": ["Ann"], "passages": passages},
        {"question": "and who else?", "answer": "Bob", "passages": []},
    ]
    path = write_file(tmp_path, "retrieved.jsonl", jsonl(rows))
    task = load_task(TaskConfig("knowledge", test_path=str(path)))
    assert task.test[0].question == (
        "Context (which may or may not be relevant):\nAnn::::Ann sang it.\nBob::::Bob did not.\n\nQuestion: who sang it"
    )
    assert task.test[1].question == "Question: and who else?"
    assert [example.gold for example in task.test] == [["Ann"], ["Bob"]]
    # the same question with other passages is the same problem
    test = write_file(tmp_path, "test.jsonl", jsonl([{"question": "Who sang it", "answer": ["Ann"]}]))
    task = load("knowledge", path, test_path=str(test))
    assert task.dropped == {"training problems that are test problems": 1}
    assert [example.columns["stem"] for example in task.train] == ["and who else?"]


def test_knowledge_tests_in_turns(folder):
    stems = [example.columns["stem"] for example in load("knowledge", folder).test]
    assert stems == ["who sang it?", "Which is longer?", "how deep is it", "how high is it"]


def test_math_rows(folder):
    task = load("math", folder)
    assert [(example.question, example.gold) for example in task.train] == [
        ("Which interval?", "[0,\\infty)"),
        ("An old style?", "5"),
        ("Framed?", "6"),
    ]
    assert task.test[1].gold == "\\frac{\\sqrt{3}}{2}"
    assert task.test[0].solution == "It is $\\boxed{4}$.\n#### 4"
    shots = load("math", folder, num_fewshot=1).preamble
    assert shots[2]["content"].endswith(f"#### {shots[2]['content'].rpartition('#### ')[2]}")


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        (r"\boxed{a}", "a"),
        (r"\boxed{1} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"so $\boxed 5$.", "5"),
        (r"so $\boxed5$.", "5"),
        (r"so $\fbox{7 \text{ m}}$", r"7 \text{ m}"),
        (r"\boxed {x}", "x"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("none", None),
    ],
)
def test_last_boxed(solution, expected):
    assert last_boxed(solution) == expected


@pytest.mark.parametrize(("name", "task", "text", "stem", "gold"), VARIANTS, ids=[v[0] for v in VARIANTS])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_formats(tmp_path, name, task, text, stem, gold, suffix):
    path = write_file(tmp_path, name + suffix, text)
    (example,) = load_task(TaskConfig(task, test_path=str(path))).test
    assert example.columns.get("stem", example.question) == stem
    assert example.gold == gold


def test_mmlu_of_its_authors(tmp_path):
    """Its test folder has a file a subject; the STEM ones, all of them, count."""
    (tmp_path / "test").mkdir()
    for number, name in enumerate((*STEM, "anatomy")):
        write_file(tmp_path / "test", f"{name}_test.csv", f"Question {number}?,a,b,c,d,A\n")
    questions = [example.columns["stem"] for example in load("mmlu_stem", tmp_path).test]
    assert questions == [f"Question {number}?" for number in range(18)]
    (tmp_path / "test" / f"{STEM[3]}_test.csv").unlink()
    with pytest.raises(InputError, match=r"^task\.test_path: give the test file of mmlu_stem"):
        load("mmlu_stem", tmp_path)


def test_math_of_its_authors(tmp_path):
    for split, rows in (("train", benchmark_rows.MATH_TRAIN[1:2]), ("test", benchmark_rows.MATH_TEST)):
        for number, row in enumerate(rows):
            place = tmp_path / "MATH" / split / "algebra"
            place.mkdir(parents=True, exist_ok=True)
            write_file(place, f"{number}.json", json.dumps(row))
    task = load("math", tmp_path / "MATH")
    assert (len(task.train), len(task.test)) == (1, 2)


# ---- training never touches test rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in KNOWN if TASKS[name].train])
def test_an_evaluation_file_trains_nothing(tmp_path, name):
    """A folder without a training file is refused, not made up for by its test file."""
    names = [file for file in FILES if "train" not in file]
    with pytest.raises(InputError, match=rf"^task\.path: give the training file of {name}; no file "):
        load(name, write(tmp_path, names))
    assert load_task(TaskConfig(name, path=str(tmp_path)), test_only=True).test


def test_the_usual_test_rows_are_held_out_too(folder, tmp_path):
    """Another test file does not let the usual one's rows into training, whether a file or a folder is named."""
    other = write_file(tmp_path, "other.jsonl", jsonl([benchmark_rows.MATH_TEST[1]]))
    for path in (folder, folder / "math", folder / "math" / "train.jsonl"):
        task = load("math", path, test_path=str(other))
        assert len(task.test) == 1
        assert [example.question for example in task.train] == ["Which interval?", "An old style?", "Framed?"]


def test_a_file_that_is_train_and_test_trains_nothing(folder):
    path = str(folder / "nq_open" / "NQ-open.dev.jsonl")
    task = load("nq", path, test_path=path)
    assert (task.train, len(task.test), task.dropped) == ([], 3, {"training problems that are test problems": 3})


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("math", "{}", r"x\.jsonl, line 1: no row of math \(KeyError: 'problem'\)"),
        ("math", '{"problem": "a"}', r"no row of math \(KeyError: 'solution'\)"),
        ("math", '{"problem": 3, "answer": "4"}', "must be text"),
        ("mmlu_stem", '{"question": "a", "choices": ["a", "b"], "answer": 2}', "answer 2 of 2 options"),
        ("mmlu_stem", '{"question": "a", "choices": ["a", "b"], "answer": "C"}', "answer 'C' of 2 options"),
        ("mmlu_stem", '{"question": "a", "choices": ["a", "b"], "answer": -1}', "answer -1 of 2 options"),
        ("mmlu_stem", '{"question": "a", "choices": ["a"], "answer": 0}', "answer 0 of 1 options"),
        ("arc_challenge", '{"instruction": "Why?", "answer": "answer1"}', "has no options"),
        ("arc_challenge", "3", "AttributeError"),
        ("nq", '{"question": "a"}', r"no row of nq \(KeyError: 'answer'\)"),
        ("nq", '{"answer": "a"}', r"no row of nq \(KeyError: 'context'\)"),
        ("nq", '{"question": "a", "answer": {"x": 1}}', "KeyError: 'value'"),
        ("nq", '{"question": "a", "answer": [3]}', "an answer must be text"),
        ("nq", '{"question": "a", "answer": "b", "passages": [{"text": "c"}]}', "KeyError: 'title'"),
        ("nq", '{"question": "a", "answer": "b"}\n\n{', r"x\.jsonl, line 3: no JSON \(JSONDecodeError"),
    ],
)
def test_broken_rows_are_named(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        load_task(TaskConfig(name, test_path=str(write_file(tmp_path, "x.jsonl", text))))


QUOTED = ['"""Who"" is it?"\tAnn', '"tab\tand\nline"\tc', '"all ""quoted"""\t"[\'a\', \'b\']"']
BARE = ['"Who" is it?\t["Ann"]', '"What begins\tIt', '"goes on"\td', 'or ends"\te']


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("rows", "separator", "expected"),
    [
        (QUOTED, "\t", [('"Who" is it?', ["Ann"]), ("tab\tand\nline", ["c"]), ('all "quoted"', ["a", "b"])]),
        (QUOTED, ",", [('"Who" is it?', ["Ann"]), ("tab,and\nline", ["c"]), ('all "quoted"', ["a", "b"])]),
        (BARE, "\t", [('"Who" is it?', ["Ann"]), ('"What begins', ["It"]), ("goes on", ["d"]), ('or ends"', ["e"])]),
        (BARE[1:], ",", [('"What begins', ["It"]), ("goes on", ["d"]), ('or ends"', ["e"])]),
    ],
)
def test_quotation_marks(tmp_path, rows, separator, expected, end):
    """Of files that quote their cells, and of files that do not."""
    text = end.join(row.replace("\t", separator) for row in rows)
    path = write_file(tmp_path, "x.csv" if separator == "," else "x.tsv", text)
    task = load_task(TaskConfig("nq", test_path=str(path)))
    assert [(problem.question.removeprefix("Question: "), problem.gold) for problem in task.test] == expected


def test_long_cells(tmp_path):
    path = write_file(tmp_path, "x.tsv", "".join(f"{mark}{'long ' * 40_000}{mark}\tAnn\n" for mark in ("", '"')))
    assert [len(problem.question) for problem in load_task(TaskConfig("nq", test_path=str(path))).test] == [200_009] * 2


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("x.tsv", b"who\t['Ann'\n", "line 1: no row of nq .SyntaxError"),
        ("x.tsv", b"who\t['Ann']\tmore\n", "line 1: no row of nq .ValueError"),
        ("x.parquet", b"PAR1", r"must end in \.jsonl"),
        ("x.jsonl.gz", b"no gzip", "cannot be read"),
        ("x.jsonl", b"\xff\xfe", "cannot be read"),
        ("x.json", b"[", r"x\.json: no JSON"),
        ("x.json", b"[]", "no rows in it"),
    ],
)
def test_broken_files_are_named(tmp_path, file, data, message):
    path = tmp_path / file
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        load_task(TaskConfig("nq", test_path=str(path)))


def test_rows_without_an_answer_are_dropped_and_counted(tmp_path, folder):
    rows = [
        {"question": "a", "answer": []},
        {"question": "b", "answer": ["", " "]},
        {"question": "c", "answer": None},
        {"question": "d", "answer": "D"},
    ]
    task = load("nq", write_file(tmp_path, "x.jsonl", jsonl(rows)), test_path=str(folder))
    assert task.dropped == {"training problems without an answer": 3}
    assert [example.gold for example in task.train] == [["D"]]
    task = load_task(TaskConfig("nq", test_path=str(tmp_path / "x.jsonl")))
    assert (len(task.test), task.dropped) == (1, {"test problems without an answer": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "math", "path": "nowhere"}, r"^task\.path: no file nowhere"),
        ({"name": "math", "test_path": "nowhere"}, r"^task\.test_path: no file nowhere"),
        ({"name": "math500", "path": __file__}, r"^task\.path: math500 is for tests only; .* task\.test_path"),
        (
            {"name": "nq", "path": str(Path(__file__).parent)},
            r"^task\.test_path: give the test file of nq; no file NQ-",
        ),
        ({"name": "math", "num_fewshot": -1}, r"^task\.num_fewshot: must be at least 0"),
        ({"name": "mathh"}, r"did you mean math\?"),
        ({"min_terms": 6}, r"^task\.min_terms"),
    ],
)
def test_check_task(changes, message):
    with pytest.raises(InputError, match=message):
        check_task(TaskConfig(**changes))


def test_check_task_reads_nothing(tmp_path):
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no rows")
    for name in KNOWN:
        check_task(TaskConfig(name))  # the Hub is not asked
        check_task(TaskConfig(name, path=str(tmp_path)))
        with pytest.raises(InputError):
            load(name, tmp_path)


# ---- the Hub ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A hub in memory: (repository, config, split) -> rows."""
    datasets = pytest.importorskip("datasets")
    rows = {}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: rows[name, config, split])
    return rows


def test_rows_of_the_hub(hub):
    hub["cais/mmlu", "all", "test"] = [
        {"question": "a", "subject": "machine_learning", "choices": ["x", "y"], "answer": 1},
        {"question": "b", "subject": "anatomy", "choices": ["x", "y"], "answer": 0},
    ]
    hub["cais/mmlu", "all", "auxiliary_train"] = [
        {"question": "c", "subject": "", "choices": ["x", "y"], "answer": 1},
        {"question": "A", "subject": "", "choices": ["x", "y"], "answer": 1},
    ]
    row = {"question": "d", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
    hub["allenai/ai2_arc", "ARC-Challenge", "train"] = [row, {**row, "question": "e"}]
    hub["allenai/ai2_arc", "ARC-Challenge", "test"] = [{**row, "question": "E"}]
    task = load_task(TaskConfig("mmlu_arc"))
    assert [example.columns["stem"] for example in task.train] == ["c", "d"]
    assert [example.columns["stem"] for example in task.test] == ["a"]
    assert task.dropped == {"training problems that are test problems": 2}
    assert load_task(TaskConfig("mmlu_arc"), test_only=True).train == []
    hub["cais/mmlu", "all", "test"][0]["answer"] = 5
    with pytest.raises(InputError, match=r"cais/mmlu, all, test, row 1: no row of mmlu_arc .*answer 5 of 2 options"):
        load_task(TaskConfig("mmlu_arc"))


def test_without_a_network_or_the_library(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*args, **options):
        raise ConnectionError("Couldn't reach it\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError) as error:
        load_task(TaskConfig("bamboogle"))
    assert str(error.value).startswith("task.path: give a file, since RUC-NLPIR/FlashRAG_datasets does not come from")
    assert str(error.value).endswith("Couldn't reach it")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'hrpo\[data\]'"):
        next(iter(from_hub(BENCHMARKS["gsm8k"].train[0])))


# ---- reasoning-gym ------------------------------------------------------------------------------------------------


def test_reasoning_gym():
    pytest.importorskip("reasoning_gym")
    task = load_task(TaskConfig("reasoning_gym/leg_counting"), seed=3)
    assert (len(task.train), len(task.test)) == (10_000, 500)
    assert task.test == load_task(TaskConfig("reasoning_gym/leg_counting"), seed=4).test
    assert task.train[:20] != load_task(TaskConfig("reasoning_gym/leg_counting"), seed=4).train[:20]
    assert task.train[-1] == task.train[9_999]
    examples = [*task.train[:30], *task.test[:30]]
    for example in examples:
        assert task.judge(f"So\n#### {example.gold}", example) == (True, True)
        assert task.judge(example.gold, example) == (False, True)
        assert not task.judge(f"#### {int(example.gold) + 1}", example).lenient
        assert not task.judge("", example).lenient
    columns = {"entry": [example.columns["entry"] for example in examples[:2]]}
    golds = [example.gold for example in examples[:2]]
    assert task.reward([f"#### {golds[0]}", golds[1]], **columns) == [1, 0]
    assert task.metric([f"#### {golds[0]}", golds[1]], **columns) == [1, 1]


def test_reasoning_gym_answers_that_a_scorer_cannot_read():
    pytest.importorskip("reasoning_gym")
    task = load_task(TaskConfig("reasoning_gym/prime_factorization"))
    example = task.test[0]
    with pytest.raises(ValueError, match="invalid literal"):
        task.train.dataset.score_answer("1/0", example.columns["entry"])
    assert task.assess(["#### 1/0", f"#### {example.gold}"], [example] * 2)[1] == [0, 1]


@pytest.mark.parametrize("name", ["countdown", "simple_integration", "spiral_matrix"])
def test_reasoning_gym_runs_no_answer(name, tmp_path):
    """These scorers evaluate an answer: by sympy, which knows Python's builtins, and by `eval` itself."""
    pytest.importorskip("reasoning_gym")
    task = load_task(TaskConfig(f"reasoning_gym/{name}"), test_only=True)
    example = task.test[1]
    touch = f"__import__('os').system('touch {tmp_path}/run')"
    writes = f"open('{tmp_path}/run', 'w')"
    inner = f"""(lambda: S("{touch}"))()"""
    hostile = [
        touch,
        f"[{touch}]",
        writes,
        f"[{writes}]",
        inner,
        f"[{inner}]",
        "[exit()]",
        "[().__class__]",
        "[input()]",
    ]
    hostile += ["(" * 20_000, "[" * 20_000 + "]" * 20_000, "\0"]
    right = f"#### {example.gold}"
    values = task.assess([right, *(f"#### {text}" for text in hostile), right], [example] * (len(hostile) + 2))[1]
    assert (values[0], values[-1]) == (1, 1)
    assert max(values[1:-1]) < 1
    assert not list(tmp_path.iterdir())


def test_reasoning_gym_ends_what_takes_long():
    pytest.importorskip("reasoning_gym")
    task = load_task(TaskConfig("reasoning_gym/countdown"), test_only=True)
    example = task.test[0]
    assert task.judge(f"#### {example.gold}", example).strict
    for bomb in ("9**9**9**9", "factorial(factorial(100000))", "9" * 2_000_000):
        assert task.judge(f"#### {bomb}", example) == (False, False)  # ends, which 9**(9**(9**9)) by itself never would
        assert task.judge(f"#### {example.gold}", example).strict


def test_reasoning_gym_problems_never_coincide():
    """Two dozen different coins and dates: train and test would share most problems."""
    pytest.importorskip("reasoning_gym")
    task = load_task(TaskConfig("reasoning_gym/count_bits"), seed=0)
    seen = {example.question for example in task.test}
    repeated = type(task.train)(task.train.dataset, frozenset({task.train[5].question}))
    assert repeated[5] != task.train[5]
    assert not seen & {example.question for example in task.train[:500]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "reasoning_gym/chess"}, r"has no data set 'chess'"),
        ({"name": "reasoning_gym/gcd", "path": "x"}, r"^task\.path: .* are generated"),
        ({"name": "reasoning_gym/gcd", "num_fewshot": 1}, r"^task\.num_fewshot"),
        ({"name": "reasoning_gym/composite"}, r"reasoning-gym cannot make composite"),
    ],
)
def test_reasoning_gym_refusals(changes, message):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(InputError, match=message):
        load_task(TaskConfig(**changes))


def test_without_reasoning_gym(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(InputError, match=r"pip install 'hrpo\[reasoning-gym\]'"):
        check_task(TaskConfig("reasoning_gym/gcd"))


# ---- hrpo tasks ---------------------------------------------------------------------------------------------------


def test_list(capsys, folder):
    main(["tasks"])
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[1 : 1 + len(TASKS)]] == list(TASKS)
    assert "178,372" in next(line for line in listed if line.startswith("knowledge"))
    main(["tasks", "--path", str(folder)])
    there = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "train and test" in there["nq"]
    assert "train and test" not in there["bamboogle"]
    main(["tasks", "--path", str(folder / "gsm8k")])
    assert " no " in {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}["nq"]


def test_show(capsys, folder):
    main(["tasks", "nq", "--path", str(folder)])
    shown = capsys.readouterr().out
    assert shown.startswith("nq: metric qa, 3 problems\n")
    assert shown.count("[user]") == 3
    assert shown.count(SYSTEM_PROMPT) == 1
    assert "[user]\nQuestion: who sang it?\n[gold] ['Ann', 'Anne']\n" in shown
    main(["tasks", "math500", "--path", str(folder / "math500" / "math500.jsonl")])
    assert "half of" in capsys.readouterr().out


# ---- speed, and real data -----------------------------------------------------------------------------------------


def test_rows_load_in_a_time_that_grows_with_them_and_without_torch(tmp_path):
    def load(count):
        rows = [{"question": f"who is number {n}", "answer": [f"Ann {n}", f"Anne {n}"]} for n in range(count)]
        path = write_file(tmp_path, "x.jsonl", jsonl(rows))
        assert len(load_task(TaskConfig("nq", test_path=str(path))).test) == count
        return path

    assert grows_no_faster(load, 200)
    path = load(12_000)
    code = (
        "import sys; from hrpo.config.schema import TaskConfig; from hrpo.tasks import load_task; "
        f"load_task(TaskConfig('nq', test_path={str(path)!r})); "
        "sys.exit(bool({'torch', 'datasets'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "train", "test", "dropped"),
    [
        ("gsm8k", 7473, 1319, {}),
        ("math", 7468, 5000, {"training problems without an answer": 4, "training problems that are test problems": 2}),
        ("math500", None, 500, {}),
        ("mmlu_stem", None, 3018, {}),
        ("mmlu_arc", None, 3018, {}),
        ("arc_challenge", 1113, 1172, {"training problems that are test problems": 6}),
        ("nq", None, 3610, {}),
        ("triviaqa", None, 8837, {}),
        ("hotpotqa", None, 7405, {}),
        ("2wikimultihopqa", None, 12576, {}),
        ("bamboogle", None, 125, {}),
        ("knowledge", None, 11015, {}),
    ],
)
def test_real_data(name, train, test, dropped):
    if not (DATA / "README.md").is_file():
        pytest.skip(f"no {DATA}/README.md; set HRPO_DATA")
    task = load_task(TaskConfig(name, path=str(DATA)), test_only=train is None)
    assert (len(task.train), len(task.test), task.dropped) == (train or 0, test, dropped)
    for example in task.test[:50]:
        golds = [example.gold] if isinstance(example.gold, str) else example.gold
        assert all(task.judge(f"#### {gold}", example).strict for gold in golds)
        assert not task.judge("#### ", example).lenient


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("mmlu_arc", "mmlu/dev/anatomy_dev.csv", 5),
        ("arc_challenge", "arc_challenge/arc_challenge_llmfoundry.jsonl", 1172),
        ("nq", "nq_open/topics.dpr.nq.dev.txt", 8757),
        ("nq", "nq_open/natural_questions_openbook_short.jsonl", 824),
        ("triviaqa", "triviaqa/triviaqa_sm_sub.jsonl", 3000),
        ("hotpotqa", "hotpotqa/hotpotqa_train_hipporag.json", 100),
        ("hotpotqa", "hotpotqa/dev_subsampled_ircot.jsonl", 500),
        ("2wikimultihopqa", "2wikimultihopqa/2wiki_searcho1_500.json", 500),
    ],
)
def test_real_files(name, file, count):
    if not (DATA / file).is_file():
        pytest.skip(f"no {DATA / file}; set HRPO_DATA")
    examples, unanswered = parsed(BENCHMARKS[name], read(DATA / file))
    assert (len(examples), unanswered) == (count, 0)


def test_real_training_files_named_outright():
    """DPR's NQ dev questions, cut from NQ's training set, train where they are named; NQ-open's dev file tests."""
    if not (DATA / "nq_open").is_dir():
        pytest.skip(f"no {DATA}/nq_open; set HRPO_DATA")
    task = load("nq", DATA / "nq_open" / "topics.dpr.nq.dev.txt")
    assert (len(task.train), len(task.test), task.dropped) == (8757, 3610, {})
