"""What others do: a loop as the released code has it, `transformers.generate`, and TRL's `GRPOTrainer`."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from hrpo import HybridCausalLM
from hrpo.data import left_pad

from .harness import clock, conversation, forget_peak

WARM_UP_TOKENS = 150  # of each prompt, in TRL's first step on a given rollout


@torch.no_grad()
def release_loop(
    model: HybridCausalLM,
    prompt_ids: Sequence[Sequence[int]],
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    micro_batch: int = 8,
) -> list[int]:
    """Decode hybrid completions as the release does; return their lengths.

    Prompts repeated, micro-batches of 8 rows, softmax, sampling and mixture over the whole vocabulary, a cache that
    grows by concatenation, the text decoded at each step to look for the delimiter, finished rows run to the end.
    """
    rows = [prompt for prompt in prompt_ids for _ in range(group_size)]
    lm, table, lengths = model.bare_lm, model.embedding_table(), []
    device, eos = model.device, torch.tensor(model.eos_token_ids, device=model.device)
    for first in range(0, len(rows), micro_batch):
        ids, mask = left_pad(rows[first : first + micro_batch], eos[0].item(), device)
        n = len(ids)
        cache, inputs = DynamicCache(), model.embed(ids)
        finished = torch.zeros(n, dtype=torch.bool, device=device)
        completion = torch.empty(n, 0, dtype=torch.long, device=device)
        ends = torch.full((n,), max_new_tokens, device=device)
        for t in range(max_new_tokens):
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
            out = lm(
                inputs_embeds=inputs,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                logits_to_keep=1,
            )
            logits = out.logits[:, -1].float() / temperature  # (n, V)
            least = logits.topk(top_k).values[:, -1:]
            probs = torch.softmax(logits.masked_fill(logits < least, -torch.inf), dim=1)
            token = torch.multinomial(probs, 1)  # (n, 1)
            completion = torch.cat([completion, token], dim=1)
            ended = torch.isin(token.squeeze(1), eos) & ~finished
            ends[ended] = t + 1
            finished |= ended
            if finished.all():
                break
            thinking = ["####" not in text for text in model.tokenizer.batch_decode(completion)]
            e = model.embed(token.squeeze(1))
            h = (probs.to(table.dtype) @ table).float() / probs.norm(dim=1, keepdim=True)
            mixed, _ = model.gate(e, h)
            inputs = torch.where(torch.tensor(thinking, device=device).unsqueeze(1), mixed.to(e.dtype), e).unsqueeze(1)
            mask = torch.cat([mask, mask.new_ones(n, 1)], dim=1)
        lengths += ends.tolist()
    return lengths


@torch.no_grad()
def transformers_generate(
    lm: Any,
    eos: list[int],
    prompt_ids: Sequence[Sequence[int]],
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
) -> list[int]:
    """Sample plain tokens with one call of `generate` on the repeated prompts; return the completions' lengths."""
    ids, mask = left_pad([prompt for prompt in prompt_ids for _ in range(group_size)], eos[0] if eos else 0, lm.device)
    out: Tensor = lm.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=temperature,
        top_k=top_k,
        top_p=1.0,
        eos_token_id=eos or -1,  # no id: no early stop
        pad_token_id=eos[0] if eos else 0,
    )[:, ids.shape[1] :]
    ended = torch.isin(out, torch.tensor(eos, device=out.device)).int()
    return torch.where(ended.any(1), ended.argmax(1) + 1, out.shape[1]).tolist()


class TrlTrainer:
    """TRL's `GRPOTrainer` with the paper's LoRA, on a given rollout or with its own generation.

    Args:
        folder: the model.
        dtype: fp32, or bf16: weights in bfloat16 and bf16 training.
        problems: one a group.
        group_size: G.
        given: token ids of prompts, one a group, and of completions, one a row; None lets TRL generate.
        max_new_tokens: of its generation.
        per_device: rows of one forward; the rest is accumulated.
        gradient_checkpointing: TRL's default is True.
        device: cpu or cuda.

    """

    def __init__(
        self,
        folder: str,
        dtype: str,
        problems: Sequence[str],
        *,
        group_size: int,
        given: tuple[list[list[int]], list[list[int]]] | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.5,
        top_k: int = 50,
        per_device: int = 8,
        gradient_checkpointing: bool = True,
        device: str = "cpu",
    ) -> None:
        self.given, self.group_size, self.rows = given, group_size, len(problems) * group_size
        self.problems, self.folder, self.dtype = problems, folder, dtype
        self.settings = {
            "num_generations": group_size,
            "per_device_train_batch_size": per_device,
            "gradient_accumulation_steps": self.rows // per_device,
            "max_completion_length": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": 1.0,
            "gradient_checkpointing": gradient_checkpointing,
            "bf16": dtype == "bf16",
            "use_cpu": device == "cpu",
        }
        self.started = 0.0

    def seconds(
        self, steps: int, between: Callable[[int, float], object] = lambda turn, seconds: None, until: float = math.inf
    ) -> list[float]:
        """Train one step more than `steps` and return the seconds of each but the first, which warms up.

        A step on a given rollout begins when TRL has received it, a step of its own when the last one has ended.
        `between` gets each step's number and seconds, the first's (0) too: there the others have their turn. Steps that
        would end after `until` are left out, but for the first two.
        """
        times: list[float] = []
        this = self

        class Clock(TrainerCallback):
            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                if not times:
                    forget_peak()
                this.started = clock()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                times.append(clock() - this.started)
                between(len(times) - 1, times[-1])
                if len(times) > 1 and time.perf_counter() + (time.perf_counter() - this.started) > until:
                    control.should_training_stop = True

        def hand_out(texts: list[Any], trainer: Any) -> dict[str, Any]:
            prompts, completions = self.given
            if not times:  # the warm-up is a short one
                prompts = [prompt[-WARM_UP_TOKENS:] for prompt in prompts]
            self.started = clock()
            return {
                "prompt_ids": [prompt for prompt in prompts for _ in range(self.group_size)],
                "completion_ids": completions,
                "logprobs": None,
            }

        weights = torch.bfloat16 if self.dtype == "bf16" else torch.float32
        with tempfile.TemporaryDirectory() as folder:
            trainer = GRPOTrainer(
                model=AutoModelForCausalLM.from_pretrained(self.folder, dtype=weights),
                reward_funcs=lambda completions, **columns: [float(len(str(c)) % 2) for c in completions],
                args=GRPOConfig(
                    output_dir=folder,
                    max_steps=steps + 1,
                    beta=0.005,
                    loss_type="grpo",
                    learning_rate=5e-6,
                    max_grad_norm=0.1,
                    shuffle_dataset=False,
                    disable_tqdm=True,
                    logging_strategy="no",
                    save_strategy="no",
                    report_to="none",
                    **self.settings,
                ),
                train_dataset=Dataset.from_dict({"prompt": [conversation(problem) for problem in self.problems]}),
                processing_class=AutoTokenizer.from_pretrained(self.folder, padding_side="left"),
                peft_config=LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=64, target_modules="all-linear"),
                rollout_func=hand_out if self.given else None,
                callbacks=[Clock()],
            )
            trainer.train()
        return times[1:]
