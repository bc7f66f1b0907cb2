"""The folder of a run: configuration, metrics, weights and results, each file replaced as a whole."""

import csv
import io
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from dogo_fast import __version__
from dogo_fast.errors import UserError
from dogo_fast.peers import Peer
from dogo_fast.training.config import PretrainConfig


class RunFolder:
    """Creates ``path`` (new or empty) and writes into nothing else.

    ``config.json``, ``metrics.csv`` (a row an epoch), ``results.json``, and per peer ``peer_N.safetensors`` (the
    backbone under torchvision's own parameter names) and ``peer_N_head.safetensors`` (the projection head).

    Raises:
        UserError: a path that exists and is not an empty folder, or that cannot be made.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UserError(f"--out must be a new or an empty folder, got {path}, which has files in it")
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"--out must be a folder that can be made here, got {path} ({reason})") from None
        self.path = path

    def write_config(self, config: PretrainConfig) -> None:
        """The resolved configuration and what it ran on."""
        device = torch.device(config.device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        versions = {"dogo_fast": __version__, "torch": torch.__version__, "python": platform.python_version()}
        self.write_json(
            "config.json", {"config": config.model_dump(mode="json"), "versions": versions, "device_name": name}
        )

    def write_metrics(self, rows: list[dict[str, float]]) -> None:
        """All epochs so far; every row has the same columns."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._replace("metrics.csv", text.getvalue().encode())

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """One JSON file."""
        self._replace(name, (json.dumps(content, indent=2) + "\n").encode())

    def write_peer(self, number: int, peer: Peer) -> None:
        """Backbone and head of peer 1 or 2."""
        stem = "small images" if peer.small_stem else "original"
        metadata = {"backbone": peer.name, "stem": stem, "features": str(peer.features), "dogo_fast": __version__}
        for suffix, module in (("", peer.backbone), ("_head", peer.head)):
            weights = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
            content = save(weights, metadata)
            self._replace(f"peer_{number}{suffix}.safetensors", content)

    def _replace(self, name: str, content: bytes) -> None:
        """Write beside the file, then rename: a reader never sees half a file."""
        temporary = self.path / f".{name}.partial"
        try:
            temporary.write_bytes(content)
            os.replace(temporary, self.path / name)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(
                f"{self.path / name} cannot be written ({error.strerror}); what was finished is kept"
            ) from None
