"""What holds in all tests."""

from hrpo import kernels

measured_times = kernels._times


def pytest_configure() -> None:
    """Use all compiled code that there is, so that it is tested: what is faster differs between runs of tiny models."""
    kernels._times = lambda library, shape, task, threads: dict.fromkeys(kernels.KERNELS[task], (1.0, 9.0))
