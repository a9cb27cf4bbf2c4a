"""Hostile input: valid files, spoilt in one to three ways, given to everything that reads files, and the scorers.

    python -m benchmarks.fuzz [--cases 200000] [--math 5000] [--seed 0] [--targets NAME,NAME] [--only NAME:NUMBER]

A case is its target, the seed and its number; nothing else decides what it is, so --only makes it again. It must end
well or in a declared error, within its time, in bounded memory, running nothing and writing nothing outside its
folder: an audit hook sees each file, process, connection and unpickled name. Exits with 1 where a case fails.
"""

import argparse
import contextlib
import copy
import gzip
import io
import json
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hrpo.common.errors import InputError, StoppedError

SECONDS = 5.0  # of processor time for a case; for those of the maths scorer 2
MEMORY = 3 << 30  # bytes of address space beyond what a target's first good case needed
DECLARED = (InputError, StoppedError)

# ---- how files are spoilt ------------------------------------------------------------------------------------------

ODD = [
    *(None, True, False, 0, -1, 1, 3.5, 10**400, -(10**30), float("nan"), float("inf"), 2**63, 1e308, ""),
    *("\ud800", "\0", "\ufeff", "a\u2028b", "\u202e", "../../outside", "/etc/passwd", "~root", "a" * 5000, "#### 7"),
    *(
        [],
        {},
        [[]],
        [None],
        {"": None},
        {"value": [[["x"]]]},
        ["a", 1],
        [1, [2, [3, [4]]]],
        "__import__('os')._exit(3)",
    ),
    *("{{ 0 / 0 }}", "nan", "9" * 5000, "1e999999999", "C" * 300, "[" * 300 + "]" * 300),
]
TOKENS = [
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n\n", b"\t", b'"', b"'", b"\\", b"\\u0000", b"\\ud83d", b"{"),
    *(b"}", b"[", b"]", b",", b":", b"null", b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 400, b"9" * 5000, b"####"),
    *(b"!!python/object/apply:os.system ['touch outside']", b"&a [*a, *a]", b"*a", b"<<: *a", b"!!binary x", b"!!set"),
    *(b"2025-02-30", b"1:1:1:1.5", b"0x_", b"---\n", b"%YAML 9.9\n", b"? ", b"| ", b"$", b"\\boxed{", b"\\frac", b"^"),
    *(b"../" * 9 + b"etc/passwd", b"[" * 2000, b'{"a":' * 2000, b"(" * 500, b"-" * 5000, b"\xc3\x28", b"{% for %}"),
    *(
        b"(os",
        b"cos\nsystem\n(S'touch outside'\ntR.",
        b"\x80\x04",
        b"PK\x03\x04",
        b"\x1f\x8b\x08",
        b"\x93NUMPY",
        b"PAR1",
    ),
]


def spoil(rng: random.Random, name: str, data: bytes) -> bytes:
    """Return a file's bytes, spoilt in one to three ways."""
    packed = name.endswith(".gz")
    if packed and rng.random() < 0.03:
        return BOMBS[rng.randrange(len(BOMBS))]
    if packed and rng.random() < 0.7:
        return gzip.compress(spoil(rng, name.removesuffix(".gz"), gzip.decompress(data)), 1)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        way = rng.choice(WAYS)
        if "." not in name and rng.random() < 0.6:
            way = _tex
        data = _values(rng, data) if ".json" in name and rng.random() < 0.5 else way(rng, data)
    return data


def _values(rng: random.Random, data: bytes) -> bytes:
    """Put an odd value for one of JSON's, leave one out, or name one twice."""
    lines = data.split(b"\n") if data.count(b"\n{") else [data]
    at = rng.randrange(len(lines))
    try:
        value = json.loads(lines[at])
    except (ValueError, RecursionError):
        return _token(rng, data)
    places = list(_places(value))
    if not places or rng.random() < 0.05:
        lines[at] = json.dumps(rng.choice(ODD)).encode()
        return b"\n".join(lines)
    holder, key = rng.choice(places)
    what = rng.random()
    if what < 0.15:
        del holder[key]
    elif what < 0.3:
        other, there = rng.choice(places)
        holder[key] = copy.deepcopy(other[there]) if other is not holder else rng.choice(ODD)
    else:
        holder[key] = rng.choice(ODD)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7, indent=1 if len(lines) == 1 else None)
    if what > 0.95 and isinstance(holder, dict) and isinstance(key, str):
        text = text.replace("{", "{" + json.dumps(key) + ": 0,", 1)
    lines[at] = text.encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(pairs):
        yield value, key
        yield from _places(part)


