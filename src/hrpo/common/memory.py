"""How much memory this process has used, and how much there is."""

import os
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> int:
    """Return the most that this process has held so far, in bytes: on the accelerator, or all of it on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # Linux; ru_maxrss would count what the parent process held
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def total_memory(device: torch.device) -> int:
    """Return how much there is, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
