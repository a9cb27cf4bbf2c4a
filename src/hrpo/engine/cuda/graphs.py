"""Decode steps captured as CUDA graphs, and repeated."""

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch

from hrpo.engine.interface import State

WARM_UPS = 3  # runs before a capture, as many as PyTorch's documentation takes
log = logging.getLogger("hrpo")


class CapturedSteps:
    """Steps by what their operations depend on, each captured at its first call.

    A captured step reads its state from tensors of its own and writes the next one there. Steps run one after the
    other, so that all have their memory in one pool.
    """

    def __init__(self) -> None:
        self.steps: dict[Hashable, tuple[State, Callable[[], None]]] = {}
        self.pool: Any = None
        self.capturable = True

    def run(self, step: Callable[[State], State], state: State, key: Hashable) -> State:
        """Do a step: the first of its kind is captured, the others repeat it. The state that comes back is its own.

        A model that waits for the device in a step, as some long-context RoPEs do, cannot be captured, which is said.
        """
        if not self.capturable:
            return step(state)
        shapes = tuple((name, value.shape, value.dtype) for name, value in state.items())
        kept = self.steps.get((key, shapes))
        if kept is None:
            try:
                kept = self.steps[key, shapes] = self._captured(step, state)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.capturable = False
                log.warning("decode steps run one by one, as they cannot be captured: %s", str(error).split("\n")[0])
                return step(state)
        own, repeat = kept
        for name, value in state.items():
            if value is not own[name]:
                own[name].copy_(value)
        repeat()
        return dict(own)

    def _captured(self, step: Callable[[State], State], state: State) -> tuple[State, Callable[[], None]]:
        """Capture a step; return the state that it works on, and what repeats it."""
        own = {name: value.clone() for name, value in state.items()}
        self.pool = self.pool or new_pool()
        return own, capture(lambda: _in_place(step, own), lambda: step(own), self.pool)


def _in_place(step: Callable[[State], State], state: State) -> None:
    """Do a step, and put what it returns where its state was; for that it has to be done to the end first."""
    after = step(state)
    for name, value in state.items():
        if after[name] is not value:
            value.copy_(after[name])


def new_pool() -> Any:
    """Return memory for graphs to share."""
    return torch.cuda.graph_pool_handle()


def capture(compute: Callable[[], None], warm_up: Callable[[], Any], pool: Any) -> Callable[[], None]:
    """Capture a function as a CUDA graph: return what repeats it, on the same tensors.

    Args:
        compute: may not wait for the device.
        warm_up: the same, but for changes that would show when it is done again; called a few times.
        pool: of memory, see `new_pool`.

    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries set themselves up in their first calls, which no graph can hold
        for _ in range(WARM_UPS):
            warm_up()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        compute()
    replay: Callable[[], None] = graph.replay
    return replay
