"""Tiny random models of several architectures, made in memory."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from hrpo import HybridCausalLM, HybridGate, Rollout
from hrpo.engine.interface import DEFAULT
from hrpo.model import HybridSettings

VOCAB, EOS, DELIMITER = 41, [2, 3, 4], 5
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SHAPE, **IDS),
    "qwen2": lambda: Qwen2Config(**SHAPE, **IDS, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SHAPE, **IDS),
    "gemma3": lambda: Gemma3TextConfig(
        **SHAPE,
        **IDS,
        sliding_window=6,  # shorter than prompt and completion
        query_pre_attn_scalar=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mistral": lambda: MistralConfig(**SHAPE, **IDS, sliding_window=6),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_embd=24, n_layer=3, n_head=4, n_positions=64, initializer_range=0.3, **IDS
    ),
    "gpt_neox": lambda: GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
        **IDS,
    ),
}


def random_lm(arch, dtype: torch.dtype = torch.float64, vocab_size: int = VOCAB) -> torch.nn.Module:
    """A model of an architecture in CONFIGS, or of a config."""
    torch.manual_seed(11)
    config = CONFIGS[arch]() if isinstance(arch, str) else arch
    config.vocab_size = vocab_size
    lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():  # biases and norms start at 0 and 1, where mistakes do not show
        for parameter in lm.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return lm.eval()


def random_model(arch, dtype: torch.dtype = torch.float64, latent_mode: str = "hybrid", **settings) -> HybridCausalLM:
    lm = random_lm(arch, dtype)
    gate = HybridGate(24, r_min=0.6, r_max=0.9)  # strong latents
    with torch.no_grad():
        for linear in (gate.reset_gate, gate.input_gate):
            linear.bias.normal_()
    return HybridCausalLM(lm, gate, HybridSettings("memory", latent_mode, **settings))


def plain_logprobs(lm, rollout: Rollout) -> torch.Tensor:
    """Log-probs of plain tokens, one unpadded row at a time, from token ids: (N, T)."""
    out = torch.zeros_like(rollout.sample_logprobs)
    for n, mask in enumerate(rollout.completion_mask.bool()):
        b = n // rollout.group_size
        prompt, completion = rollout.prompt_ids[b][rollout.prompt_mask[b].bool()], rollout.completion_ids[n][mask]
        ids = torch.cat([prompt, completion]).unsqueeze(0)
        logits = lm(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        out[n, : len(completion)] = logits.log_softmax(1).gather(1, completion.unsqueeze(1)).squeeze(1)
    return out


PROMPTS = [[7, 9, 11, 13, 6, 17, 19, 21], [8], [10, 12, 14, 16, 18]]
SAMPLER = {"temperature": 3.0, "top_k": 25, "delimiter": [DELIMITER], "eos_token_id": EOS, "max_new_tokens": 14}


def byte_level(**options) -> PreTrainedTokenizerFast:
    """A tokenizer of GPT-2's kind, with merges that make the delimiter hard to see; it has no padding token."""
    merges = [("#", "#"), ("##", "##"), ("##", "#"), ("Ċ", "####"), ("####", "Ċ"), ("Ġ", "##"), ("Ġ", "#")]
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", **options)


def sentence_piece(*, prefix: bool = True, **options) -> PreTrainedTokenizerFast:
    """A tokenizer of Llama-2's kind: spaces are symbols, and a text gets one in front of it."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {symbol: i for i, symbol in enumerate(["<unk>", "<s>", "</s>", "\u2581", "\n", *letters])}
    merges = [("\u2581", letter) for letter in letters if letter.isalnum() or letter in "#<["]
    merges += [("#", "#"), ("##", "##"), ("\u2581", "####"), ("]", "(")]
    for pair in merges:
        vocabulary.setdefault("".join(pair), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    before = [normalizers.Prepend("\u2581")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.Fuse(), *([decoders.Strip(" ", 1, 0)] if prefix else [])]
    tokenizer.decoder = decoders.Sequence(steps)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **options)


class Letters(PreTrainedTokenizer):
    """A tokenizer in Python, a token a character."""

    def __init__(self, **options):
        self.letters = {chr(code): code for code in range(128)}
        super().__init__(bos_token="<s>", eos_token="</s>", **options)

    @property
    def vocab_size(self):
        return len(self.letters)

    def get_vocab(self):
        return {**self.letters, **self.added_tokens_encoder}

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.letters[token]

    def _convert_id_to_token(self, index):
        return chr(index)

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)


def inference_copy(model, *, compiled=True):
    """Return the copy that decodes on a CPU."""
    from hrpo.engine.cpu.accelerator import CpuAccelerator

    return CpuAccelerator(compiled=compiled).decoding(model, DEFAULT).inference_model()


def save_plain(folder: Path) -> Path:
    """Write the embedded model as a plain model's folder, without a gate."""
    model = HybridCausalLM.from_pretrained("tiny")
    model.bare_lm.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def change_one_weight(folder: Path) -> None:
    """Change a number in a model's folder; names, shapes and the file's size stay."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
