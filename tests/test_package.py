"""The package's names."""

import importlib
import subprocess
import sys

import pytest

import hrpo
from hrpo.common.moved import MOVED


def run(code):
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_needs_no_torch():
    run("import sys, hrpo; from hrpo.tasks import judge; assert 'torch' not in sys.modules")


DOORS = {"ALGORITHMS": "rloo", "ENGINES": "hybrid", "LATENT_MODES": "discrete"}


@pytest.mark.parametrize("door", DOORS)
def test_doors_are_dicts_by_name(door):
    assert DOORS[door] in getattr(hrpo, door)


def test_names_are_sorted():
    assert sorted(hrpo.__all__) == hrpo.__all__


def test_every_name_is_what_it_says():
    for name in hrpo.__all__:
        if name not in DOORS:
            assert getattr(hrpo, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = hrpo.nothing


@pytest.mark.parametrize("first", [pytest.param("hrpo.trainer", marks=pytest.mark.slow), "hrpo.logprobs"])
def test_replay_is_the_function_whatever_was_imported_first(first):
    run(f"import {first}\nfrom hrpo import replay\nassert replay.__name__ == 'replay' and callable(replay)")


@pytest.mark.parametrize("old", MOVED)
def test_old_names_of_modules_work_in_this_version(old):
    if old == "harness":
        pytest.importorskip("lm_eval")
    new = importlib.import_module(f"hrpo.{MOVED[old]}")
    sys.modules.pop(f"hrpo.{old}", None)
    with pytest.warns(FutureWarning, match=rf"hrpo\.{old} is hrpo\.{MOVED[old]} since 0\.2"):
        assert importlib.import_module(f"hrpo.{old}") is new
    assert new.__spec__.name == new.__name__ == f"hrpo.{MOVED[old]}"


@pytest.mark.parametrize("name", ["hrpo_errors", "prompts", "run"])
def test_only_names_of_hrpo_have_moved(name):
    """A module of somebody's own that is missing is missing."""
    with pytest.raises(ModuleNotFoundError, match=name):
        importlib.import_module(name)
