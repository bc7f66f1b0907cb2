"""The command line: ``dogo-fast pretrain``.

Whatever the user can put right is one line on stderr and exit code 2; a diverged run 1; Ctrl-C 130.
"""

import contextlib
import importlib.util
import io
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

from dogo_fast.errors import DivergedError, UserError

if TYPE_CHECKING:
    from pydantic import ValidationError

    from dogo_fast.training import PeerResult, PretrainConfig

TRAIN_MODULES = ("torchvision", "pydantic", "tyro", "tqdm", "safetensors", "sklearn")
"""What the extra [train] installs; imported only once it is known to be there."""


PHRASES = (
    (r"Error parsing (--\S+): invalid literal for int\(\) with base 10:", r"\1 must be a whole number, got"),
    (r"Error parsing (--\S+): could not convert string to float:", r"\1 must be a number, got"),
)
"""What tyro passes on from Python, and what we say."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command (default: the process's arguments) and return its exit code."""
    try:
        _check_installed()
        command = parse(sys.argv[1:] if arguments is None else arguments)
        command()
        sys.stdout.flush()
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
    import tyro
    from pydantic import ValidationError

    from dogo_fast.training import PretrainConfig

    def pretrain(config: Annotated[PretrainConfig, tyro.conf.arg(name="")]) -> Callable[[], None]:
        """Train two peers together; compare their features with the same networks untrained."""
        return lambda: run_pretrain(config)

    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.extras.subcommand_cli_from_dict(
                {"pretrain": pretrain},
                prog="dogo-fast",
                description="DoGo (Distill on the Go): two peers that learn representations together.",
                args=list(arguments),
            )
    except ValidationError as error:
        raise UserError(_describe(error)) from None
    except SystemExit as exit_:
        if exit_.code == 0:
            raise
        raise UserError(_first_sentence(messages.getvalue())) from None


def run_pretrain(config: "PretrainConfig") -> None:
    """Train, then print the table."""
    from dogo_fast.training import pretrain

    start = time.perf_counter()
    results = pretrain(config)
    print(format_table(results))
    print(f"{time.perf_counter() - start:.0f} s in total")


def format_table(results: Sequence["PeerResult"]) -> str:
    """Accuracies in percent, untrained → trained, a line a peer."""
    lines = [
        f"{'test accuracy, %':24}{'k-NN':^22}{'linear probe':^22}".rstrip(),
        f"{'':24}{'untrained → trained':^22}{'untrained → trained':^22}".rstrip(),
    ]
    for number, peer in enumerate(results, 1):
        pairs = (
            f"{100 * peer.untrained.knn:.1f} → {100 * peer.trained.knn:.1f}",
            f"{100 * peer.untrained.linear:.1f} → {100 * peer.trained.linear:.1f}",
        )
        lines.append(f"{f'peer {number} ({peer.name})':24}{pairs[0]:^22}{pairs[1]:^22}".rstrip())
    return "\n".join(lines)


def _check_installed() -> None:
    missing = [name for name in TRAIN_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'dogo-fast[train]', in a checkout '.[train]'")


def _describe(error: "ValidationError") -> str:
    """Each wrong option with its value and what is allowed, in one line."""
    texts = []
    for detail in error.errors():
        option = "--" + "-".join(map(str, detail["loc"])).replace("_", "-")
        allowed = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        texts.append(f"{option} {allowed}, got {detail['input']!r}")
    return "; ".join(texts)


def _first_sentence(box: str) -> str:
    """What tyro's framed error says, without frame and help text, in one line."""
    lines = [line.strip("╭╮╰╯│─ ") if line[:1] in "╭╰│" else line.strip() for line in box.splitlines()]
    rule = next((number for number, line in enumerate(lines) if number > 1 and not line), len(lines))
    sentence = " ".join(lines[1:rule]) or "wrong arguments"
    for pattern, phrase in PHRASES:
        sentence = re.sub(pattern, phrase, sentence)
    return sentence


def _fail(message: str, code: int) -> int:
    print(f"dogo-fast: {message}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # what it still holds cannot be delivered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
