"""Files that are written as a whole or not at all."""

import contextlib
import glob
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from dogo_fast.errors import UserError
from dogo_fast.locks import locked


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


@contextlib.contextmanager
def alone_with(path: Path, wait: bool = True) -> Iterator[None]:
    """Keep others who ask for the same file waiting meanwhile: to read it, and to replace it by what follows from that.

    ``wait``: until nobody else has it; else it is an error.

    The lock is another file beside it, of which nothing is left. It ends with its process; where the file system knows
    no locks there is none.

    Raises:
        UserError: no file can be made there, or somebody has it and ``wait`` is false.
    """
    path = path.resolve()
    lock = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            while not stack.enter_context(_newest(lock, wait)):
                stack.close()
        except BlockingIOError:
            raise UserError(
                f"{path} is being written by another process: wait for it, or choose another file"
            ) from None
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); what was finished is kept") from None
        stack.callback(lock.unlink, missing_ok=True)  # before it is unlocked: who waits must find that it is gone
        yield


@contextlib.contextmanager
def _newest(lock: Path, wait: bool) -> Iterator[bool]:
    """Locked, whether it is still the file of this name: whoever had it may have removed it since it was opened."""
    with locked(lock, wait) as descriptor:
        try:
            same = os.path.samestat(os.fstat(descriptor), os.stat(lock))
        except FileNotFoundError:
            same = False
        yield same


def remove_unfinished(folder: Path) -> None:
    """Remove what ``write_atomically`` was writing in a folder when it was killed."""
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)


def remove_unfinished_writes(path: Path) -> None:
    """The same of one file, which nobody else may be writing."""
    for unfinished in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        unfinished.unlink(missing_ok=True)


def is_unfinished(path: Path) -> bool:
    """Whether ``remove_unfinished`` would remove it."""
    return path.name.startswith(".") and path.name.endswith(".partial")
