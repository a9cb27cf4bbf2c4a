"""Settings under their names of 0.1: still taken, with one line that says the new ones."""

import dataclasses
import json
import shlex

import pytest
import yaml

from hrpo.cli.main import main
from hrpo.cli.parser import Parser
from hrpo.cli.train import COMMANDS, train_config
from hrpo.common.errors import InputError
from hrpo.config.old_names import NEW_NAMES, say_once, with_new_names
from hrpo.config.schema import TrainConfig
from hrpo.experiments.results import load_result
from hrpo.models.settings import HybridSettings, read_settings
from hrpo.storage.run_dir import check_run_folder

# As a file of 0.1 has them, none of them the default.
OLD = """\
folder: elsewhere
updates: 7
tracker: tensorboard
recompute: true
token_budget: 99
sharding: full
objective: rloo
task: {shots: 2}
rollout: {prompts: 3}
loss: {advantage_scale: unscaled, reduction: token}
keep: {last: 4}
"""
NEW = """\
output_dir: elsewhere
max_steps: 7
report_to: tensorboard
gradient_checkpointing: true
max_tokens_per_microbatch: 99
sharding: fsdp
algorithm: rloo
task: {num_fewshot: 2}
rollout: {prompts_per_step: 3}
loss: {scale_rewards: unscaled, loss_aggregation: token}
keep: {save_total_limit: 4}
"""


def parsed(*words):
    parser = Parser(prog="hrpo train")
    COMMANDS["train"][0](parser)
    return train_config(parser.instantiate(parser.parse_args(list(words))))


def dotted(settings, prefix=""):
    """The names and values of nested settings."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name, json.dumps(value).strip('"')


def told(capsys):
    """The lines on standard error."""
    return capsys.readouterr().err.splitlines()


def test_every_new_name_is_a_setting():
    names = dict(dotted(dataclasses.asdict(TrainConfig())))
    assert set(NEW_NAMES.values()) <= set(names)
    assert not set(NEW_NAMES) & set(names)
    assert set(NEW_NAMES) | {"sharding"} == {name for name, _ in dotted(yaml.safe_load(OLD))}


def test_in_a_file(tmp_path, capsys):
    for name, text in (("old", OLD), ("new", NEW)):
        (tmp_path / f"{name}.yaml").write_text(text)
    new = parsed("--config", str(tmp_path / "new.yaml"))
    assert told(capsys) == []
    assert parsed("--config", str(tmp_path / "old.yaml")) == new
    (line,) = told(capsys)
    assert line.startswith("hrpo train: ")
    for old, name in NEW_NAMES.items():
        assert f"{old} is {name} now" in line
    assert "sharding full is sharding fsdp now" in line


@pytest.mark.parametrize("between", ["=", " "])
def test_on_the_command_line(between, capsys):
    new = parsed(*shlex.split(" ".join(f"--{name}={value}" for name, value in dotted(yaml.safe_load(NEW)))))
    assert told(capsys) == []
    old = " ".join(f"--{name}{between}{value}" for name, value in dotted(yaml.safe_load(OLD)))
    assert parsed(*shlex.split(old)) == new
    (line,) = told(capsys)
    assert all(f"{old} is {name} now" in line for old, name in NEW_NAMES.items())


def test_a_whole_section_on_the_command_line(capsys):
    assert (
        parsed("--rollout", "{prompts: 3, top_k: 7}").rollout
        == parsed("--rollout.prompts_per_step=3", "--rollout.top_k=7").rollout
    )
    assert told(capsys) == [
        "hrpo train: rollout.prompts is rollout.prompts_per_step now; the next version takes the new names alone"
    ]


def test_later_words_override_whatever_they_are_called(capsys):
    assert parsed("--updates=3", "--max_steps=4").max_steps == 4
    assert parsed("--max_steps=4", "--updates=3").max_steps == 3


def test_values_that_look_like_old_names_stay(capsys):
    config = parsed("--name", "updates", "--task.path", "folder", "--rollout.temperature", "1e-3")
    assert (config.name, config.task.path, config.rollout.temperature) == ("updates", "folder", 1e-3)
    assert told(capsys) == []


def test_both_names_in_one_file_are_refused(tmp_path, capsys):
    (tmp_path / "both.yaml").write_text("updates: 3\nmax_steps: 4\n")
    with pytest.raises(SystemExit) as exit_info:
        main(["train", "--config", str(tmp_path / "both.yaml")])
    assert exit_info.value.code == 2
    assert told(capsys) == ["hrpo: error: updates: is max_steps now, which is given too; leave updates out"]


def test_commands_with_options_of_their_own_keep_them(capsys):
    """`--shots` of hrpo eval is no setting of a run."""
    with pytest.raises(SystemExit):
        main(["eval", "--checkpoint", "tiny", "--updates", "1"])
    assert "unknown option updates" in capsys.readouterr().err


def test_arms_of_a_comparison(tmp_path, capsys):
    """Dotted names, each arm by itself: what is wrong is still told under the setting's new name."""
    with pytest.raises(SystemExit) as exit_info:
        main(["compare", "--folder", str(tmp_path), "--arms", "{few: {rollout.prompts: many}}"])
    assert exit_info.value.code == 2
    first, second, third = told(capsys)
    assert first.startswith("hrpo compare: folder is output_dir now")
    assert second.startswith("hrpo compare: arms.few: rollout.prompts is rollout.prompts_per_step now")
    assert third.startswith("hrpo compare: arms.few: error: rollout.prompts_per_step: must be a whole number")


def test_a_run_of_0_1_is_resumed(tmp_path, capsys):
    say_once.cache_clear()
    config = parsed(*shlex.split(" ".join(f"--{name}={value}" for name, value in dotted(yaml.safe_load(NEW)))))
    (tmp_path / "config.yaml").write_text(OLD)
    for _ in range(2):  # once before and once after it is locked
        check_run_folder(tmp_path, dataclasses.asdict(config), resume=True)
    assert told(capsys) == [
        f"hrpo: {tmp_path / 'config.yaml'}: {', '.join(with_new_names(yaml.safe_load(OLD))[1])}; "
        "the next version takes the new names alone"
    ]
    other = dataclasses.replace(config, max_steps=8)
    with pytest.raises(InputError, match=r"^--resume: max_steps differ"):
        check_run_folder(tmp_path, dataclasses.asdict(other), resume=True)


def test_a_result_that_0_1_kept(tmp_path):
    result = {
        "run": "a",
        "settings": {"updates": 1, "seed": 0, "task": {"name": "arithmetic", "shots": 2}, "eval": {"problems": 1}},
        "evaluation": {},
        "right": {},
        "versions": {},
        "metrics": {"step": [1]},
    }
    settings = load_result(result, tmp_path, "results", "delete it").settings
    assert (settings["max_steps"], settings["task"]) == (1, {"name": "arithmetic", "num_fewshot": 2})
    assert "updates" in result["settings"]  # what was given is left alone


def test_a_model_that_0_1_saved(tmp_path):
    saved = dataclasses.asdict(HybridSettings("tiny", task={"name": "arithmetic", "shots": 2}))
    (tmp_path / "hybrid.json").write_text(json.dumps(saved))
    assert read_settings(tmp_path / "hybrid.json").task == {"name": "arithmetic", "num_fewshot": 2}


@pytest.mark.parametrize("settings", [None, [], "updates", {"rollout": 3}, {3: {"shots": 1}}, {"sharding": ["full"]}])
def test_what_is_no_setting_stays_as_it_is(settings):
    assert with_new_names(settings) == (settings, [])
