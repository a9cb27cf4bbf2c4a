"""Tasks and rewards that are files: the examples, what a file may hold, and what goes wrong in one."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from hrpo.cli.main import main
from hrpo.common.errors import InputError
from hrpo.config.schema import TaskConfig
from hrpo.rewards import or_none, score
from hrpo.storage.run_dir import write_checksums
from hrpo.tasks import Example, check_task, load_task, remembered
from hrpo.tasks.base import SYSTEM_PROMPT, RewardContext

ROOT = Path(__file__).parents[2]
WORD_ORDER, BREVITY = ROOT / "examples" / "word_order.py", f"{ROOT / 'examples' / 'brevity.py'}:brevity"
ROWS = "[{'prompt': '1+1?', 'gold': '2'}, {'prompt': '2+2?', 'gold': '4', 'solution': 'Two twos.', 'level': 3}]"


@pytest.fixture
def task_file(tmp_path):
    def write(text, name="own.py"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def load(name, seed=0, **options):
    return load_task(TaskConfig(name, **options), seed)


# ---- the example --------------------------------------------------------------------------------------------------


def test_example_is_short():
    assert len(WORD_ORDER.read_text().splitlines()) <= 25


def test_example_gold_scores_1():
    task = load(str(WORD_ORDER))
    assert (len(task.train), len(task.test)) == (2000, 200)
    assert not {e.question for e in task.train} & {e.question for e in task.test}
    assert task.preamble == [{"role": "system", "content": task.messages("x")[0]["content"]}]
    assert task.preamble[0]["content"].startswith("Put the words")
    assert load(str(WORD_ORDER), seed=1).train != task.train
    assert load(str(WORD_ORDER), seed=1).test == task.test
    examples = [*task.train[:50], *task.test]
    golds = [f"It is\n#### {example.gold}" for example in examples]
    others = [*golds[1:], golds[0]]
    assert score(task, examples, golds)[0].tolist() == [1] * len(examples)
    assert max(score(task, examples, others)[0].tolist()) < 1
    verdicts, values = task.assess(golds, examples)
    assert all(verdict == (True, True) for verdict in verdicts)
    assert values == [1] * len(examples)
    assert not any(verdict.lenient for verdict in task.assess(others, examples)[0])
    assert task.judge(golds[0].replace("####", ""), examples[0]).lenient is False
    assert task.judge(f"#### {golds[0]}", examples[0]) == (False, True)


def test_example_gives_part_of_a_point():
    task = load(str(WORD_ORDER))
    example = Example("Words: b a d c", "a b c d")
    assert task.assess(["#### a c b d", "#### a", "#### a b c d e", "a b", ""], [example] * 5)[1] == [
        0.5,
        0.25,
        0.8,
        0.5,
        0,
    ]


def test_example_trains_and_is_evaluated(tmp_path, capsys):
    recipe = ["--config", str(ROOT / "recipes" / "quickstart.yaml"), "--name", "own", "--output_dir", str(tmp_path)]
    small = ["--max_steps=2", "--rollout.prompts_per_step=2", "--rollout.max_new_tokens=8", "--eval.problems=3"]
    rewards = json.dumps({"correct": 1, "format": 0.5, BREVITY: 0.25})
    main(["train", *recipe, *small, "--task.name", str(WORD_ORDER), "--task.rewards", rewards])
    assert "sampled metric" in capsys.readouterr().out
    run = tmp_path / "own"
    for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        parts = {name.removeprefix("reward/"): value for name, value in row.items() if name.startswith("reward/")}
        assert set(parts) == {"correct", "format", "brevity"}
        total = parts["correct"] + 0.5 * parts["format"] + 0.25 * parts["brevity"]
        assert row["reward"] == pytest.approx(total, abs=1e-6)
        assert parts["brevity"] > 0.9
    after = json.loads((run / "evaluation.json").read_text())["after"]
    low, high = after["sampled"]["metric_interval"]
    assert low <= after["sampled"]["metric"] <= high

    remembered = json.loads((run / "checkpoint-2" / "hybrid.json").read_text())["task"]
    assert remembered["name"] == str(WORD_ORDER)
    with pytest.raises(SystemExit) as exit_info:
        main(["eval", "--checkpoint", str(run), "--problems", "3"])
    assert exit_info.value.code == 2
    assert f"--tasks {WORD_ORDER}" in capsys.readouterr().err
    out = tmp_path / "evaluation"
    main(["eval", "--checkpoint", str(run), "--problems", "3", "--tasks", str(WORD_ORDER), "--out", str(out)])
    (models,) = json.loads((out / "results.json").read_text())["tasks"].values()
    (numbers,) = models.values()
    assert numbers["greedy"].pop("writing")
    assert numbers["greedy"] == after["greedy"]
    assert "metric" in capsys.readouterr().out


def test_evaluation_runs_no_file_that_a_checkpoint_names(tmp_path, task_file, capsys):
    """Neither its task nor its rewards."""
    ran = tmp_path / "ran"
    harmful = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
    path = task_file(f"{harmful}train = test = {ROWS}\nkind = 'number'\ndef f(completions, **c): return [0] * 99\n")
    recipe = ["--config", str(ROOT / "recipes" / "quickstart.yaml"), "--name", "run", "--output_dir", str(tmp_path)]
    small = ["--max_steps=1", "--rollout.prompts_per_step=2", "--rollout.max_new_tokens=4", "--eval.problems=0"]
    main(["train", *recipe, *small])
    for settings in tmp_path.glob("run/checkpoint-1/hybrid.json"):
        saved = json.loads(settings.read_text())
    for changes in ({"name": path}, {"rewards": {f"{path}:f": 1.0}}):
        settings.write_text(json.dumps({**saved, "task": {**saved["task"], **changes}}))
        write_checksums(settings.parent)
        words = ["eval", "--checkpoint", str(tmp_path / "run"), "--problems", "1"]
        if "name" in changes:
            with pytest.raises(SystemExit):
                main(words)
        else:
            main(words)
        main(["generate", "--checkpoint", str(tmp_path / "run"), "1+1"])
        assert not ran.exists()
    capsys.readouterr()
    settings.write_text(json.dumps({**saved, "task": {**saved["task"], "name": path}}))
    write_checksums(settings.parent)
    main(["eval", "--checkpoint", str(tmp_path / "run"), "--problems", "1", "--task", path])
    assert ran.exists()


# ---- what a file may hold -----------------------------------------------------------------------------------------


def test_kind_judges(task_file):
    path = task_file(f"kind = 'number'\ntrain = []\ntest = {ROWS}")
    task = load(path)
    assert task.preamble[0]["content"] == SYSTEM_PROMPT
    assert task.test[1] == Example("2+2?", "4", "Two twos.\n#### 4", {"level": 3})
    assert task.judge("It is\n#### 4.0", task.test[1]) == (True, True)
    assert task.assess(["#### 2"], task.test[:1]) == ([(True, True)], None)
    assert score(task, task.test, ["#### 2", "4"])[0].tolist() == [1, 0]


def test_kind_with_a_reward_and_a_metric_of_its_own(task_file):
    path = task_file(
        f"""
