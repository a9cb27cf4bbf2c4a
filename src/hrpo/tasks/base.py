"""What a task is: questions, gold answers, how they become a prompt, and how answers to them are judged."""

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hrpo.common.errors import InputError
from hrpo.config.schema import TaskConfig
from hrpo.tasks.judge import DELIMITER, Verdict, judge

Kind = Literal["number", "math", "choice", "qa", "math_string"]
Message = dict[str, str]
# TRL's signature: f(completions, **columns) -> a number for each completion; NaN where it has nothing to say.
RewardFunction = Callable[..., list[float]]

HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair
# The paper's system prompt.
SYSTEM_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
    "The final answer is provided after the #### tag, i.e., {reasoning process} #### {answer}."
)


class Conversation(str):
    """A question that is a conversation, whose last turn is the user's; as a text its turns, one below the other."""

    turns: list[Message]

    def __new__(cls, turns: Sequence[Message]) -> "Conversation":
        """Make one of messages with role and content."""
        texts = [turn["content"] if len(turns) == 1 else f"[{turn['role']}]\n{turn['content']}" for turn in turns]
        new = super().__new__(cls, "\n\n".join(texts))
        new.turns = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
        return new

    def __getnewargs__(self) -> tuple[list[Message]]:  # type: ignore[override]
        """Be copied and sent to other processes as a conversation."""
        return (self.turns,)


@dataclass(frozen=True)
class Example:
    """One problem.

    Args:
        question: the prompt, without system prompt and worked examples; may be a `Conversation`.
        gold: the right answer; several accepted ones in a list for the kind "qa" and for tasks of one's own.
        solution: the answer written out, delimiter included; empty where there is none.
        columns: what else reward functions get to see, by name.

    Raises:
        ValueError: half of a surrogate pair is no text, and cannot be written to a file.

    """

    question: str
    gold: str | list[str]
    solution: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        golds = [self.gold] if isinstance(self.gold, str) else self.gold
        for text in (self.question, self.solution, *golds):
            if not text.isascii() and HALF.search(text):
                raise ValueError(f"{text[-60:]!a} is no text: half of a surrogate pair; save what it is from as UTF-8")


