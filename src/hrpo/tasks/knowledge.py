"""Questions about the world: NQ, TriviaQA, HotpotQA, 2WikiMultiHopQA and Bamboogle, with passages or without.

A row has a question (`question`, `Question`, `question_text`, or within a prompt in `context`) and accepted answers
(`answer`, `answers`, `golden_answers`, `Answer`, `answers_objects`; a text, a list, or a dict with value and aliases;
`aliases` add to them), or is a pair of cells, the answers a Python list (DPR). `passages`, a list of {title, text},
are what retrieval found; they are put before the question. Paragraphs that a data set itself marks as right are not.
"""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from hrpo.tasks.base import Example
from hrpo.tasks.benchmark import Benchmark, Split


def qa_row(row: Any) -> Example | None:
    """Make a problem of a row of any of these forms; None without an answer."""
    if isinstance(row, list):
        question, answers = row
        answer = ast.literal_eval(answers) if answers.startswith("[") else answers
        return _example(question, answer, ())
    question = next((row[name] for name in ("question", "Question", "question_text") if name in row), None)
    if question is None:
        question = row["context"].rpartition("Question: ")[2].removesuffix("\nAnswer:")
    names = ("answer", "answers", "golden_answers", "Answer", "answers_objects")
    answer = next((row[name] for name in names if name in row), None)
    if answer is None and not any(name in row for name in names):
        raise KeyError("answer")
    return _example(question, [answer, row.get("aliases", [])], row.get("passages", ()))


def ask_with_passages(question: str, passages: Sequence[Mapping[str, str]]) -> str:
    """Return the prompt: the paper's, with passages that may or may not help; without passages the question alone."""
    if not passages:
        return f"Question: {question}"
    lines = [f"{_line(passage['title'])}::::{_line(passage['text'])}" for passage in passages]
    return "\n".join(["Context (which may or may not be relevant):", *lines, "", f"Question: {question}"])


def _example(question: str, answer: Any, passages: Sequence[Mapping[str, str]]) -> Example | None:
    question, golds = question.strip(), list(dict.fromkeys(_texts(answer)))
    if not golds:
        return None
    return Example(ask_with_passages(question, passages), golds, columns={"stem": question})


def _texts(answer: Any) -> list[str]:
    """Return the texts in an answer of any form, empty ones left out."""
    if answer is None:
        return []
    if isinstance(answer, str):
        return [answer.strip()] if answer.strip() else []
    if isinstance(answer, dict):
        names = [name for name in ("value", "Value", "aliases", "Aliases", "spans") if name in answer]
        if not names:
            raise KeyError("value")
        return [text for name in names for text in _texts(answer[name])]
    if isinstance(answer, list):
        return [text for part in answer for text in _texts(part)]
    raise TypeError("an answer must be text")


def _line(text: str) -> str:
    return " ".join(text.split("\n"))


def _nq(part: str, files: tuple[str, ...], rows: int) -> Split:
    return Split(("google-research-datasets/nq_open", "nq_open", part), "nq_open", files, rows)


def _hotpotqa(part: str, files: tuple[str, ...], rows: int) -> Split:
    return Split(("hotpotqa/hotpot_qa", "distractor", part), "hotpotqa", files, rows)


_NQ_TRAIN = _nq("train", ("NQ-open.train.jsonl", "nq-train.qa.csv"), 87925)
_NQ_TEST = _nq("validation", ("NQ-open.dev.jsonl", "nq-test.qa.csv"), 3610)
_HOTPOTQA_TRAIN = _hotpotqa("train", ("hotpot_train_v1.1.json",), 90447)
_HOTPOTQA_TEST = _hotpotqa(
    "validation",
    ("hotpot_dev_distractor_v1.json", "hotpot_dev_fullwiki_v1.json", "hotpot_dev_v1_simplified.json"),
    7405,
)
_TRIVIAQA = "mandarjoshi/trivia_qa", "unfiltered.nocontext"
_2WIKI = "framolfese/2WikiMultihopQA", "default"

BENCHMARKS = (
    Benchmark("nq", "qa", qa_row, (_NQ_TRAIN,), (_NQ_TEST,), "Google, NQ-open, arXiv:1906.00300", "CC BY-SA 3.0"),
    Benchmark(
        "triviaqa",
        "qa",
        qa_row,
        (Split((*_TRIVIAQA, "train"), "triviaqa", ("unfiltered-web-train.json", "trivia-train.qa.csv"), 87622),),
        (
            Split(
                (*_TRIVIAQA, "validation"),
                "triviaqa",
                ("unfiltered-web-dev.json", "trivia-test.qa.csv", "topics.dpr.trivia.dev.txt.gz"),
                11313,
            ),
        ),
        "Joshi et al., arXiv:1705.03551, unfiltered",
        "Apache-2.0",
    ),
    Benchmark(
        "hotpotqa",
        "qa",
        qa_row,
        (_HOTPOTQA_TRAIN,),
        (_HOTPOTQA_TEST,),
        "Yang et al., arXiv:1809.09600",
        "CC BY-SA 4.0",
    ),
    Benchmark(
        "2wikimultihopqa",
        "qa",
        qa_row,
        (Split((*_2WIKI, "train"), "2wikimultihopqa", ("train.json",), 167454),),
        (Split((*_2WIKI, "validation"), "2wikimultihopqa", ("dev.json", "2wiki_dev_qa.json.gz"), 12576),),
        "Ho et al., arXiv:2011.01060",
        "Apache-2.0",
    ),
    Benchmark(
        "bamboogle",
        "qa",
        qa_row,
        (),
        (
            Split(
                ("RUC-NLPIR/FlashRAG_datasets", "bamboogle", "test"),
                "bamboogle",
                ("bamboogle.json", "bamboogle.jsonl", "bamboogle.csv"),
                125,
            ),
        ),
        "Press et al., arXiv:2210.03350",
        "not verified",
    ),
    Benchmark(
        "knowledge",
        "qa",
        qa_row,
        (_NQ_TRAIN, _HOTPOTQA_TRAIN),
        (_NQ_TEST, _HOTPOTQA_TEST),
        "the paper's mix: nq and hotpotqa; tests on both in turns",
        "CC BY-SA 3.0; CC BY-SA 4.0",
    ),
)