kind = 'number'
train = test = {ROWS}
def reward(completions, gold, level, prompts, solution, **columns):
    assert prompts == ['1+1?', '2+2?'] and solution == ['', 'Two twos.\\n#### 4'], (prompts, solution)
    assert level == [None, 3] and not columns, columns
    return [10, -3]
def metric(completions, **columns):
    return [len(text) / 10 for text in completions]
"""
    )
    task = load(path)
    assert task.train == []
    assert task.dropped == {"training problems that are test problems": 2}
    total, means = score(task, task.test, ["#### 2", "4"])
    assert total.tolist() == [10, -3]
    assert means == {"correct": 3.5}
    assert task.assess(["#### 2", "4"], task.test) == ([(True, True), (False, True)], [0.6, 0.1])


def test_without_metric_the_reward_says_what_is_right(task_file):
    path = task_file(f"train = test = {ROWS}\ndef reward(completions, **c): return [float(t) for t in completions]")
    task = load(path)
    assert task.assess(["0.99", "7"], task.test) == ([(False, False), (False, True)], [0.99, 7])


def test_several_golds(task_file):
    path = task_file("kind = 'qa'\ntrain = []\ntest = [{'prompt': 'Who?', 'gold': ['Ann', 'Anne']}]")
    task = load(path)
    assert task.judge("#### anne", task.test[0]).strict


def test_shots_have_solutions_and_leave_the_training_rows(task_file):
    rows = "[{'prompt': str(i), 'gold': str(i), 'solution': 'So.' * (i % 2)} for i in range(10)]"
    path = task_file(f"kind = 'number'\ntest = []\nsystem = ''\ntrain = lambda seed: {rows}")
    task = load(path, num_fewshot=2)
    shots = [turn["content"] for turn in task.preamble]
    assert [text.partition("\n")[0] for text in shots[1::2]] == ["So.", "So."]
    assert all(answer == f"So.\n#### {question}" for question, answer in zip(shots[::2], shots[1::2], strict=True))
    assert len(task.train) == 8
    assert not {example.question for example in task.train} & set(shots)
    with pytest.raises(InputError, match=r"^task\.num_fewshot: 6 .* 5 training problems with a solution$"):
        load(path, num_fewshot=6)


def test_dataclasses_in_a_file(task_file):
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Row:\n    x: int\n"
    assert load(task_file(f"{text}kind = 'number'\ntrain = test = {ROWS}")).test


def test_loading_needs_no_torch():
    code = (
        "import sys; from hrpo.config.schema import TaskConfig; from hrpo.tasks import load_task; "
        f"load_task(TaskConfig({str(WORD_ORDER)!r}, rewards={{'correct': 1.0, {BREVITY!r}: 0.1}})); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_remembered_paths_are_absolute(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = TaskConfig("examples/word_order.py", rewards={"correct": 1.0, "examples/brevity.py:brevity": 0.1})
    assert remembered(config)["name"] == str(WORD_ORDER)
    assert remembered(config)["rewards"] == {"correct": 1.0, BREVITY: 0.1}
    assert remembered(TaskConfig("gsm8k", path="x"))["path"] == str(ROOT / "x")


# ---- what goes wrong ----------------------------------------------------------------------------------------------

FINE = f"kind = 'number'\ntrain = test = {ROWS}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"train = test = {ROWS}", "has neither `kind` nor `reward`"),
        (f"train = {ROWS}\nkind = 'number'", "has no `test`"),
        (f"test = {ROWS}\nkind = 'number'", "has no `train`"),
        (
            f"kind = 'numbr'\ntrain = test = {ROWS}",
            "kind must be one of number, math, choice, qa, math_string, got 'numbr'",
        ),
        (FINE + "system = 3", "system must be text, got int"),
        (FINE + "reward = 3", "reward must be a function"),
        ("kind = 'number'\ntest = []\ntrain = 5", "train must be a list of rows, got int"),
        ("kind = 'number'\ntest = []\ntrain = lambda seed: None", "train must be a list of rows, got NoneType"),
        ("kind = 'number'\ntrain = []\ntest = [{'prompt': 'a', 'gold': '1'}, 5]", r"test row 2: must be a dict"),
        ("kind = 'number'\ntest = []\ntrain = [{'gold': '1'}]", r"train row 1: has no prompt"),
        ("kind = 'number'\ntest = []\ntrain = [{'prompt': 'a'}]", r"train row 1: has no gold"),
        ("kind = 'number'\ntest = []\ntrain = [{'prompt': 'a', 'gold': 4}]", r"train row 1: has no gold"),
        ("kind = 'qa'\ntest = []\ntrain = [{'prompt': 'a', 'gold': []}]", r"train row 1: has no gold"),
        *(
            (
                f"kind = 'qa'\ntest = []\ntrain = [{row}]",
                r"train row 1: '.*\\ud83d' is no text: half of a surrogate pair",
            )
            for row in (
                r"{'prompt': 'a', 'gold': '\ud83d'}",
                r"{'prompt': 'a', 'gold': ['b', 'c\ud83d']}",
                r"{'prompt': 'a\ud83d', 'gold': 'b'}",
                r"{'prompt': 'a', 'gold': 'b', 'solution': '#### \ud83d'}",
            )
        ),
        ("kind = 'math'\ntest = []\ntrain = [{'prompt': 'a', 'gold': ['1', '2']}]", "kind math takes one gold answer"),
        (
            "kind = 'qa'\ntest = []\ntrain = [{'prompt': 'a', 'gold': 'b', 'solution': 3}]",
            "row 1: solution must be text",
        ),
        ("kind = 'qa'\ntest = []\ntrain = [{'prompt': 'a', 'gold': 'b', 'prompts': 3}]", "cannot be called prompts"),
        ("kind = (", r"own\.py, line 1: SyntaxError: '\(' was never closed"),
        ("\nimport nowhere", r"own\.py, line 2: ModuleNotFoundError: No module named 'nowhere'"),
        (
            "kind = 'qa'\ntest = []\ndef train(seed):\n    x = []\n    return x[seed]",
            r"own\.py, line 5, in train: IndexError",
        ),
        ("kind = 'qa'\ntest = []\ndef train(): return []", r"own\.py, in train: TypeError"),
    ],
)
def test_broken_files(task_file, text, message):
    with pytest.raises(InputError, match=message) as error:
        load(task_file(text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0]", "reward returned 1 values for 2 completions"),
        ("return [1.0, float('nan')]", "reward must return a finite number, got nan for completion 2"),
        ("return [1.0, float('-inf')]", "reward must return a finite number, got -inf for completion 2"),
        ("return [1.0, 10**400]", "reward must return a finite number, got inf for completion 2"),
        ("return [10**5000, 1]", "reward must return a finite number, got inf for completion 1"),
        ("return [1.0, 1e308]", r"reward must return a number of at most 3.4e\+38, got 1e\+308 for completion 2"),
        ("return [1.0, {}]", "reward must return a list of numbers, got dict for completion 2"),
        ("return ['1', '0']", "reward must return a list of numbers, got str for completion 1"),
        ("return [b'1', b'0']", "reward must return a list of numbers, got bytes for completion 1"),
        ("return [1j, 1]", "reward must return a list of numbers, got complex for completion 1"),
        ("return '10'", "reward must return a list of numbers, not '10'"),
        ("return b'10'", "reward must return a list of numbers, not b'10'"),
        ("return {1: 2, 3: 4}", "reward must return a list of numbers, not {1: 2, 3: 4}"),
        ("return {1, 2}", "reward must return a list of numbers, not {1, 2}"),
        ("return 10**5000", r"own\.py, in reward: ValueError: Exceeds the limit"),
        (
            "\n    import itertools\n    return itertools.count()",
            "reward returned more than 2 values for 2 completions",
        ),
        ("return (1 / number for number in (1, 0))", r"line 3, in <genexpr>: ZeroDivisionError: division by zero"),
        ("return [completions.pop() and 1]", "reward returned 1 values for 2 completions"),
        ("\n    import sys\n    sys.exit(0)", r"own\.py, line 5, in reward: SystemExit: 0"),
        ("raise GeneratorExit('odd')", r"own\.py, line 3, in reward: GeneratorExit: odd"),
        ("\n    import torch\n    return torch.ones(2, 2)", "list of numbers, got Tensor for completion 1"),
        ("return 1.0", "reward must return a list of numbers, not 1.0"),
        ("return None", "reward must return a list of numbers, not None"),
        ("\n    raise ValueError('first\\nsecond')", r"own\.py, line 4, in reward: ValueError: first second"),
        ("\n    return helper(c)", r"own\.py, line 5, in helper: KeyError: 'gold2'"),
    ],
)
def test_broken_rewards(task_file, body, message):
    path = task_file(f"{FINE}def reward(completions, **c): {body}\ndef helper(c): return c['gold2']")
    task = load(path)
    with pytest.raises(InputError, match=message) as error:
        score(task, task.test, ["a", "b"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0]", "reward returned 1 values for 2 completions"),
        ("\n    import sys\n    sys.exit(0)", "RuntimeError: SystemExit: 0"),
        ("\n    import asyncio\n    raise asyncio.CancelledError('x')", "RuntimeError: CancelledError: x"),
        ("\n    raise ValueError('odd')", r"own\.py, line 4, in reward: ValueError: odd"),
        ("yield 1.0", "must return a list of numbers, not <async_generator"),
    ],
)
def test_broken_async_rewards(task_file, body, message):
    task = load(task_file(f"{FINE}async def reward(completions, **c): {body}"))
    for _ in range(2):  # the loop they run in lives on
        with pytest.raises(InputError, match=message):
            score(task, task.test, ["a", "b"])


def test_a_file_that_exits(task_file):
    with pytest.raises(InputError, match=r"own\.py, line 2: SystemExit: 0"):
        load(task_file("import sys\nsys.exit(0)"))


@pytest.mark.parametrize(
    "values",
    [
        "(number for number in (1, 0))",
        "(True, False)",
        "__import__('torch').tensor([1.0, 0.0])",
        "__import__('numpy').array([1, 0], dtype='float32')",
        "__import__('array').array('d', [1, 0])",
    ],
)
def test_what_goes_for_a_list_of_numbers(task_file, values):
    task = load(task_file(f"{FINE}def reward(completions, **c): return {values}"))
    assert score(task, task.test, ["a", "b"])[0].tolist() == [1, 0]


# ---- TRL's contract ------------------------------------------------------------------------------------------------

CONTRACT = f"""
train = test = {ROWS}
def even(completions, completion_ids, trainer_state, log_extra, log_metric, prompts, **columns):
    assert completion_ids == [[7, 2], [8]], completion_ids
    assert (trainer_state.global_step, trainer_state.max_steps, trainer_state.epoch) == (3, 9, 0.5)
    log_extra("ids", [ids[0] for ids in completion_ids])
    log_metric("tokens", 3)
    log_metric("tokens", 4)
    return [None if text == "skip" else 1.0 for text in completions]
