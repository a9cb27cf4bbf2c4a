"""A run resumes with the base model and problems it began with, or is refused in a line that says what changed."""

import json
import shutil
from pathlib import Path

import pytest
from models import change_one_weight, save_plain

from hrpo.common.errors import InputError
from hrpo.config.schema import CheckConfig, EvalConfig, LossConfig, ModelConfig, RolloutConfig, TaskConfig, TrainConfig
from hrpo.training.run import Run


@pytest.fixture
def base(tmp_path):
    return save_plain(tmp_path / "base")


def config_of(folder: Path, base: Path, lora_rank: int = 4, beta: float = 0.01, **task) -> TrainConfig:
    return TrainConfig(
        name="run",
        output_dir=str(folder / "runs"),
        max_steps=2,
        model=ModelConfig(str(base), lora_rank=lora_rank),
        task=TaskConfig(**task),
        loss=LossConfig(beta=beta),
        rollout=RolloutConfig(prompts_per_step=2, group_size=2, max_new_tokens=4),
        check=CheckConfig(prompts=0),
        eval=EvalConfig(problems=0),
    )


@pytest.mark.parametrize(("lora_rank", "beta"), [(4, 0.01), (0, 0.01), (0, 0.0)])
def test_a_run_goes_on_with_its_own_base_alone(base, tmp_path, lora_rank, beta):
    """Which one with all weights trained and without a reference does not need."""
    config = config_of(tmp_path, base, lora_rank, beta)
    begun = Run(config)
    begun.train_step()
    begun.save()
    assert Run(config, resume=True).step == 1
    change_one_weight(base)
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
    change_one_weight(base)
    with pytest.raises(InputError, match=r"--resume: the base model's model\.safetensors changed since the run began"):
        Run(config, resume=True)


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
