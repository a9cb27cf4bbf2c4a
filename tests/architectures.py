"""Which decoder-only architectures run, by which path, and what the others answer: one list for tests and docs."""

import functools
import logging
import tempfile
from dataclasses import dataclass, field
from typing import Any

import torch
from models import CONFIGS, IDS, PROMPTS, SAMPLER, SHAPE, plain_logprobs, random_lm, random_model
from transformers import AutoConfig, AutoModel

from hrpo import HybridCausalLM, Rollout, generate, replay
from hrpo.common.errors import InputError
from hrpo.engine.interface import REFERENCE
from hrpo.engine.packing_probe import packs_up_to
from hrpo.models.context import rope_limit

KV = {"num_key_value_heads": 2}
HEADS = KV | {"head_dim": 6}
COMMON = {name: value for name, value in SHAPE.items() if name not in HEADS} | IDS
WINDOW = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LONGROPE = {
    "original_max_position_embeddings": 32,
    "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0, 1.0, 1.0], "long_factor": [1.5, 6.0, 30.0]},
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 6,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}


@dataclass(frozen=True)
class Kind:
    """An architecture: transformers' name of it, what its tiny config has beside the common shape, and how exact it is.

    `remark` says why it is no more exact than float32: what it computes in float32 whatever its dtype is, or that it
    cannot be computed in float64.
    """

    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    remark: str = ""
    dtype: torch.dtype = torch.float64

    @property
    def atol(self) -> float:
        """What two ways to compute a log-probability may differ by."""
        return 1e-4 if self.dtype == torch.float32 else 1e-5 if self.remark else 1e-8