async def reward(completions, **columns):
    import asyncio
    await asyncio.sleep(0)
    return [0.5, None]
"""


def context() -> RewardContext:
    return RewardContext([[7, 2], [8]], step=3, updates=9, epoch=0.5)


def test_what_trl_gives_a_reward(task_file):
    """None leaves a reward out of a completion's sum; without any there is no reward."""
    path = task_file(CONTRACT)
    task = load(path, rewards={"correct": 2.0, f"{path}:even": 1.0})
    told = context()
    rewards, means = score(task, task.test, ["a", "b"], told)
    assert rewards.tolist() == [2.0, 1.0]
    assert means == {"correct": 0.5, "even": 1.0}
    assert told.extras == {"ids": [7, 8]}
    assert told.metrics == {"tokens": [3.0, 4.0]}
    rewards, means = score(task, task.test, ["skip", "skip"], context())
    assert rewards[0] == 1
    assert rewards[1].isnan()
    assert or_none(rewards) == [1, None]
    assert means == {"correct": 0.5}
    assert task.assess(["a", "b"], task.test, context()) == ([(False, False), (False, False)], [0.5, None])


TALK = """
turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "+2?"}]
train = [{"prompt": [{"role": "system", "content": "Add."}, *turns], "gold": "4", "solution": "Four."}] * 3
test = [{"prompt": turns[:1], "gold": "2"}, {"prompt": "plain", "gold": "0"}]
def reward(completions, prompts, gold, **columns):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    assert all(isinstance(c, str) == isinstance(p, str) for c, p in zip(completions, prompts)), completions
    assert all(isinstance(p, str) or p[-1]["role"] == "user" for p in prompts), prompts
    return [float(g in t) for g, t in zip(gold, texts)]
"""


