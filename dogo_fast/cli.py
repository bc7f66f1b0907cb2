"""The command line: a dictionary of commands, and what their ends are as exit codes.

Whatever the user can put right is one line on stderr and exit code 2; a diverged run 1; Ctrl-C outside the training
130, and any signal that ends a benchmark 128 and its number. A run that was asked to stop and is saved is a success.
"""

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

from dogo_fast.commands import as_options
from dogo_fast.errors import DivergedError, RunInterrupted, StoppedBySignal, UserError

COMMANDS = {
    "pretrain": "Train two peers together; compare their features with the same networks untrained.",
    "evaluate": "Measure what the features of a run's peers, or of any weights, are good for.",
    "compare": "Put runs side by side: tables, gains over a baseline, pictures.",
    "augment": "Save a sheet of views, to look at.",
    "benchmark": "Measure every kernel against what it is compared with, on the CPU and on a GPU if there is one.",
    "tune": "Measure tiles of the loss's kernels on the present GPU and keep the fastest for the losses to load.",
}
"""By name, each with what the help says of it; dogo_fast/commands/NAME.py is imported when it is asked for."""

TRAIN_MODULES = ("torchvision", "pydantic", "tqdm", "safetensors", "sklearn", "matplotlib")
"""What the extra [train] installs; imported only once it is known to be there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command (default: the process's arguments) and return its exit code."""
    try:
        _check_installed()
        command = parse(sys.argv[1:] if arguments is None else arguments)
        with _messages_beside_the_bar():
            command()
        sys.stdout.flush()
    except RunInterrupted as interruption:
        print(f"dogo-fast: {as_options(str(interruption))}", flush=True)
    except StoppedBySignal as stop:
        return _fail(str(stop), 128 + stop.number)
    except UserError as error:
        return _fail(f"error: {error}", 2)
    except DivergedError as error:
        return _fail(f"error: {error}", 1)
    except OSError as error:  # a full disk or a closed pipe behind stdout
        return _fail(f"error: cannot write the output ({error.strerror})", 1)
    except KeyboardInterrupt as interrupt:
        return _fail(f"interrupted; {interrupt}" if str(interrupt) else "interrupted", 130)
    return 0


def parse(arguments: Sequence[str]) -> Callable[[], None]:
    """The command that the arguments ask for, ready to run.

    Raises:
        UserError: unknown commands or options, or values that are not allowed.
        SystemExit: after printing the help that was asked for.
    """
    name, *words = arguments or [""]
    if name in ("-h", "--help"):
        print("usage: dogo-fast COMMAND [options]\n")
        print("DoGo (Distill on the Go): two peers that learn representations together.\n")
        print("\n".join(f"  {each:10} {summary}" for each, summary in COMMANDS.items()))
        print("\ndogo-fast COMMAND --help lists the options of a command.")
        raise SystemExit(0)
    if name not in COMMANDS:
        from dogo_fast.commands.options import did_you_mean

        got = f"{name!r}{did_you_mean([name], list(COMMANDS))}" if arguments else "none"
        raise UserError(f"the command must be one of {', '.join(COMMANDS)}, got {got}")
    command: Callable[[], None] = importlib.import_module(f"dogo_fast.commands.{name}").read(words, COMMANDS[name])
    return command


@contextlib.contextmanager
def _messages_beside_the_bar() -> Iterator[None]:
    """Warnings and the log of damaged images: one line each on stderr, which does not break the progress bar."""
    from tqdm import tqdm

    def show(message: Warning | str, *_: object, **__: object) -> None:
        with contextlib.suppress(OSError):  # nobody reads them: no reason to stop training
            tqdm.write(f"dogo-fast: warning: {as_options(str(message))}", file=sys.stderr)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show(record.getMessage())

    handler, logger = Handler(), logging.getLogger("dogo_fast")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logger.removeHandler(handler)


def _check_installed() -> None:
    missing = [name for name in TRAIN_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'dogo-fast[train]', in a checkout '.[train]'")


def _fail(message: str, code: int) -> int:
    print(f"dogo-fast: {as_options(message)}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # what it still holds cannot be delivered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
