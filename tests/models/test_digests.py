"""A base model that is not the one an adapter was trained on is refused, in a line that names what has changed."""

import json
from pathlib import Path

import pytest
from models import change_one_weight, save_plain

from hrpo import HybridCausalLM, Lora
from hrpo.common.errors import InputError
from hrpo.evaluation.inference import complete
from hrpo.evaluation.run import evaluate_checkpoints
from hrpo.hub.export import export
from hrpo.inspection.run import inspect_checkpoints
from hrpo.models import digests
from hrpo.models.digests import base_digests, check_base


@pytest.fixture
def base(tmp_path):
    return save_plain(tmp_path / "base")


def edit(name: str, old: str, new: str):
    def change(base: Path) -> None:
        text = (base / name).read_text()
        assert old in text
        (base / name).write_text(text.replace(old, new, 1))

    return change


CHANGES = {
    "model.safetensors": change_one_weight,
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
    change_one_weight(base)
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
    change_one_weight(base)
    settings = json.loads((saved / "hybrid.json").read_text())
    del settings["base_files"]  # as before there were digests
    (saved / "hybrid.json").write_text(json.dumps(settings))
    HybridCausalLM.from_pretrained(saved)


def test_the_commit_of_a_model_on_the_hub(monkeypatch):
    monkeypatch.setattr(digests, "hub_commit", lambda name: "c0ffee")
    then = base_digests("owner/name")
    assert then == {"commit": "c0ffee"}
    check_base("owner/name", then)
    monkeypatch.setattr(digests, "hub_commit", lambda name: "decaf")
    with pytest.raises(InputError, match=r"the base model owner/name is not .*\(commit changed\)"):
        check_base("owner/name", then)
