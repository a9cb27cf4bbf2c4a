"""Exported models: the same tokens as the checkpoint, with and without this project, and what is refused."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from hrpo import HybridCausalLM, Lora, generate, replay
from hrpo.cli.main import main
from hrpo.common.errors import InputError
from hrpo.evaluation.inference import complete
from hrpo.evaluation.run import evaluate_checkpoints
from hrpo.hub.export import _merged, export

QUESTIONS = ["2+3*4", "7-9+1", "1+1-5*2"]
TASK = {"name": "arithmetic", "min_terms": 3, "max_terms": 4}


def change(model: HybridCausalLM, scale: float) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and (name.startswith("gate") or "lora_" in name):
                parameter.add_(scale * torch.randn_like(parameter))


def checkpoint(folder: Path, base="tiny", mode="hybrid", dtype="float32", targets="all-linear", scale=0.3) -> Path:
    """An adapter that changes answers, with strong latents."""
    model = HybridCausalLM.from_pretrained(
        base, lora=Lora(r=4, alpha=8, targets=targets), dtype=dtype, r_min=0.6, r_max=0.9, latent_mode=mode
    )
    change(model, scale)
    model.settings = dataclasses.replace(model.settings, max_new_tokens=24, task=TASK, step=7)
    model.save_pretrained(folder)
    return folder


def logprobs(folder: Path, dtype: str, forced=None):
    model = HybridCausalLM.from_pretrained(folder, dtype=dtype)
    prompts = [model.tokenizer.encode(f"{question}=\n") for question in QUESTIONS]
    rollout = generate(model, prompts, max_new_tokens=24, greedy=True, forced_ids=forced)
    with torch.no_grad():
        return rollout, replay(model, rollout)[0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return checkpoint(folder / "adapter"), export(str(folder / "adapter"), folder / "whole")


def test_the_files(pair):
    adapter, whole = pair
    assert {path.name for path in whole.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "gate.safetensors",
        "generation_config.json",
        "hybrid.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (whole / "hybrid.json").read_text() == (adapter / "hybrid.json").read_text()
    gates = [load_file(folder / "gate.safetensors") for folder in pair]
    assert all(torch.equal(gates[0][name], gates[1][name]) for name in ("Lambda", "reset_gate.weight"))
    assert [path.name for path in whole.parent.iterdir()].count("whole.tmp") == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_tokens_and_log_probs(tmp_path, dtype):
    adapter = checkpoint(tmp_path / "adapter", dtype=dtype)
    whole = export(str(adapter), tmp_path / "whole", dtype=dtype)
    ours, expected = logprobs(adapter, dtype)
    theirs, actual = logprobs(whole, dtype)
    assert torch.equal(theirs.completion_ids, ours.completion_ids)
    assert torch.equal(theirs.hybrid_mask, ours.hybrid_mask)
    assert ours.hybrid_mask.any()
    torch.testing.assert_close(actual, expected, atol=1e-4 if dtype == "float32" else 1e-10, rtol=0)
    bare, _ = logprobs(Path("tiny"), dtype)
    assert bare.completion_ids.tolist() != ours.completion_ids.tolist()  # the adapter matters


def test_eval_and_generate_are_those_of_the_checkpoint(pair, tmp_path):
    texts = [list(complete(str(folder), QUESTIONS)) for folder in pair]
    assert texts[0] == texts[1]
    results = evaluate_checkpoints([str(folder) for folder in pair], problems=12, out=str(tmp_path / "out"))
    adapter, whole = (results["tasks"]["arithmetic"][folder.name] for folder in pair)
    for how in ("greedy", "sampled"):
        assert adapter[how].pop("hidden_ratio") == pytest.approx(whole[how].pop("hidden_ratio"), rel=1e-4)
        assert adapter[how] == whole[how]
    adapter, whole = (results["settings"]["checkpoints"][folder.name] for folder in pair)
    assert {name for name in adapter if adapter[name] != whole[name]} == {"checkpoint", "files"}


def test_transformers_alone_answers_in_plain_tokens(tmp_path):
    """As the checkpoint does in discrete mode."""
    adapter = checkpoint(tmp_path / "adapter", mode="discrete")
    whole = export(str(adapter), tmp_path / "whole")
    code = f"""