def test_prompts_that_are_conversations(task_file):
    task = load(task_file(TALK), rewards={"correct": 1.0, "format": 0.5})
    question, plain = task.train[0].question, task.test[1].question
    assert question == "[system]\nAdd.\n\n[user]\n1+1?\n\n[assistant]\n2\n\n[user]\n+2?"
    assert [message["content"] for message in task.messages(question)] == ["Add.", "1+1?", "2", "+2?"]
    assert task.test[0].question == "1+1?"
    assert [m["content"] for m in task.messages(task.test[0].question)] == [SYSTEM_PROMPT, "1+1?"]
    assert [m["content"] for m in task.messages(plain)] == [SYSTEM_PROMPT, "plain"]
    examples = [task.train[0], *task.test]
    assert score(task, examples, ["#### 4", "3", "0"])[0].tolist() == [1.5, 0, 1]
    assert task.assess(["#### 4", "3", "0"], examples)[1] == [1, 0, 1]
    for copied in (copy.deepcopy(question), pickle.loads(pickle.dumps(question))):
        assert (copied, copied.turns) == (question, question.turns)
    shown = load(task_file(TALK.replace("turns], ", "turns[:1]], ")), num_fewshot=1).messages(question)
    assert [message["content"] for message in shown] == ["Add.", "1+1?", "Four.\n#### 4", "1+1?", "2", "+2?"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("[]", "ends with the user"),
        ("[{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]", "ends with the user"),
        ("[{'role': 'user', 'content': 'a'}, {'role': 'system', 'content': 'b'}]", "ends with the user"),
        ("[{'role': 'tool', 'content': 'a'}]", r"needs a role \(system, user, assistant\)"),
        ("[{'role': 'user', 'content': [{'type': 'image'}]}]", "needs a role"),
        ("['a']", "needs a role"),
    ],
)
def test_prompts_that_are_no_conversations(task_file, prompt, message):
    with pytest.raises(InputError, match=rf"test row 1: .*{message}"):
        load(task_file(f"kind = 'number'\ntrain = []\ntest = [{{'prompt': {prompt}, 'gold': '1'}}]"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("log_extra('x', [1])", "ValueError: log_extra got 1 values for 2 completions"),
        ("log_metric('x', float('nan'))", "ValueError: log_metric got nan for x"),
        ("log_metric('x', 'y')", "TypeError"),
    ],
)
def test_what_cannot_be_logged(task_file, call, message):
    path = task_file(f"{FINE}def reward(completions, log_extra, log_metric, **c):\n    {call}\n    return [0, 0]")
    task = load(path)
    with pytest.raises(InputError, match=rf"line 4, in reward: {message}"):
        score(task, task.test, ["a", "b"], context())