@dataclass(frozen=True)
class RewardContext:
    """What reward functions get beside texts and columns, under TRL's names, and what they want to have logged.

    Args:
        completion_ids: the token ids of each completion, EOS included.
        step: updates that the model has behind it.
        updates: of the whole run; 0 where nothing is trained.
        epoch: passes through the training problems so far.
        extras: what was given to `log_extra`, by column: a value for each completion.
        metrics: what was given to `log_metric`, by name: the values of all calls.

    """

    completion_ids: Sequence[Sequence[int]]
    step: int = 0
    updates: int = 0
    epoch: float = 0.0
    extras: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence["RewardContext"], completion_ids: Sequence[Sequence[int]]) -> "RewardContext":
        """Return what the rewards of several shares of a batch want logged, for the whole of it."""
        joined = cls(completion_ids)
        for column in dict.fromkeys(name for part in parts for name in part.extras):
            lists = [part.extras.get(column, [None] * len(part.completion_ids)) for part in parts]
            joined.extras[column] = [value for values in lists for value in values]
        for name in dict.fromkeys(name for part in parts for name in part.metrics):
            joined.metrics[name] = [value for part in parts for value in part.metrics.get(name, [])]
        return joined

    def keywords(self) -> dict[str, Any]:
        """Return what a reward function is called with."""
        from transformers import TrainerState

        return {
            "completion_ids": [list(ids) for ids in self.completion_ids],
            "trainer_state": TrainerState(global_step=self.step, max_steps=self.updates, epoch=self.epoch),
            "log_extra": self.log_extra,
            "log_metric": self.log_metric,
        }

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Take a column for samples.jsonl: a value for each completion."""
        if len(values) != len(self.completion_ids):
            raise ValueError(f"log_extra got {len(values)} values for {len(self.completion_ids)} completions")
        plain = (str, int, float, bool, type(None))
        self.extras[str(column)] = [value if isinstance(value, plain) else str(value) for value in values]

    def log_metric(self, name: str, value: float) -> None:
        """Take a number for metrics.jsonl, where an update has the mean of its calls."""
        if not math.isfinite(value):
            raise ValueError(f"log_metric got {value} for {name}, which is no finite number")
        self.metrics.setdefault(name, []).append(float(value))


@dataclass(frozen=True)
class Task:
    """A family of problems with one way to ask and one way to judge.

    `train` and `test` are disjoint; either may be a lazy sequence, and `train` is empty where no training file was
    named. `preamble` is what every conversation begins with: the system prompt and worked examples.

    `kind` names the rule of `judge`. A task without one brings a `reward`, and is right where its metric (without a
    `metric`, its reward) reaches 1. `dropped` counts the problems left out, by which and why. `weights` has the
    weight of each reward, and `functions` those that are neither "correct" nor "format".
    """

    name: str
    kind: Kind | None
    train: Sequence[Example]
    test: Sequence[Example]
    preamble: Sequence[Message] = ()
    reward: RewardFunction | None = None
    metric: RewardFunction | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=lambda: {"correct": 1.0})
    functions: Mapping[str, RewardFunction] = field(default_factory=dict)

    def messages(self, question: str) -> list[Message]:
        """Return the conversation that asks `question`, ready for a chat template."""
        return ask(self.preamble, question)

    def assess(
        self, completions: Sequence[str], examples: Sequence[Example], context: RewardContext | None = None
    ) -> tuple[list[Verdict], list[float | None] | None]:
        """Return the verdicts on N completions, and what the task's own metric gives them.

        There is no list of values without a metric, and no value where it has nothing to say: that is not right.
        """
        own = self.metric or self.reward
        values: list[float | None] | None = None
        if own is not None:
            found = own(spoken(completions, examples), **arguments(examples, context))
            values = [None if math.isnan(value) else value for value in found]
        if self.kind is not None:
            pairs = zip(completions, examples, strict=True)
            return [judge(self.kind, text, example.gold) for text, example in pairs], values
        assert values is not None
        right = [value is not None and value >= 1 for value in values]
        return [
            Verdict(strict=lenient and text.count(DELIMITER) == 1, lenient=lenient)
            for text, lenient in zip(completions, right, strict=True)
        ], values

    def judge(self, completion: str, example: Example) -> Verdict:
        """Strict and lenient verdict on a completion."""
        return self.assess([completion], [example])[0][0]


@dataclass(frozen=True)
class Spec:
    """What there is to say of a task by name, and how to get it.

    Args:
        kind: how answers are judged.
        train: training problems, as published; 0 where the task is for tests only.
        test: test problems, as published.
        source: whose it is.
        licence: of the data.
        load: `load(config, seed, test_only=...)`, as `hrpo.tasks.load_task`.
        check: `check(config, test_only=...)`, as `hrpo.tasks.check_task`.
        at_hand: `at_hand(folder)` says in words where its problems are.

    """

    kind: Kind
    train: int
    test: int
    source: str
    licence: str
    load: Callable[..., Task]
    check: Callable[..., None]
    at_hand: Callable[[str], str]


def spoken(completions: Sequence[str], examples: Sequence[Example]) -> list[Any]:
    """Return completions as reward functions get them: texts, and as in TRL messages where the prompt is of these."""
    return [
        [{"role": "assistant", "content": text}] if isinstance(example.question, Conversation) else text
        for text, example in zip(completions, examples, strict=True)
    ]


def arguments(examples: Sequence[Example], context: RewardContext | None = None) -> dict[str, Any]:
    """Return what a reward function gets beside the completions.

    Of each column a value for each example, None where it lacks one; in lists of its own, as it may change them.
    """
    names = dict.fromkeys(name for example in examples for name in example.columns)
    return {
        "prompts": [_turns(example.question) or example.question for example in examples],
        "gold": [example.gold if isinstance(example.gold, str) else [*example.gold] for example in examples],
        "solution": [example.solution for example in examples],
        **{name: [example.columns.get(name) for example in examples] for name in names},
        **({} if context is None else context.keywords()),
    }


def dedup_key(example: Example) -> str:
    """Return what two problems that are the same share: the question, without options and passages, spaces and case."""
    return normalized(str(example.columns.get("stem", example.question)))


def prepare(
    config: TaskConfig,
    seed: int,
    kind: Kind | None,
    train: Sequence[Example],
    test: Sequence[Example],
    *,
    held_out: Sequence[Example] = (),
    system: str = SYSTEM_PROMPT,
    dropped: Mapping[str, int] | None = None,
    reward: RewardFunction | None = None,
    metric: RewardFunction | None = None,
    same: Callable[[Example], str] = dedup_key,
) -> Task:
    """Make a task of rows: drop training rows that occur among the test rows, and set worked examples apart.

    Args:
        config: its name, how many worked examples, and how long a solution may be.
        seed: of the choice of worked examples.
        kind: how answers are judged.
        train: training rows.
        test: test rows.
        held_out: more rows that must not be trained on.
        system: the system prompt.
        dropped: what has been left out already.
        reward: the task's own reward.
        metric: the task's own metric.
        same: two problems are the same where this is.

    Raises:
        InputError: there are not as many worked examples as asked for.

    """
    seen = {same(example) for rows in (test, held_out) for example in rows}
    left = [example for example in train if same(example) not in seen]
    reasons = {**(dropped or {}), "training problems that are test problems": len(train) - len(left)}
    if config.max_solution_chars:
        every, left = left, [example for example in left if len(example.solution) <= config.max_solution_chars]
        reasons["training problems with a solution above task.max_solution_chars"] = len(every) - len(left)
    solved = [place for place, example in enumerate(left) if example.solution]
    if len(solved) < config.num_fewshot:
        raise InputError(
            "task.num_fewshot",
            f"{config.num_fewshot} worked examples, but there are {len(solved)} training problems with a solution",
        )
    places = random.Random(f"shots/{seed}").sample(solved, config.num_fewshot)
    shots = [left[place] for place in places]
    prompts = {shot.question for shot in shots}
    return Task(
        config.name,
        kind,
        [example for example in left if example.question not in prompts],
        test,
        make_preamble(system, shots),
        reward,
        metric,
        {reason: count for reason, count in reasons.items() if count},
    )


def normalized(text: str) -> str:
    """Return a text without spaces and case."""
    return "".join(text.split()).casefold()


def make_preamble(system: str, shots: Sequence[Example]) -> list[Message]:
    """Return a system prompt (none where it is empty) and worked examples as earlier turns of a conversation."""
    turns: list[Message] = [{"role": "system", "content": system}] if system else []
    for shot in shots:
        turns += [turn for turn in ask([], shot.question) if turn["role"] != "system"]
        turns.append({"role": "assistant", "content": shot.solution})
    return turns


def ask(preamble: Sequence[Message], question: str) -> list[Message]:
    """Return the conversation in which the model is to answer `question`.

    One that is a conversation follows the worked examples; its system prompt, if any, takes the other's place.
    """
    turns = _turns(question) or [{"role": "user", "content": question}]
    if turns[0]["role"] != "system":
        return [*preamble, *turns]
    return [turns[0], *(message for message in preamble if message["role"] != "system"), *turns[1:]]


def _turns(question: str) -> list[Message]:
    """Return the messages of a question that is a conversation, none of another."""
    return [dict(turn) for turn in question.turns] if isinstance(question, Conversation) else []
