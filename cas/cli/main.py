"""Where the commands start, and how they end: one clear line and an exit code, never a traceback by surprise."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from cas.cli import output
from cas.cli.parser import WrongUsageError, verbosity
from cas.errors import CasError

if TYPE_CHECKING:
    import argparse
    from types import FrameType

log = logging.getLogger("cas.cli")

FAILED, INTERRUPTED = 1, 130
BROKEN_PIPE = 141  # what a shell shows for any command whose reader went away


def cas() -> int:
    """Run the command `cas`."""
    return _leave(run(sys.argv[1:], "cas"))


def det() -> int:
    """Run the command `det`."""
    return _leave(run(sys.argv[1:], "det"))


def _leave(code: int) -> int:
    """Do not wait for threads of a work that was interrupted: a store is whole at any moment."""
    if code == INTERRUPTED:
        sys.stderr.flush()
        os._exit(code)
    return code


def run(argv: list[str], program: str) -> int:
    """Run one command and return its exit code (cas/errors.py lists them)."""
    args: argparse.Namespace | None = None
    try:
        from cas.cli import commands

        _tolerate_odd_names()
        args = commands.parse(argv, program)
        _configure_logging(args)
        _stop_at_second_interrupt(args.again)
        code = args.run(args)
        sys.stdout.flush()
        return code or 0
    except SystemExit as error:  # --help and --version
        return _end(error.code, program)
    except KeyboardInterrupt:
        _drop_output()
        output.note(f"Interrupted; {args.again if args else 'nothing was done'}")
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except WrongUsageError as error:
        output.note(f"{error.program}: {error}; see {error.program} --help")
        return error.exit_code
    except CasError as error:
        return _fail(error, args, program)
    except OSError as error:
        return _fail(_explained(error), args, program)
    except Exception as error:
        return _fail_unexpectedly(error, args, program)


def _fail(error: CasError | OSError, args: argparse.Namespace | None, program: str) -> int:
    log.debug("the error in full:", exc_info=error)
    output.note(f"{_failed_to(args, program)}: {error}")
    _drop_output()
    return error.exit_code if isinstance(error, CasError) else FAILED


def _fail_unexpectedly(error: Exception, args: argparse.Namespace | None, program: str) -> int:
    shown = log.isEnabledFor(logging.INFO)
    if shown:
        log.info("the error in full:", exc_info=error)
    advice = "" if shown else f"; this is a defect in cas: `{program} -v …` shows where, please report it"
    output.note(f"{_failed_to(args, program)}: unexpected {type(error).__name__}: {error}{advice}")
    _drop_output()
    return FAILED


def _failed_to(args: argparse.Namespace | None, program: str) -> str:
    return f"Failed to {args.what}" if args else program


def _explained(error: OSError) -> CasError | OSError:
    from cas.index.disk import translate

    return translate(error, "cannot read or write") or error


def _end(code: object, program: str) -> int:
    if isinstance(code, str):
        output.note(code)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:
        return _fail(_explained(error), None, program)
    return code if isinstance(code, int) else 0 if code is None else FAILED


def _drop_output() -> None:
    """Let nothing that is still buffered fail again when Python exits."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _tolerate_odd_names() -> None:
    """Print paths that are no text as the bytes they are, and letters that the terminal lacks by their number."""
    import codecs
    import io

    def encode(error: UnicodeError) -> tuple[str | bytes, int]:
        assert isinstance(error, UnicodeEncodeError), "stdout only encodes"
        code = ord(error.object[error.start])
        escaped = bytes([code - 0xDC00]) if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"  # PEP 383
        return escaped, error.start + 1

    codecs.register_error("cas", encode)
    if sys.stdout is None:  # somebody closed it: there is nobody to print for
        sys.stdout = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="cas")


def _stop_at_second_interrupt(again: str) -> None:
    """Let the first Ctrl-C raise KeyboardInterrupt as ever, and the second end the process at once."""
    import signal

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # whoever started us does not want it

    def second(*_: object) -> None:
        os.write(2, f"Interrupted; {again}\n".encode("ascii", "backslashreplace"))
        os._exit(INTERRUPTED)

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, second)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, first)


def _configure_logging(args: argparse.Namespace) -> None:
    """Send the log of `cas` to stderr, as much of it as `-v` or the settings ask for."""
    level = {0: _level_of_settings(), 1: "INFO"}.get(verbosity(args), "DEBUG")
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    top = logging.getLogger("cas")
    top.handlers[:] = [stream]
    top.setLevel(level)
    top.propagate = False


def _level_of_settings() -> str:
    from cas.config import Settings
    from cas.errors import UsageError

    try:
        return Settings.load().log_level
    except UsageError:  # the command will say so; `doctor` says more
        return "WARNING"


if __name__ == "__main__":
    sys.exit(cas())