@pytest.mark.parametrize("name", ["completion_ids", "trainer_state", "log_extra", "log_metric"])
def test_names_that_a_column_cannot_have(task_file, name):
    with pytest.raises(InputError, match=f"a column cannot be called {name}"):
        load(task_file(f"kind = 'number'\ntrain = []\ntest = [{{'prompt': 'a', 'gold': '1', '{name}': 1}}]"))


def test_names_that_a_column_can_have(task_file):
    """They are parameters of nothing on the way."""
    row = "{'prompt': 'a', 'gold': '1', 'name': 'N', 'path': 'P', 'function': 'F', 'most': 3, 'self': 4}"
    body = "return [float((name, path, function, most, c['self']) == (['N'], ['P'], ['F'], [3], [4]))]"
    file = f"train = []\ntest = [{row}]\ndef reward(completions, name, path, function, most, **c): {body}"
    task = load(task_file(file))
    assert score(task, task.test, ["x"])[0].tolist() == [1]


def test_a_reward_may_change_what_it_gets(task_file):
    row = "{'prompt': 'a', 'gold': ['1', '2'], 'level': 3}"
    body = "[part.clear() for part in (*gold, completions, gold, level, prompts)]\n    return [1.0]"
    path = task_file(
        f"kind = 'qa'\ntrain = []\ntest = [{row}]\ndef f(completions, gold, level, prompts, **c):\n    {body}"
    )
    task = load(path, rewards={f"{path}:f": 1.0, "correct": 1.0})
    assert score(task, task.test, ["#### 2"])[0].tolist() == [2]
    assert task.test[0].gold == ["1", "2"]


