"""Models of the paper's original release: read as they are, and nothing but them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from models import random_lm
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from hrpo import HybridCausalLM, HybridGate, generate, replay
from hrpo.cli.main import main
from hrpo.common.errors import InputError
from hrpo.hub.import_release import import_release
from hrpo.tasks.base import SYSTEM_PROMPT

D, PROMPT, FORCED = 24, [7, 9, 11, 13], [[6, 17, 19, 5, 21, 8]]  # 5 is the delimiter
MODULES = ["thinking_residual_gate_r", "thinking_residual_gate_i", "thinking_residual_Lambda"]


class ReleaseLambda(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.Lambda = nn.Parameter(HybridGate.lambda_of(torch.empty(D).uniform_(0.6, 0.9)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base model, and an adapter folder that PEFT has saved, with modules in the model as the release has them."""
    folder = tmp_path_factory.mktemp("release")
    random_lm("llama", torch.float32).save_pretrained(folder / "base")
    lm = AutoModelForCausalLM.from_pretrained(folder / "base")
    torch.manual_seed(5)
    for name in MODULES[:2]:
        setattr(lm.model, name, nn.Linear(D, D))
    lm.model.thinking_residual_Lambda = ReleaseLambda()
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.05, target_modules="all-linear")
    config.modules_to_save = MODULES
    adapted = get_peft_model(lm, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    adapted.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def adapter(made, tmp_path):
    return Path(shutil.copytree(made / "adapter", tmp_path / "adapter"))


def rewrite(folder: Path, change) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def edit_config(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_it_is_the_checkpoint_that_the_release_trained(made, tmp_path):
    folder = import_release(made / "adapter", tmp_path / "out", temperature=0.7, task="gsm8k")
    model = HybridCausalLM.from_pretrained(folder, dtype="float64")
    tensors = load_file(made / "adapter" / "adapter_model.safetensors")

    def theirs(name: str) -> torch.Tensor:
        return tensors[f"base_model.model.model.thinking_residual_{name}"].double()

    assert torch.equal(model.gate.reset_gate.weight, theirs("gate_r.weight"))
    assert torch.equal(model.gate.reset_gate.bias, theirs("gate_r.bias"))
    assert torch.equal(model.gate.input_gate.weight, theirs("gate_i.weight"))
    assert torch.equal(model.gate.input_gate.bias, theirs("gate_i.bias"))
    assert torch.equal(model.gate.Lambda, theirs("Lambda.Lambda"))

    rollout = generate(
        model, [PROMPT], max_new_tokens=6, forced_ids=torch.tensor(FORCED), delimiter=[5], temperature=0.7, top_k=10
    )
    with torch.no_grad():
        logprobs, reference = replay(model, rollout)

    # By hand: the equations of the paper, on the release's adapter as PEFT loads it.
    base = AutoModelForCausalLM.from_pretrained(made / "base", dtype=torch.float64)
    plain = AutoModelForCausalLM.from_pretrained(made / "base", dtype=torch.float64)
    lm = PeftModel.from_pretrained(base, made / "adapter").eval()
    table = lm.get_input_embeddings().weight
    inputs, expected, thinking = table[PROMPT], [], True
    with torch.no_grad():
        for token in FORCED[0]:
            logits = lm(inputs_embeds=inputs[None]).logits[0, -1]
            expected.append(logits.log_softmax(-1)[token])
            values, ids = (logits / 0.7).topk(10)
            p, e = values.softmax(-1), table[token]
            h = p @ table[ids] / p.norm()
            r = torch.sigmoid(theirs("gate_r.weight") @ e + theirs("gate_r.bias"))
            i = torch.sigmoid(theirs("gate_i.weight") @ e + theirs("gate_i.bias"))
            a = torch.exp(-8 * nn.functional.softplus(-theirs("Lambda.Lambda")) * r)
            thinking = thinking and token != 5
            mixed = a * e + torch.sqrt(1 - a**2 + 1e-8) * (i * h) if thinking else e
            inputs = torch.cat([inputs, mixed[None]])
        plain_logits = plain(torch.tensor([PROMPT + FORCED[0]])).logits[0, len(PROMPT) - 1 : -1]
    torch.testing.assert_close(logprobs[0], torch.stack(expected), atol=1e-8, rtol=0)
    torch.testing.assert_close(
        reference[0],
        plain_logits.log_softmax(-1).gather(1, torch.tensor(FORCED[0])[:, None])[:, 0],
        atol=1e-8,
        rtol=0,
    )


def test_what_is_written(made, tmp_path):
    folder = import_release(made / "adapter", tmp_path / "out", task="gsm8k", max_new_tokens=1024, r_min=0.95)
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "gate.safetensors",
        "hybrid.json",
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None
    assert config["base_model_name_or_path"] == str(made / "base")
    tensors = load_file(folder / "adapter_model.safetensors")
    original = load_file(made / "adapter" / "adapter_model.safetensors")
    assert tensors.keys() == {name for name in original if "thinking" not in name}
    assert all(torch.equal(tensor, original[name]) for name, tensor in tensors.items())
    settings = HybridCausalLM.from_pretrained(folder).settings
    assert (settings.base_model, settings.latent_mode, settings.dtype) == (str(made / "base"), "hybrid", "bfloat16")
    assert (settings.temperature, settings.top_k, settings.max_new_tokens) == (0.5, 50, 1024)
    assert settings.preamble == [{"role": "system", "content": SYSTEM_PROMPT}]
    assert settings.task["name"] == "gsm8k"
    assert HybridCausalLM.from_pretrained(folder).gate.r_min == 0.95


@pytest.mark.parametrize(
    "rename",
    [
        pytest.param(lambda name: name.replace("base_model.model.model.thinking", "model.thinking"), id="prefix"),
        pytest.param(lambda name: name.replace("base_model.model.model.thinking", "thinking"), id="no prefix"),
        pytest.param(
            lambda name: (
                name.replace("gate_r.", "gate_r.modules_to_save.default.")
                .replace("gate_i.", "gate_i.modules_to_save.default.")
                .replace("Lambda.Lambda", "Lambda.modules_to_save.default.Lambda")
            ),
            id="modules_to_save.default",
        ),
        pytest.param(lambda name: name.replace("gate_r.", "gate_r.modules_to_save."), id="modules_to_save"),
    ],
)
def test_names_in_other_forms(adapter, tmp_path, rename):
    expected = load_file(import_release(adapter, tmp_path / "expected") / "gate.safetensors")
    rewrite(adapter, lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})
    actual = load_file(import_release(adapter, tmp_path / "out") / "gate.safetensors")
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_another_base_and_the_tokenizer(adapter, made, tmp_path, capsys):
    tiny = HybridCausalLM.from_pretrained("tiny")
    shutil.copytree(made / "base", tmp_path / "moved")
    tiny.tokenizer.save_pretrained(tmp_path / "moved")
    edit_config(adapter, base_model_name_or_path="unreachable/elsewhere-4bit")
    words = [str(adapter), "--out", str(tmp_path / "out"), "--base", str(tmp_path / "moved"), "--temperature", "0.6"]
    main(["import-release", *words])
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    model = HybridCausalLM.from_pretrained(tmp_path / "out")
    assert model.settings.base_model == str(tmp_path / "moved")
    assert model.settings.temperature == 0.6
    assert model.settings.task == {}
    assert model.tokenizer.chat_template == tiny.tokenizer.chat_template


# ---- refusals -------------------------------------------------------------------------------------------------------


def without(part: str):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def narrow(part: str):
    return lambda tensors: {n: t[:8].contiguous() if part in n else t for n, t in tensors.items()}


def narrow_gate(tensors):
    """A gate of one width, 8, which is not the model's."""
    return {
        name: (tensor[:8, :8] if tensor.dim() == 2 else tensor[:8]).contiguous() if "thinking" in name else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("gate_r"), "has no thinking_residual_gate_r.bias, thinking_residual_gate_r.weight"),
        (without("gate_i.bias"), "has no thinking_residual_gate_i.bias;"),
        (without("thinking_residual_Lambda"), "has no thinking_residual_Lambda.Lambda"),
        (narrow("gate_i.weight"), "widths of its gate disagree"),
        (narrow_gate, "8 wide.* 24"),
        (lambda tensors: tensors | {"base_model.model.lm_head.weight": torch.zeros(41, D)}, "more than an adapter"),
        (without("layers.2"), "of another model"),
        (
            lambda tensors: tensors | {n.replace("s.2", "s.7"): t.clone() for n, t in tensors.items() if "s.2" in n},
            "of another model",
        ),
    ],
)
def test_other_tensors_are_refused(adapter, tmp_path, change, message):
    rewrite(adapter, change)
    with pytest.raises(InputError, match=message) as caught:
        import_release(adapter, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_refusals(adapter, made, tmp_path):
    out = tmp_path / "out"
    edit_config(adapter, modules_to_save=[*MODULES, "embed_tokens"])
    with pytest.raises(InputError, match=r"more than an adapter and a gate: embed_tokens"):
        import_release(adapter, out)
    edit_config(adapter, modules_to_save=MODULES, base_model_name_or_path="./gone")
    with pytest.raises(InputError, match=r"--base: there is no folder './gone'"):
        import_release(adapter, out)
    edit_config(adapter, base_model_name_or_path=None)
    with pytest.raises(InputError, match=r"--base: there is no folder ''"):
        import_release(adapter, out)
    with pytest.raises(InputError, match=str(adapter)):  # an adapter of another width
        import_release(adapter, out, base="tiny")
    for name, message in (("task", "--task"), ("temperature", "--temperature"), ("max_new_tokens", "--max_new_tokens")):
        with pytest.raises(InputError, match=message):
            import_release(made / "adapter", out, **{name: "nothing" if name == "task" else 0})
    (adapter / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="cannot read its adapter"):
        import_release(adapter, out)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"adapter_model.safetensors: missing"):
        import_release(adapter, out)
    assert not out.exists()
    (out / "mine").mkdir(parents=True)
    with pytest.raises(InputError, match=r"--out: .*not empty"):
        import_release(made / "adapter", out)