import sys
sys.modules["hrpo"] = sys.modules["peft"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(whole)!r})
model = AutoModelForCausalLM.from_pretrained({str(whole)!r})
for question in {QUESTIONS!r}:
    messages = [{{"role": "user", "content": question}}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1]:]
    print(repr(tokenizer.decode(ids, skip_special_tokens=True)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [repr(text) for text in complete(str(adapter), QUESTIONS)]


def test_weights_are_added_in_float32_and_stored_as_the_base_is(tmp_path):
    base = HybridCausalLM.from_pretrained("tiny")
    base.lm.to(torch.bfloat16)
    base.lm.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    adapter = checkpoint(tmp_path / "adapter", base=tmp_path / "base", dtype="bfloat16")
    stored = load_file(export(str(adapter), tmp_path / "whole") / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    exact = load_file(export(str(adapter), tmp_path / "exact", dtype="float32") / "model.safetensors")
    assert {tensor.dtype for tensor in exact.values()} == {torch.float32}
    name = "model.layers.0.self_attn.q_proj.weight"
    weight = load_file(tmp_path / "base" / "model.safetensors")[name].float()
    lora = load_file(adapter / "adapter_model.safetensors")
    A, B = (lora[f"base_model.model.{name.removesuffix('weight')}lora_{which}.weight"] for which in "AB")
    torch.testing.assert_close(exact[name], weight + 2 * B @ A, atol=1e-6, rtol=0)  # alpha / r
    assert torch.equal(stored[name], exact[name].bfloat16())  # rounded once
    assert json.loads((tmp_path / "whole" / "hybrid.json").read_text())["dtype"] == "bfloat16"


def test_whole_weights_are_exported_as_they_are(tmp_path):
    model = HybridCausalLM.from_pretrained("tiny", dtype="bfloat16")
    model.save_pretrained(tmp_path / "saved")
    whole = export(str(tmp_path / "saved"), tmp_path / "whole")
    assert (whole / "model.safetensors").read_bytes() == (tmp_path / "saved" / "model.safetensors").read_bytes()
    assert HybridCausalLM.from_pretrained(whole).settings.dtype == "bfloat16"


def test_a_run_starts_from_an_exported_model(pair):
    model = HybridCausalLM.from_pretrained(pair[1], lora=Lora(r=2, alpha=4))
    assert model.settings.base_model == str(pair[1])
    assert torch.equal(model.gate.Lambda, HybridCausalLM.from_pretrained(pair[0]).gate.Lambda)


# ---- the card -------------------------------------------------------------------------------------------------------


def test_the_card_of_a_run(tmp_path, capsys):
    words = ["--config", "recipes/quickstart.yaml", "--name", "small", "--output_dir", str(tmp_path)]
    small = [
        "--max_steps=2",
        "--save_every=1",
        "--rollout.prompts_per_step=2",
        "--eval.problems=4",
        "--model.lora_rank=4",
    ]
    main(["train", *words, *small])
    capsys.readouterr()
    main(["export", "--checkpoint", str(tmp_path / "small"), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["hrpo", "reinforcement-learning", "latent-reasoning", "arxiv:2505.18454"],
    }
    text = card.content
    for row in ("latent mode | hybrid", "r_min | 0.98", "r_max | 0.999", "temperature | 0.5", "top_k | 50"):
        assert f"| {row} |" in text
    assert "| updates | 2 |" in text
    assert "| task.max_terms | 5 |" in text
    evaluation = json.loads((tmp_path / "small" / "evaluation.json").read_text())["after"]["greedy"]
    low, high = evaluation["accuracy_interval"]
    assert f"| accuracy [95 %] | {evaluation['accuracy']:.1%} [{low:.1%}, {high:.1%}] |" in text
    assert "Yue, Zhenrui" in text
    assert 'AutoModelForCausalLM.from_pretrained("OWNER/NAME")' in text
    assert 'HybridCausalLM.from_pretrained("OWNER/NAME")' in text
    assert str(tmp_path) not in text
    export(str(tmp_path / "small" / "checkpoint-1"), tmp_path / "middle")  # what was measured is another's
    assert "None were recorded" in (tmp_path / "middle" / "README.md").read_text()


# ---- refusals -------------------------------------------------------------------------------------------------------


def quantized(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))


def own_base(folder: Path) -> Path:
    model = HybridCausalLM.from_pretrained("tiny")
    model.lm.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def test_what_cannot_be_merged_is_refused(tmp_path):
    base = own_base(tmp_path / "base")
    adapter = checkpoint(tmp_path / "adapter", base=base)
    tied = checkpoint(tmp_path / "tied", base=base, targets=["q_proj", "lm_head"])
    with pytest.raises(InputError, match="share their weights"):
        export(str(tied), tmp_path / "out")
    loaded = HybridCausalLM.from_pretrained(adapter)
    loaded.bare_lm.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(InputError, match=r"base is quantized"):
        _merged(loaded)
    quantized(base)
    with pytest.raises(InputError, match=r"base model .*base is quantized"):
        export(str(adapter), tmp_path / "out")
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"--checkpoint.*base"):
        export(str(adapter), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_beyond_the_number_format_are_refused(tmp_path):
    model = HybridCausalLM.from_pretrained("tiny")
    with torch.no_grad():
        model.bare_lm.model.norm.weight[0] = 7e4
        model.gate.Lambda[0] = 7e4  # stays float32
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match=r"--dtype: float16 goes to 6.55e\+04, and model.norm.weight has 7e\+04"):
        export(str(tmp_path / "saved"), tmp_path / "half", dtype="float16")
    assert not (tmp_path / "half").exists()
    export(str(tmp_path / "saved"), tmp_path / "bfloat16", dtype="bfloat16")


def test_refusals(pair, tmp_path):
    adapter, whole = pair
    with pytest.raises(InputError, match=r"--out: .*not empty"):
        export(str(adapter), whole)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"--out: .*file"):
        export(str(adapter), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(InputError, match=r"--dtype: .*int8"):
        export(str(adapter), tmp_path / "out", dtype="int8")
    with pytest.raises(InputError, match="--checkpoint: tiny is no saved hybrid model"):
        export("tiny", tmp_path / "out")
    with pytest.raises(InputError, match=r"--checkpoint: .*nowhere"):
        export(str(tmp_path / "nowhere"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    assert (export(str(adapter), tmp_path / "empty") / "model.safetensors").is_file()
