"""Files that are written as a whole or not at all."""

import contextlib
import os
import secrets
from pathlib import Path

from dogo_fast.errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole, on the disk when this returns. A link stays, and what it points to is replaced.

    Several writers at once write files of their own until then; the last one's stays.

    Raises:
        UserError: it cannot be written, or is no file, as a device is not; what was there before is untouched.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise UserError(f"{path} cannot be written: it is not a file")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # an interruption, too: no later writer has this name and would replace it
            with contextlib.suppress(OSError):  # a file system that can only be read
                temporary.unlink()
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too
        finally:
            os.close(folder)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); what was finished is kept") from None


def remove_unfinished(folder: Path) -> None:
    """Remove what ``write_atomically`` was writing in a folder when it was killed."""
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)


def is_unfinished(path: Path) -> bool:
    """Whether ``remove_unfinished`` would remove it."""
    return path.name.startswith(".") and path.name.endswith(".partial")