def _flip(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return b"\0"
    spoilt = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 30))):
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _drop(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 2, 8, 100)) :]


def _double(rng: random.Random, data: bytes) -> bytes:
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 4, 20, 200))
    return data[:at] + data[at : at + length] * rng.choice((2, 2, 50)) + data[at + length :]


def _swap(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    rng.shuffle(lines)
    return b"\n".join(lines)


def _token(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(TOKENS) + data[at + rng.choice((0, 0, 1, 5)) :]


def _number(rng: random.Random, data: bytes) -> bytes:
    digits = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if not digits:
        return _token(rng, data)
    at = rng.choice(digits)
    return (
        data[:at]
        + rng.choice((b"-1", b"1e999", b"NaN", b"9" * 30, b"9" * 5000, b"0", b"''", b".5", b"0x1"))
        + data[at + 1 :]
    )


def _encoding(rng: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    return rng.choice(
        (
            lambda: text.encode("utf-16"),
            lambda: text.encode("utf-32"),
            lambda: b"\xef\xbb\xbf" + data,
            lambda: data.replace(b"\n", b"\r\n"),
            lambda: text.encode("latin-1", "replace"),
            lambda: text.replace("e", "\u00e9").encode("latin-1", "replace"),
        )
    )()


TEX = [
    *(
        "9^{9^{9}}",
        "^{",
        "^",
        "_",
        "!",
        "!!",
        r"\frac{",
        r"\frac",
        r"\sqrt[3]{",
        r"\sqrt",
        r"\binom{10^9}{10^8}",
        "}",
        "{",
        "$",
    ),
    *(
        r"\sum_{n=1}^{10^9} n",
        r"\int_0^1 x^x dx",
        r"\prod_{k=1}^{999999}k",
        r"\boxed{",
        r"\cup",
        r"\infty",
        r"\log_{",
        "=",
    ),
    *(
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        r"\\",
        "&",
        r"\text{",
        r"\left(",
        r"\right]",
        r"\{",
        "x",
        "x^{1000}",
        "(x+y)^{500}",
    ),
    *(
        "10^{10^{10}}",
        "1e400",
        "9" * 60,
        "100000!",
        "(((((((",
        ")",
        r"\lim_{x\to 0}",
        r"\sin",
        "%",
        "<",
        r"\le",
        ";",
        ",",
        "####",
    ),
    *(
        r"\operatorname{",
        r"\mathbb{R}",
        r"\pm",
        r"\cdot",
        "/",
        "-",
        "...",
        r"\overline{3}",
        "i",
        r"\pi",
        "\n",
        r"\(",
        r"\]",
    ),
]


def _tex(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.choice((1, 2, 5, 20))):
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice(TEX).encode() * rng.choice((1, 1, 1, 1, 3, 40)) + data[at:]
    return data


WAYS = (_flip, _cut, _drop, _double, _swap, _token, _token, _number, _encoding)


def _bomb(start: bytes, filler: bytes, end: bytes) -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9, mtime=0) as file:
        file.write(start)
        for _ in range(128):
            file.write(filler * ((1 << 20) // len(filler)))
        file.write(end)
    return packed.getvalue()


BOMBS = [_bomb(b'{"question": "', b"0", b'"}'), _bomb(b"", b"\n", b""), _bomb(b"[", b"[],", b"1]")]

# ---- what reads them -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What reads a folder of files.

    `make()` returns the whole folder, of which each case spoils one file of `spoilt` (all where that is empty), and
    `read(folder, name)` reads it. `share` is in thousandths of all cases.
    """

    name: str
    share: float
    make: Callable[[], dict[str, bytes]]
    read: Callable[[Path, str], object]
    spoilt: tuple[str, ...] = ()
    declared: tuple[type[Exception], ...] = DECLARED
    seconds: float = SECONDS


def _lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _with_gz(files: dict[str, bytes]) -> dict[str, bytes]:
    return files | {f"{name}.gz": gzip.compress(data, 1) for name, data in files.items()}


GSM8K = [
    {"question": f"What is {i} + {i}?", "answer": f"It is <<{i}+{i}={2 * i}>>{2 * i}.\n#### {2 * i}"} for i in (1, 2, 3)
]
MATH = [{"problem": "Find $x$.", "solution": r"So $x = \boxed{\frac{1}{2}}$.", "level": "Level 5"}]
ARC = [
    {
        "id": "a",
        "question": {"stem": "Which?", "choices": [{"text": t, "label": n} for t, n in (("a", "A"), ("b", "B"))]},
        "answerKey": "B",
    },
    {"question": "Which?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
    {"question": "Which?", "choices": ["a", "b"], "answer": 1},
    {"query": "Question: Which?", "choices": ["a", "b"], "gold": 0},
    {"instruction": "Choose: Which? Answer1: a Answer2: b Answer format: answer1/answer2", "answer": "answer2"},
]
QA = [
    {"question": "Who?", "answer": ["Ann", "Anne"]},
    {"Question": "Who?", "Answer": {"Value": "Ann", "Aliases": ["Anne"]}},
    {"context": "Context: a\n\nQuestion: Who?\nAnswer:", "golden_answers": ["Ann"]},
    {"question": "Who?", "answer": "Ann", "passages": [{"title": "T", "text": "Ann\nis."}]},
    {"question": "Who?", "answer": "Ann", "supporting_facts": [["T", 0]], "context": [["T", ["Ann is."]]]},
]
ROWS = {
    **{
        f"gsm8k/{name}": data
        for name, data in _with_gz({"a.jsonl": _lines(*GSM8K), "a.json": json.dumps(GSM8K).encode()}).items()
    },
    **{
        f"math/{name}": data
        for name, data in _with_gz({"a.jsonl": _lines(*MATH), "a.json": json.dumps(MATH[0]).encode()}).items()
    },
    **{f"arc_challenge/{name}": data for name, data in _with_gz({"a.jsonl": _lines(*ARC)}).items()},
    "mmlu_stem/a.csv": b'"Which, ""now""?",a,b,c,d,B\nWhich?,a,b,c,d,A\n',
    **{
        f"nq/{name}": data
        for name, data in _with_gz(
            {
                "a.jsonl": _lines(*QA),
                "a.json": json.dumps({"Data": QA}).encode(),
                "a.qa.csv": b'Who is it?\t[\'Ann\', "Anne"]\nWho?\t["Bo"]\n',
                "a.tsv": b"question\tanswer\nWho?\tAnn\n",
                "a.txt": b"Who?\t['Ann']\n",
            }
        ).items()
    },
}


def read_rows(folder: Path, name: str) -> object:
    """Read a file of a benchmark's rows."""
    from hrpo.tasks import BENCHMARKS
    from hrpo.tasks.benchmark import parsed
    from hrpo.tasks.row_files import read

    return parsed(BENCHMARKS[name.split("/")[0]], read(folder / name))


def _folder_files() -> dict[str, bytes]:
    return {
        "gsm8k/train.jsonl": _lines(*GSM8K),
        "gsm8k/test.jsonl": _lines({"question": "1 + 2?", "answer": "#### 3"}),
        "math/train/algebra/1.json": json.dumps(MATH[0]).encode(),
        "math/test/algebra/1.json": json.dumps(MATH[0] | {"problem": "Another?"}).encode(),
        "nq_open/nq-train.qa.csv": b"Who?\t['Ann']\n",
        "nq_open/nq-test.qa.csv": b"Which?\t['Ann']\n",
    }


def read_task(folder: Path, name: str) -> object:
    """Load a benchmark from a folder of several, with a worked example."""
    from hrpo.config.schema import TaskConfig
    from hrpo.tasks import load_task

    task = "nq" if name.startswith("nq") else name.split("/")[0]
    loaded = load_task(TaskConfig(task, path=str(folder), num_fewshot=int(task == "gsm8k")))
    return [loaded.messages(example.question) for example in loaded.test]


PASSAGES = [{"id": str(i), "title": f"T{i}", "text": f"The cat number {i} sat on a mat."} for i in range(4)]
CORPORA = _with_gz(
    {
        "a.jsonl": _lines(*PASSAGES, {"id": 9, "contents": '"Cats"\nThey purr.'}),
        "a.tsv": b'id\ttext\ttitle\n1\t"A cat, ""sat""."\tCats\n2\tA dog.\tDogs\n',
        "a.json": json.dumps(PASSAGES).encode(),
        "b.json": json.dumps({"Cats": ["They purr.", " They sleep."]}).encode(),
    }
)


def read_passages(folder: Path, name: str) -> object:
    """Read a corpus."""
    from hrpo.retrieval.corpus import check_corpus, read_corpus

    check_corpus(folder / name)
    return [json.dumps(passage) for passage, _ in read_corpus(folder / name)]


RECIPE = b"""# hrpo train --config a.yaml
name: "run-{mode}"
updates: 3
model:
  name: tiny
  lora_rank: 4
task: {name: arithmetic, rewards: {correct: 1.0, format: 0.1}}
optimizer:
  lr: 1e-3
  max_grad_norm: .inf
latent: &l {mode: hybrid, r_min: 0.98}
"""


def read_recipe(folder: Path, name: str) -> object:
    """Look a settings file through."""
    from hrpo.config.load import read_settings_file

    return read_settings_file(folder / name)


def read_command(folder: Path, name: str) -> object:
    """Parse a command line with a settings file, and check what came of it."""
    from jsonargparse import Namespace

    from hrpo.cli.parser import Parser
    from hrpo.cli.train import COMMANDS, train_config
    from hrpo.tasks import check_task
    from hrpo.training.validate import check_config

    words = (folder / "words").read_bytes().decode("utf-8", "surrogateescape").replace("\0", "").split("\n")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            parser = Parser(prog="hrpo train")
            COMMANDS["train"][0](parser)
            args: Namespace = parser.instantiate(parser.parse_args(["--config", str(folder / "a.yaml"), *words]))
        except SystemExit as exit:
            if exit.code != 2 or "Traceback" in said.getvalue():
                raise RuntimeError(f"exit code {exit.code}: {said.getvalue()}") from exit
            raise InputError("", said.getvalue()) from exit
    config = train_config(args)
    check_config(config)
    check_task(config.task)
    inside = Path(os.path.realpath(config.output_dir))
    if inside not in Path(os.path.realpath(config.run_folder)).parents:
        raise RuntimeError(f"{config.run_folder} is outside {config.output_dir}")
    return config


WORDS = (
    b"--max_steps=4\n--name=run-{seed}\n--latent.r_min=0.9\n--task.rewards={correct: 1.0}\n--model.name=tiny\n--seed=3"
)


def _config_yaml() -> dict[str, bytes]:
    import dataclasses

    import yaml

    from hrpo.config.schema import TrainConfig

    return {"config.yaml": yaml.safe_dump(dataclasses.asdict(TrainConfig()), sort_keys=False).encode()}


def read_config(folder: Path, name: str) -> object:
    """Compare a run's config.yaml with other settings."""
    import dataclasses

    from hrpo.config.schema import TrainConfig
    from hrpo.storage.run_dir import _read_config, changed_settings

    return changed_settings(_read_config(folder / name), dataclasses.asdict(TrainConfig()))


HYBRID = {
    "base_model": "tiny",
    "latent_mode": "hybrid",
    "dtype": "float32",
    "quantization": "none",
    "temperature": 0.5,
    "top_k": 50,
    "max_new_tokens": 64,
    "preamble": [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1"}],
    "task": {"name": "arithmetic", "rewards": {"correct": 1.0}, "min_terms": 2, "num_fewshot": 1},
    "seed": 0,
    "step": 2,
    "mixed_in": "interpolation",
}


def read_hybrid(folder: Path, name: str) -> object:
    """Read hybrid.json, and make of it what evaluations do."""
    from hrpo.config.schema import TaskConfig
    from hrpo.models.settings import read_settings

    settings = read_settings(folder / name)
    return TaskConfig(**settings.task), float(settings.temperature), settings.preamble


def _state_files() -> dict[str, bytes]:
    from safetensors.torch import save

    from hrpo.storage.run_dir import optimizer_tensors

    return {
        "trainer.json": json.dumps({"step": 2, "threads": 1}).encode(),
        "metrics.jsonl": _lines({"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.25}),
        "optimizer.safetensors": save(optimizer_tensors(_optimizer())),
    }


def _optimizer() -> Any:
    import torch

    weights = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.AdamW(weights)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    return optimizer


def read_state(folder: Path, name: str) -> object:
    """Read what a resumed run goes on from."""
    from hrpo.storage import run_dir

    if name == "trainer.json":
        with contextlib.redirect_stderr(io.StringIO()):
            return run_dir.read_step(folder)
    if name == "metrics.jsonl":
        return run_dir.lines_until(folder / name, 1)
    return run_dir.load_optimizer(_optimizer(), folder)


def _gate_files() -> dict[str, bytes]:
    import torch
    from safetensors.torch import save

    from hrpo.gate import HybridGate
    from hrpo.models.gate_file import with_sorted_metadata

    torch.manual_seed(0)
    metadata = {"r_min": "0.99", "r_max": "0.999"}
    return {"gate.safetensors": with_sorted_metadata(save(HybridGate(4).state_dict(), metadata))}


def read_gate(folder: Path, name: str) -> object:
    """Read a gate."""
    from hrpo.models.gate_file import read_gate

    return read_gate(folder / name, 4)


def _model_files() -> dict[str, bytes]:
    import torch

    from hrpo import HybridCausalLM, Lora

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        HybridCausalLM.from_pretrained("tiny", lora=Lora(r=2)).save_pretrained(scratch)
        adapter = {f"adapter/{path.name}": path.read_bytes() for path in Path(scratch).iterdir()}
        HybridCausalLM.from_pretrained("tiny").save_pretrained(f"{scratch}/whole")
        return adapter | {f"whole/{path.name}": path.read_bytes() for path in Path(scratch, "whole").iterdir()}


def read_model(folder: Path, name: str) -> object:
    """Load a model, and ask it something."""
    from hrpo import HybridCausalLM
    from hrpo.chat import encode

    model = HybridCausalLM.from_pretrained(folder / name.split("/")[0])
    return encode(model.tokenizer, [[*model.settings.preamble, {"role": "user", "content": "1+2"}]])


def read_adapter(folder: Path, name: str) -> object:
    """Look an adapter's settings through."""
    from hrpo.models.adapter import check_adapter

    return check_adapter(folder)


ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {}}


def _release_files() -> dict[str, bytes]:
    import torch
    from safetensors.torch import load, save

    from hrpo.hub.import_release import GATE_NAMES

    files = _model_files()
    tensors = load(files["adapter/adapter_model.safetensors"])
    sizes = {ours: theirs for theirs, ours in GATE_NAMES.items()}
    gate = load(files["adapter/gate.safetensors"])
    tensors |= {f"base_model.model.model.{sizes[name]}": tensor for name, tensor in gate.items()}
    config = json.loads(files["adapter/adapter_config.json"]) | {"base_model_name_or_path": "tiny"}
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    return {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": save(tensors)}


def read_release(folder: Path, name: str) -> object:
    """Import a model of the release."""
    import shutil

    from hrpo.hub.import_release import import_release

    shutil.rmtree(folder / "out", ignore_errors=True)
    return import_release(folder, folder / "out")


EVALUATION = {"checkpoints": {"m": {"step": 1}}, "tasks": {"arithmetic": {"problems": 2}}, "seed": 0}


def _answers_files() -> dict[str, bytes]:
    from hrpo.evaluate import Answer
    from hrpo.evaluation import store

    fields = {"question": "1+1", "gold": ["2"], "completion": "#### 2", "strict": True, "lenient": True, "length": 3}
    answers = [Answer(**fields, truncated=False, mixed=1, hidden_ratio=0.1, metric=None)] * 2
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "a.parquet"
        store.append(path, 0, 0, 1, answers)
        store.finish(path)
        return {"a.parquet": path.read_bytes(), "settings.json": json.dumps(EVALUATION).encode()}


def read_answers(folder: Path, name: str) -> object:
    """Go on with an evaluation."""
    from hrpo.evaluation import run, store

    if name == "a.parquet":
        return store.load(folder / name)
    return run.find(EVALUATION, str(folder))


def _index_files() -> dict[str, bytes]:
    from hrpo.retrieval import build_index

    with tempfile.TemporaryDirectory() as scratch:
        corpus, index = Path(scratch, "a.jsonl"), Path(scratch, "index")
        corpus.write_bytes(_lines(*PASSAGES))
        build_index(str(corpus), str(index))
        return {str(path.relative_to(index)): path.read_bytes() for path in index.rglob("*") if path.is_file()}


def read_index(folder: Path, name: str) -> object:
    """Open an index and search."""
    from hrpo.retrieval import Index

    index = Index(str(folder))
    if index.settings["retriever"] != "bm25":
        raise InputError("retriever", "another one")
    return index.search(["a cat", "mat number 2"], 2)


def _vector_files() -> dict[str, bytes]:
    import numpy as np

    file = io.BytesIO()
    np.save(file, np.eye(len(PASSAGES), dtype=np.float32))
    return {"v.npy": file.getvalue()}


def read_vectors(folder: Path, name: str) -> object:
    """Take vectors that were made elsewhere."""
    from hrpo.retrieval import dense

    class Passages(list):  # type: ignore[type-arg]
        pass

    class Model:
        def encode(self, texts: list[str], **_: Any) -> Any:
            import numpy as np

            return np.zeros((len(texts), len(PASSAGES)), dtype=np.float32)

    model: Any = Model()
    passages: Any = Passages(PASSAGES)
    return dense.write_given(folder, passages, folder / name, model)


TEXTS = [
    r"So $x = \frac{1}{2}$ and #### \boxed{\frac{3\sqrt{13}}{2}}",
    "3 + 4 = 7\n#### 7",
    "#### (B) Paris, not (A).",
    "#### The Nile, 1,234.5 km -3/4 2e3 $5\\%$",
    r"#### \begin{pmatrix} 1 \\ 2 \end{pmatrix}",
    "#### 2^{10} + \\binom{5}{2} - 3!",
    r"#### (3,4] \cup [5, \infty)",
    "#### x^2+2x+1 = 0, y=2",
    "#### 11:30 \u2212 12\u00b0 \u20ac5 \u221a2 \u03c0/4",
]
GOLDS = ["7", r"\frac{1}{2}", "B", "the Nile", r"\begin{pmatrix}1\\2\end{pmatrix}", "(3,4]", "x^2+2x+1", r"3\sqrt{13}"]


def _texts() -> dict[str, bytes]:
    return {str(place): text.encode() for place, text in enumerate(TEXTS)}


def _text(folder: Path, name: str) -> str:
    return (folder / name).read_bytes().decode("utf-8", "surrogateescape")


def score(folder: Path, name: str) -> object:
    """Judge a text by all rules but math-verify's, and as the gold answer too."""
    from hrpo.tasks.judge import judge

    text, gold = _text(folder, name), GOLDS[int(name) % len(GOLDS)]
    verdicts = [judge(kind, text, gold) for kind in ("number", "choice", "qa", "math_string")]
    return verdicts, [judge(kind, gold, text) for kind in ("number", "choice", "qa", "math_string")]


def score_maths(folder: Path, name: str) -> object:
    """Judge a text by math-verify."""
    from hrpo.tasks.judge import judge

    return judge("math", _text(folder, name), GOLDS[int(name) % len(GOLDS)])


TOKENIZER: list[Any] = []


def _tokenizer() -> Any:
    if not TOKENIZER:
        from hrpo.models.load import load_tokenizer
        from hrpo.models.names import local_folder

        TOKENIZER.append(load_tokenizer(local_folder("tiny"), False))
    return TOKENIZER[0]


def ask(folder: Path, name: str) -> object:
    """Encode a conversation of odd texts."""
    from hrpo.chat import encode

    tokenizer = _tokenizer()
    return encode(tokenizer, [[{"role": "system", "content": name}, {"role": "user", "content": _text(folder, name)}]])


TEMPLATE = b"""{% for message in messages %}{% if message['role'] == 'system' %}<s>{{ message.content | trim }}
{% elif message.role != 'user' and 1 > 2 %}{{ raise_exception('no') }}{% else %}[{{ message['content'][:100] + '' }}]
{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'A: ' * 1 }}{% endif %}"""


def use_template(folder: Path, name: str) -> object:
    """Encode a conversation with an odd chat template."""
    from hrpo.chat import encode

    tokenizer = copy.copy(_tokenizer())
    tokenizer.chat_template = (folder / name).read_bytes().decode("utf-8", "replace")
    return encode(tokenizer, [[{"role": "system", "content": "S"}, {"role": "user", "content": "1+2"}]])


TARGETS = [
    Target("rows", 330, lambda: ROWS, read_rows),
    Target("task folders", 53, _folder_files, read_task),
    Target("corpora", 170, lambda: CORPORA, read_passages),
    Target("recipes", 70, lambda: {"a.yaml": RECIPE}, read_recipe),
    Target("command lines", 14, lambda: {"a.yaml": RECIPE, "words": WORDS}, read_command),
    Target("config.yaml", 8, _config_yaml, read_config),
    Target("hybrid.json", 90, lambda: {"hybrid.json": json.dumps(HYBRID).encode()}, read_hybrid),
    Target("trainer state", 60, _state_files, read_state),
    Target("gates", 30, _gate_files, read_gate),
    Target("adapter_config.json", 30, lambda: {"adapter_config.json": json.dumps(ADAPTER).encode()}, read_adapter),
    Target("model folders", 6, _model_files, read_model),
    Target("release folders", 3, _release_files, read_release),
    Target("evaluation folders", 20, _answers_files, read_answers),
    Target("indexes", 6, _index_files, read_index),
    Target("vectors", 10, _vector_files, read_vectors),
    Target("scorers", 80, _texts, score, seconds=2),
    Target("prompts", 15, _texts, ask),
    Target("chat templates", 5, lambda: {"t.jinja": TEMPLATE}, use_template),
]
MATHS = Target("maths scorer", 0, _texts, score_maths, seconds=2)
BY_NAME = {target.name: target for target in [*TARGETS, MATHS]}

# ---- one case -------------------------------------------------------------------------------------------------------


class Escape(BaseException):
    """Something was run, or written outside the case's folder."""


class TooSlow(BaseException):
    """A case used up its time."""


FORBIDDEN = (
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "ctypes.dlopen",
)
watching: list[Path] = []
seen: list[str] = []


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if not watching:
        return
    if event in FORBIDDEN or (event == "subprocess.Popen" and "_serve()" not in str(args[1])):
        seen.append(f"{event} {args!r:.200}")
    elif event in ("open", "os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link"):
        if event != "open" and isinstance(args[-1], int) and args[-1] >= 0:
            return  # named from an open folder, which is how a tree is removed
        writes = event != "open" or (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        named = args[: 2 if event in ("os.rename", "os.symlink", "os.link") else 1]  # open may have a number instead
        places = [os.path.realpath(os.fsdecode(place)) for place in named if isinstance(place, str | bytes)]
        allowed = (*(f"{place}{os.sep}" for place in watching), "/dev/null")
        places = [place for place in places if Path(place) not in watching]
        if writes and any(not place.startswith(allowed) and "__pycache__" not in place for place in places):
            seen.append(f"{event} {places}")


def spent() -> float:
    """Return the processor time of this process, of math-verify's and of those that have ended."""
    used = time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    judge = sys.modules.get("hrpo.tasks.judge")
    if judge is not None and judge._math_verify.process is not None:
        fields = Path(f"/proc/{judge._math_verify.process.pid}/stat").read_text().rpartition(")")[2].split()
        used += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def _alarm(*_: object) -> None:
    raise TooSlow


def run_case(target: Target, files: dict[str, bytes], folder: Path, seed: int, number: int) -> str:
    """Run a case in a folder that holds the whole files, and return how it ended: well, refused, or what went wrong."""
    rng = random.Random(f"{seed}/{target.name}/{number}")
    name = rng.choice(target.spoilt or sorted(files))
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_bytes(spoil(rng, name, files[name]))
    try:
        return outcome(target, folder, name)
    finally:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(files[name])


def outcome(target: Target, folder: Path, name: str) -> str:
    """Read a file and return how it ended."""
    seen.clear()
    watching[:] = [folder, Path(tempfile.gettempdir())]
    before = spent()
    signal.setitimer(signal.ITIMER_PROF, target.seconds)
    try:
        target.read(folder, name)
        end = "well"
    except target.declared as error:
        end = "refused"
        if not str(error).strip():
            end = "refused without a word"
    except TooSlow:
        end = f"over {target.seconds} s: {traceback.format_exc(limit=-1).splitlines()[1].strip()}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "/hrpo/" in frame.filename] or frames
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
        end = f"{type(error).__name__} in {where}: {' '.join(str(error).split()):.120}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        watching.clear()
    if seen:
        return f"escaped: {seen[0]}"
    if spent() - before > target.seconds:
        return f"over {target.seconds} s, {spent() - before:.1f}"
    return end


@contextlib.contextmanager
def laid_out(target: Target) -> Iterator[tuple[dict[str, bytes], Path]]:
    """Yield a target's files and a folder that holds them, in memory where the system has such a place."""
    shared = Path("/dev/shm")
    files = target.make()
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as scratch:
        folder, drafts = Path(scratch, "case"), Path(scratch, "tmp")
        drafts.mkdir()
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        for name in target.spoilt or sorted(files):
            target.read(folder, name)  # imports what is imported later, which is more than a case may do
            with mock.patch("tempfile.tempdir", str(drafts)):
                end = outcome(target, folder, name)
            if end != "well":
                raise RuntimeError(f"{target.name}: {name} as it should be: {end}")
        with mock.patch("tempfile.tempdir", str(drafts)):
            yield files, folder


def quiet() -> None:
    """Ask no Hub, and leave out what the libraries print."""
    import rich.console

    from hrpo.cli.quiet import quiet_libraries
    from hrpo.common import console

    console.console = rich.console.Console(file=io.StringIO())

    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable()
    warnings.simplefilter("ignore")
    quiet_libraries()


def guard() -> None:
    """Watch what the process does, and let too much time raise an error."""
    sys.addaudithook(_watch)
    signal.signal(signal.SIGPROF, _alarm)


def main() -> None:
    """Run the cases and print a line for each target, and one for each failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200_000, help="on parsers and loaders")
    parser.add_argument("--math", type=int, default=5_000, help="on the maths scorer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", default="", help="only these, separated by commas")
    parser.add_argument("--only", default="", help="TARGET:NUMBER, one case, with its traceback")
    args = parser.parse_args()
    quiet()
    guard()
    if args.only:
        name, _, number = args.only.rpartition(":")
        _show(BY_NAME[name], args.seed, int(number))
        return
    chosen = args.targets.split(",") if args.targets else [*BY_NAME]
    total, failures, began = 0, 0, time.perf_counter()
    for target in [*TARGETS, MATHS]:
        if target.name not in chosen:
            continue
        count = args.math if target is MATHS else round(args.cases * target.share / 1000)
        failed = _run(target, args.seed, count)
        total, failures = total + count, failures + failed
    print(f"{total:,} cases, {failures} failures, {time.perf_counter() - began:.0f} s", flush=True)
    sys.exit(failures > 0)


def _run(target: Target, seed: int, count: int) -> int:
    ends: Counter[str] = Counter()
    known: Counter[str] = Counter()
    began, slowest, failed = spent(), 0.0, 0
    with laid_out(target) as (files, folder):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
        for number in range(count):
            start = spent()
            end = run_case(target, files, folder, seed, number)
            slowest = max(slowest, spent() - start)
            ends[end if end in ("well", "refused") else "failed"] += 1
            if end not in ("well", "refused"):
                failed += 1
                kind = end.partition(": ")[0]
                known[kind] += 1
                if known[kind] <= 3:
                    print(f"  --only '{target.name}:{number}' --seed {seed}: {end}", flush=True)
            if number % 10_000 == 9_999:
                print(f"  {target.name}: {number + 1:,} of {count:,}", file=sys.stderr, flush=True)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    took = spent() - began
    print(
        f"{target.name:20} {count:7,} cases: {ends['well']:6,} well, {ends['refused']:6,} refused, {failed} failed; "
        f"{took:.0f} s, slowest {slowest:.2f} s",
        flush=True,
    )
    return failed


def _show(target: Target, seed: int, number: int) -> None:
    with laid_out(target) as (files, folder):
        rng = random.Random(f"{seed}/{target.name}/{number}")
        name = rng.choice(target.spoilt or sorted(files))
        data = spoil(rng, name, files[name])
        print(f"{name}: {data[:2000]!r}")
        print(run_case(target, files, folder, seed, number))
        (folder / name).write_bytes(data)
        target.read(folder, name)


if __name__ == "__main__":
    main()
