"""``dogo-fast evaluate``: everything that is asked of frozen features, of the peers of a run or of any weights."""

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field

from dogo_fast import __version__
from dogo_fast.atomic import write_atomically
from dogo_fast.commands.options import Options, Positional, parse
from dogo_fast.data import DECODE_SIZE, DataSet, load_data_set
from dogo_fast.errors import UserError
from dogo_fast.evaluation import KINDS, Network, Suite, load_networks
from dogo_fast.evaluation.suite import name_of_transfer
from dogo_fast.measuring import device_name
from dogo_fast.training.checkpoint import run_of
from dogo_fast.training.config import FROM_PYTHON, Metavar, resolve_device
from dogo_fast.training.pretraining import unlabelled
from dogo_fast.training.run_folder import run_settings

RESULTS = "evaluation.json"
USUAL = ("knn", "linear")


def _check_kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [kind for kind in kinds if kind not in (*KINDS, "all")]
    if unknown:
        raise ValueError(f"must be of {', '.join(KINDS)}, all")
    return tuple(dict.fromkeys(kinds))


class EvaluateConfig(Options):
    """What is evaluated, and how."""

    run: Annotated[tuple[Path, ...], Positional("RUN")] = ()
    """Run folders, checkpoints, or files of weights (safetensors, or PyTorch's)."""
    only: Annotated[tuple[str, ...], AfterValidator(_check_kinds), Metavar("KIND")] = Field(
        USUAL, description=f"What to measure, of {', '.join(KINDS)}, or all."
    )
    peer: int | None = Field(None, ge=1)
    """Of a run, this peer alone."""
    backbone: Annotated[str | None, Metavar("NAME")] = None
    """The network of a file of weights that does not say it: as `peers` of pretrain."""
    image_size: Annotated[int | None, Metavar("PIXELS")] = Field(None, ge=4, le=4096)
    """Side of the images of a file of weights that does not say it (default: the data set's)."""
    data: Annotated[str | None, Metavar("NAME")] = None
    """Data set, as in pretrain (default: the run's own)."""
    data_dir: Annotated[Path | None, Metavar("DIR")] = None
    """Folder that holds the data set's files (default: the run's own)."""
    transfer: Annotated[tuple[str, ...], Metavar("NAME[=DIR]")] = ()
    """Other data sets to measure on, each with its folder: digits torchvision:FashionMNIST=DIR."""
    seeds: int = Field(1, ge=1, le=100)
    """Draws of labels, probes and fine-tunings; the mean and the standard deviation are told."""
    workers: int = Field(0, ge=0, le=256)
    """Processes that decode images."""
    device: Annotated[str, Metavar("auto|cpu|cuda|cuda:N")] = "auto"
    """Where to evaluate."""
    out: Annotated[Path | None, Metavar("FILE")] = None
    """JSON file for the scores (default: evaluation.json in the run folder; of a file of weights, none)."""
    residence: Literal["auto", "device", "stream"] = "auto"
    """As in pretrain."""


def read(words: Sequence[str], summary: str) -> Callable[[], None]:
    """Evaluating, then printing a table for each."""
    config = parse("evaluate", words, EvaluateConfig, summary)
    if not config.run:
        raise UserError("RUN must be a run folder, a checkpoint or a file of weights, got none")
    if config.out is not None and len(config.run) > 1:
        raise UserError(f"`out` must not be given with several runs, got {config.out}")
    return lambda: run(config)


def run(config: EvaluateConfig) -> None:
    """Raises UserError for what cannot be read or does not fit."""
    device = resolve_device(config.device)
    kinds = _kinds(config)
    transfer = [_load(name, folder, config) for name, folder in map(_named, config.transfer)]
    for path in config.run:
        if not path.exists():
            raise UserError(
                f"RUN must be a run folder, a checkpoint or a file of weights, got {path}, which is not there"
            )
    for path in config.run:
        data = _data_of(path, config)
        for note in (*data.notes, *unlabelled(data)):
            print(f"{data.name}: {note}")
        networks = load_networks(path, config.backbone, config.image_size or data.view_size)
        if config.peer is not None:
            networks = [network for network in networks if network.peer == config.peer]
            if not networks:
                raise UserError(f"`peer` must be one of {path}, got {config.peer}")
        results = {}
        for network in networks:
            name = f"peer_{network.peer}" if network.peer else network.name
            results[name] = {"name": network.name, "scores": _scores(network, data, transfer, kinds, config, device)}
            print(format_scores(f"{path}, {name.replace('_', ' ')} ({network.name}), {data.name}", results[name]))
        folder = _folder_of(path)
        out = config.out or (None if folder is None else folder / _file_name(path, folder, data))
        if out is not None:
            _write(out, results, data, path, device)


def _kinds(config: EvaluateConfig) -> tuple[str, ...]:
    """What is measured; of "all" without other data sets, transfer is not.

    Raises:
        UserError: transfer without data sets or the other way round, or two data sets whose scores have one name.
    """
    kinds = tuple(KINDS) if "all" in config.only else config.only
    if "all" in config.only and "transfer" not in config.only and not config.transfer:
        print("transfer is left out: it needs other data sets (--transfer)")
        kinds = tuple(kind for kind in kinds if kind != "transfer")
    if ("transfer" in kinds) != bool(config.transfer):
        raise UserError("`transfer` data sets and the kind transfer of `only` must be given together")
    names = [name_of_transfer(_named(word)[0]) for word in config.transfer]
    if len(set(names)) < len(names):
        raise UserError(f"`transfer` data sets must have different names, got {', '.join(names)}")
    return kinds


