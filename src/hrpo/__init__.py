"""hrpo: hybrid latent reasoning by reinforcement learning (arXiv:2505.18454)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrpo.advantages import group_advantages as group_advantages
    from hrpo.algorithms import ALGORITHMS as ALGORITHMS
    from hrpo.data import Rollout as Rollout
    from hrpo.data import SamplingParams as SamplingParams
    from hrpo.engines import ENGINES as ENGINES
    from hrpo.gate import HybridGate as HybridGate
    from hrpo.gate import latent_embedding as latent_embedding
    from hrpo.inspection import inspect as inspect
    from hrpo.latent import LATENT_MODES as LATENT_MODES
    from hrpo.logprobs import replay as replay
    from hrpo.loss import hrpo_loss as hrpo_loss
    from hrpo.model import HybridCausalLM as HybridCausalLM
    from hrpo.model import Lora as Lora
    from hrpo.rollout import generate as generate


from hrpo.common.moved import find_moved_modules
from hrpo.common.version import __version__ as __version__

_HOME = {
    "ALGORITHMS": "algorithms",
    "ENGINES": "engines",
    "HybridCausalLM": "model",
    "HybridGate": "gate",
    "LATENT_MODES": "latent",
    "Lora": "model",
    "Rollout": "data",
    "SamplingParams": "data",
    "generate": "rollout",
    "group_advantages": "advantages",
    "hrpo_loss": "loss",
    "inspect": "inspection",
    "latent_embedding": "gate",
    "replay": "logprobs",
}
__all__ = list(_HOME)
find_moved_modules()


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'hrpo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hrpo.{_HOME[name]}"), name)
