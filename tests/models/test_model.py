"""Loading, saving and what a checkpoint remembers."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from architectures import COMMON
from models import PROMPTS, SAMPLER, VOCAB, random_lm, random_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PhiConfig, PreTrainedTokenizerFast

from hrpo import HybridCausalLM, HybridGate, Lora, generate, replay
from hrpo.common.errors import InputError
from hrpo.engine.packing_probe import packs_up_to
from hrpo.model import HybridSettings
from hrpo.models.digests import base_digests

PLAIN = Path(__file__).parents[1] / "golden" / "llama" / "model"
LORA = Lora(r=4, alpha=8)
PROMPT = [5, 9, 11, 13]
SETTINGS = {
    "temperature": 0.75,
    "top_k": 7,
    "max_new_tokens": 33,
    "preamble": [{"role": "system", "content": "Think “aloud”."}],
    "task": {"name": "arithmetic", "max_terms": 4},
    "seed": 17,
    "step": 250,
}


@pytest.fixture
def base(tmp_path):
    return Path(shutil.copytree(PLAIN, tmp_path / "base"))


def trained(base: Path, lora: Lora | None = None, **options) -> HybridCausalLM:
    """A model in which no weight is where it began."""
    model = HybridCausalLM.from_pretrained(base, lora=lora, **options)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def logits(model: HybridCausalLM, reference: bool = False) -> torch.Tensor:
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        return model(model.embed(ids, reference=reference), torch.ones_like(ids), reference=reference)[0]


def dtypes(model: HybridCausalLM, part: str) -> set[torch.dtype]:
    return {parameter.dtype for name, parameter in model.named_parameters() if part in name}


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- saving and loading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_round_trip_is_bit_for_bit(base, tmp_path, lora, dtype):
    model = trained(base, lora, dtype=dtype, r_min=0.7, r_max=0.8)
    model.save_pretrained(tmp_path / "runs" / "saved")  # makes the parent too
    loaded = HybridCausalLM.from_pretrained(tmp_path / "runs" / "saved", dtype=dtype, r_min=0.1, r_max=0.2)
    expected, actual = model.state_dict(), loaded.state_dict()
    assert expected.keys() == actual.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
    assert torch.equal(logits(loaded), logits(model))  # the adapters' scale is no part of the state
    assert (loaded.gate.r_min, loaded.gate.r_max) == (0.7, 0.8)
    trainable = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (model, loaded)]
    assert trainable[0] == trainable[1]
    assert not loaded.training


def test_adapters_have_the_asked_shape_and_scale(base):
    model = trained(base, LORA)
    layers = {n: m for n, m in model.lm.named_modules() if hasattr(m, "lora_A")}
    assert len(layers) == 2 * 7  # two blocks: q, k, v, o, gate, up, down; not the head
    assert {m.scaling["default"] for m in layers.values()} == {8 / 4}
    assert {m.lora_A["default"].weight.shape[0] for m in layers.values()} == {4}
    plain = HybridCausalLM.from_pretrained(base)
    assert not torch.equal(logits(model), logits(plain))
    assert torch.equal(logits(model, reference=True), logits(plain))  # adapters off
    assert torch.equal(logits(HybridCausalLM.from_pretrained(base, lora=LORA)), logits(plain))  # fresh: no change


def test_an_adapter_checkpoint_holds_no_base_weights(base, tmp_path):
    trained(base, LORA).save_pretrained(tmp_path / "saved")
    names = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert len(names) == 2 * 14
    assert all("lora_" in name for name in names)


def test_only_safetensors_and_json_are_written(base, tmp_path):
    trained(base).save_pretrained(tmp_path / "full")
    assert {file.name for file in (tmp_path / "full").rglob("*")} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "gate.safetensors",
        "hybrid.json",
    }
    trained(base, LORA).save_pretrained(tmp_path / "lora")
    assert {file.name for file in (tmp_path / "lora").rglob("*")} == {
        "README.md",  # PEFT's model card
        "adapter_config.json",
        "adapter_model.safetensors",
        "gate.safetensors",
        "hybrid.json",
    }


def test_the_tokenizer_travels_with_the_model(base, tmp_path):
    words = Tokenizer(models.WordLevel({"<eos>": 2, "<unk>": 3, "one": 7, "two": 9}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(base)
    for lora in (None, LORA):
        model = HybridCausalLM.from_pretrained(base, lora=lora)
        assert model.tokenizer.encode("one two") == [7, 9]
        shutil.rmtree(tmp_path / "saved", ignore_errors=True)
        model.save_pretrained(tmp_path / "saved")
        loaded = HybridCausalLM.from_pretrained(tmp_path / "saved").tokenizer
        assert loaded.encode("two one three") == [9, 7, 3]
        assert loaded.chat_template == tokenizer.chat_template
        suffixes = {file.suffix for file in (tmp_path / "saved").rglob("*")}
        assert suffixes <= {".safetensors", ".json", ".jinja", ".md"}


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_settings_are_remembered(base, tmp_path, lora):
    model = HybridCausalLM.from_pretrained(base, lora=lora, latent_mode="discrete", mixed_in="hidden")
    digests = base_digests(str(base)) if lora else {}
    assert model.settings == HybridSettings(str(base), "discrete", mixed_in="hidden", base_files=digests)
    model.settings = dataclasses.replace(model.settings, **SETTINGS)
    model.save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "hybrid.json").read_text())
    own = {"base_model": str(base), "latent_mode": "discrete", "mixed_in": "hidden"}
    own |= {"dtype": "float32", "quantization": "none", "base_files": digests}
    assert written == own | SETTINGS
    loaded = HybridCausalLM.from_pretrained(tmp_path / "saved", latent_mode="hybrid")  # it keeps its own
    assert loaded.settings == model.settings


def test_a_relative_base_is_remembered_absolutely(base, monkeypatch):
    monkeypatch.chdir(base.parent)
    assert HybridCausalLM.from_pretrained("base").settings.base_model == str(base.resolve())


def test_a_plain_model_gets_a_fresh_gate(base):
    torch.manual_seed(0)
    model = HybridCausalLM.from_pretrained(base, r_min=0.6, r_max=0.7)
    again = HybridCausalLM.from_pretrained(base, r_min=0.6, r_max=0.7)
    assert (model.gate.hidden_size, model.gate.r_min, model.gate.r_max) == (24, 0.6, 0.7)
    assert not torch.equal(model.gate.Lambda, again.gate.Lambda)
    u = torch.sigmoid(model.gate.Lambda) ** 8  # the inverse of lambda_of
    assert ((u > 0.6 - 1e-5) & (u < 0.7 + 1e-5)).all()
    assert type(model.lm).__name__ == "LlamaForCausalLM"  # bare
    assert model.settings == HybridSettings(str(base))


def test_the_reference_of_a_fine_tuned_checkpoint_is_its_base(base, tmp_path):
    trained(base).save_pretrained(tmp_path / "saved")
    model = HybridCausalLM.from_pretrained(tmp_path / "saved")
    model.load_reference()
    plain = logits(HybridCausalLM.from_pretrained(base))
    assert torch.equal(logits(model, reference=True), plain)
    assert not torch.equal(logits(model), plain)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("mode", ["hybrid", "discrete"])
def test_a_new_run_starts_from_a_saved_model(base, tmp_path, lora, mode):
    saved = trained(base, r_min=0.7, r_max=0.8, latent_mode=mode)
    saved.settings = dataclasses.replace(saved.settings, **SETTINGS)
    saved.save_pretrained(tmp_path / "saved")
    model = HybridCausalLM.from_pretrained(
        tmp_path / "saved", lora=lora, new_run=True, r_min=0.3, r_max=0.4, latent_mode="hybrid"
    )
    assert model.settings.base_model == str(tmp_path / "saved")
    assert (model.settings.latent_mode, model.settings.step, model.settings.top_k) == ("hybrid", 0, 7)
    assert torch.equal(logits(model), logits(saved))
    kept = mode == "hybrid"  # a gate that was never trained is drawn anew
    assert torch.equal(model.gate.Lambda, saved.gate.Lambda) == kept
    assert (model.gate.r_min, model.gate.r_max) == ((0.7, 0.8) if kept else (0.3, 0.4))

    with torch.no_grad():  # trained further, saved, loaded: the reference is still the model that it started from
        for parameter in model.lm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "further")
    loaded = HybridCausalLM.from_pretrained(tmp_path / "further")
    loaded.load_reference()
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(loaded), logits(saved))
    assert torch.equal(logits(loaded, reference=True), logits(saved))


# ---- whole or not at all ----------------------------------------------------------------------------------------


def test_saving_over_a_folder(base, tmp_path):
    folder = tmp_path / "runs" / "saved"
    HybridCausalLM.from_pretrained(base).save_pretrained(folder)
    (folder / "notes.txt").write_text("mine")
    model = trained(base)
    model.save_pretrained(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]  # no .tmp, no .old
    assert (folder / "notes.txt").read_text() == "mine"
    loaded = HybridCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded), logits(model))
    loaded.save_pretrained(folder)  # over the file that its weights came from
    assert torch.equal(logits(HybridCausalLM.from_pretrained(folder)), logits(model))


def test_saving_full_weights_over_an_adapter(base, tmp_path):
    trained(base, LORA).save_pretrained(tmp_path / "saved")
    model = trained(base)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(HybridCausalLM.from_pretrained(tmp_path / "saved")), logits(model))


def test_the_adapters_layers_are_written_in_order_in_every_process(base, tmp_path):
    lora = dataclasses.replace(
        LORA, targets=("v_proj", "q_proj", "up_proj", "o_proj", "k_proj", "gate_proj", "down_proj")
    )
    trained(base, lora).save_pretrained(tmp_path / "saved")
    HybridCausalLM.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "again")
    for folder in ("saved", "again"):
        targets = json.loads((tmp_path / folder / "adapter_config.json").read_text())["target_modules"]
        assert targets == sorted(lora.targets)


def test_a_failed_save_leaves_the_old_folder(base, tmp_path):
    folder = tmp_path / "runs" / "saved"
    model = trained(base)
    model.save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with torch.no_grad():
        model.gate.Lambda.zero_()
    model.settings = dataclasses.replace(model.settings, task={"path": Path("no JSON")})
    with pytest.raises(TypeError):
        model.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]


def test_leftovers_of_a_killed_save_do_no_harm(base, tmp_path):
    folder = tmp_path / "runs" / "saved"
    (folder.parent / "saved.tmp").mkdir(parents=True)
    (folder.parent / "saved.tmp" / "junk.json").write_text("{")
    model = trained(base)
    model.save_pretrained(folder)
    assert not (folder / "junk.json").exists()
    model.save_pretrained(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]


# ---- number formats ---------------------------------------------------------------------------------------------


def rollout_and_backward(model: HybridCausalLM):
    rollout = generate(model, [PROMPT], group_size=2, max_new_tokens=4, delimiter=[60], eos_token_id=[])
    logprobs, _ = replay(model, rollout)
    logprobs.sum().backward()
    return rollout, logprobs


def test_bfloat16_with_adapters(base, tmp_path):
    model = trained(base, LORA, dtype="bfloat16")
    model.save_pretrained(tmp_path / "saved")
    for each in (model, HybridCausalLM.from_pretrained(tmp_path / "saved", dtype="bfloat16")):
        assert dtypes(each, "lora_") == {torch.float32}
        assert dtypes(each, "gate.Lambda") == dtypes(each, "gate.input_gate") == {torch.float32}
        frozen = {p.dtype for n, p in each.lm.named_parameters() if "lora_" not in n}
        assert frozen == {torch.bfloat16}
        assert not any(p.requires_grad for n, p in each.lm.named_parameters() if "lora_" not in n)
        assert each.autocast is None
        rollout, logprobs = rollout_and_backward(each)
        assert rollout.sample_logprobs.dtype == rollout.support_probs.dtype == logprobs.dtype == torch.float32
        for name, parameter in each.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad.dtype == torch.float32
                assert parameter.grad.any(), name


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_bfloat16_without_adapters_is_autocast(base, dtype):
    model = HybridCausalLM.from_pretrained(base, dtype=dtype)
    assert dtypes(model, "") == {torch.float32}
    assert model.autocast == torch.bfloat16
    assert logits(model).dtype == torch.bfloat16
    rollout, logprobs = rollout_and_backward(model)
    assert rollout.sample_logprobs.dtype == logprobs.dtype == torch.float32
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_float64(base, lora):
    model = HybridCausalLM.from_pretrained(base, lora=lora, dtype="float64")
    assert dtypes(model, "") == {torch.float64}
    rollout, logprobs = rollout_and_backward(model)
    assert rollout.sample_logprobs.dtype == logprobs.dtype == torch.float64


def test_a_float32_checkpoint_in_float64(base, tmp_path):
    model = trained(base)
    model.save_pretrained(tmp_path / "saved")
    loaded = HybridCausalLM.from_pretrained(tmp_path / "saved", dtype="float64")
    assert dtypes(loaded, "") == {torch.float64}
    assert torch.equal(loaded.gate.Lambda.float(), model.gate.Lambda)


def test_a_float64_checkpoint_in_float32(base, tmp_path):
    trained(base, dtype="float64").save_pretrained(tmp_path / "saved")
    loaded = HybridCausalLM.from_pretrained(tmp_path / "saved", dtype="float32")
    assert dtypes(loaded, "") == {torch.float32}
    rollout_and_backward(loaded)


def test_other_number_formats_are_refused(base):
    with pytest.raises(InputError, match="float16"):
        HybridCausalLM.from_pretrained(base, dtype=torch.float16)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_number_format_is_remembered(base, tmp_path, lora, dtype):
    model = trained(base, lora, dtype=dtype)
    model.save_pretrained(tmp_path / "saved")
    loaded = HybridCausalLM.from_pretrained(tmp_path / "saved")
    assert loaded.settings.dtype == dtype
    assert loaded.autocast == model.autocast
    assert [p.dtype for p in loaded.parameters()] == [p.dtype for p in model.parameters()]
    assert torch.equal(logits(loaded), logits(model))


# ---- embeddings, token ids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "scale"), [("gemma3", 24**0.5), ("llama", 1.0), ("gpt2", 1.0)])
def test_embedding_table(arch, scale):
    model = random_model(arch)
    table = model.embedding_table()
    assert torch.equal(table, model.embed(torch.arange(41)))
    torch.testing.assert_close(table, scale * model.embedding.weight, atol=1e-6, rtol=0)
    assert not table.requires_grad


def test_the_kept_reference_embeds_as_it_did(base):
    model = HybridCausalLM.from_pretrained(base)
    model.keep_reference()
    before = model.embedding_table().clone()
    with torch.no_grad():
        model.embedding.weight.add_(1)
    assert torch.equal(model.embed(torch.arange(61), reference=True), before)
    assert torch.equal(model.embedding_table(), before + 1)


def test_a_model_without_tokenizer_works_with_ids(base):
    model = HybridCausalLM.from_pretrained(base)
    assert model.tokenizer is None
    assert model.eos_token_ids == [2]
    options = {"max_new_tokens": 3, "eos_token_id": []}
    assert generate(model, [PROMPT], delimiter=[4], **options).completion_ids.shape == (1, 3)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        generate(model, [PROMPT], delimiter="####", **options)


@pytest.mark.parametrize("top_k", [0, VOCAB, 25])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-8), (torch.float32, 1e-4), (torch.bfloat16, 1.0)])
def test_minus_infinity_for_padding_tokens_is_no_nan(dtype, atol, top_k):
    """A head whose bias forbids tokens: it is usable, runs packed, and gives them probability 0."""
    lm = random_lm(PhiConfig(**COMMON, partial_rotary_factor=0.7), dtype)
    with torch.no_grad():
        lm.lm_head.bias[-4:] = -torch.inf
    model = HybridCausalLM(lm, HybridGate(24, r_min=0.6, r_max=0.9), HybridSettings("memory"))
    rollout = generate(model, PROMPTS, group_size=2, **SAMPLER | {"top_k": top_k})
    logprobs, reference = replay(model, rollout)
    assert packs_up_to(model) > 0
    assert rollout.finite()
    assert (rollout.completion_ids < VOCAB - 4).all()
    assert reference.isfinite().all()
    torch.testing.assert_close(logprobs.detach(), rollout.sample_logprobs, atol=atol, rtol=0)
    logprobs.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# ---- refusals -----------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def other_gate(folder: Path) -> None:
    save_file(HybridGate(8).state_dict(), folder / "gate.safetensors")


def mixed_gate(folder: Path) -> None:
    save_file(HybridGate(24).state_dict() | {"Lambda": torch.zeros(8)}, folder / "gate.safetensors")


def half_gate(folder: Path) -> None:
    state = HybridGate(24).state_dict()
    save_file({name: value for name, value in state.items() if "reset" not in name}, folder / "gate.safetensors")


def odd_bounds(folder: Path) -> None:
    save_file(HybridGate(24).state_dict(), folder / "gate.safetensors", {"r_min": "2", "r_max": "x"})


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def settings(text: bytes):
    return lambda folder: (folder / "hybrid.json").write_bytes(text)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda folder: (folder / "gate.safetensors").unlink(), id="no gate"),
        pytest.param(lambda folder: (folder / "gate.safetensors").write_bytes(b"123"), id="broken gate"),
        pytest.param(lambda folder: (folder / "gate.safetensors").write_bytes(b""), id="empty gate"),
        pytest.param(mixed_gate, id="gate of two widths"),
        pytest.param(half_gate, id="half a gate"),
        pytest.param(other_gate, id="gate of another width"),
        pytest.param(odd_bounds, id="r_min, r_max that are no numbers"),
        pytest.param(settings(b"{"), id="broken settings"),
        pytest.param(settings(b""), id="empty settings"),
        pytest.param(settings(b"[]"), id="settings are a list"),
        pytest.param(settings(b"{}"), id="settings without base"),
        pytest.param(settings(b'{"base_model": "x", "colour": 1}'), id="settings with an unknown name"),
        pytest.param(settings(b"\xff"), id="settings that are no UTF-8"),
        pytest.param(settings(b'{"base_model": "x", "latent_mode": "hybird"}'), id="unknown latent_mode"),
        pytest.param(lambda folder: (folder / "model.safetensors").unlink(), id="no weights"),
        pytest.param(only_a_pickle, id="weights in a pickle"),
        pytest.param(lambda folder: cut(folder / "model.safetensors"), id="weights cut short"),
        pytest.param(lambda folder: (folder / "config.json").unlink(), id="no config"),
        pytest.param(lambda folder: (folder / "config.json").write_text("{"), id="broken config"),
    ],
)
def test_broken_folders_are_named(base, tmp_path, change):
    folder = tmp_path / "its-name"
    HybridCausalLM.from_pretrained(base).save_pretrained(folder)
    change(folder)
    with pytest.raises(InputError, match="its-name"):
        HybridCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda f: (f / "adapter_model.safetensors").unlink(), id="no adapter"),
        pytest.param(lambda f: cut(f / "adapter_model.safetensors"), id="adapter cut short"),
        pytest.param(lambda f: (f / "adapter_config.json").write_text("{"), id="broken adapter_config.json"),
        pytest.param(lambda f: edit_json(f / "adapter_config.json", r=5), id="adapter of another rank"),
    ],
)
def test_broken_adapter_folders_are_named(base, tmp_path, change):
    folder = tmp_path / "its-name"
    HybridCausalLM.from_pretrained(base, lora=LORA).save_pretrained(folder)
    change(folder)
    with pytest.raises(InputError, match="its-name"):
        HybridCausalLM.from_pretrained(folder)


def test_code_of_its_own_is_not_run_unasked(base):
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    edit_json(base / "config.json", model_type="own", auto_map=own)
    (base / "own.py").write_text("raise SystemExit('it was run')\n")
    with pytest.raises(
        InputError, match=r"^model\.name: .*base comes with code of its own; .*model\.trust_remote_code"
    ):
        HybridCausalLM.from_pretrained(base)


def test_a_moved_base_is_named(base, tmp_path):
    HybridCausalLM.from_pretrained(base, lora=LORA).save_pretrained(tmp_path / "saved")
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=str(base)):
        HybridCausalLM.from_pretrained(tmp_path / "saved")


def test_other_refusals(base, tmp_path):
    with pytest.raises(InputError, match="nowhere/at-all"):
        HybridCausalLM.from_pretrained(tmp_path / "nowhere/at-all")
    (tmp_path / "nothing-in-it").mkdir()
    with pytest.raises(InputError, match="nothing-in-it"):
        HybridCausalLM.from_pretrained(tmp_path / "nothing-in-it")
    HybridCausalLM.from_pretrained(base, lora=LORA).save_pretrained(tmp_path / "saved")
    for options in ({"lora": LORA}, {"new_run": True}):
        with pytest.raises(InputError, match=r"saved holds an adapter.*hrpo export"):
            HybridCausalLM.from_pretrained(tmp_path / "saved", **options)
    with pytest.raises(InputError, match=r"8 wide.*24 wide"):
        HybridCausalLM(HybridCausalLM.from_pretrained(base).lm, HybridGate(8), HybridSettings("memory"))


@pytest.mark.parametrize("beside", [[], ["config.json", "model.safetensors"]], ids=["adapter", "and the base model"])
def test_a_peft_folder_is_told_how_to_merge(base, tmp_path, beside):
    adapter = tmp_path / "adapter"
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", r=2)).save_pretrained(
        adapter
    )
    for name in beside:  # transformers would lay the adapter over them without a word
        shutil.copy(base / name, adapter)
    for options in ({}, {"lora": LORA}, {"new_run": True}):
        with pytest.raises(InputError) as refused:
            HybridCausalLM.from_pretrained(adapter, **options)
        line = str(refused.value)
        assert line.startswith(
            f"model.name: {adapter} holds an adapter, not a whole model; merge it first, in Python: "
        )
        assert "\n" not in line
    command = line.partition("in Python: ")[2].partition(";")[0].replace("'DIR'", repr(str(tmp_path / "merged")))
    exec("import peft; " + command, {})  # what the line says does it
    assert HybridCausalLM.from_pretrained(tmp_path / "merged").bare_lm.config.model_type == "llama"
