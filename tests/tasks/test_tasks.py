"""The tasks: their problems, their splits and their files."""

import ast
import json
import operator
import os
import random
import re
from pathlib import Path

import pytest

from hrpo.common.errors import InputError
from hrpo.config.schema import TaskConfig
from hrpo.rewards import correctness, score
from hrpo.tasks import BENCHMARKS, Example, judge, load_task
from hrpo.tasks.arithmetic import draw, solve, split_of
from hrpo.tasks.base import SYSTEM_PROMPT
from hrpo.tasks.benchmark import parsed
from hrpo.tasks.row_files import read as read_rows

# ---- arithmetic ---------------------------------------------------------------------------------------------------

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def value_of(expression: str) -> int:
    """The value by Python's own grammar, without running it."""

    def walk(node):
        if isinstance(node, ast.Constant):
            return node.value
        return OPERATORS[type(node.op)](walk(node.left), walk(node.right))

    return walk(ast.parse(expression, mode="eval").body)


@pytest.mark.parametrize(
    ("expression", "steps", "value"),
    [
        ("7", [], 7),
        ("2+3*4", ["3*4=12", "2+12=14"], 14),
        ("3-8-2", ["3-8=-5", "-5-2=-7"], -7),
        ("9-2*5+1", ["2*5=10", "9-10=-1", "-1+1=0"], 0),
        ("2*3*4", ["2*3=6", "6*4=24"], 24),
        ("1-2*3+4*5", ["2*3=6", "4*5=20", "1-6=-5", "-5+20=15"], 15),
    ],
)
def test_solve(expression, steps, value):
    assert solve(expression) == (steps, value)


def test_solve_agrees_with_python():
    rng, products = random.Random(0), 0
    for _ in range(2000):
        terms = rng.randint(1, 7)
        expression = str(rng.randint(1, 9)) + "".join(rng.choice("+-*") + str(rng.randint(1, 9)) for _ in range(terms))
        steps, value = solve(expression)
        assert value == value_of(expression), expression
        assert len(steps) == terms
        for step in steps:
            left, result = step.split("=")
            first, sign, second = re.fullmatch(r"(-?\d+)([+*-])(\d+)", left).groups()
            assert int(result) == {"+": operator.add, "-": operator.sub, "*": operator.mul}[sign](
                int(first), int(second)
            )
        assert steps[-1].endswith(f"={value}")
        products += "*" in expression
    assert products > 1000


def test_split_is_a_tenth_and_part_of_the_expression():
    assert [split_of(text) for text in ("1+2", "1+3")] == ["test", "train"]  # SHA-256 begins with 130 and 134
    expressions = [f"{a}{op}{b}*{c}" for a in range(1, 10) for op in "+-" for b in range(1, 10) for c in range(1, 10)]
    assert 0.07 < sum(split_of(text) == "test" for text in expressions) / len(expressions) < 0.13


def test_draw_has_no_two_products_in_a_row():
    rng = random.Random(0)
    drawn = [draw(rng, 5, "train") for _ in range(500)]
    assert not any(re.search(r"\*\d\*", text) for text in drawn)
    assert all(re.fullmatch(r"[1-9]([+*-][1-9]){4}", text) for text in drawn)
    assert all(sum(op in text for text in drawn) > 100 for op in "+-*")


def test_train_and_test_never_coincide():
    config = TaskConfig("arithmetic", min_terms=2, max_terms=3)  # few expressions: overlaps would show
    tasks = [load_task(config, seed) for seed in range(25)]
    train, test = ({e.question for task in tasks for e in getattr(task, split)[:200]} for split in ("train", "test"))
    assert len(train) > 500
    assert len(test) > 50
    assert not train & test


def test_problems_depend_on_the_seed_alone():
    first, again, other = (load_task(TaskConfig("arithmetic"), seed) for seed in (1, 1, 2))
    assert first.train[5] == again.train[5] == first.train[:10][5]
    assert list(first.test[:50]) == list(again.test[:50])
    assert first.train[:50] != other.train[:50]
    assert (len(first.train), len(first.test)) == (1_000_000, 10_000)
    assert first.train[-1] == first.train[999_999]
    assert first.train[999_990:][0] == first.train[999_990]
    for index in (10_000, -10_001):
        with pytest.raises(IndexError):
            first.test[index]


