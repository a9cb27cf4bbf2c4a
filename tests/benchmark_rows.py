"""Rows of our own in the formats of the benchmarks' publishers, as files of the names that they have there."""

import csv
import gzip
import io
import json


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def cells(rows, delimiter=","):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue()


def instruction(stem, options, right):
    """ARC as LLM-Adapters has it: the options are in the text."""
    answers = " ".join(f"Answer{i}: {option}" for i, option in enumerate(options, 1))
    names = "/".join(f"answer{i}" for i in range(1, len(options) + 1))
    question = f"Please choose the correct answer to the question: {stem}"
    return {
        "instruction": f"{question}\n\n{answers}\n\nAnswer format: {names}",
        "input": "",
        "output": f"the correct answer is answer{right}",
        "answer": f"answer{right}",
    }


def hotpot(question, answer):
    context = [["Rhine", ["The Rhine is a river.", " It is long."]], ["Main", ["So is the Main."]]]
    return {"_id": "x", "question": question, "answer": answer, "context": context, "supporting_facts": [["Rhine", 0]]}


MATH_TEST = [
    {"problem": "Find $2+2$.", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{4}$."},
    {"problem": "What is half of $\\sqrt{3}$?", "solution": "Not $\\boxed{3}$ but $\\boxed{\\frac{\\sqrt{3}}{2}}$."},
]
MATH_TRAIN = [
    {"problem": "Find  $ 2 + 2 $ .", "solution": "Again $\\boxed{4}$."},  # a test problem but for the spaces
    {"problem": "Which interval?", "solution": "It is $\\boxed{[0,\\infty)}$."},
    {"problem": "Nobody knows?", "solution": "No answer is given."},
    {"problem": "An old style?", "solution": "So $x = \\boxed 5$, we see."},
    {"problem": "Framed?", "solution": "So \\fbox{6} it is."},
]
STEM = "Which of these is a metal?"

# folder/file -> text; each benchmark's train and test as `--task.path FOLDER` finds them
FILES = {
    "gsm8k/train.jsonl": jsonl([{"question": "Tom has 3 and 4?", "answer": "3+4=<<3+4=7>>7\n#### 7"}]),
    "gsm8k/test.jsonl": jsonl([{"question": "One and a thousand?", "answer": "#### 1,001"}]),
    "math/train.jsonl": jsonl(MATH_TRAIN),
    "math/test.jsonl": jsonl(MATH_TEST),
    "math500/math500.jsonl": jsonl([{**MATH_TEST[1], "answer": "\\frac{\\sqrt{3}}{2}", "subject": "Algebra"}]),
    "mmlu/mmlu_stem_test.jsonl": jsonl(
        [
            {
                "question": STEM,
                "type": "high_school_chemistry",
                "choices": ["wood", "iron", "salt", "ice"],
                "answer": 1,
            },
            {"question": "Is 7 prime?", "type": "x", "choices": ["yes", "no", "both", "neither"], "answer": 0},
        ]
    ),
    "mmlu/auxiliary_train/race.csv": cells(
        [
            ["A long text, with commas.\nAnd lines. Who?", "Ann", "Bob, or so", "Cid", "Dan", "B"],
            ["which of these  is a METAL?", "tin", "wool", "wood", "milk", "A"],  # the test problem, other options
        ]
    ),
    "arc_challenge/train.json": json.dumps(
        [
            instruction("Why is the sky blue?", ["Paint.", "Scattering.", "Water."], 2),
            instruction("Which way is up?", ["Down.", "Up.", "Left.", "Right.", "None."], 2),
        ]
    ),
    "arc_challenge/test.json": json.dumps([instruction("Which way is up?", ["Up", "Down", "Out", "In"], 1)]),
    "nq_open/NQ-open.train.jsonl": jsonl(
        [
            {"question": "who wrote the iliad", "answer": ["Homer"]},
            {"question": "Who sang it?", "answer": ["Ann", "The Anns", "Ann"]},
        ]
    ),
    "nq_open/NQ-open.dev.jsonl": jsonl(
        [
            {"question": "who sang it?", "answer": ["Ann", "Anne"]},
            {"question": "how deep is it", "answer": ["10 m"]},
            {"question": "how high is it", "answer": ["---"]},  # normalises to nothing
        ]
    ),
    "triviaqa/trivia-train.qa.csv": cells([['The "Bird" of jazz?', "['Parker', \"Charlie 'Bird' Parker\"]"]], "\t"),
    "triviaqa/unfiltered-web-dev.json": json.dumps(
        {"Data": [{"Question": "Which vegetable?", "Answer": {"Value": "Onion", "Aliases": ["Onion", "Onions"]}}]}
    ),
    "hotpotqa/hotpot_train_v1.1.json": json.dumps([hotpot("Are both rivers?", "yes")]),
    "hotpotqa/hotpot_dev_distractor_v1.json": json.dumps([hotpot("Which is longer?", "the Rhine")]),
    "2wikimultihopqa/train.json": json.dumps([hotpot("Who is older?", "Ann Lee")]),
    "2wikimultihopqa/dev.json": json.dumps([hotpot("Who is the mother of Ann?", "Eve Lee")]),
    "bamboogle/bamboogle.csv": cells([["Question", "Answer"], ["Who came after the last one?", "Nobody, ever"]]),
}

# Other formats of the same benchmarks: name, task, text, and (question, gold) of each row.
VARIANTS = [
    ("arc.jsonl", "arc_challenge", jsonl([{"query": "Question: Why?", "choices": ["a", "b"], "gold": 1}]), "Why?", "B"),
    (
        "ARC-Challenge-Test.jsonl",
        "arc_challenge",
        jsonl(
            [
                {
                    "id": "1",
                    "question": {
                        "stem": "Why?",
                        "choices": [
                            {"text": "a", "label": "1"},
                            {"text": "b", "label": "2"},
                            {"text": "c", "label": "3"},
                        ],
                    },
                    "answerKey": "3",
                }
            ]
        ),
        "Why?",
        "C",
    ),
    (
        "hub.jsonl",
        "arc_challenge",
        jsonl([{"question": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}]),
        "Why?",
        "A",
    ),
    (
        "auxiliary.json",
        "mmlu_stem",
        json.dumps([{"train": {"question": "Why?", "subject": "", "choices": ["a", "b", "c"], "answer": 2}}]),
        "Why?",
        "C",
    ),
    ("letter.jsonl", "mmlu_stem", jsonl([{"question": "Why?", "choices": ["a", "b"], "answer": "B"}]), "Why?", "B"),
    ("anatomy_dev.csv", "mmlu_stem", cells([['Why, "oh"?', "a", "b", "c", "d", "D"]]), 'Why, "oh"?', "D"),
    ("nq.txt", "nq", cells([["who is it", "['Ann', \"O'Neil\"]"]], "\t"), "who is it", ["Ann", "O'Neil"]),
    ("nq-test.qa.csv", "nq", "who, and why\t['Ann']\n", "who, and why", ["Ann"]),
    ("flash.jsonl", "nq", jsonl([{"question": "Who?", "golden_answers": ["Ann"], "metadata": {}}]), "Who?", ["Ann"]),
    (
        "openbook.jsonl",
        "nq",
        jsonl([{"context": "Context: Ann did.\n\nQuestion: who did\nAnswer:", "answer": "Ann", "aliases": ["Anne"]}]),
        "who did",
        ["Ann", "Anne"],
    ),
    (
        "trivia.jsonl",
        "triviaqa",
        jsonl([{"context": "Question: Who?\nAnswer:", "answer": "Ann", "aliases": ["Ann", "Anne"]}]),
        "Who?",
        ["Ann", "Anne"],
    ),
    (
        "trivia-hub.jsonl",
        "triviaqa",
        jsonl([{"question": "Who?", "answer": {"value": "Ann", "aliases": ["Anne"], "type": "WikipediaEntity"}}]),
        "Who?",
        ["Ann", "Anne"],
    ),
    (
        "ircot.jsonl",
        "hotpotqa",
        jsonl([{"question_text": "Who?", "answers_objects": [{"number": "", "date": {}, "spans": ["Ann"]}]}]),
        "Who?",
        ["Ann"],
    ),
    ("o1.json", "bamboogle", json.dumps([{"id": "test_1", "Question": "Who? ", "answer": ["Ann"]}]), "Who?", ["Ann"]),
    ("one.json", "math", json.dumps(MATH_TEST[0]), "Find $2+2$.", "4"),  # as MATH's authors: a problem a file
]


def write(folder, names=tuple(FILES)):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FILES[name], encoding="utf-8", newline="")
    return folder


def write_file(folder, name, text):
    """Write a file, compressed where its name says so."""
    path = folder / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path
