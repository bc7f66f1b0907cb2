"""Checkpoints that a kill, a full disk or a damaged file cannot turn into a lost run.

A checkpoint is written beside its place, flushed to the disk and renamed: it exists as a whole or not at all. The two
newest are kept, so that there is one to fall back to. They are read with ``weights_only=True``, after every byte was
checked against the checksums in the file.
"""

import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from dogo_fast.atomic import write_atomically
from dogo_fast.errors import UserError

FORMAT = "dogo_fast checkpoint"
VERSION = 2
FOLDER = "checkpoints"
BEST = "best.pt"
KEPT = 2
CONTENT = {
    "config": dict,
    "image_count": int,
    "view_size": int,
    "step": int,
    "epoch": int,
    "position": int,
    "history": list,
    "notes": dict,
    "peers": list,
    "optimisers": list,
    "scaler": dict,
    "random": dict,
}
"""What every checkpoint holds, beside what may be None."""
NAME = re.compile(r"step_(\d{9,})\.pt")


class CheckpointError(UserError):
    """A file that is no checkpoint of this program, or not all of one."""


class CheckpointFolder:
    """The checkpoints of a run: ``step_NNNNNNNNN.pt``, by the number of steps done.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / FOLDER

    def files(self) -> list[Path]:
        """From the newest to the oldest."""
        if not self.path.is_dir():
            return []
        found = [path for path in self.path.iterdir() if NAME.fullmatch(path.name)]
        return sorted(found, key=_step_of, reverse=True)

    def save(self, content: dict[str, Any], kept_steps: int = 0) -> Path:
        """Write a checkpoint, then remove all but the two newest and those whose step is a multiple of ``kept_steps``.

        Later ones go too: they are from before the run was taken back to an earlier step.

        Raises:
            UserError: it cannot be written; the earlier ones are untouched.
        """
        path = self._write(f"step_{content['step']:09d}.pt", content)
        files = self.files()
        place = files.index(path)
        for old in files[place + KEPT :]:
            if not kept_steps or _step_of(old) % kept_steps:
                old.unlink(missing_ok=True)
        for later in files[:place]:
            later.unlink(missing_ok=True)
        return path

    def save_best(self, content: dict[str, Any]) -> Path:
        """Write ``best.pt``, in place of an earlier one.

        Raises:
            UserError: it cannot be written.
        """
        return self._write(BEST, content)

    def _write(self, name: str, content: dict[str, Any]) -> Path:
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "version": VERSION, **content}, buffer)
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be made ({error.strerror}); what was finished is kept") from None
        write_atomically(self.path / name, buffer.getvalue())
        return self.path / name


def _step_of(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What ``CheckpointFolder.save`` was given, its tensors on the CPU.

    Raises:
        CheckpointError: a file that cannot be read, is damaged or of another kind or version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: {damaged} in it has changed since it was written")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None
    except zipfile.BadZipFile:
        raise CheckpointError(f"{path} is not a checkpoint, or only the beginning of one") from None
    except Exception as error:  # whatever unpickling makes of other people's files
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path} is not a checkpoint of dogo_fast ({reason})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of dogo_fast")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is a checkpoint of version {content.get('version')}, this dogo_fast reads version {VERSION}"
        )
    missing = [key for key, kind in CONTENT.items() if not isinstance(content.get(key), kind)]
    missing += [key for key in ("peers", "optimisers") if key not in missing and len(content[key]) < 2]
    if missing:
        raise CheckpointError(f"{path} is not a whole checkpoint: {', '.join(missing)} missing or of a wrong kind")
    return content


def run_of(path: Path) -> Path | None:
    """The run folder that a checkpoint lies in; None where it lies elsewhere."""
    path = Path(os.path.abspath(path))  # not resolved: the folder of checkpoints may be a link to a larger disk
    return path.parent.parent if path.parent.name == FOLDER else None


def find_checkpoint(run: Path | None, path: Path | None, warn: Any) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from: ``path``, or the newest of a run, or where that is refused the one before.

    Args:
        run: a run folder, or None.
        path: a checkpoint that was asked for by name, or None.
        warn: called with one line for every checkpoint that is refused.

    Returns:
        where it is, and its content; None where there is no checkpoint.

    Raises:
        CheckpointError: every one there is was refused.
    """
    if path is not None:
        path = Path(os.path.abspath(path))
        older = [file for file in CheckpointFolder(path.parent.parent).files() if _step_of(file) < _step_of(path)]
        candidates = [path, *(older if path.parent.name == FOLDER else [])]
    else:
        candidates = CheckpointFolder(run).files() if run is not None else []
    if not candidates:
        return None
    for number, candidate in enumerate(candidates):
        try:
            return candidate, load_checkpoint(candidate)
        except CheckpointError as error:
            last = number == len(candidates) - 1
            if last:
                raise CheckpointError(f"{error}; no earlier checkpoint is left to use") from None
            warn(f"{error}; {candidates[number + 1].name} is tried instead")
    return None
