"""``dogo-fast pretrain``: train two peers together and print the table."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from dogo_fast import training
from dogo_fast.commands.options import Options, check, given
from dogo_fast.reporting.report import write_report
from dogo_fast.training import PeerResult, PretrainConfig
from dogo_fast.training.config import Metavar
from dogo_fast.training.options import starting_point
from dogo_fast.training.presets import PRESETS

TITLES = {
    "preset": "where to start",
    "data": "images and views",
    "peers": "peers and losses",
    "epochs": "optimisation",
    "seed": "machine and precision",
    "out": "results",
}
"""Of the groups of options, by the first of each."""


class Sources(Options):
    """What the other options start from."""

    preset: Annotated[str | None, Metavar("NAME")] = None
    """Settings by name."""
    config: Annotated[Path | None, Metavar("FILE")] = None
    """Settings from a TOML or JSON file, a run's config.json for instance; they override the preset."""


def read(words: Sequence[str], summary: str) -> Callable[[], None]:
    """Options override the file, the file the preset."""
    description = (
        f"{summary} Presets: {', '.join(PRESETS)}. Per peer: one value for all, or one for each with commas between."
    )
    found = given("pretrain", words, [Sources, PretrainConfig], description, TITLES)
    sources = check(Sources, {name: found.pop(name) for name in Sources.model_fields if name in found})
    out = Path(found["out"]) if "out" in found else None
    start = starting_point(sources.preset, sources.config, found.get("resume"), out)
    config = check(PretrainConfig, {**start, **found})
    return lambda: run(config)


def run(config: PretrainConfig) -> None:
    """Train, then print the table."""
    start = time.perf_counter()
    results = training.pretrain(config, write_report)
    if all(peer.untrained is not None or peer.trained is not None for peer in results):
        print(format_table(results))
    print(f"{time.perf_counter() - start:.0f} s in total")


def format_table(results: Sequence[PeerResult]) -> str:
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