@pytest.mark.parametrize(("fewest", "most"), [(2, 2), (3, 5), (6, 6)])
def test_terms(fewest, most):
    task = load_task(TaskConfig("arithmetic", min_terms=fewest, max_terms=most), seed=0)
    for examples in (task.train[:300], task.test[:300]):
        assert {len(example.question) // 2 + 1 for example in examples} == set(range(fewest, most + 1))


@pytest.mark.parametrize(("fewest", "most"), [(1, 3), (0, 3), (4, 3)])
def test_refused_terms(fewest, most):
    with pytest.raises(InputError, match=rf"^task\.min_terms: .*\({most}\), got {fewest}$"):
        load_task(TaskConfig("arithmetic", min_terms=fewest, max_terms=most))


def test_arithmetic_examples():
    task = load_task(TaskConfig("arithmetic", num_fewshot=2), seed=4)
    shots = [task.train[-1], task.train[-2]]
    assert task.messages("1+1") == [
        {"role": "user", "content": shots[0].question},
        {"role": "assistant", "content": shots[0].solution},
        {"role": "user", "content": shots[1].question},
        {"role": "assistant", "content": shots[1].solution},
        {"role": "user", "content": "1+1"},
    ]
    for example in task.train[:100]:
        assert int(example.gold) == value_of(example.question)
        assert example.solution.endswith(f"={example.gold}\n#### {example.gold}")


def test_unknown_task():
    with pytest.raises(InputError, match=r"^task\.name: there is no task 'chess'; `hrpo tasks` lists them"):
        load_task(TaskConfig("chess"))
    with pytest.raises(InputError, match=r"^task\.name: there is no task 'mmlu-arc'; did you mean mmlu_arc\?$"):
        load_task(TaskConfig("mmlu-arc"))


# ---- rewards ------------------------------------------------------------------------------------------------------


def test_rewards():
    task = load_task(TaskConfig("arithmetic"))
    examples = [Example("1+2", "3")] * 4
    completions = ["1+2=3\n#### 3", "3", "#### 4", "#### 3 #### 3"]
    rewards, means = score(task, examples, completions)
    assert means == {"correct": 0.25}
    assert rewards.tolist() == [1, 0, 0, 0]
    assert rewards.is_floating_point()
    assert correctness(["#### b", "#### the Nile"], gold=["B", ["Nile"]], kind="choice", prompts=["", ""])[0] == 1.0
    assert correctness(["#### the Nile"], gold=[["Amazon", "Nile"]], kind="qa") == [1.0]
    with pytest.raises(ValueError, match="zip"):
        score(task, examples, completions[:3])


# ---- gsm8k --------------------------------------------------------------------------------------------------------

ROWS = [
    ("Tom has 3 apples and buys 4. How many?", "Tom has 3+4=<<3+4=7>>7 apples.\n#### 7"),
    ("  Half of 48?\n", "48/2 = <<48/2=24>>24.\nSo <<24=24>>24.\n#### 24"),
    ("What does the car cost?", "It is $1,000 + $234 = $<<1000+234=1234>>1,234.\n#### 1,234"),
    ("How deep, “in metres”?", "It is 2 - 9 = -7.\n#### -7"),
    ("What share?", "1/4 = .25\n####   0.25  "),
]
TEST_ROWS = [("Test: 1 + 1?", "1+1=<<1+1=2>>2\n#### 2"), ("Test: 2 + 2?", "#### 4")]


def write(path: Path, rows) -> Path:
    lines = [json.dumps({"question": question, "answer": answer}, ensure_ascii=False) for question, answer in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def train_file(tmp_path):
    write(tmp_path / "test.jsonl", TEST_ROWS)
    return write(tmp_path / "train.jsonl", ROWS)


def read(path: Path) -> list[Example]:
    return parsed(BENCHMARKS["gsm8k"], read_rows(path))[0]


def load(path, seed=0, **options):
    return load_task(TaskConfig("gsm8k", path=str(path), **options), seed)


def test_gsm8k_rows(train_file):
    assert read(train_file) == [
        Example("Tom has 3 apples and buys 4. How many?", "7", "Tom has 3+4=7 apples.\n#### 7"),
        Example("Half of 48?", "24", "48/2 = 24.\nSo 24.\n#### 24"),
        Example("What does the car cost?", "1,234", "It is $1,000 + $234 = $1,234.\n#### 1,234"),
        Example("How deep, “in metres”?", "-7", "It is 2 - 9 = -7.\n#### -7"),
        Example("What share?", "0.25", "1/4 = .25\n#### 0.25"),
    ]


def test_gsm8k_gold_scores_1(train_file):
    task = load(train_file)
    assert task.kind == "number"
    assert (len(task.train), len(task.test)) == (5, 2)
    for example in [*task.train, *task.test]:
        assert task.judge(example.solution, example).strict
        assert task.judge(f"#### {example.gold}", example).strict
        assert not task.judge(example.solution.replace("####", "##"), example).strict
        assert not task.judge("#### 999", example).lenient
        assert not task.judge("", example).lenient


def test_gsm8k_shots_leave_the_training_rows(train_file):
    task = load(train_file, num_fewshot=2)
    system, *turns = task.preamble
    assert system == {"role": "system", "content": SYSTEM_PROMPT}
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    shots = {turn["content"] for turn in turns[::2]}
    left = {example.question for example in task.train}
    assert len(shots) == 2
    assert not shots & left
    assert shots | left == {question.strip() for question, _ in ROWS}
    by_question = {example.question: example.solution for example in read(train_file)}
    assert all(by_question[turns[i]["content"]] == turns[i + 1]["content"] for i in (0, 2))
    assert load(train_file, num_fewshot=2).preamble == task.preamble
    assert any(load(train_file, seed, num_fewshot=2).preamble != task.preamble for seed in range(1, 6))
    assert task.messages("Why?") == [*task.preamble, {"role": "user", "content": "Why?"}]
    with pytest.raises(InputError, match=r"^task\.num_fewshot: 6 .* 5 training problems with a solution$"):
        load(train_file, num_fewshot=6)


def test_gsm8k_training_rows_of_the_test_set_are_dropped(train_file):
    write(train_file, [*ROWS[:2], (f" {TEST_ROWS[0][0]} ", "Other words.\n#### 2"), *ROWS[2:]])
    task = load(train_file)
    assert [example.question for example in task.train] == [question.strip() for question, _ in ROWS]
    assert len(task.test) == 2
    assert task.dropped == {"training problems that are test problems": 1}


def test_gsm8k_max_solution_chars(train_file):
    lengths = [len(example.solution) for example in read(train_file)]
    assert lengths == [28, 25, 40, 25, 19]
    assert [len(example.solution) for example in load(train_file, max_solution_chars=25).train] == [25, 25, 19]
    with pytest.raises(InputError, match=r"^task\.num_fewshot: 1 .* 0 training problems with a solution$"):
        load(train_file, max_solution_chars=18, num_fewshot=1)


def test_gsm8k_paths(train_file, tmp_path):
    other = write(tmp_path / "other.jsonl", [("Other?", "#### 5")])
    assert [example.gold for example in load(train_file, test_path=str(other)).test] == ["5"]
    alone = load("", test_path=str(other))  # evaluation needs no training file
    assert (len(alone.train), len(alone.test)) == (0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 2: .*JSONDecodeError"),
        ("3", "line 2: .*TypeError"),
        ('["question", "answer"]', "line 2: .*TypeError"),
        ('{"question": "Why?"}', "line 2: .*KeyError"),
        ('{"answer": "#### 1"}', "line 2: .*KeyError"),
        ('{"question": "Why?", "answer": "It is 5."}', "line 2: .*#### once"),
        ('{"question": "Why?", "answer": "#### 5 #### 6"}', "line 2: .*#### once"),
        ('{"question": "Why?", "answer": 5}', "line 2: .*must be text"),
        ('{"question": null, "answer": "#### 5"}', "line 2: .*must be text"),
    ],
)
def test_gsm8k_broken_rows_are_named(tmp_path, text, message):
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "Fine?", "answer": "#### 1"}\n' + text + "\n")
    with pytest.raises(InputError, match=rf"train\.jsonl, {message}"):
        read(path)


