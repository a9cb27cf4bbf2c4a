"""The errors that the command line turns into a few lines of text."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message names the field and the fix; `hrpo` exits with 2."""


class StoppedError(RuntimeError):
    """A run ended itself and saved what it had. The message says why and what to change; `hrpo` exits with 3."""