def test_sums_are_not_infinite(task_file):
    path = task_file(f"{FINE}def f(completions, **c): return [3e38] * len(completions)")
    with pytest.raises(InputError, match=r"^task\.rewards: a weighted sum is beyond 3\.4e\+38"):
        score(task := load(path, rewards={f"{path}:f": 2.0}), task.test, ["a", "b"])
    with pytest.raises(InputError, match=r"^task\.rewards: the weight of correct must be a number, got 1e\+300"):
        load(path, rewards={"correct": 1e300})


def test_a_run_with_all_of_it(task_file, tmp_path, capsys):
    """Some completions without a reward, and updates without any: nothing in the logs is NaN, and a report is made."""
    path = task_file(
        f"""
train = test = {ROWS.replace("1+1", "3+3")}
train = [{{'prompt': [{{'role': 'user', 'content': f'{{n}}+1?'}}], 'gold': str(n + 1)}} for n in range(40)]
async def reward(completions, completion_ids, trainer_state, log_extra, log_metric, **columns):
    assert all(len(ids) <= 4 and isinstance(ids, list) for ids in completion_ids)
    assert all(isinstance(c, str) == isinstance(p, str) for c, p in zip(completions, columns["prompts"]))
    log_extra("first", [ids[:1] for ids in completion_ids])
    log_metric("seen", trainer_state.global_step)
    log_metric("completions/mean_length", 99)
    return [None if trainer_state.global_step == 1 or n % 2 else float(n) for n in range(len(completions))]
"""
    )
    recipe = ["--config", str(ROOT / "recipes" / "quickstart.yaml"), "--name", "run", "--output_dir", str(tmp_path)]
    small = ["--max_steps=3", "--rollout.prompts_per_step=2", "--rollout.max_new_tokens=4", "--eval.problems=2"]
    main(["train", *recipe, *small, "--task.name", path])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["seen"] for row in rows] == [0, 1, 2]
    assert ["reward" in row for row in rows] == [True, False, True]
    assert all(row["completions/mean_length"] <= 4 for row in rows)  # a metric of hrpo's own
    assert rows[0]["reward"] == 7  # 0, 2, ... 14
    assert [row["frac_reward_zero_std"] for row in rows] == [0, 1, 0]
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in samples] == [0, None, 2, None, *[None] * 4, 0, None, 2, None]
    assert all(row["first"].startswith("[") for row in samples)
    assert "reward none signal 0%" in capsys.readouterr().out
    assert "reward none, gold" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(("value", "right"), [(1.5, False), (-0.1, False), (0, True), (1, True)])
