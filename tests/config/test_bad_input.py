"""Bad input, through the real command line: one line that names the field and the fix, exit code 2, nothing written.

Every case is a command line as a user types it, in a folder with data, models and runs, most of them broken in one way.
"""

import dataclasses
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_origin

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from hrpo import HybridCausalLM, HybridGate, Lora
from hrpo.cli.main import COMMANDS, main
from hrpo.config.schema import TrainConfig
from hrpo.models.names import local_folder
from hrpo.storage.run_dir import write_checksums


def types_in(settings: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the names and types of settings, sections gone through."""
    for field in dataclasses.fields(settings):
        if dataclasses.is_dataclass(field.type):
            yield from types_in(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field.type


TYPES = dict(types_in(TrainConfig))
BOUNDED = {name: kind.__metadata__[0] for name, kind in TYPES.items() if get_origin(kind) is Annotated}

# What makes `train` short; cases come after it, and the last value of an option counts.
TRAIN = "train --output_dir runs --name new --max_steps 2 --save_every 1 --rollout.prompts_per_step 2"
TRAIN += " --rollout.group_size 2"
TRAIN += " --rollout.max_new_tokens 8 --eval.problems 1 --check.prompts 0 "
GSM8K = TRAIN + "--task.name gsm8k --task.path "
DRY = TRAIN + "--dry-run "
SFT = "sft" + TRAIN.removeprefix("train")
RESUME = TRAIN + "--resume --name "

ROWS = [{"question": f"What is {i} + {i}?", "answer": f"Twice {i}.\n#### {2 * i}"} for i in range(1, 9)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()

# ---- the folder ------------------------------------------------------------------------------------------------------

# Training files, each with a whole test.jsonl beside it.
DATA = {
    "good": LINES,
    "no-json": LINES + b"#### 3\n",
    "no-field": LINES + b'{"question": "What is 1 + 1?"}\n',
    "no-text": LINES + b'{"question": 3, "answer": "#### 3"}\n',
    "no-row": LINES + b"[1, 2]\n",
    "no-number": LINES + b'{"question": "What is love?", "answer": "#### baby"}\n',
    "empty": b"",
    "blank": b"\n \n\n",
    "latin-1": LINES + '{"question": "Caf\xe9?", "answer": "#### 3"}\n'.encode("latin-1"),
    "utf-16": LINES.decode().encode("utf-16"),
    "nul": LINES + b"\0\0\n",
    "half-a-pair": LINES + b'{"question": "\\ud83d?", "answer": "#### 3"}\n',
    "brackets": LINES + b"[" * 100_000 + b"\n",
    "digits": LINES + b'{"question": "Big?", "answer": ' + b"9" * 5000 + b"}\n",
}

SETTINGS = {
    "list": "- 1\n- 2\n",
    "text": "hello\n",
    "nothing": "",
    "twice": "max_steps: 3\nseed: 0\nmax_steps: 4\n",
    "twice-within": "rollout:\n  prompts: 3\n  prompts: 4\n",
    "unknown": "updats: 3\n",
    "unknown-within": "rollout:\n  prmpts: 3\n",
    "word": "max_steps: many\n",
    "fraction": "max_steps: 3.5\n",
    "number": "name: 3\n",
    "yes": "name: yes\n",
    "tab": "rollout:\n\tprompts: 3\n",
    "section": "rollout:\n",
    "scalar": "model: tiny\n",
    "empty": "optimizer:\n  lr:\n",
    "bracket": "rollout: [\n",
    "two": "max_steps: 3\n---\nmax_steps: 4\n",
    "python": "name: !!python/object/apply:os.getcwd []\n",
    "rewards": "task:\n  rewards: [correct]\n",
    "nan": "optimizer:\n  lr: .nan\n",
    "hidden": 'name: "a\\0b"\n',
    "endless": "task:\n  rewards: &rewards\n    correct: *rewards\n",
}

PROBLEMS = "train, test = [{'prompt': 'a', 'gold': 'b'}], []\n"
TASKS = {
    "syntax": "train = [",
    "raises": PROBLEMS + "def reward(completions, **columns):\n    return 1 / 0\n",
    "short": PROBLEMS + "def reward(completions, **columns):\n    return []\n",
    "nobody": PROBLEMS,
    "untested": PROBLEMS + "kind = 'number'\n",
}


def variant(name: str, source: Path, **files) -> Path:
    """Copy a folder, by links, but for the files that are given: None leaves one out. `_` stands for a dot."""
    folder = Path(name)
    shutil.copytree(source, folder, copy_function=os.link)
    for file, data in files.items():
        path = folder / file.replace("_json", ".json").replace("_safetensors", ".safetensors").replace("_yaml", ".yaml")
        path.unlink(missing_ok=True)
        if callable(data):
            save_file(data(source / path.name), path, {"format": "pt"})
        elif data is not None:
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def changed(path: Path, **values) -> str:
    """Return a JSON file with other values."""
    return json.dumps(json.loads(path.read_text()) | values)


def make_data() -> None:
    for name, lines in DATA.items():
        folder = Path("data", name)
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_bytes(lines)
        (folder / "test.jsonl").write_text(json.dumps({"question": "1 + 2?", "answer": "#### 3"}))
    Path("data/alone").mkdir()
    Path("data/alone/train.jsonl").write_bytes(LINES)
    variant("data/same", Path("data/good"), test_jsonl=None)
    Path("data/same/test.jsonl").write_bytes(LINES)
    variant("data/no-test-rows", Path("data/good"))
    Path("data/no-test-rows/test.jsonl").unlink()
    Path("data/no-test-rows/test.jsonl").write_bytes(b"")
    Path("data/no-solutions").mkdir()
    for file in ("NQ-open.train.jsonl", "NQ-open.dev.jsonl"):
        Path("data/no-solutions", file).write_text(json.dumps({"question": f"{file}?", "answer": ["me"]}))
    for name, text in SETTINGS.items():
        Path(f"{name}.yaml").write_text(text)
    Path("latin-1.yaml").write_bytes("name: caf\xe9\n".encode("latin-1"))
    Path("folder.yaml").mkdir()
    for name, text in TASKS.items():
        Path(f"{name}.py").write_text(text)
    Path("file").write_text("hello")
    Path("file.json").write_text("hello")


def make_models() -> None:
    plain = Path(shutil.copytree(local_folder("tiny"), "plain"))
    config, weights = plain / "config.json", plain / "model.safetensors"
    layers, width = json.loads(config.read_text())["num_hidden_layers"], 128
    cut = {path: path.read_bytes()[: path.stat().st_size // 2] for path in (weights, plain / "tokenizer.json")}
    variant("no-weights", plain, model_safetensors=None)
    variant("cut-weights", plain, model_safetensors=cut[weights])
    variant("empty-weights", plain, model_safetensors=b"")
    variant("a-layer-more", plain, config_json=changed(config, num_hidden_layers=layers + 1))
    variant("wider", plain, config_json=changed(config, hidden_size=2 * width))
    variant("wide-in-words", plain, config_json=changed(config, hidden_size="wide"))
    variant("no-config", plain, config_json=None)
    variant("cut-config", plain, config_json="{")
    variant("no-tokenizer", plain, tokenizer_json=None, tokenizer_config_json=None)
    variant("cut-tokenizer", plain, tokenizer_json=cut[plain / "tokenizer.json"])
    variant("nan", plain, model_safetensors=lambda path: {k: v * float("nan") for k, v in load_file(path).items()})
    broken = variant("broken-template", plain)
    (broken / "chat_template.jinja").unlink()
    (broken / "chat_template.jinja").write_text("{% for %}")

    def fewer_tokens(path):
        return {k: v[:-5].clone() if len(v) == 20 else v for k, v in load_file(path).items()}

    variant("fewer-tokens", plain, config_json=changed(config, vocab_size=15), model_safetensors=fewer_tokens)

    model = HybridCausalLM.from_pretrained("tiny")
    model.save_pretrained("hybrid")
    hybrid, settings = Path("hybrid"), Path("hybrid/hybrid.json")
    for name, values in {
        "hot": {"temperature": "hot"},
        "cold": {"temperature": 0},
        "endless": {"max_new_tokens": 0},
        "fuzzy": {"latent_mode": "fuzzy"},
        "chatty": {"preamble": "hello"},
        "lost-task": {"task": {"name": "arithmetic", "zzz": 1}},
        "newer": {"zzz": 1},
    }.items():
        variant(name, hybrid, hybrid_json=changed(settings, **values))
    variant("cut-settings", hybrid, hybrid_json=settings.read_text()[:20])
    variant("list-settings", hybrid, hybrid_json="[]")
    variant("few-settings", hybrid, hybrid_json='{"latent_mode": "hybrid"}')
    variant("no-gate", hybrid, gate_safetensors=None)
    variant("cut-gate", hybrid, gate_safetensors=(hybrid / "gate.safetensors").read_bytes()[:100])
    variant("other-gate", hybrid, gate_safetensors=lambda path: HybridGate(64).state_dict())
    variant("no-lambda", hybrid, gate_safetensors=lambda path: {"x": torch.zeros(3)})

    HybridCausalLM.from_pretrained("tiny", lora=Lora(r=4)).save_pretrained("adapter")
    adapter = Path("adapter")
    variant("no-base", adapter, hybrid_json=changed(adapter / "hybrid.json", base_model="/nowhere/base"))
    variant("unfetched-base", adapter, hybrid_json=changed(adapter / "hybrid.json", base_model="smollm2-135m"))
    variant("no-adapter", adapter, adapter_model_safetensors=None)
    variant("cut-adapter", adapter, adapter_model_safetensors=b"x" * 100)
    variant("other-rank", adapter, adapter_config_json=changed(adapter / "adapter_config.json", r=8))
    few = variant("part-of-an-adapter", adapter, adapter_model_safetensors=None) / "adapter_model.safetensors"
    save_file(dict(sorted(load_file(adapter / few.name).items())[2:]), few)
    variant("list-adapter", adapter, adapter_config_json="[]")
    for name in ("release", "cut-release"):  # no gate among the tensors; broken tensors
        variant(name, adapter if name == "release" else Path("cut-adapter"), hybrid_json=None, gate_safetensors=None)


def make_runs() -> None:
    main([*shlex.split(TRAIN), "--name", "whole"])
    for name, file, damage in (
        ("cut-step", "checkpoint-2/trainer.json", lambda data: data[:5]),
        ("no-step", "checkpoint-2/trainer.json", lambda data: b"{}"),
        ("cut-optimizer", "checkpoint-2/optimizer.safetensors", lambda data: data[:100]),
        ("no-optimizer", "checkpoint-2/optimizer.safetensors", None),
        ("cut-gate", "checkpoint-2/gate.safetensors", lambda data: data[:100]),
        ("cut-settings", "checkpoint-2/hybrid.json", lambda data: data[:30]),
        ("cut-config", "config.yaml", lambda data: data[:90] + b"\n\t["),
        ("list-config", "config.yaml", lambda data: b"- 1"),
        ("cut-evaluation", "evaluation.json", lambda data: data[:50]),
        ("odd-metrics", "metrics.jsonl", lambda data: b"hello\n" + data),
        ("torn-metrics", "metrics.jsonl", lambda data: data + b'{"step": 3, "rew'),
    ):
        shutil.copytree("runs/whole", f"runs/{name}")
        config = Path("runs", name, "config.yaml")
        config.write_text(config.read_text().replace("name: whole", f"name: {name}"))
        path = Path("runs", name, file)
        data = path.read_bytes()
        path.unlink()
        if damage is not None:
            path.write_bytes(damage(data))
        if path.parent.name == "checkpoint-2":
            write_checksums(path.parent)
    variant("runs/damaged", Path("runs/whole"))
    for number in (1, 2):
        state = Path(f"runs/damaged/checkpoint-{number}/trainer.json")
        state.unlink()
        state.write_text(f'{{"step": {number}0}}')
    Path("runs/damaged/config.yaml").unlink()
    Path("runs/damaged/config.yaml").write_text(Path("runs/whole/config.yaml").read_text().replace("whole", "damaged"))
    Path("runs/just-begun").mkdir()
    shutil.copy("runs/whole/config.yaml", "runs/just-begun/config.yaml")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder in which all commands are typed."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_data()
        make_models()
        make_runs()
    return folder


@pytest.fixture
def place(made, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    monkeypatch.setenv("HRPO_CACHE", str(made / "cache"))
    return made


def on_disk(folder: Path) -> dict[str, int]:
    return {str(path): path.is_file() and path.stat().st_mtime_ns for path in folder.rglob("*")}


def refused(place, capfd, words) -> str:
    """Return the line that a command is refused with; all that is promised of it but its words is checked here."""
    before = on_disk(place)
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    out, err = capfd.readouterr()
    assert exit_info.value.code == 2
    assert out == ""
    assert err.startswith((f"hrpo {words[0]}: error: ", "hrpo: error: "))
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    assert on_disk(place) == before
    return err


# ---- what is typed, and what the line says -----------------------------------------------------------------------

CASES = [
    # the command line itself
    ("tain", "unknown command tain", "did you mean train?"),
    ("train --rollout.grup_size 4", "unknown option rollout.grup_size", "did you mean rollout.group_size?"),
    ("train stray", "stray", "options begin with --"),
    ("train --max_steps", "--max_steps", "expected one argument"),
    ("train --resume=yes", "--resume", "takes no value"),
    ("train --max_steps many", "max_steps", "a whole number"),
    ("train --max_steps 1e3", "max_steps", "a whole number"),
    ("train --optimizer.lr fast", "optimizer.lr", "a number"),
    ("train --latent.mode off", "latent.mode", "one of hybrid, discrete, "),
    (
        "train --gradient_checkpointing maybe",
        "gradient_checkpointing",
        "must be true or false, or auto, got maybe",
    ),
    ("train --model.trust_remote_code maybe", "model.trust_remote_code", "true or false"),
    ("eval", "checkpoint", "required"),
    ("generate --checkpoint tiny", "prompts", "required"),
    ("export --checkpoint tiny", "out", "required"),
    ("import-release release --out out --temperature hot", "temperature", "a number"),
    # settings files
    ("train --config nowhere.yaml", "--config: there is no such file", "nowhere.yaml"),
    ("train --config folder.yaml", "--config: there is no such file", "folder.yaml"),
    ("train --config ''", "config"),
    ("train --config list.yaml", "--config: list.yaml holds no settings", "NAME: VALUE"),
    ("train --config text.yaml", "--config: text.yaml holds no settings", "NAME: VALUE"),
    ("train --config nothing.yaml", "--config: nothing.yaml holds no settings", "NAME: VALUE"),
    ("train --config twice.yaml", "--config: twice.yaml, line 3: max_steps is set twice"),
    ("train --config twice-within.yaml", "--config: twice-within.yaml, line 3: prompts is set twice"),
    ("train --config unknown.yaml", "unknown option updats", "did you mean max_steps?"),
    ("train --config unknown-within.yaml", "unknown option rollout.prmpts", "did you mean rollout.prompts_per_step?"),
    ("train --config word.yaml", "max_steps", "a whole number"),
    ("train --config fraction.yaml", "max_steps", "a whole number"),
    ("train --config number.yaml", "name", "text (quote it)"),
    ("train --config yes.yaml", "name", "text (quote it)"),
    ("train --config tab.yaml", "--config: tab.yaml, line 2", "indented below it with spaces"),
    ("train --config section.yaml", "rollout: section.yaml gives no fields", "NAME: VALUE"),
    ("train --config scalar.yaml", "model: scalar.yaml gives no fields", "NAME: VALUE"),
    ("train --config empty.yaml", "optimizer.lr: has no value", "leave it out"),
    ("train --optimizer.lr " + "9" * 400, "a number of the settings is too large", "fewer digits"),
    ("train --config bracket.yaml", "--config: bracket.yaml, line 2", "NAME: VALUE"),
    ("train --config two.yaml", "--config: two.yaml, line 2", "NAME: VALUE"),
    ("train --config python.yaml", "--config: python.yaml, line 1", "python/object"),
    ("train --config rewards.yaml", "task.rewards", "{NAME: VALUE}"),
    ("train --config latin-1.yaml", "--config: latin-1.yaml", "save it as UTF-8"),
    ("train --config nan.yaml", "optimizer.lr", "from 0 to 1"),
    ("train --config hidden.yaml", "name: ", "--output_dir"),
    ("train --config endless.yaml", "task.rewards", "names with their values"),
    ("check --config tab.yaml", "--config: tab.yaml, line 2", "indented below it with spaces"),
    ("sft --config twice.yaml", "--config: twice.yaml, line 3: max_steps is set twice"),
    # numbers that cannot train
    (TRAIN + "--rollout.group_size 1", "rollout.group_size", "at least 2"),
    (TRAIN + "--rollout.temperature 0", "rollout.temperature", "at least 1e-06"),
    (TRAIN + "--rollout.temperature 1e-300", "rollout.temperature", "at least 1e-06"),
    (TRAIN + "--rollout.temperature .inf", "rollout.temperature", "finite"),
    (TRAIN + "--rollout.top_k=-1", "rollout.top_k", "at least 0"),
    (TRAIN + "--rollout.top_k 21", "rollout.top_k: the model has 20 tokens", "0 takes all"),
    (TRAIN + "--rollout.prompts_per_step 0", "rollout.prompts_per_step", "at least 1"),
    (TRAIN + "--max_steps 0", "max_steps", "at least 1"),
    (TRAIN + "--seed=-1", "seed", "from 0"),
    (TRAIN + "--seed 4294967296", "seed", "2^32 - 1"),
    (TRAIN + "--latent.r_min 1", "latent.r_min", "r_max < 1"),
    (TRAIN + "--keep.save_total_limit=-1", "keep.save_total_limit", "at least 0"),
    (TRAIN + "--keep.save_total_limit 1 --keep.best 1", "keep.best: nothing tells which are best", "set keep.problems"),
    (TRAIN + "--keep.best 1 --keep.problems 9", "keep.best: all checkpoints stay", "set it to how many shall"),
    (GSM8K + "data/good --keep.problems 8", "keep.problems: 8 held out of 8 training problems", "lower it"),
    (TRAIN + "--loss.beta=-1", "loss.beta", "at least 0"),
    (TRAIN + "--loss.beta .nan", "loss.beta", "at least 0"),
    *(
        (TRAIN + f"--optimizer.{name}={value}", f"optimizer.{name}: must be from 0 to 1")
        for name in ("lr", "gate_lr", "lambda_lr")
        for value in ("-1e-4", ".nan", ".inf")
    ),
    (TRAIN + "--optimizer.beta1 1", "optimizer.beta1", "below 1"),
    (TRAIN + "--optimizer.beta2=-0.1", "optimizer.beta2", "from 0"),
    (TRAIN + "--optimizer.warmup 1", "optimizer.warmup", "below 1"),
    (TRAIN + "--optimizer.weight_decay=-0.1", "optimizer.weight_decay", "at least 0"),
    (TRAIN + "--optimizer.max_grad_norm 0", "optimizer.max_grad_norm", "above 0", ".inf does not clip"),
    (TRAIN + "--optimizer.max_grad_norm=-1", "optimizer.max_grad_norm", "above 0"),
    (TRAIN + "--model.lora_rank=-4", "model.lora_rank", "at least 0"),
    (TRAIN + "--model.lora_alpha 0", "model.lora_alpha", "at least 1"),
    (TRAIN + "--model.lora_targets ,", "model.lora_targets", "not found"),
    (TRAIN + "--model.quantization 4bit --model.lora_rank 0", "model.quantization", "set model.lora_rank above 0"),
    (SFT + "--sft.batch 0", "sft.batch", "at least 1"),
    ("check --check.prompts 0", "check.prompts", "at least 1"),
    # numbers beyond what anyone can train
    *(
        (TRAIN + f"--{name} {10**23 - 1}", f"{name}: must be {bounds.words or 'at most'}")
        for name, bounds in BOUNDED.items()
        if bounds.most < 10**23
    ),
    *(
        (TRAIN + f"--rollout.max_new_tokens 400 --rollout.group_size 10000 --{name} 10000", "100,000,000 completions")
        for name in ("rollout.prompts_per_step", "check.prompts")
    ),
    (TRAIN + "--task.max_terms 1000000000", "task.max_terms: must be at most 100"),
    (DRY + "--max_steps 99999999999999999999999", "max_steps: must be at most"),
    (
        TRAIN + "--rollout.group_size 1 --seed=-1 --optimizer.lr 3 --task.name gsmk8",
        "seed: must be from 0 to 2^32 - 1, got -1",
        "also rollout.group_size: must be at least 2",
        "also optimizer.lr: must be from 0 to 1",
        "also task.name: there is no task 'gsmk8'; did you mean gsm8k?",
    ),
    *(
        (f"eval --checkpoint tiny --tasks arithmetic --{name} 99999999999", f"--{name}: must be at most ")
        for name in ("problems", "samples", "shots", "max_new_tokens", "batch", "seed")
    ),
    *(
        (f"inspect --checkpoint tiny --task arithmetic --out x.html --{name} 99999999999", f"-{name}: must be at most ")
        for name in ("n", "max_new_tokens", "batch", "seed")
    ),
    ("import-release release --out out --max_new_tokens 99999999999", "--max_new_tokens: ", "at most 10,000,000"),
    ("retrieve add --task nq --index x --out y -k 99999999999", "-k: must be at most 10,000"),
    # prompts over the limit
    (GSM8K + "data/good --rollout.max_prompt_tokens 5", "rollout.max_prompt_tokens: of 8", "raise it"),
    (
        GSM8K + "data/good --rollout.max_prompt_tokens 190 --rollout.long_prompts refuse",
        "rollout.max_prompt_tokens: of 8 training problems 8",
        "set rollout.long_prompts to drop",
    ),
    (TRAIN + "--rollout.max_new_tokens 512", "rollout.max_new_tokens", "no room"),
    ("generate --checkpoint tiny " + "1+" * 300 + "1", "PROMPT", "context of 512", "shorten it"),
    # files of problems
    (GSM8K + "nowhere.jsonl", "task.path: no file nowhere.jsonl", "give a file"),
    (GSM8K + "data/good/train.jsonl --task.test_path nowhere", "task.test_path: no file nowhere", "give a file"),
    (GSM8K + "data/alone", "task.test_path: give the test file of gsm8k", "test.jsonl"),
    (GSM8K + "data", "task.test_path: give the test file of gsm8k", "test.jsonl"),
    (GSM8K + "file", "task.test_path: give the test file of gsm8k"),
    (GSM8K + "data/no-json", "task.path: data/no-json/train.jsonl, line 9: no JSON", "a value a line"),
    (GSM8K + "data/no-field", "task.path: data/no-field/train.jsonl, line 9", "'answer'", "docs/benchmarks.md"),
    (GSM8K + "data/no-text", "line 9", "must be text", "docs/benchmarks.md"),
    (GSM8K + "data/no-row", "line 9", "no row of gsm8k", "docs/benchmarks.md"),
    (GSM8K + "data/no-number", "line 9", "a number after it", "docs/benchmarks.md"),
    (GSM8K + "data/empty", "task.path: data/empty/train.jsonl: no rows in it", "give a file"),
    (GSM8K + "data/blank", "task.path: data/blank/train.jsonl: no rows in it", "give a file"),
    (GSM8K + "data/no-test-rows", "data/no-test-rows/test.jsonl: no rows in it", "give a file"),
    (GSM8K + "data/latin-1", "data/latin-1/train.jsonl, line 9", "save it as UTF-8"),
    (GSM8K + "data/utf-16", "data/utf-16/train.jsonl, line 1", "save it as UTF-8"),
    (GSM8K + "data/nul", "data/nul/train.jsonl, line 9: no JSON", "a value a line"),
    (GSM8K + "data/half-a-pair", "data/half-a-pair/train.jsonl, line 9: no JSON", "surrogates"),
    (GSM8K + "data/brackets", "data/brackets/train.jsonl, line 9: no JSON"),
    (GSM8K + "data/digits", "data/digits/train.jsonl, line 9: no JSON"),
    (GSM8K + "data/same", "task.path: no training problems are left; left out 8", "other problems"),
    (GSM8K + "data/good --task.max_solution_chars 1", "left out 8", "above task.max_solution_chars"),
    (GSM8K + "data/good --task.num_fewshot 9", "task.num_fewshot: 9 worked examples, but there are 8"),
    (TRAIN + "--task.name gsm8k --task.test_path data/good", "task.path: no training problems", "give a file"),
    (TRAIN + "--task.name math --task.path data/good", "no row of math", "'problem'"),
    (TRAIN + "--task.path data/good", "task.path: the problems of arithmetic are generated", "leave path out"),
    (SFT + "--task.name nq --task.path data/no-solutions", "sft.target", "set sft.target to answer"),
    # tasks
    (TRAIN + "--task.name gsm9k", "task.name: there is no task 'gsm9k'", "did you mean gsm8k?"),
    (TRAIN + "--task.name nowhere.py", "task.name: no file nowhere.py"),
    (TRAIN + "--task.name syntax.py", "syntax.py, line 1: SyntaxError"),
    (TRAIN + "--task.name nobody.py", "nobody.py: has neither `kind` nor `reward`"),
    (TRAIN + "--task.name raises.py", "raises.py, line 3, in reward: ZeroDivisionError"),
    (TRAIN + "--task.name short.py", "short.py: reward returned 0 values for 1 completions"),
    (TRAIN + "--task.rewards.corect 1", "task.rewards: 'corect' is none of correct, format"),
    (TRAIN + "--task.rewards.correct 0", "task.rewards: every weight is 0", "the default is correct: 1.0"),
    ("tasks gsm9k", "NAME: there is no task 'gsm9k'", "did you mean gsm8k?"),
    ("tasks gsm8k --path nowhere", "--path: no file nowhere", "give a file"),
    ("tasks gsm8k --path file", "--path: file: must end in .jsonl"),
    ("tasks --path nowhere", "--path: there is no folder nowhere"),
    ("tasks arithmetic --path data", "--path: the problems of arithmetic are generated"),
    # models
    (TRAIN + "--model.name ./nowhere", "model.name: there is no folder './nowhere'", "give a model folder"),
    (TRAIN + "--model.name nowhere", "model.name: nowhere is no folder here, and none on the Hub", "mend the name"),
    (TRAIN + "--model.name file.json", "model.name: file.json is a file", "give the folder"),
    (
        TRAIN + "--model.name smollm2-135m",
        "model.name: smollm2-135m is not fetched yet",
        "run `hrpo model smollm2-135m`",
    ),
    (TRAIN + "--model.name no-weights", "model.name: cannot load no-weights", "model.safetensors"),
    (TRAIN + "--model.name cut-weights", "model.name: cannot load cut-weights", "whole *.safetensors"),
    (TRAIN + "--model.name empty-weights", "model.name: cannot load empty-weights", "whole *.safetensors"),
    (TRAIN + "--model.name a-layer-more", "model.name: a-layer-more lacks 9 of the tensors", "copy the folder again"),
    (
        TRAIN + "--model.name wider",
        "model.name: wider lacks 47 of the tensors",
        "other shapes",
        "copy the folder again",
    ),
    (TRAIN + "--model.name wide-in-words", "model.name: cannot load wide-in-words", "'hidden_size'"),
    (TRAIN + "--model.name no-config", "model.name: cannot load no-config", "it needs config.json"),
    (TRAIN + "--model.name cut-config", "model.name: cannot load cut-config", "it needs config.json"),
    (TRAIN + "--model.name no-tokenizer", "model.name: this model has no tokenizer", "put its tokenizer.json"),
    (TRAIN + "--model.name cut-tokenizer", "model.name: cannot load the tokenizer of cut-tokenizer", "copy the folder"),
    (TRAIN + "--model.name nan", "model.name: LlamaForCausalLM cannot be used: its logits are NaN", "other weights"),
    (TRAIN + "--model.name adapter", "model.name: adapter holds an adapter", "run `hrpo export --checkpoint adapter"),
    (TRAIN + "--model.name runs/just-begun", "model.name: the run runs/just-begun has no checkpoint"),
    (DRY + "--model.name no-config", "model.name: cannot load no-config", "it needs config.json"),
    (DRY + "--model.name runs/whole", "model.name: runs/whole/checkpoint-2 holds an adapter", "run `hrpo export"),
    ("check --model.name cut-weights", "model.name: cannot load cut-weights", "whole *.safetensors"),
    ("generate --checkpoint broken-template 1+1", "--checkpoint: the chat template", "mend chat_template.jinja"),
    (
        "generate --checkpoint fewer-tokens 1+1",
        "--checkpoint: a prompt has the token 18",
        "put its own into the folder",
    ),
    ("model nothing", "NAME: 'nothing' is not a known model", "known are tiny"),
    # checkpoints
    ("generate --checkpoint ./nowhere 1+1", "--checkpoint: there is no folder './nowhere'", "give a model folder"),
    ("generate --checkpoint no-gate 1+1", "--checkpoint: no-gate/gate.safetensors: missing", "beside it"),
    (
        "generate --checkpoint cut-gate 1+1",
        "--checkpoint: cut-gate/gate.safetensors: not a gate",
        "copy the folder again",
    ),
    (
        "generate --checkpoint no-lambda 1+1",
        "no-lambda/gate.safetensors: not a gate: 'Lambda'",
        "copy the folder again",
    ),
    (
        "generate --checkpoint other-gate 1+1",
        "--checkpoint: other-gate/gate.safetensors: the gate is 64 wide",
        "its own",
    ),
    (
        "generate --checkpoint hot 1+1",
        "--checkpoint: hot/hybrid.json: no usable value of temperature",
        "copy the folder",
    ),
    ("generate --checkpoint cold 1+1", "--checkpoint: cold/hybrid.json: no usable value of temperature"),
    ("generate --checkpoint endless 1+1", "--checkpoint: endless/hybrid.json: no usable value of max_new_tokens"),
    ("generate --checkpoint fuzzy 1+1", "fuzzy/hybrid.json: latent_mode is 'fuzzy', not one of hybrid, discrete"),
    ("generate --checkpoint chatty 1+1", "--checkpoint: chatty/hybrid.json: no usable value of preamble"),
    ("generate --checkpoint newer 1+1", "--checkpoint: newer/hybrid.json: not the settings", "'zzz'"),
    ("generate --checkpoint list-settings 1+1", "--checkpoint: list-settings/hybrid.json: not the settings"),
    ("generate --checkpoint few-settings 1+1", "few-settings/hybrid.json: not the settings", "'base_model'"),
    ("eval --checkpoint lost-task", "--checkpoint: lost-task/hybrid.json: no usable value of task.zzz"),
    (
        "eval --checkpoint cut-settings",
        "--checkpoint: cut-settings/hybrid.json: not the settings",
        "copy the folder again",
    ),
    (
        "eval --checkpoint no-base --tasks arithmetic",
        "--checkpoint: base_model in no-base/hybrid.json: there is no folder '/nowhere/base'",
    ),
    (
        "eval --checkpoint unfetched-base --tasks arithmetic",
        "base_model in unfetched-base/hybrid.json",
        "run `hrpo model smollm2-135m`",
    ),
    (
        "eval --checkpoint no-adapter --tasks arithmetic",
        "--checkpoint: no-adapter: adapter_model.safetensors is missing",
        "copy",
    ),
    (
        "eval --checkpoint cut-adapter --tasks arithmetic",
        "--checkpoint: cut-adapter: cannot load its adapter",
        "copy the folder again",
    ),
    (
        "eval --checkpoint other-rank --tasks arithmetic",
        "--checkpoint: other-rank: cannot load its adapter",
        "size mismatch",
    ),
    (
        "eval --checkpoint part-of-an-adapter --tasks arithmetic",
        "adapter_model.safetensors lacks 2 tensors",
        "copy the folder again",
    ),
    (
        "eval --checkpoint list-adapter --tasks arithmetic",
        "--checkpoint: list-adapter/adapter_config.json: no settings of a LoRA adapter",
        "copy the folder again",
    ),
    # retrieve, compare
    ("retrieve build --corpus nowhere.jsonl --index new", "nowhere.jsonl", "--corpus"),
    ("retrieve add --task nq --path data --index nowhere --out new.jsonl", "--path"),
    ("compare --config nowhere.yaml", "nowhere.yaml"),
    ("report nowhere", "RUN: no file or folder nowhere"),
    ("report .", "RUN: . is no run folder"),
    ("compare --modes [hybrid] --seeds [] --output_dir new", "seeds"),
    # eval
    ("eval --checkpoint tiny", "--tasks: tiny is a plain model that remembers no task", "name one"),
    ("eval --checkpoint tiny --tasks gsm9k", "--tasks: there is no task 'gsm9k'", "did you mean gsm8k?"),
    ("eval --checkpoint tiny --tasks untested.py", "--tasks: untested.py has no test problem"),
    ("eval --checkpoint tiny --tasks gsm8k --test_path nowhere", "--test_path: no file nowhere", "give a file"),
    (
        "eval --checkpoint tiny --tasks gsm8k --test_path data/no-json/train.jsonl",
        "--test_path: data",
        "line 9: no JSON",
    ),
    ("eval --checkpoint tiny --tasks arithmetic --problems=-1", "--problems", "at least 0"),
    ("eval --checkpoint tiny --tasks arithmetic --batch 0", "--batch", "at least 1"),
    (
        "eval --checkpoint tiny --tasks arithmetic --out data",
        "--out: data is there already and holds no evaluation",
        "name a new folder",
    ),
    (
        "eval --checkpoint tiny --tasks arithmetic --out file/x.json",
        "--out: cannot write in file",
        "name another folder",
    ),
    (
        "eval --checkpoint tiny --tasks arithmetic --out /proc/x/y.json",
        "--out: cannot write in /proc/x",
        "name another",
    ),
    # inspect
    ("inspect --checkpoint tiny", "out", "required"),
    ("inspect --checkpoint tiny --out page.html", "--task: tiny is a plain model that remembers no task", "name one"),
    (
        "inspect --checkpoint tiny --task gsm9k --out page.html",
        "--task: there is no task 'gsm9k'",
        "did you mean gsm8k?",
    ),
    (
        "inspect --checkpoint ./nowhere --task arithmetic --out page.html",
        "--checkpoint: there is no folder './nowhere'",
    ),
    (
        "inspect --checkpoint no-gate --task arithmetic --out page.html",
        "--checkpoint: no-gate/gate.safetensors: missing",
    ),
    ("inspect --checkpoint tiny tiny --task arithmetic --out page.html", "--checkpoint: one is named twice"),
    ("inspect --checkpoint tiny --task arithmetic -n -1 --out page.html", "-n", "at least 0"),
    ("inspect --checkpoint tiny --task arithmetic --n many --out page.html", "n: ", "a whole number"),
    ("inspect --checkpoint tiny --task arithmetic --batch 0 --out page.html", "--batch", "at least 1"),
    (
        "inspect --checkpoint tiny --task arithmetic --max_new_tokens 512 --out page.html",
        "--max_new_tokens: 512 leave no room",
        "lower it",
    ),
    (
        "inspect --checkpoint tiny --task arithmetic --latent_mode hybrid --out page.html",
        "--latent_mode: tiny has no trained gate",
    ),
    ("inspect --checkpoint tiny --task gsm8k --path nowhere --out page.html", "--path: no file nowhere", "give a file"),
    ("inspect --checkpoint tiny --task arithmetic --out data", "--out: data is a folder", "name an HTML file"),
    ("inspect --checkpoint tiny --task arithmetic --out file/x.html", "--out: cannot write in file", "another folder"),
    # export, push, import-release
    ("export --checkpoint nowhere --out out", "--checkpoint: nowhere is no folder here"),
    ("export --checkpoint tiny --out out", "--checkpoint: tiny is no saved hybrid model; it has no hybrid.json"),
    ("export --checkpoint adapter --out hybrid", "--out: hybrid is there already", "name a new folder"),
    ("export --checkpoint adapter --out file", "--out: file is there already", "name a new folder"),
    ("export --checkpoint adapter --out file/out", "--out: cannot write in file", "name another folder"),
    ("export --checkpoint adapter --out out --dtype int8", "--dtype", "one of float32"),
    ("export --checkpoint no-base --out out", "--checkpoint: ", "there is no folder '/nowhere/base'"),
    (
        "export --checkpoint runs/cut-evaluation --out out",
        "--checkpoint: runs/cut-evaluation/evaluation.json",
        "delete it",
    ),
    ("push --checkpoint adapter --repo name", "--repo: must be owner/name"),
    ("push --checkpoint adapter --repo 'my name'", "--repo: ", "'my name'"),
    ("push --checkpoint tiny --repo owner/name", "--checkpoint: tiny is no saved hybrid model"),
    (
        "push --checkpoint cut-settings --repo owner/name",
        "--checkpoint: cut-settings/hybrid.json",
        "copy the folder again",
    ),
    ("push --checkpoint no-base --repo owner/name", "--checkpoint: its adapter belongs to", "--merged"),
    ("push --checkpoint adapter --repo owner/name", "--repo: no login to the Hub", "run `hf auth login`"),
    ("import-release nowhere --out out", "nowhere/adapter_config.json: missing", "give the folder"),
    ("import-release release --out out", "release: its adapter has no ", "was it trained by the release?"),
    ("import-release cut-release --out out", "cut-release: cannot read its adapter", "copy the folder again"),
    ("import-release list-adapter --out out", "list-adapter/adapter_config.json", "copy the folder again"),
    ("import-release release --out data", "--out: data is there already", "name a new folder"),
    ("import-release release --out out --temperature .nan", "--temperature", "above 0"),
    ("import-release release --out out --max_new_tokens 0", "--max_new_tokens", "at least 1"),
    ("import-release release --out out --r_min 1", "--r_min", "at most 0.999"),
    ("import-release release --out out --task gsm9k", "--task: 'gsm9k' is none of arithmetic, gsm8k"),
    # run folders
    (TRAIN + "--name whole", "name: runs/whole is a run already", "--resume"),
    (DRY + "--name whole", "name: runs/whole is a run already", "--resume"),
    (TRAIN + "--output_dir file", "output_dir: cannot write in file", "name another folder"),
    (TRAIN + "--output_dir /proc/runs", "output_dir: cannot write in /proc/runs", "name another folder"),
    (DRY + "--output_dir file", "output_dir: cannot write in file", "name another folder"),
    (TRAIN + "--output_dir . --name file", "output_dir: cannot write in file", "name another folder"),
    (TRAIN + "--name ../elsewhere", "name: '../elsewhere' is no name within runs", "--output_dir"),
    (TRAIN + "--name /elsewhere", "name: '/elsewhere' is no name within runs", "--output_dir"),
    (TRAIN + "--name ''", "name: '' is no name within runs", "--output_dir"),
    (TRAIN + "--name {mode}-{sed}", "name: ", "may hold {mode} and {seed}"),
    (TRAIN + "--name " + "x" * 300, "output_dir: cannot write in", "File name too long"),
    # resuming
    (RESUME + "new", "--resume: there is no run runs/new", "leave --resume out"),
    (RESUME + "whole --optimizer.lr 1e-3", "--resume: optimizer.lr differ from", "--name for another run"),
    (RESUME + "whole --latent.mode discrete --seed 1", "--resume: latent.mode, seed differ from", "--name"),
    (
        RESUME + "damaged",
        "--resume: runs/damaged/checkpoint-2 is damaged (trainer.json is not as SHA256SUMS has it), runs/damaged",
        "put one back",
    ),
    ("eval --checkpoint runs/damaged", "--checkpoint: runs/damaged/checkpoint-2 is damaged", "put one back"),
    # checksums that fit what is wrong
    (
        RESUME + "cut-step",
        "--resume: runs/cut-step/checkpoint-2/trainer.json is damaged",
        "delete runs/cut-step/checkpoi",
    ),
    (
        RESUME + "no-step",
        "--resume: runs/no-step/checkpoint-2/trainer.json has no step",
        "delete runs/no-step/checkpoint",
    ),
    (
        RESUME + "cut-optimizer",
        "checkpoint-2/optimizer.safetensors is damaged",
        "delete runs/cut-optimizer/checkpoint-2",
    ),
    (RESUME + "no-optimizer", "checkpoint-2/optimizer.safetensors is damaged", "delete runs/no-optimizer/checkpoint-2"),
    (RESUME + "cut-gate", "--resume: runs/cut-gate/checkpoint-2/gate.safetensors: not a gate"),
    (RESUME + "cut-settings", "--resume: runs/cut-settings/checkpoint-2/hybrid.json: not the settings"),
    (RESUME + "cut-config", "--resume: runs/cut-config/config.yaml is damaged", "start another run"),
    (RESUME + "list-config", "--resume: runs/list-config/config.yaml is damaged", "start another run"),
    (RESUME + "cut-evaluation", "--resume: runs/cut-evaluation/evaluation.json is damaged", "delete it"),
    (RESUME + "odd-metrics", "--resume: runs/odd-metrics/metrics.jsonl is damaged", "delete its lines without a step"),
]


def short(case) -> str:
    """What differs from the command that many cases share."""
    words = case[0]
    for name, start in (("RESUME", RESUME), ("GSM8K", GSM8K), ("DRY", DRY), ("TRAIN", TRAIN), ("SFT", SFT)):
        words = words.replace(start, f"{name} ")
    return words if len(words) < 80 else words[:80]


@pytest.mark.parametrize(("words", "parts"), [pytest.param(c[0], c[1:], id=short(c)) for c in CASES])
def test_refused(place, capfd, words, parts):
    line = refused(place, capfd, shlex.split(words))
    for part in parts:
        assert part in line


def test_every_number_is_bounded():
    """By its type, which the cases above go through; or by a rule of several together, or of the task's own."""
    rules = {"latent.r_min", "latent.r_max", "task.min_terms", "task.max_terms"}
    assert {name for name, kind in TYPES.items() if kind in (int, float)} == rules


def test_every_command_is_tried():
    assert {case[0].split()[0] for case in CASES} - {"tain"} == set(COMMANDS)


def test_a_line_stays_one_whatever_is_typed(place, capfd):
    assert "no file a b;" in refused(place, capfd, [*shlex.split(GSM8K), "a\nb"])
    assert "no file" in refused(place, capfd, [*shlex.split(GSM8K), "\udce9.jsonl"])  # bytes that are no UTF-8


# ---- what is no mistake ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda data: b"\xef\xbb\xbf" + data, lambda data: data.replace(b"\n", b"\r\n")])
def test_files_of_windows_are_read(place, capfd, tmp_path, change):
    """With a byte-order mark, or with two characters at the ends of lines."""
    (tmp_path / "test.jsonl").write_bytes(change(LINES))
    main(["tasks", "gsm8k", "--path", str(tmp_path)])
    assert capfd.readouterr().out.startswith("gsm8k: metric number, 8 problems\n")


def test_a_torn_line_of_metrics_is_dropped(place, capfd, tmp_path):
    shutil.copytree("runs/torn-metrics", tmp_path / "torn-metrics")
    main([*shlex.split(RESUME), "torn-metrics", "--output_dir", str(tmp_path)])
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "torn-metrics" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2]


def test_long_prompts_are_counted(place, capfd, tmp_path):
    (tmp_path / "test.jsonl").write_bytes(LINES)
    long = {"question": "1 + " * 200 + "1?", "answer": "#### 201"}
    (tmp_path / "train.jsonl").write_text(json.dumps(long) + '\n{"question": "2 + 3?", "answer": "#### 5"}\n')
    main([*shlex.split(GSM8K), str(tmp_path), "--output_dir", str(tmp_path), "--max_steps", "1"])
    assert "left out 1 training problems with a prompt above 504 tokens" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize("function", ["hrpo.training.train.train", "hrpo.cli.parser.Parser.parse_args"])
def test_ctrl_c_is_silent(place, capfd, monkeypatch, function):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(function, interrupt)
    before = on_disk(place)
    with pytest.raises(SystemExit) as exit_info:
        main(shlex.split(TRAIN))
    assert exit_info.value.code == 130
    assert capfd.readouterr() == ("", "")
    assert on_disk(place) == before


def test_a_full_disk_is_one_line(place, capfd, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hrpo.training.train.train", full)
    assert "No space left on device" in refused(place, capfd, shlex.split(TRAIN))
