"""What makes it fast. Every technique is exact; tests and benchmarks switch those that are on off one by one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Techniques:
    """Switches between the fast path and the plain one, which gives the same numbers.

    Args:
        packed_groups: run sequences without padding, a group's prompt once and attended to as shared, keys and values
            written in place. Off: the padded batches and the cache of transformers.
        compact: drop finished rows from the batch, and take waiting prompts into the free rows.
        packed_weights: on CPUs, matrix products through oneDNN, with weights packed ahead for decoding.
        folded_adapter: decode with the adapter added to the weights of a copy (never in bfloat16, which would round
            small updates away).
        fused_adapters: train an adapter beside its frozen layer in one operation (needs packed_groups and
            packed_weights).
        chunked_head: head and log-softmax for some completion positions and a part of the vocabulary at a time (needs
            packed_groups).
        compiled: on CPUs, by compiled code what it was measured to do faster (`kernels.py`): of decoding what is done
            besides its products, and with AVX-512 the products (attention needs packed_groups, and not static_shapes;
            the rest packed_weights), of updates what is done besides theirs (attention needs packed_groups, the rest
            fused_adapters). Needs a C++ compiler.
        static_shapes: decode with steps that are all alike, over the full length and without dropping rows (so
            compact does nothing), and on CUDA capture one as a graph to repeat (needs packed_groups). Off until it is
            measured on a GPU.

    """

    packed_groups: bool = True
    compact: bool = True
    packed_weights: bool = True
    folded_adapter: bool = True
    fused_adapters: bool = True
    chunked_head: bool = True
    compiled: bool = True
    static_shapes: bool = False


FAST = Techniques()
PLAIN = Techniques(*7 * [False])
