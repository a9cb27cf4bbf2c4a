"""The one error that the command line turns into a line of text."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message names the field and the fix; `hrpo` exits with 2."""
