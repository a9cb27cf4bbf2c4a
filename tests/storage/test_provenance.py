"""A base model or problems that are not those a run began with are refused, in a line that names what has changed."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hrpo import HybridCausalLM, Lora
from hrpo.common.errors import InputError
from hrpo.config.schema import CheckConfig, EvalConfig, LossConfig, ModelConfig, RolloutConfig, TaskConfig, TrainConfig
from hrpo.evaluation.inference import complete
from hrpo.evaluation.run import evaluate_checkpoints
from hrpo.hub.export import export
from hrpo.inspection.run import inspect_checkpoints
from hrpo.storage import provenance
from hrpo.storage.provenance import base_digests, check_base
from hrpo.training.run import Run


@pytest.fixture
def base(tmp_path):
    """A plain model's folder."""
    model = HybridCausalLM.from_pretrained("tiny")
    model.bare_lm.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def config_of(folder: Path, base: Path, lora_rank: int = 4, beta: float = 0.01, **task) -> TrainConfig:
    return TrainConfig(
        name="run",
        folder=str(folder / "runs"),
        updates=2,
        model=ModelConfig(str(base), lora_rank=lora_rank),
        task=TaskConfig(**task),
        loss=LossConfig(beta=beta),
        rollout=RolloutConfig(prompts=2, group_size=2, max_new_tokens=4),
        check=CheckConfig(prompts=0),
        eval=EvalConfig(problems=0),
    )


def one_weight(base: Path) -> None:
    """Names, shapes and the file's size stay."""
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, base / "model.safetensors", {"format": "pt"})


def edit(name: str, old: str, new: str):
    def change(base: Path) -> None:
        text = (base / name).read_text()
        assert old in text
        (base / name).write_text(text.replace(old, new, 1))

    return change


CHANGES = {
    "model.safetensors": one_weight,
    "config.json": edit("config.json", '"rms_norm_eps": ', '"rms_norm_eps": 1'),
    "generation_config.json": edit("generation_config.json", '"eos_token_id": ', '"eos_token_id": 1'),
    "tokenizer_config.json": edit("tokenizer_config.json", "{", '{"mine": 1, '),
    "tokenizer.json": edit("tokenizer.json", "{", "{ "),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_adapter_is_laid_over_its_own_base_alone(base, tmp_path, name):
    saved = tmp_path / "saved"
    HybridCausalLM.from_pretrained(base, lora=Lora(r=4)).save_pretrained(saved)
    HybridCausalLM.from_pretrained(saved)
    CHANGES[name](base)
    with pytest.raises(InputError, match=rf"model.name: the base model {base} is not .* \({name} changed\)"):
        HybridCausalLM.from_pretrained(saved)


def test_every_command_refuses_it(base, tmp_path):
    saved = str(tmp_path / "saved")
    HybridCausalLM.from_pretrained(base, lora=Lora(r=4)).save_pretrained(saved)
    one_weight(base)
    for command in (
        lambda: export(saved, tmp_path / "out"),
        lambda: list(complete(saved, ["1+1"])),
        lambda: evaluate_checkpoints([saved], tasks=["arithmetic"], problems=1, out=str(tmp_path / "out")),
        lambda: inspect_checkpoints([saved], str(tmp_path / "page.html"), task="arithmetic", problems=1),
    ):
        with pytest.raises(InputError, match=r"--checkpoint: the base model .*model\.safetensors changed"):
            command()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "saved"]


def test_what_changes_nothing_is_no_change(base, tmp_path):
    saved = tmp_path / "saved"
    HybridCausalLM.from_pretrained(base, lora=Lora(r=4)).save_pretrained(saved)
    edit("config.json", '"transformers_version": "', '"transformers_version": "9')(base)
    (base / "README.md").write_text("It is mine.")
    (base / "model.safetensors").touch()
    HybridCausalLM.from_pretrained(saved)
    one_weight(base)
    settings = json.loads((saved / "hybrid.json").read_text())
    del settings["base_files"]  # as before there were digests
    (saved / "hybrid.json").write_text(json.dumps(settings))
    HybridCausalLM.from_pretrained(saved)


@pytest.mark.parametrize(("lora_rank", "beta"), [(4, 0.01), (0, 0.01), (0, 0.0)])
def test_a_run_goes_on_with_its_own_base_alone(base, tmp_path, lora_rank, beta):
    """Which one with all weights trained and without a reference does not need."""
    config = config_of(tmp_path, base, lora_rank, beta)
    begun = Run(config)
    begun.train_step()
    begun.save()
    assert Run(config, resume=True).step == 1
    one_weight(base)
    if lora_rank or beta:
        with pytest.raises(InputError, match=r"--resume: the base model .*model\.safetensors changed"):
            Run(config, resume=True)
    else:
        shutil.rmtree(base)
        assert Run(config, resume=True).step == 1


def test_so_does_one_without_a_checkpoint(base, tmp_path):
    """Its evaluation before training was of that base."""
    config = config_of(tmp_path, base)
    Run(config)
    one_weight(base)
    with pytest.raises(InputError, match=r"--resume: the base model's model\.safetensors changed since the run began"):
        Run(config, resume=True)


def test_the_commit_of_a_model_on_the_hub(monkeypatch):
    monkeypatch.setattr(provenance, "hub_commit", lambda name: "c0ffee")
    then = base_digests("owner/name")
    assert then == {"commit": "c0ffee"}
    check_base("owner/name", then)
    monkeypatch.setattr(provenance, "hub_commit", lambda name: "decaf")
    with pytest.raises(InputError, match=r"the base model owner/name is not .*\(commit changed\)"):
        check_base("owner/name", then)


@pytest.mark.parametrize("which", ["train", "test"])
def test_problems_that_have_changed(tmp_path, which):
    for name in ("train", "test"):
        rows = [{"question": f"What is {i} + {name}?", "answer": f"{i} #### {i}"} for i in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(tmp_path, Path("tiny"), name="gsm8k", path=str(tmp_path))
    Run(config)
    path = tmp_path / f"{which}.jsonl"
    path.write_text(path.read_text().replace(": ", ":   "))  # the same problems
    Run(config, resume=True)
    path.write_text(path.read_text().replace("#### 3", "#### 4"))
    with pytest.raises(InputError, match=rf"--resume: the {which}(ing)? problems changed since.*task\.path"):
        Run(config, resume=True)
    (config.run_folder / "provenance.json").unlink()  # begun before there was one
    Run(config, resume=True)


def test_a_damaged_record(tmp_path):
    config = config_of(tmp_path, Path("tiny"))
    Run(config)
    for text in ("{", "[]", "{}", '{"base_files": 1, "base_model": 2, "problems": 3}'):
        (config.run_folder / "provenance.json").write_text(text)
        with pytest.raises(InputError, match=r"--resume: .*provenance\.json is damaged .*delete it"):
            Run(config, resume=True)
