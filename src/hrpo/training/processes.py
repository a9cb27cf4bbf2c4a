"""The processes of a run, as a launcher has started them."""

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from hrpo.common import distributed, watchdog
from hrpo.common.console import console


def join_processes() -> torch.device:
    """Let the processes that a launcher has started know each other; return this one's device."""
    accelerator = Accelerator(
        cpu=distributed.planned() > 1 and not torch.accelerator.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=watchdog.LIMIT)],
    )
    watchdog.start()
    distributed.ignore_signals()
    console.quiet = not distributed.is_main_process()
    device: torch.device = accelerator.device
    return device
