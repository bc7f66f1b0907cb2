"""The command line: ``dogo-fast pretrain``, ``augment``, ``benchmark`` and ``tune``.

Whatever the user can put right is one line on stderr and exit code 2; a diverged run 1; Ctrl-C outside the training
130, and any signal that ends a benchmark 128 and its number. A run that was asked to stop and is saved is a success.
"""

import contextlib
import difflib
import importlib.util
import io
import itertools
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dogo_fast.errors import DivergedError, RunInterrupted, StoppedBySignal, UserError

if TYPE_CHECKING:
    from pydantic import ValidationError

    from dogo_fast.training import PeerResult, PretrainConfig

COMMANDS = ("pretrain", "augment", "benchmark", "tune")

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
        with _messages_beside_the_bar():
            command()
        sys.stdout.flush()
    except RunInterrupted as interruption:
        print(f"dogo-fast: {interruption}", flush=True)
    except StoppedBySignal as stop:
        return _fail(str(stop), 128 + stop.number)
    except UserError as error:
        return _fail(f"error: {_with_options(str(error))}", 2)
    except DivergedError as error:
        return _fail(f"error: {_with_options(str(error))}", 1)
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

    from dogo_fast import benchmark as benchmarks
    from dogo_fast.sheet import SheetConfig, save_sheet
    from dogo_fast.training import PretrainConfig
    from dogo_fast.training.options import starting_point
    from dogo_fast.training.presets import PRESETS
    from dogo_fast.tuning.command import TuneConfig, run_tune

    sources, rest = _split_sources(arguments)
    messages = io.StringIO()
    try:
        start = PretrainConfig(**starting_point(**sources))

        def pretrain(
            config: Annotated[PretrainConfig, tyro.conf.arg(name="")] = start,
            preset: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None,
            config_file: Annotated[
                Path | None, tyro.conf.arg(name="config", metavar="FILE", help_behavior_hint="")
            ] = None,
        ) -> Callable[[], None]:
            """Train two peers together; compare their features with the same networks untrained."""
            return lambda: run_pretrain(config)

        def augment(config: Annotated[SheetConfig, tyro.conf.arg(name="")]) -> Callable[[], None]:
            """Save a sheet of views, to look at."""
            return lambda: print(save_sheet(config))

        def benchmark(
            grid: benchmarks.Grid = "short",
            only: tuple[benchmarks.Suite, ...] = (),
            out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("benchmark.json"),
            minutes: float | None = None,
        ) -> Callable[[], None]:
            return lambda: benchmarks.benchmark(grid, only, out, minutes)

        def tune(config: Annotated[TuneConfig, tyro.conf.arg(name="")]) -> Callable[[], None]:
            """Measure tiles of the loss's kernels on the present GPU and keep the fastest for the losses to load."""
            return lambda: run_tune(config)

        benchmark.__doc__ = benchmarks.benchmark.__doc__
        pretrain.__doc__ = f"{pretrain.__doc__} Presets: {', '.join(PRESETS)}; a file is TOML or JSON."
        with contextlib.redirect_stderr(messages):
            command: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
                dict(zip(COMMANDS, (pretrain, augment, benchmark, tune), strict=True)),
                prog="dogo-fast",
                description="DoGo (Distill on the Go): two peers that learn representations together.",
                args=rest,
            )
            return command
    except ValidationError as error:
        raise UserError(_describe(error)) from None
    except SystemExit as exit_:
        if exit_.code == 0:
            raise
        said = messages.getvalue()
        problem = _unknown_command(rest[:1]) or _first_sentence(said) + _did_you_mean(said, rest[:1])
        raise UserError(problem) from None


