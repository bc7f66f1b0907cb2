"""The folder of a run: configuration, metrics, weights, results and checkpoints, each file replaced as a whole."""

import contextlib
import csv
import io
import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from dogo_fast import __version__
from dogo_fast.atomic import is_unfinished, remove_unfinished, write_atomically
from dogo_fast.data import DataSet
from dogo_fast.errors import UserError
from dogo_fast.locks import locked
from dogo_fast.measuring import device_name
from dogo_fast.peers import Peer
from dogo_fast.training.checkpoint import CheckpointFolder
from dogo_fast.training.config import PretrainConfig

CONFIG = "config.json"


class RunFolder:
    """Creates ``path`` and writes into nothing else.

    ``config.json``, ``metrics.csv`` (a row an epoch), ``results.json``, ``checkpoints/``, and per peer
    ``peer_N.safetensors`` (the backbone under its library's own parameter names) and ``peer_N_heads.safetensors``.

    Args:
        path: the folder.
        resumed: whether it may hold this run already; otherwise it must be new or empty.
        expected: the checkpoints that were there when the one to go on from was chosen; None: whatever there are.

    Raises:
        UserError: a path that may not be used, or that cannot be made.
    """

    def __init__(self, path: Path, resumed: bool = False, expected: list[Path] | None = None) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            checkpoints = CheckpointFolder(path)
            is_run = run_settings(path) is not None or bool(checkpoints.files())
            others = [file for file in path.iterdir() if not is_unfinished(file)]
            if others and not (resumed and is_run):
                hint = (
                    "has files in it that are no run's" if resumed else "has files in it (a run: `resume` auto goes on)"
                )
                raise UserError(f"`out` must be a new or an empty folder, got {path}, which {hint}")
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"`out` must be a folder that can be made here, got {path} ({reason})") from None
        self.path = path
        self.checkpoints = checkpoints
        self._expected = expected
        self._locked = False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing here meanwhile, and remove what a killed one was writing.

        Where the file system knows no locks there is none. A lock ends with its process.

        Raises:
            UserError: another process is at work in the folder, or has been since its checkpoints were looked at.
        """
        if self._locked:
            yield
            return
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path, wait=False))
            except BlockingIOError:
                raise UserError(f"`out` must be a folder that no other run is using, got {self.path}") from None
            if self._expected is not None and self.checkpoints.files() != self._expected:
                raise UserError(f"`out` must be a folder that no other run has used meanwhile, got {self.path}")
            for folder in (self.path, self.checkpoints.path):
                remove_unfinished(folder)
            self._locked = True
            try:
                yield
            finally:
                self._locked = False
                self._expected = self.checkpoints.files()

    def write_config(self, config: PretrainConfig) -> None:
        """The resolved configuration and what it ran on."""
        versions = {"dogo_fast": __version__, "torch": torch.__version__, "python": platform.python_version()}
        options = config.model_dump(mode="json", exclude={"resume"})
        self.write_json(
            CONFIG, {"config": options, "versions": versions, "device_name": device_name(torch.device(config.device))}
        )

    def write_metrics(self, rows: list[dict[str, float]]) -> None:
        """All epochs so far; what a row has not, as scores that are measured now and then, is left empty."""
        text = io.StringIO()
        columns = list(dict.fromkeys(column for row in rows for column in row))
        writer = csv.DictWriter(text, fieldnames=columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / "metrics.csv", text.getvalue().encode())

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """One JSON file."""
        write_atomically(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def write_peers(self, names: Sequence[str], peers: Sequence[Peer], data: DataSet) -> None:
        """Each peer's backbone and heads; how the images were prepared goes into the files' metadata."""
        images = {"image_size": data.view_size, "mean": list(data.mean), "deviation": list(data.deviation)}
        for number, (name, peer) in enumerate(zip(names, peers, strict=True), 1):
            about = {"backbone": name, "features": peer.features, "method": peer.method, "dogo_fast": __version__}
            metadata = {key: str(value) for key, value in (about | images).items()}
            for suffix, weights in (("", peer.backbone.state_dict()), ("_heads", peer.heads())):
                # copies: tied weights share their memory, which safetensors refuses; extra state is no weight
                tensors = {
                    key: value.detach().cpu().clone() for key, value in weights.items() if torch.is_tensor(value)
                }
                tensors = {key: value.contiguous() for key, value in tensors.items()}
                write_atomically(self.path / f"peer_{number}{suffix}.safetensors", in_order(save(tensors, metadata)))


def in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted: safetensors writes them in an order of chance, and two runs that are
    the same would leave different files. The header is JSON after its length, eight bytes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def run_settings(path: Path) -> dict[str, Any] | None:
    """The settings that a run has left in its folder; None where its config.json is missing or is not a run's."""
    try:
        content = json.loads((path / CONFIG).read_bytes())
        settings: dict[str, Any] = content["config"]
        return settings if "dogo_fast" in content["versions"] and isinstance(settings, dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