@pytest.mark.parametrize(
    "answer", ["No answer after it.\n#### ", "In words.\n#### five", "Within an annotation <<####>> only."]
)
def test_gsm8k_rows_without_a_number_are_refused(tmp_path, answer):
    path = write(tmp_path / "train.jsonl", [("Why?", answer)])
    with pytest.raises(InputError, match=r"train\.jsonl, line 1"):
        read(path)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_gsm8k_unusual_line_separators_within_a_row(tmp_path, separator):
    path = write(tmp_path / "train.jsonl", [(f"One{separator}two?", "#### 3")])
    assert read(path)[0].gold == "3"


def test_gsm8k_blank_lines_are_skipped_and_counted(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('\n{"question": "Fine?", "answer": "#### 1"}\n   \n{\n')
    with pytest.raises(InputError, match="line 4"):
        read(path)
    path.write_text('\n{"question": "Fine?", "answer": "#### 1"}\n   \n')
    assert len(read(path)) == 1


def test_gsm8k_missing_and_empty_files(train_file, tmp_path):
    with pytest.raises(InputError, match=r"task\.path: no file .*missing\.jsonl"):
        load(tmp_path / "missing.jsonl")
    (tmp_path / "alone").mkdir()
    with pytest.raises(
        InputError, match=r"^task\.test_path: give the test file of gsm8k; no file test\.jsonl in .*alone$"
    ):
        load(write(tmp_path / "alone" / "train.jsonl", ROWS))
    train_file.write_text("\n\n")
    with pytest.raises(InputError, match=r"train\.jsonl: no rows"):
        load(train_file)
    with pytest.raises(InputError, match=r"^task\.test_path: no file nowhere;"):
        load(train_file, test_path="nowhere")


DATA = Path(os.environ.get("HRPO_DATA", Path(__file__).parents[3] / "shared" / "data")) / "gsm8k"


def test_gsm8k_real_data():
    if not (DATA / "test.jsonl").is_file():
        pytest.skip(f"no {DATA}/test.jsonl; set HRPO_DATA")
    task = load("", test_path=str(DATA / "test.jsonl"))
    assert len(task.test) == 1319
    assert not any("<<" in example.solution for example in task.test)
    for example in task.test:
        assert judge("number", example.solution, example.gold) == (True, True), example.question
