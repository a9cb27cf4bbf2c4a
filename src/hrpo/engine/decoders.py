"""Which decoder a batch gets."""

from hrpo.engine.attention import use_packed_attention
from hrpo.engine.interface import DecodingKernels
from hrpo.engine.packed_decoder import Decoder, PackedDecoder, PlainDecoder
from hrpo.engine.packing_probe import packs_up_to
from hrpo.engine.static_decoder import StaticDecoder


def make_decoder(kernels: DecodingKernels, *, prompts: int, longest_prompt: int, max_new_tokens: int) -> Decoder:
    """Return the fast decoder where it serves the model, the plain one elsewhere.

    Args:
        kernels: of the model that decodes.
        prompts: the most prompts at a time.
        longest_prompt: tokens of the longest prompt to come.
        max_new_tokens: the most tokens of a completion.

    """
    model, options = kernels.model, kernels.options
    if not options.packed or longest_prompt + max_new_tokens > packs_up_to(model):
        return PlainDecoder(model)
    lm = kernels.inference_model()
    use_packed_attention(lm)
    kept = kernels.kept.get("decoder")
    if isinstance(kept, StaticDecoder) and kept.lm is lm and kept.fits(prompts, longest_prompt, max_new_tokens):
        kept.clear()
        return kept
    kernels.kept.clear()  # nothing that was captured fits any more, and its memory serves what follows
    kind = StaticDecoder if kernels.static else PackedDecoder
    decoder = kind(lm, kernels, prompts=prompts, longest_prompt=longest_prompt, max_new_tokens=max_new_tokens)
    if kernels.static:
        kernels.kept["decoder"] = decoder
    return decoder
