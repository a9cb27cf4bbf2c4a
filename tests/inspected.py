"""Rollouts for the page: a byte-level model that is made to write what the tests want to see."""

import json
import re

import torch
from models import CONFIGS, byte_level, random_lm

from hrpo import HybridCausalLM, HybridGate, generate, inspect
from hrpo.model import HybridSettings
from hrpo.tasks import Example, Task

HOSTILE = "</script><img src=x onerror=hacked=1>"
QUESTIONS = ["2+2?", f"Is {HOSTILE} safe?", "7?", "8?", "3?"]
GOLD = ["4", "5", "8", "9", "3"]
WRITTEN = {
    "hybrid": [
        "2+2=4\n#### 4",
        f"{HOSTILE} #### 5",
        "мир hello 你好 #### 7",
        "a longer thought that never ends, " * 6,
        "#### 3 #### 3",
    ],
    "discrete": ["#### 5", "#### 5", "#### 7", "#### 1", "#### 3"],
}
TASK = Task("sums", "number", [], [])
EXAMPLES = [Example(question, gold) for question, gold in zip(QUESTIONS, GOLD, strict=True)]


def writing_model() -> HybridCausalLM:
    tokenizer = byte_level()
    config = CONFIGS["llama"]()
    config.max_position_embeddings, config.eos_token_id = 1024, tokenizer.eos_token_id
    lm = random_lm(config, vocab_size=len(tokenizer) + 4)  # ids that the tokenizer does not know
    torch.manual_seed(0)
    gate = HybridGate(24, r_min=0.6, r_max=0.9)
    with torch.no_grad():
        gate.reset_gate.weight.mul_(20)  # tokens differ
    return HybridCausalLM(lm, gate, HybridSettings("memory", "hybrid"), tokenizer)


def write(model, texts, **options):
    """A rollout in which the model writes these texts."""
    ids = [[*model.tokenizer.encode(text), model.tokenizer.eos_token_id] for text in texts]
    longest = max(map(len, ids))
    forced = torch.tensor([row + [model.tokenizer.eos_token_id] * (longest - len(row)) for row in ids])
    prompts = [model.tokenizer.encode(question) for question in QUESTIONS[: len(texts)]]
    return generate(model, prompts, forced_ids=forced, **options)


def both_pages(model):
    rollouts = {mode: write(model, texts, latent_mode=mode, temperature=2.0) for mode, texts in WRITTEN.items()}
    return rollouts, inspect(rollouts, model, task=TASK, examples=EXAMPLES)


def blocks(html: str) -> dict:
    """The page's data."""
    found = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', html, re.DOTALL)
    return {name: json.loads(text) for name, text in found}