NO_FLOAT64 = "in float64 its mask overflows"
ATTENTION = "attends in float32"
ARCHITECTURES = {
    **{name: Kind(CONFIGS[name]().model_type) for name in CONFIGS},
    "apertus": Kind("apertus", HEADS),
    "arcee": Kind("arcee", HEADS),
    "biogpt": Kind("biogpt"),
    "bloom": Kind("bloom", remark=NO_FLOAT64, dtype=torch.float32),
    "codegen": Kind("codegen", {"rotary_dim": 4}, remark=ATTENTION),
    "cohere": Kind("cohere", KV),
    "cohere2": Kind("cohere2", HEADS | WINDOW),
    "deepseek_v3": Kind(
        "deepseek_v3",
        MOE
        | {
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 6,
            "first_k_dense_replace": 1,
        },
        remark="routes in float32",
    ),
    "diffllama": Kind("diffllama", KV),
    "ernie4_5": Kind("ernie4_5", HEADS),
    "exaone4": Kind("exaone4", HEADS | WINDOW),
    "falcon": Kind("falcon"),
    "falcon, ALiBi": Kind("falcon", {"alibi": True}),
    "gemma": Kind("gemma", HEADS),
    "gemma2": Kind("gemma2", HEADS | WINDOW | {"query_pre_attn_scalar": 6}),
    "gemma4": Kind("gemma4_text", HEADS | WINDOW | {"hidden_size_per_layer_input": 0}),
    "glm": Kind("glm", HEADS),
    "glm4": Kind("glm4", HEADS),
    "gpt_bigcode": Kind("gpt_bigcode"),
    "gpt_neo": Kind(
        "gpt_neo",
        {
            "num_layers": 3,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1], [["global"], 1]],
            "window_size": 6,
        },
        remark=ATTENTION,
    ),
    "gpt_oss": Kind("gpt_oss", HEADS | WINDOW | MOE),
    "gptj": Kind("gptj", {"rotary_dim": 4}, remark=ATTENTION),
    "granite": Kind(
        "granite",
        KV
        | {
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
        },
    ),
    "granitemoe": Kind("granitemoe", KV | MOE | {"embedding_multiplier": 3.0, "logits_scaling": 2.0}),
    "helium": Kind("helium", HEADS),
    "hunyuan_v1_dense": Kind("hunyuan_v1_dense", HEADS),
    "internlm3": Kind("internlm3", HEADS),
    "llama4": Kind("llama4_text", HEADS | MOE, remark=ATTENTION),
    "minicpm3": Kind("minicpm3"),
    "ministral": Kind("ministral", HEADS | WINDOW),
    "llama, dynamic NTK": Kind(
        "llama", HEADS | {"max_position_embeddings": 32, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}
    ),
    "mixtral": Kind("mixtral", HEADS | MOE),
    "modernbert-decoder": Kind("modernbert-decoder"),
    "mpt": Kind("mpt", remark=NO_FLOAT64, dtype=torch.float32),
    "nanochat": Kind("nanochat", KV),
    "nemotron": Kind("nemotron", HEADS),
    "olmo": Kind("olmo", KV),
    "olmo2": Kind("olmo2", KV),
    "olmo3": Kind("olmo3", KV | WINDOW),
    "olmoe": Kind("olmoe", KV | MOE),
    "opt": Kind("opt", {"ffn_dim": 40, "word_embed_proj_dim": 24}),
    "persimmon": Kind("persimmon", {"partial_rotary_factor": 0.7}),
    "phi": Kind("phi", {"partial_rotary_factor": 0.7}),
    "phi3": Kind("phi3", KV),
    "phi3, LongRoPE": Kind("phi3", KV | LONGROPE),
    "phimoe": Kind("phimoe", KV | MOE),
    "qwen2_moe": Kind("qwen2_moe", KV | MOE | {"shared_expert_intermediate_size": 16}),
    "qwen3_moe": Kind("qwen3_moe", HEADS | MOE),
    "seed_oss": Kind("seed_oss", HEADS),
    "smollm3": Kind("smollm3", KV),
    "stablelm": Kind("stablelm", KV),
    "starcoder2": Kind("starcoder2", KV),
    "xglm": Kind(
        "xglm",
        {"d_model": 24, "ffn_dim": 40, "num_layers": 3, "attention_heads": 4},
        remark=NO_FLOAT64,
        dtype=torch.float32,
    ),
}
REFUSED = {
    "mamba": Kind("mamba", {"state_size": 4}),
    "mamba2": Kind("mamba2", {"num_heads": 4, "head_dim": 12, "state_size": 4, "n_groups": 1}),
    "rwkv": Kind("rwkv"),
    "recurrent_gemma": Kind("recurrent_gemma", {"num_key_value_heads": 1, "lru_width": 24}),
    "jamba": Kind("jamba", KV),
    "lfm2": Kind("lfm2", KV | {"layer_types": ["conv", "full_attention", "conv"]}),
    "falcon_h1": Kind(
        "falcon_h1",
        KV | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1},
    ),
    "qwen3_next": Kind("qwen3_next", HEADS | MOE | LINEAR | {"shared_expert_intermediate_size": 16}),
    "qwen3_5": Kind("qwen3_5_text", HEADS | LINEAR),
    "gemma3n": Kind(
        "gemma3n_text",
        HEADS
        | {
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "num_kv_shared_layers": 1,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 41,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0] * 3,
        },
    ),
    "gemma4, per-layer inputs": Kind(
        "gemma4_text", HEADS | WINDOW | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 41}
    ),
    "opt, narrow embedding": Kind("opt", {"ffn_dim": 40, "word_embed_proj_dim": 16}),
    "openai-gpt": Kind("openai-gpt"),
    "bert": Kind("bert"),
    "t5": Kind("t5", {"d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4}),
}


def config_of(kind: Kind) -> Any:
    """A tiny config."""
    return AutoConfig.for_model(kind.model_type, **COMMON | kind.changes)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    cls: str
    embedding: str
    path: str
    reason: str
    exact: str

    def __str__(self) -> str:
        return f"| {self.name} | `{self.cls}` | {self.embedding} | {self.path} | {self.reason} | {self.exact} |"


@torch.no_grad()
def check_law_1(model: HybridCausalLM, prompts: list[list[int]], atol: float, **sampler: Any) -> Rollout:
    """Replay equals rollout, on the path the model takes and on the plain one; the reference is the plain model."""

    def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(actual, expected, atol=atol, rtol=0)

    rollout = generate(model, prompts, group_size=4, seed=3, **{**SAMPLER, **sampler})
    logprobs, reference = replay(model, rollout)
    same(logprobs, rollout.sample_logprobs)
    same(reference, plain_logprobs(model.lm, rollout))
    same(replay(model, rollout, options=REFERENCE)[0], logprobs)
    assert rollout.hybrid_mask.any()
    assert not torch.allclose(logprobs, reference, atol=1e-3), "the latents change nothing"
    return rollout


@functools.cache
def row(name: str) -> Row:
    """Run law 1 on an architecture and say how it went."""
    kind = ARCHITECTURES[name]
    model = random_model(name, kind.dtype) if name in CONFIGS else random_model(config_of(kind), kind.dtype)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("hrpo")
    log.addHandler(handler)
    try:
        rollout = check_law_1(model, PROMPTS, kind.atol)
        assert len(set(rollout.lengths.tolist())) > 2
        window = packs_up_to(model)
    finally:
        log.removeHandler(handler)
    if 0 < window < 10**6:
        check_law_1(model, [[7, 9], [8]], kind.atol, max_new_tokens=window - 2)  # short enough to be packed
    table = model.embedding_table()
    scale = (table.norm() / model.embedding.weight.norm()).item()
    tied = model.bare_lm.get_output_embeddings().weight is model.embedding.weight
    embedding = ("tied" if tied else "untied") + (f", times {scale:.3g}" if abs(scale - 1) > 1e-3 else "")
    path = "plain" if not window else "packed" if not lines else f"packed up to {window} tokens, plain beyond"
    (reason,) = [line.split("the plain path: ")[1] for line in lines] or ["-"]
    if limit := rope_limit(model.bare_lm.config):
        assert _refuses(model, limit.tokens)
        path += f" up to {limit.tokens} tokens, refused beyond"
        reason = f"its {limit.kind} position embedding changes there"
    exact = f"{str(kind.dtype).removeprefix('torch.')}, {kind.atol:.0e}".replace("e-0", "e-")
    if kind.remark:
        exact += f": {kind.remark}"
    return Row(name, type(model.bare_lm).__name__, embedding, path, reason, exact)


def _refuses(model: HybridCausalLM, tokens: int) -> bool:
    """Whether it completes a prompt to a sequence of so many tokens, and to none of one more."""
    generate(model, [[7] * (tokens - 1)], **SAMPLER | {"max_new_tokens": 1})
    try:
        generate(model, [[7] * tokens], **SAMPLER | {"max_new_tokens": 1})
    except InputError:
        return True
    return False


@functools.cache
def refusal(name: str) -> str:
    """Save a tiny model, load it as a user does, and return the error."""
    kind = REFUSED[name]
    config = config_of(kind)
    lm = AutoModel.from_config(config) if config.is_encoder_decoder else random_lm(config, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        lm.save_pretrained(folder)
        try:
            HybridCausalLM.from_pretrained(folder)
        except InputError as error:
            return str(error).replace(folder, "FOLDER")
    raise AssertionError(f"{name} is not refused")


def tables() -> str:
    """Both tables in Markdown."""
    head = "| architecture | class | embedding | path | reason | exact to |"
    lines = [head, "|" + "---|" * 6]
    lines += [str(row(name)) for name in sorted(ARCHITECTURES)]
    lines += ["", "| refused | error |", "|---|---|"]
    lines += [f"| {name} | {_code(refusal(name))} |" for name in REFUSED]
    return "\n".join(lines)


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"
