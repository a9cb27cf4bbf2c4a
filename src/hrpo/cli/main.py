"""The command line: find the command, run it, and turn what went wrong into one line and an exit code."""

import difflib
import errno
import io
import os
import signal
import sys
import time
from collections.abc import Sequence

from hrpo.cli import compare, data, evaluate, share, train
from hrpo.cli.parser import Command, Parser
from hrpo.common.errors import InputError, Interrupted, MainFailedError, OutputError, StoppedError
from hrpo.common.files import is_full
from hrpo.common.output import failures_told, give_up_output, say, warn
from hrpo.common.version import __version__

# Of the machine, not of the program: they end with a line too.
DISK_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG}
DISK_ERRORS |= {errno.EIO}

COMMANDS: dict[str, Command] = {
    **train.COMMANDS,
    **compare.COMMANDS,
    **evaluate.COMMANDS,
    **data.COMMANDS,
    **share.COMMANDS,
}
USAGE = "usage: hrpo {" + " | ".join(COMMANDS) + "} [options]"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; bad input exits with 2 and one line."""
    _open_streams()
    code = run_command(list(sys.argv[1:] if argv is None else argv))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from hrpo.common.distributed import leave

        leave(code)
    if code:
        sys.exit(code)


def run_command(words: list[str]) -> int:
    """Run a command and return the exit code that it ends with."""
    try:
        code = _run(words)
        with failures_told():
            sys.stdout.flush()
    except InputError as error:
        return _complain(_with_notes(error))
    except OutputError as error:
        give_up_output()
        if not isinstance(error.__cause__, BrokenPipeError):
            warn(f"hrpo: stopped: {_with_notes(error)}")
            return 3
        for note in _notes(error):  # else `hrpo tasks | head` ends as other programs do
            warn(f"hrpo: nobody reads on; {note}")
        return 128 + signal.SIGPIPE
    except MainFailedError:  # which says itself what is wrong
        return 1
    except StoppedError as error:
        warn(f"hrpo: stopped: {_with_notes(error)}")
        return 3
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return _complain(f"{error.filename or 'disk'}: {error.strerror}")
        if is_full(error):
            return _complain(f"disk: no room for what was to be written ({error}); make some, or name another folder")
        raise
    except Interrupted as error:
        warn(f"hrpo: interrupted; nothing is lost, {error}")
        return 4
    except KeyboardInterrupt:
        return 130
    return code


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        say("\n".join([USAGE, "", *(f"  {name:14} {summary}" for name, (_, _, summary) in COMMANDS.items())]))
        say("\n`hrpo COMMAND --help` lists a command's options.")
        return 0 if words else 2
    if words[0] == "--version":
        say(f"hrpo {__version__}")
        return 0
    if words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it is one of {', '.join(COMMANDS)}"
        raise InputError("", f"unknown command {words[0]}", hint)
    add_arguments, run, summary = COMMANDS[words[0]]
    parser = Parser(prog=f"hrpo {words[0]}", description=summary)
    add_arguments(parser)
    run(parser.instantiate(parser.parse_args(words[1:])))
    return 0


def _open_streams() -> None:
    """Give standard streams that were closed (`>&-`) a place, and let others show letters they have no code for."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115  it stays open
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _complain(message: str) -> int:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(5)  # the first process says it too, and its end ends this one: unless the fault is this one's alone
    warn(f"hrpo: error: {' '.join(message.split())}")  # one line, whatever a library says
    return 2


def _with_notes(error: BaseException) -> str:
    """Return what an error says, and what was noted on its way, such as where a run was saved."""
    return "; ".join([str(error), *_notes(error)])


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])
