"""Several processes, as `accelerate launch` starts them: the first one leads, the others follow.

The first process runs the loop, decides, prints and writes. What is worth sharing stands in methods marked `together`:
when the first process calls one, the others do too, and each takes its share of the groups. With one process nothing
of this does anything.
"""

import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from hrpo.common.signals import SIGNALS

BUCKET = 2**25  # numbers that are added up at a time: 128 MB of float32
T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])


class Led(Protocol):
    """What all processes have one of: a trainer, at some step."""

    step: int


def count() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def planned() -> int:
    """Return how many the launcher has started, before they know of each other."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return which process this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this is the process that leads."""
    return rank() == 0


def share(n: int, of: int | None = None, at: int | None = None) -> range:
    """Return the places among n that one of several processes takes, this one of all: side by side, as even as can be.

    >>> [list(share(5, 3, i)) for i in range(3)]
    [[0], [1, 2], [3, 4]]
    """
    of, at = of or count(), rank() if at is None else at
    return range(n * at // of, n * (at + 1) // of)


def gather(value: T) -> list[T]:
    """Return what each process has, in their order."""
    if count() == 1:
        return [value]
    packed: list[Any] = [None] * count()
    dist.all_gather_object(packed, _pack(value))
    return [_unpack(data) for data in packed]


def add_up(numbers: dict[str, float]) -> dict[str, float]:
    """Return the sums over all processes; a process without a share has none to add."""
    parts = gather(numbers)
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


def wait() -> None:
    """Go on when all processes have come here."""
    if count() > 1:
        dist.barrier()


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Let every process have the sum of all gradients; a parameter that none has one for stays without."""
    if count() == 1:
        return
    has = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    dist.all_reduce(has)
    bucket: list[nn.Parameter] = []
    for p, some in zip(parameters, has.tolist(), strict=True):
        if not some:
            continue
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        if bucket and (bucket[0].dtype != p.dtype or sum(q.numel() for q in bucket) + p.numel() > BUCKET):
            _reduce(bucket)
            bucket = []
        bucket.append(p)
    if bucket:
        _reduce(bucket)


def _reduce(bucket: list[nn.Parameter]) -> None:
    gradients = [p.grad for p in bucket if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, torch.split(flat, [x.numel() for x in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def together(method: Method) -> Method:
    """Mark a method that all processes run when the first one calls it, at the same step; none calls another.

    Where the first process has failed in one of them, it is by itself from there on: see `alone`.
    """

    @functools.wraps(method)
    def call(self: Led, *args: Any, **options: Any) -> Any:
        if count() == 1 or not first() or _busy:
            return method(self, *args, **options)
        _busy.append(method.__name__)
        _send((method.__name__, self.step, args, options))
        result = method(self, *args, **options)
        _busy.pop()
        return result

    return cast(Method, call)


_busy: list[str] = []  # what the others are in too, of the process that leads


def alone() -> bool:
    """Whether the others have been left in a method that this process has failed in: they can do nothing with it."""
    return bool(_busy)


@contextmanager
def leading(trainer: Led) -> Iterator[bool]:
    """Yield whether this process leads; where it does not, after it has followed to the end.

    Where the first process fails in what all are in, it just ends: the others see the connection close.
    """
    if not first():
        _follow(trainer)
        yield False
        return
    try:
        yield True
    finally:
        if count() > 1 and not _busy:
            _send(None)


def _follow(trainer: Led) -> None:
    """Do what the first process does, until it has done; it alone hears of signals, and decides what they mean."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    while (message := _receive()) is not None:
        name, trainer.step, args, options = message
        getattr(trainer, name)(*args, **options)


def has_lost_another(error: RuntimeError) -> bool:
    """Whether an error says that another process has ended, or has not come to a common step in time."""
    return count() > 1 and (isinstance(error, dist.DistError) or "gloo/transport" in str(error))


def leave(code: int) -> NoReturn:
    """End this one of several processes, with what it has printed, but without Python's farewell.

    A thread of gloo frees the tensors of the last message whenever it comes to it. Where Python is ending by then, it
    is refused Python's lock and aborts: a finished run would look like a failed one, once in some fifteen (PyTorch's
    issue 190489).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _send(message: Any) -> None:
    dist.broadcast_object_list([_pack(message)], src=0)


def _receive() -> Any:
    data: list[Any] = [None]
    dist.broadcast_object_list(data, src=0)
    return _unpack(data[0])


def _pack(value: Any) -> bytes:
    data = io.BytesIO()
    torch.save(value, data)
    return data.getvalue()


def _unpack(data: bytes) -> Any:
    """Read what another process of this run has packed; nothing of it comes from a file."""
    device = torch.device("cpu" if dist.get_backend() == "gloo" else "cuda")
    return torch.load(io.BytesIO(data), map_location=device, weights_only=False)


def full(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded whole; all processes have to ask for it then."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_sharded(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor sharded as another is, or as it is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
