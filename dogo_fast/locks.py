"""The one lock: of run folders, of records and tables, and of the cache that the C++ kernels are compiled into.

filelock, which comes with torch, locks a file of its own and, depending on its version, leaves it behind, lets forked
workers keep it, or refuses where the file system knows no locks. This one locks the folder or file itself, and a killed
process leaves nothing.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_held: set[int] = set()
"""Descriptors of the locks of this process."""


def _leave_locks_to_the_parent() -> None:
    """A worker that outlives a killed process must not keep what that had locked."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True, needed: bool = False) -> Iterator[int]:
    """Keep other processes and threads from locking the same folder or file meanwhile; it ends with its process.

    Args:
        path: a folder that exists, or a file, which is made if there is none.
        wait: until nobody else has it; else it is an error.
        needed: it is an error where the file system knows no locks; else there is none then.

    Yields:
        the open descriptor.

    Raises:
        BlockingIOError: somebody else has it, and ``wait`` is false.
        OSError: it cannot be opened, or not be locked where that is needed.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_WRONLY | os.O_APPEND | os.O_CREAT
    descriptor = os.open(path, flags, 0o666)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            if needed:
                raise
        yield descriptor
    finally:
        if descriptor in _held:  # not in a fork
            _held.remove(descriptor)
            os.close(descriptor)
