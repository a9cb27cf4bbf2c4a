"""Keep the libraries' own progress bars and notes off the screen."""


def quiet_libraries() -> None:
    """Our own progress is shown; the libraries' bars, and their notes to each other, are not."""
    import logging
    import warnings

    # At its import, bitsandbytes misses a kernel for weights packed as ours are not, see `keep_differentiable`.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each retry; what came of it is an error of ours
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")  # missing tensors: an error of ours
