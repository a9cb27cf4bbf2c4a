"""What a task is: questions, gold answers, and how they become a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hrpo.tasks.judge import Verdict, judge

Kind = Literal["number", "math", "choice", "qa"]
Message = dict[str, str]

# The paper's system prompt.
SYSTEM_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
    "The final answer is provided after the #### tag, i.e., {reasoning process} #### {answer}."
)


@dataclass(frozen=True)
class Example:
    """One problem. `gold` is a list of accepted answers for tasks of the kind "qa"; `solution` is written out."""

    question: str
    gold: str | list[str]
    solution: str = ""


@dataclass(frozen=True)
class Task:
    """A family of problems with one way to ask and one way to judge.

    `train` and `test` are disjoint; either may be a lazy sequence, and `train` is empty where no training file was
    named. `preamble` is what every conversation begins with: the system prompt and worked examples.
    """

    name: str
    kind: Kind
    train: Sequence[Example]
    test: Sequence[Example]
    preamble: Sequence[Message] = ()

    def messages(self, question: str) -> list[Message]:
        """Return the conversation that asks `question`, ready for a chat template."""
        return ask(self.preamble, question)

    def judge(self, completion: str, example: Example) -> Verdict:
        """Strict and lenient verdict on a completion."""
        return judge(self.kind, completion, example.gold)


def make_preamble(system: str, shots: Sequence[Example]) -> list[Message]:
    """Return a system prompt (none where it is empty) and worked examples as earlier turns of a conversation."""
    turns: list[Message] = [{"role": "system", "content": system}] if system else []
    for shot in shots:
        turns.append({"role": "user", "content": shot.question})
        turns.append({"role": "assistant", "content": shot.solution})
    return turns


def ask(preamble: Sequence[Message], question: str) -> list[Message]:
    """Return the conversation in which the model is to answer `question`."""
    return [*preamble, {"role": "user", "content": question}]
