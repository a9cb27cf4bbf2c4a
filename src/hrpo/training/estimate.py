"""Memory that a training run will need, from the shapes of its model alone: no weights, nothing is run."""

import math
import re
from typing import Any

import torch
from torch import nn

from hrpo.config.schema import TrainConfig, length_limit
from hrpo.engine.checkpointing import share_to_recompute
from hrpo.engine.select import accelerator_for
from hrpo.latent import mode_of
from hrpo.models.context import context_of
from hrpo.training.setup import latent_mode_of

LIBRARIES = 450_000_000  # Python, torch and transformers in a process on a CPU, measured


def estimate_memory(config: TrainConfig, lm_config: Any, *, cpu: bool, processes: int = 1) -> dict[str, int]:
    """Return bytes by what they are for in each process; their sum is its estimated peak.

    Activations are counted for decoder blocks as Llama has them. What decoding needs is free again when the update
    needs its own, and that when a checkpoint is written, so that the largest of these counts. Measured peaks beside it:
    docs/performance.md.

    Args:
        config: of the run; prompts are taken to have `rollout.max_prompt_tokens` (512 where it is 0) and completions
            `rollout.max_new_tokens`, the most there can be.
        lm_config: transformers' config of the model.
        cpu: on a CPU weights are packed again for decoding, in float32 all but the head's. There is a compiler.
        processes: that share the groups, and the parameters where `config.sharding` is "fsdp".

    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        lm: Any = AutoModelForCausalLM.from_config(lm_config)  # type: ignore[no-untyped-call]
    text = lm_config.get_text_config()
    D, L, V = text.hidden_size, text.num_hidden_layers, text.vocab_size
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or D // heads
    kv = (getattr(text, "num_key_value_heads", None) or heads) * width
    inner = getattr(text, "intermediate_size", None) or 4 * D
    rank, rollout = config.model.lora_rank, config.rollout
    half = config.model.dtype == "bfloat16"
    act = 2 if half else 8 if config.model.dtype == "float64" else 4
    stored = act if rank or not half else 4

    head = lm.get_output_embeddings()
    linears = [layer for layer in lm.modules() if isinstance(layer, nn.Linear) and layer is not head]
    total = sum(p.numel() for p in lm.parameters())
    in_linears = sum(layer.weight.numel() for layer in linears)
    adapters = rank * sum(layer.in_features + layer.out_features for layer in linears)
    gate = 2 * D * (D + 1) + D
    trained = (adapters or total) + gate

    latent = mode_of(latent_mode_of(config), config.latent.mixed_in).source
    stored_whole = latent == "hidden" or (latent != "none" and not rollout.top_k)

    B, G, P = rollout.prompts_per_step, rollout.group_size, rollout.max_prompt_tokens or 512
    T = length_limit(rollout.max_new_tokens, context_of(lm_config))
    group = P + G * T
    own = -(-B // processes)  # groups that a process rolls out and learns from, at most
    shards = processes if config.sharding == "fsdp" else 1
    root = sum(p.numel() for name, p in lm.named_parameters() if not re.search(r"\.\d+\.", name)) + gate
    accelerator = accelerator_for(torch.device("cpu" if cpu else "cuda"))
    (least, most), tile = accelerator.microbatch_tokens, accelerator.head_tile
    budget = config.max_tokens_per_microbatch or min(max(group, least), most)
    tokens = min(budget, own * group)
    tokens = tokens // group * group if tokens > group else tokens  # groups are not cut where they need not be
    # Bytes that a block keeps for its backward pass, per token: with compiled operations (`TrainedBlock`), or
    # without. Attention keeps copies where `PackedAttention` does not serve it. In bfloat16 norms of other blocks work
    # in float32, and so do adapters that are not fused with their layers: they keep their inputs once more.
    outs = sum(layer.out_features for layer in linears)
    plain = config.model.quantization == "none" and config.model.dtype != "float64"
    if cpu and rank and plain and _like_llama(lm, text):
        block = (4 * D + 2 * kv + 2 * inner + 7 * rank) * act
        passed = act * (outs + L * heads * width)
    else:
        block = (6 * D + 2 * kv + 4 * inner + 7 * rank) * act
        block += 4 * (6 * D + inner) if half and rank else 0
        passed = act * (outs + sum(layer.in_features for layer in linears))
    block += (D + 4 * kv) * act if not cpu or act == 8 else 0
    share = float(config.gradient_checkpointing) if config.gradient_checkpointing != "auto" else 0.0
    if config.gradient_checkpointing == "auto" and cpu:
        share = share_to_recompute(tokens * passed, total * stored)
    again = math.ceil(share * L)  # blocks
    kept = again * D * act + (L - again) * block + (block if again else 0)
    # Gathered while the update runs: what belongs to no block, with its gradients where it is trained, and two blocks.
    running = root * (stored + (0 if rank else 4)) + 2 * (total + gate - root) // L * stored
    decoding = {
        "decoding copy": (in_linears + (D * V if half else 0)) * act
        if cpu
        else 0
        if half or not rank
        else in_linears * stored,
        "gathered weights": total * stored + (adapters + gate) * 4 if shards > 1 else 0,
        "keys and values": 2 * L * kv * act * (own * G * T + own * P),
        "logits": own * G * 3 * V * 4,
    }
    update = {
        "activations": tokens * kept,
        "head": 2 * min(tile[0], tokens) * min(V, tile[1]) * 4,
        "gradients": trained * 4 // shards,
        "gathered weights": running if shards > 1 else 0,
    }
    # The first process gathers AdamW's state into main memory.
    saving = {"whole AdamW": trained * 8 if shards > 1 and cpu else 0}
    parts = {
        "weights": total * stored // shards,
        "adapters and gate": (adapters + gate) * 4 // shards,
        "reference": total * stored // shards if not rank and config.loss.beta else 0,
        "AdamW": trained * 8 // shards,
        "candidates": B * G * T * (rollout.top_k or 20) * 8,
        "latents": B * G * T * D * 4 if stored_whole else 0,
    }
    if cpu:
        parts["libraries"] = LIBRARIES
    phase = max((update, decoding, saving), key=lambda phase: sum(phase.values()))
    parts |= phase
    return {name: size for name, size in parts.items() if size}


def _like_llama(lm: Any, text: Any) -> bool:
    """Whether blocks seem to be of Llama's layout."""
    names = {name.split(".", 2)[-1] for name, _ in lm.base_model.named_modules() if name.startswith("layers.0.")}
    has = {"self_attn.q_proj", "mlp.gate_proj", "post_attention_layernorm"}
    lacks = {"self_attn.q_norm", "pre_feedforward_layernorm"}
    return has <= names and not lacks & names and getattr(text, "hidden_act", None) == "silu"
