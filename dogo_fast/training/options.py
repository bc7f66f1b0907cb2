"""Where settings come from: a preset, a file, the run that is resumed; then the command line overrides them."""

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dogo_fast.errors import UserError
from dogo_fast.training.checkpoint import CheckpointError, find_checkpoint, run_of
from dogo_fast.training.config import PretrainConfig
from dogo_fast.training.presets import PRESETS
from dogo_fast.training.run_folder import CONFIG

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def starting_point(
    preset: str | None, config_file: Path | None, resume: str | None, out: Path | None
) -> dict[str, Any]:
    """The settings that the command line starts from: those of the run that is resumed, else of preset and file.

    Args:
        preset: a key of ``PRESETS``, or None.
        config_file: TOML or JSON with fields of ``PretrainConfig`` (a run folder's config.json is one), or None; what
            it says goes before the preset.
        resume: ``"auto"``, a checkpoint's path, or None.
        out: the run folder that ``"auto"`` looks into.

    Raises:
        UserError: an unknown preset, or a file that cannot be read.
    """
    settings: dict[str, Any] = {}
    if resume is not None:
        settings.update(_resumed(resume, out))
    if preset is not None:
        if preset not in PRESETS:
            raise UserError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}")
        settings.update(PRESETS[preset])
    if config_file is not None:
        settings.update(read_settings(config_file))
    return settings


def _resumed(resume: str, out: Path | None) -> Mapping[str, Any]:
    """As config.json has them; where that is missing or damaged, as the checkpoint has them."""
    folder = out if resume == "auto" else run_of(Path(resume))
    settings: Mapping[str, Any] | None = None
    if folder is not None:
        with contextlib.suppress(UserError):
            settings = read_settings(folder / CONFIG)
    if settings is None:
        path = None if resume == "auto" else Path(resume)
        with contextlib.suppress(CheckpointError):  # it will be refused, with the reason, when the run begins
            found = find_checkpoint(folder, path if path is None or path.is_file() else None, lambda message: None)
            settings = found[1]["config"] if found is not None else None
    settings = settings or {}
    return {key: value for key, value in settings.items() if key not in ("out", "device", "resume")}


def read_settings(path: Path) -> Mapping[str, Any]:
    """Fields of ``PretrainConfig`` from a TOML or JSON file; their values are not checked here.

    Raises:
        UserError: a file that cannot be read, is neither, or has other fields.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"`config` must be a TOML or JSON file, got {path} ({error.strerror})") from None
    try:
        text = content.decode()
        settings = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise UserError(f"`config` must be a TOML or JSON file, got {path} ({error})") from None
    if isinstance(settings, dict) and isinstance(settings.get("config"), dict):
        # as a run folder keeps it, beside the versions; where that run was and on what is its own business
        settings = {key: value for key, value in settings["config"].items() if key not in ("out", "device")}
    if not isinstance(settings, dict):
        raise UserError(f"`config` must have fields and values, got {path} with {type(settings).__name__}")
    settings = {key.replace("-", "_"): value for key, value in settings.items()}
    unknown = [key for key in settings if key not in PretrainConfig.model_fields]
    if unknown:
        raise UserError(
            f"`config` must have fields of {', '.join(PretrainConfig.model_fields)}; {path} has {', '.join(unknown)}"
        )
    return settings
