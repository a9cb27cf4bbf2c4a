"""The embedded model: what it is, what it was trained on, and that there is something for RL to pick from."""

import runpy
from pathlib import Path

import pytest

from hrpo import HybridCausalLM, generate
from hrpo.advantages import signal_share
from hrpo.chat import decode, encode
from hrpo.config.schema import TaskConfig
from hrpo.rewards import score
from hrpo.tasks import load_task
from hrpo.tasks.arithmetic import split_of

ROOT = Path(__file__).parent.parent
TINY = ROOT / "src" / "hrpo" / "tiny"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts" / "make_tiny_model.py"))


@pytest.fixture(scope="module")
def model():
    return HybridCausalLM.from_pretrained("tiny", latent_mode="discrete")


def test_size_and_architecture(model):
    assert sum(path.stat().st_size for path in TINY.glob("*.safetensors")) < 8e6
    assert model.lm.config.model_type == "llama"
    assert 1e6 < sum(p.numel() for p in model.lm.parameters()) < 5e6
    card = (TINY / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "| 5 |" in card  # accuracy by difficulty


def test_tokenizer_is_the_script_s(model, script):
    made = script["make_tokenizer"]()
    assert made.get_vocab() == model.tokenizer.get_vocab()
    text = "12-3*4=\n3*4=12\n12-12=0\n#### 0"
    for tokenizer in (made, model.tokenizer):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode("####") == [tokenizer.convert_tokens_to_ids("####")]
    (prompt,) = encode(model.tokenizer, [load_task(TaskConfig(), 0).messages("2+3")])
    assert model.tokenizer.decode(prompt) == "2+3=\n"


def test_training_data_holds_no_test_problem(script):
    tokenizer = script["make_tokenizer"]()
    seen = set()
    for step in (0, 1, 999):
        for ids, labels in script["make_batch"](tokenizer, 0, step, 128):
            for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
                prompt = [token for token, target in zip(row, label, strict=True) if target == -100]
                seen.add(tokenizer.decode(prompt, skip_special_tokens=True).removesuffix("=\n"))
    assert len(seen) > 200
    assert {split_of(expression) for expression in seen} == {"train"}
    task = load_task(TaskConfig())
    assert {split_of(example.question) for example in task.test[:500]} == {"test"}
    assert {split_of(example.question) for example in task.train[:500]} == {"train"}


def test_start_has_several_habits(model):
    task, G = load_task(TaskConfig(), seed=0), 8
    examples = task.train[:16]
    prompts = encode(model.tokenizer, [task.messages(example.question) for example in examples])
    rollout = generate(model, prompts, group_size=G, max_new_tokens=64)
    texts = decode(model.tokenizer, rollout)
    rewards, _ = score(task, [example for example in examples for _ in range(G)], texts)
    assert signal_share(rewards, G) >= 0.5
    assert 0.1 < rewards.mean() < 0.7
    counts = {text.count("####") for text in texts}
    assert counts == {0, 1, 2}
    greedy = decode(model.tokenizer, generate(model, prompts, greedy=True, max_new_tokens=64))
    assert sum(text.startswith("####") for text in greedy) >= 14  # most of the time it guesses