def _split_sources(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What the other options start from: the values of --preset, --config, --resume and --out; and all arguments but
    the first two.

    Raises:
        UserError: one of the first two without a value.
    """
    found: dict[str, str | None] = {"--preset": None, "--config": None, "--resume": None, "--out": None}
    rest = []
    words = iter(arguments)
    if "pretrain" in arguments and not {"--help", "-h"} & set(arguments):
        for word in words:
            option, equals, value = word.partition("=")
            given = value if equals else next(words, None) if option in found else None
            if option not in found:
                rest.append(word)
                continue
            found[option] = given
            if option in ("--resume", "--out"):
                rest += [option] if given is None else [option, given]
            elif given is None:
                raise UserError(f"{option} must be followed by a value")
    else:
        rest = list(arguments)
    config_file, out = (None if found[key] is None else Path(str(found[key])) for key in ("--config", "--out"))
    return {"preset": found["--preset"], "config_file": config_file, "resume": found["--resume"], "out": out}, rest


@contextlib.contextmanager
def _messages_beside_the_bar() -> Any:
    """Warnings and the log of damaged images: one line each on stderr, which does not break the progress bar."""
    from tqdm import tqdm

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        with contextlib.suppress(OSError):  # nobody reads them: no reason to stop training
            tqdm.write(f"dogo-fast: warning: {message}", file=sys.stderr)

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


def run_pretrain(config: "PretrainConfig") -> None:
    """Train, then print the table."""
    from dogo_fast.training import pretrain

    start = time.perf_counter()
    results = pretrain(config)
    if all(peer.untrained is not None or peer.trained is not None for peer in results):
        print(format_table(results))
    print(f"{time.perf_counter() - start:.0f} s in total")


def format_table(results: Sequence["PeerResult"]) -> str:
    """Accuracies in percent, untrained → trained, a line a peer."""
    lines = [
        f"{'test accuracy, %':24}{'k-NN':^22}{'linear probe':^22}".rstrip(),
        f"{'':24}{'untrained → trained':^22}{'untrained → trained':^22}".rstrip(),
    ]
    for number, peer in enumerate(results, 1):
        pairs = [
            " → ".join("–" if scores is None else f"{100 * getattr(scores, measure):.1f}" for scores in both)
            for both in [(peer.untrained, peer.trained)]
            for measure in ("knn", "linear")
        ]
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
        allowed = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        allowed = allowed.replace("a valid number, unable to parse string as a number", "a number")
        if not detail["loc"]:  # of several options together; the message names them
            texts.append(allowed)
            continue
        names = [part for part in detail["loc"] if isinstance(part, str)]  # a number says which peer
        option = "--" + names[0].replace("_", "-")
        if names[0] == "recipe" and isinstance(detail["input"], dict) and names[1:2] == ["str"]:
            continue  # what is wrong within the table says more
        if names[0] == "recipe" and len(names) > 2:
            option = f"[recipe] {'.'.join(names[2:])}"
        texts.append(f"{option} {allowed}, got {detail['input']!r}")
    return "; ".join(dict.fromkeys(texts))


def _unframed(box: str) -> list[str]:
    """What tyro's framed error says below its title, rules as empty lines. Where stdout is not UTF-8 the frame is made
    of spaces and hyphens."""
    lines = [re.sub("^(│ |  )", "", line).rstrip("│ ") for line in box.splitlines()[1:]]
    return [line if line.strip("╰─╯- ") else "" for line in lines]


def _first_sentence(box: str) -> str:
    """What tyro's framed error says, without frame and help text, in one line."""
    below_title = itertools.dropwhile(lambda line: not line, _unframed(box))
    sentence = " ".join(line.strip() for line in itertools.takewhile(bool, below_title)) or "wrong arguments"
    for pattern, phrase in PHRASES:
        sentence = re.sub(pattern, phrase, sentence)
    return sentence


def _unknown_command(first: Sequence[str]) -> str:
    """What to say of a first word that is neither a command nor an option; "" of any other."""
    if not first or first[0] in COMMANDS or first[0].startswith("-"):
        return ""
    similar = " or ".join(difflib.get_close_matches(first[0].lower(), COMMANDS))
    question = f"; did you mean {similar}?" if similar else ""
    return f"the command must be one of {', '.join(COMMANDS)}, got {first[0]!r}{question}"


def _did_you_mean(box: str, command: Sequence[str]) -> str:
    """The options of the command that tyro found to be like mistyped ones: each stands above the help it is from."""
    similar = set()
    option = ""
    for line in _unframed(box):
        if found := re.match(r" {4}(--[\w-]+)", line):
            option = found[1]
        elif command and line.strip() == f"in dogo-fast {command[0]} --help":
            similar.add(option)
    return f"; did you mean {' or '.join(sorted(similar))}?" if similar else ""


def _with_options(message: str) -> str:
    """Settings, which the library names in backquotes as Python does, as the options that they are here."""
    return re.sub(r"`(\w+)`", lambda setting: "--" + setting[1].replace("_", "-"), message)


def _fail(message: str, code: int) -> int:
    print(f"dogo-fast: {message}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # what it still holds cannot be delivered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
