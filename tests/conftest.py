"""What holds in all tests, and which combinations of parameters the fast suite takes."""

import os
import signal
from collections import defaultdict

import pytest

from hrpo.engine import like_llama

try:
    from hrpo.engine.cpu import kernels
except ModuleNotFoundError:  # in tests of the engine without that room
    kernels = None

measured_times = kernels and kernels._times


def pytest_configure() -> None:
    """Use all compiled code that there is, so that it is tested: what is faster differs between runs of tiny models."""
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # runs of a few tokens; tests of a GPU ask for it themselves
    like_llama.FAILURES_RAISE = True
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # which shells ignore in what they start in the background,
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this one
    if kernels is None:
        return
    kernels._times = lambda library, shape, task, threads: dict.fromkeys(kernels.KERNELS[task], (1.0, 9.0))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what the fast suite leaves out of tests marked `sampled`.

    It takes few combinations of their parameters, chosen so that every value of each parameter appears. Of
    `sampled(NAME, ...)` it takes as many for every combination of the named parameters.
    """
    tests = defaultdict(list)
    for item in items:
        if mark := item.get_closest_marker("sampled"):
            each = tuple(id(item.callspec.params[name]) for name in mark.args)
            tests[item.nodeid.partition("[")[0], each].append(item)
    for combinations in tests.values():
        missing = set().union(*map(_values, combinations))
        taken = []
        while missing:
            taken.append(max(combinations, key=lambda item: len(_values(item) & missing)))
            missing -= _values(taken[-1])
        for item in combinations:
            if item not in taken:
                item.add_marker("slow")


def _values(item: pytest.Item) -> set[tuple[str, int]]:
    return {(name, id(value)) for name, value in item.callspec.params.items()}  # one object in all combinations