def test_a_metric_lies_in_0_to_1(task_file, value, right):
    task = load(task_file(f"{FINE}def metric(completions, **c): return [{value}] * len(completions)"))
    if right:
        assert task.assess(["a"], task.test[:1])[1] == [value]
        return
    with pytest.raises(InputError, match=f"metric must return a number from 0 to 1, got {value} for completion 1"):
        task.assess(["a"], task.test[:1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "nowhere.py"}, r"^task\.name: no file nowhere\.py"),
        ({"path": "x"}, r"^task\.path: .* brings its own rows"),
        ({"test_path": "x"}, r"^task\.test_path: .* brings its own rows"),
        ({"rewards": {}}, r"^task\.rewards: names no reward"),
        ({"rewards": {"corect": 1.0}}, r"^task\.rewards: 'corect' is none of correct, format, FILE\.py:FUNCTION"),
        ({"rewards": {"x.py": 1.0}}, r"^task\.rewards: 'x\.py' is none of"),
        ({"rewards": {"x.py:": 1.0}}, r"^task\.rewards: 'x\.py:' is none of"),
        ({"rewards": {"nowhere.py:f": 1.0}}, r"^task\.rewards: no file nowhere\.py"),
        ({"rewards": {"correct": float("inf")}}, r"^task\.rewards: the weight of correct must be a number, got inf"),
        ({"rewards": {BREVITY: 1.0, BREVITY.replace("/brev", "//brev"): 1.0}}, r"two rewards are called brevity"),
        ({"num_fewshot": -1}, r"^task\.num_fewshot"),
        ({"max_solution_chars": -1}, r"^task\.max_solution_chars"),
    ],
)
def test_refused_before_anything_runs(task_file, changes, message):
    path = task_file("raise RuntimeError")
    with pytest.raises(InputError, match=message):
        check_task(TaskConfig(**{"name": path, **changes}))


def test_check_runs_nothing(task_file):
    check_task(TaskConfig(task_file("raise RuntimeError"), rewards={f"{task_file('raise RuntimeError', 'r.py')}:f": 1}))


def test_rewards_of_a_file_for_any_task(task_file):
    task = load("arithmetic", rewards={"correct": 2.0, "format": 0.5, BREVITY: 0.0})
    total, means = score(task, [Example("1+2", "3")] * 3, ["#### 3", "#### 4", "3"])
    assert total.tolist() == [2.5, 0.5, 0]
    assert means == pytest.approx({"correct": 1 / 3, "format": 2 / 3, "brevity": (394 + 394 + 399) / 1200})
    with pytest.raises(InputError, match=r"task\.rewards: there is no function length in .*brevity\.py"):
        load("arithmetic", rewards={BREVITY.replace(":brevity", ":length"): 1.0})


def test_an_error_in_user_code_ends_with_2(task_file, tmp_path, capsys):
    path = task_file(f"train = {ROWS}\ntest = []\ndef reward(completions, **columns):\n    return [1 / 0]")
    recipe = ["--config", str(ROOT / "recipes" / "quickstart.yaml"), "--name", "run", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit) as exit_info:
        main(["train", *recipe, "--max_steps=1", "--rollout.max_new_tokens=4", "--task.name", path])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f"hrpo: error: {path}, line 4, in reward: ZeroDivisionError: division by zero\n"