def _scores(
    network: Network,
    data: DataSet,
    transfer: Sequence[DataSet],
    kinds: Sequence[str],
    config: EvaluateConfig,
    device: torch.device,
) -> dict[str, list[float]]:
    if network.left_out:
        print(f"{network.name}: the classifier's weights are left out: {', '.join(network.left_out)}")
    backbone = network.backbone.to(memory_format=torch.channels_last).to(device)
    own = as_network_sees(data, network).to(device)
    others = [each.to(device) for each in transfer]
    return Suite(backbone, own, others, range(config.seeds), config.workers).scores(kinds)


def as_network_sees(data: DataSet, network: Network) -> DataSet:
    """The data set at the network's image size and normalised as it learnt, where the network says that."""
    mean, deviation = network.normalisation or (data.mean, data.deviation)
    return replace(data, view_size=network.image_size or data.view_size, mean=mean, deviation=deviation)


def _data_of(path: Path, config: EvaluateConfig) -> DataSet:
    """The data set that is asked for, or that of the run."""
    folder = _folder_of(path)
    settings: Mapping[str, Any] = (run_settings(folder) if folder else None) or {}
    name = config.data or settings.get("data")
    if name in (None, FROM_PYTHON):
        raise UserError(f"`data` must be given, since {path} does not say it, got none")
    same = name == settings.get("data")
    directory = config.data_dir or (settings.get("data_dir") if same else None)
    decode_size = settings.get("decode_size", DECODE_SIZE) if same else DECODE_SIZE
    data = _load(str(name), None if directory is None else Path(directory), config, decode_size)
    parts = [f"{key} {settings[key]:g}" for key in ("hold_out", "imbalance") if same and settings.get(key)]
    if parts:
        data = replace(data, notes=(*data.notes, f"the run saw a part ({', '.join(parts)}); it is scored on the whole"))
    return data


def _load(name: str, directory: Path | None, config: EvaluateConfig, decode_size: int = DECODE_SIZE) -> DataSet:
    data = load_data_set(name, directory, decode_size=decode_size, residence=config.residence, workers=config.workers)
    if data.train is None or data.test is None:
        raise UserError(f"`data` must have labelled training and test images, {name} has not")
    return data


def _named(word: str) -> tuple[str, Path | None]:
    """The data set and its folder, of NAME or NAME=DIR."""
    name, _, folder = word.partition("=")
    return name, Path(folder) if folder else None


def _folder_of(path: Path) -> Path | None:
    if path.is_dir():
        return path
    folder = path.parent if run_settings(path.parent) is not None else run_of(path)
    return folder if folder is not None and run_settings(folder) is not None else None


def _file_name(path: Path, folder: Path, data: DataSet) -> str:
    """``evaluation.json`` for the weights at the run's end on its own data set, what ``dogo-fast compare`` takes; for
    others one that says which."""
    own = (run_settings(folder) or {}).get("data") == data.name
    at_end = path.is_dir() or path.parent.resolve() == folder.resolve()
    words = [*([] if own else [re.sub(r"\W+", "-", data.name)]), *([] if at_end else [path.stem])]
    return "-".join([RESULTS.removesuffix(".json"), *words]) + ".json"


def _write(out: Path, results: dict[str, Any], data: DataSet, path: Path, device: torch.device) -> None:
    """New scores beside those that are there for the same weights and data."""
    at_end = path.is_dir() or path.suffix == ".safetensors"
    about = {"data": data.name, "weights": "last" if at_end else path.name}
    content: dict[str, Any] = {"about": about, "versions": {"dogo_fast": __version__, "torch": torch.__version__}}
    content["device_name"] = device_name(device)
    try:
        before = json.loads(out.read_bytes())
    except (OSError, ValueError):
        before = {}
    if before.get("about") == about:
        for name, result in before.items():
            if name in results and result["name"] == results[name]["name"]:
                results[name]["scores"] = {**result["scores"], **results[name]["scores"]}
            elif name not in content:
                results.setdefault(name, result)
    elif before:
        print(f"{out}: the scores of {before.get('about')} that were there are replaced")
    write_atomically(out, (json.dumps(content | dict(sorted(results.items())), indent=2) + "\n").encode())
    print(f"scores in {out}")


def format_scores(title: str, result: Mapping[str, Any]) -> str:
    """A line a score, in percent; of several seeds the mean ± the standard deviation."""
    lines = [title]
    for name, values in result["scores"].items():
        if name.startswith("corruption-"):
            continue  # seventy of them; the file has them all
        spread = f" ± {100 * statistics.stdev(values):.1f} ({len(values)} seeds)" if len(values) > 1 else ""
        lines.append(f"  {name:24} {100 * statistics.fmean(values):5.1f} %{spread}")
    return "\n".join(lines)
