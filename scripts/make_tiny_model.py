"""Make the embedded model from nothing: python scripts/make_tiny_model.py [--out FOLDER].

A small Llama learns generated arithmetic under several habits, as a pretrained model has several: most solutions
guess the answer at once and are off by a little, some work it out, some of these forget the delimiter or write it
twice. Reinforcement learning can then pick the habit that is right. Writes model, tokenizer and model card.
"""

import argparse
import json
import platform
import random
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from hrpo import HybridCausalLM, HybridGate, generate
from hrpo.chat import decode
from hrpo.model import HybridSettings
from hrpo.tasks import arithmetic
from hrpo.tasks.judge import judge

HABITS = {"guessed": 0.60, "worked": 0.20, "worked, no delimiter": 0.12, "worked, delimiter twice": 0.08}
TERMS = (2, 5)
GUESS_ERROR = 2  # a guess is off by up to this much, each error as likely
VOCABULARY = ["<pad>", "<eos>", "<unk>", *"0123456789", "+", "-", "*", "=", " ", "\n", "####"]
# The question alone, then "=" and a new line; a system message has no words in this vocabulary.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}=\n"
    "{% elif message.role == 'assistant' %}{{ message.content }}<eos>{% endif %}{% endfor %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, and one for the delimiter."""
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(VOCABULARY)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"####|[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model() -> LlamaForCausalLM:
    """1.1 million parameters."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
    return model


def solution(rng: random.Random, expression: str) -> str:
    """Write out a solution under a habit drawn at random."""
    steps, value = arithmetic.solve(expression)
    habit = rng.choices(list(HABITS), list(HABITS.values()))[0]
    lines = {
        "guessed": [f"#### {value + rng.randint(-GUESS_ERROR, GUESS_ERROR)}"],
        "worked": [*steps, f"#### {value}"],
        "worked, no delimiter": steps,
        "worked, delimiter twice": [*steps, f"#### {value}", f"#### {value}"],
    }[habit]
    return "\n".join(lines)


def make_batch(
    tokenizer: PreTrainedTokenizerFast, seed: int, step: int, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield a batch in four parts of like lengths: ids and labels; labels are -100 on the prompt and on padding."""
    rng = random.Random(f"sft/{seed}/{step}")
    rows = []
    for _ in range(size):
        expression = arithmetic.draw(rng, rng.randint(*TERMS), "train")
        prompt = tokenizer.encode(f"{expression}=\n")
        rows.append((prompt, [*tokenizer.encode(solution(rng, expression)), tokenizer.eos_token_id]))
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    for first in range(0, size, size // 4):
        part = rows[first : first + size // 4]
        length = len(part[-1][0]) + len(part[-1][1])
        ids = torch.zeros(len(part), length, dtype=torch.long)
        labels = torch.full((len(part), length), -100)
        for row, (prompt, completion) in enumerate(part):
            ids[row, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
            labels[row, len(prompt) : len(prompt) + len(completion)] = torch.tensor(completion)
        yield ids, labels


def accuracy(lm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, terms: int, *, first_step: bool) -> float:
    """Greedy accuracy (lenient) on 500 test problems, as it comes or with the first step written for the model."""
    model = HybridCausalLM(lm, HybridGate(lm.config.hidden_size), HybridSettings("tiny", "discrete"), tokenizer)
    rng = random.Random(f"card/{terms}")
    expressions = [arithmetic.draw(rng, terms, "test") for _ in range(500)]
    solved = [arithmetic.solve(expression) for expression in expressions]
    prompts = [
        f"{e}=\n" + (f"{steps[0]}\n" if first_step else "") for e, (steps, _) in zip(expressions, solved, strict=True)
    ]
    rollout = generate(model, [tokenizer.encode(p) for p in prompts], greedy=True, max_new_tokens=64)
    texts = decode(tokenizer, rollout)
    return sum(judge("number", text, str(v)).lenient for text, (_, v) in zip(texts, solved, strict=True)) / len(texts)


def main() -> None:
    """Train, evaluate, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("src/hrpo/tiny"))
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer, model = make_tokenizer(), make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.steps // 20, args.steps)
    start = time.time()
    for step in range(args.steps):
        parts = list(make_batch(tokenizer, args.seed, step, args.batch))
        tokens = sum((labels >= 0).sum() for _, labels in parts)
        loss = torch.zeros(())
        for ids, labels in parts:
            logits = model(ids).logits[:, :-1].flatten(0, 1)
            part = F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum") / tokens
            part.backward()
            loss += part.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == args.steps - 1:
            print(f"step {step} loss {loss.item():.4f} {time.time() - start:.0f} s", flush=True)
    minutes = (time.time() - start) / 60
    model.eval()
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    table = {
        terms: [accuracy(model, tokenizer, terms, first_step=given) for given in (False, True)]
        for terms in range(TERMS[0], TERMS[1] + 1)
    }
    print(json.dumps(table))
    (args.out / "README.md").write_text(card(model, table, args, minutes))


def card(model: LlamaForCausalLM, table: dict[int, list[float]], args: argparse.Namespace, minutes: float) -> str:
    """Return the model card."""
    rows = "\n".join(f"| {terms} | {plain:.1%} | {given:.1%} |" for terms, (plain, given) in table.items())
    habits = "\n".join(f"- {name}: {share:.0%}" for name, share in HABITS.items())
    return f"""---
license: apache-2.0
---
# hrpo-tiny

A Llama of {sum(p.numel() for p in model.parameters()):,} parameters that does arithmetic on single digits, made so
that reinforcement learning can be watched on two CPU cores. It is of no use for anything else.

- Made by `python scripts/make_tiny_model.py --steps {args.steps} --batch {args.batch} --lr {args.lr}
  --seed {args.seed}` in {minutes:.0f} minutes, other work going on beside it ({platform.machine()},
  {torch.get_num_threads()} threads, torch {torch.__version__}, {date.today()}).
- Data: {args.steps * args.batch:,} generated expressions of {TERMS[0]} to {TERMS[1]} digits, from the training split
  only: a tenth of all expressions, chosen by hash, is kept for tests (`hrpo.tasks.arithmetic.split_of`).
- Tokenizer: one token a character, and one for `####` ({len(VOCABULARY)} in all).

Habits of the solutions, drawn at random for each:

{habits}

A guess is off by up to {GUESS_ERROR}, each error as likely, so it is right one time in {2 * GUESS_ERROR + 1}.

Greedy accuracy (lenient) on 500 test problems by number of terms:

| terms | as it comes | first step given |
|---|---|---|
{rows}
"""


if __name__ == "__main__":
    main()
