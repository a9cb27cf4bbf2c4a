"""Several processes, as `accelerate launch` starts them: all run the same loop, the main one prints and writes.

Each takes its share of a batch's groups, and they tell each other what came out. With one process nothing of this does
anything.
"""

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from hrpo.common.errors import MainFailedError
from hrpo.common.signals import SIGNALS

BUCKET = 2**25  # numbers that are added up at a time: 128 MB of float32
LONGEST = timedelta(hours=2)  # that others wait for what one process does alone
_groups: dict[str, dist.ProcessGroup] = {}
T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


def objects() -> dist.ProcessGroup | None:
    """Return the group in which processes tell each other what is no tensor, over gloo whatever device they train on.

    One of them may write a checkpoint of many gigabytes meanwhile; NCCL would let the others wait on the GPU, and end
    the job after ten minutes. All processes have to call it for the first time together.
    """
    if dist.get_backend() == "gloo":
        return None  # the default group is one
    if "objects" not in _groups:
        _groups["objects"] = dist.new_group(backend="gloo", timeout=LONGEST)
    return _groups["objects"]


def count() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def planned() -> int:
    """Return how many the launcher has started, before they know of each other."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return which process this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def local_slice(n: int, of: int | None = None, at: int | None = None) -> range:
    """Return the places among n that one of several processes takes, this one of all: side by side, as even as can be.

    >>> [list(local_slice(5, 3, i)) for i in range(3)]
    [[0], [1, 2], [3, 4]]
    """
    of, at = of or count(), rank() if at is None else at
    return range(n * at // of, n * (at + 1) // of)


def gather(value: T) -> list[T]:
    """Return what each process has, in their order."""
    if count() == 1:
        return [value]
    packed: list[Any] = [None] * count()
    dist.all_gather_object(packed, _pack(value), group=objects())
    return [_unpack(data) for data in packed]


def all_reduce_sum(numbers: dict[str, float]) -> dict[str, float]:
    """Return the sums over all processes; a process without a share has none to add."""
    parts = gather(numbers)
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


def barrier() -> None:
    """Go on when all processes have come here."""
    if count() > 1:
        dist.barrier(group=objects())


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


def from_main(compute: Callable[[], T]) -> T:
    """Compute something in the main process, and return it in all.

    What only the main process does, such as to write, to print and to look at files, stands in such calls: where it
    fails, it fails in all processes, at the same place.

    Raises:
        Exception: what the main process raises, there.
        MainFailedError: in the others.

    """
    if count() == 1:
        return compute()
    message: list[Any] = [None]
    if not is_main_process():
        dist.broadcast_object_list(message, src=0, group=objects())
        value, failed = _unpack(message[0])
        if failed:
            raise everywhere(MainFailedError())
        return cast(T, value)
    try:
        value = compute()
    except BaseException as error:
        dist.broadcast_object_list([_pack((None, True))], src=0, group=objects())
        everywhere(error)
        raise
    dist.broadcast_object_list([_pack((value, False))], src=0, group=objects())
    return value


def everywhere(error: E) -> E:
    """Mark an exception as one that all processes raise at the same place."""
    error.is_everywhere = True  # type: ignore[attr-defined]
    return error


def is_everywhere(error: BaseException) -> bool:
    """Whether all processes have come to where this exception is, so that they can still do something together."""
    return count() == 1 or getattr(error, "is_everywhere", False)


def ignore_signals() -> None:
    """Leave signals to the main process, which tells the others what they mean."""
    if not is_main_process():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


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
