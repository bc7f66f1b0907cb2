"""Files that are written as a whole or not at all: several writers, an interruption, what a killed writer leaves."""

import errno
import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from contextlib import nullcontext
from pathlib import Path

import pytest

from dogo_fast.atomic import is_unfinished, remove_unfinished, write_atomically
from dogo_fast.locks import locked


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have written their content before either gives it its name."""
    path, contents = tmp_path / "file", [b"a" * 3000, b"b" * 5000]
    written, fsync = threading.Barrier(2, timeout=60), os.fsync
    seen: list[set[str]] = []

    def wait_for_the_other(number: int) -> None:
        if os.path.isfile(f"/proc/self/fd/{number}"):
            written.wait()
            seen.append({each.name for each in tmp_path.iterdir()})
            written.wait()
        fsync(number)

    monkeypatch.setattr(os, "fsync", wait_for_the_other)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(write_atomically, path, content) for content in contents]:
            done.result()
    assert [len(names) for names in seen] == [2, 2]
    assert path.read_bytes() in contents and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interruption_leaves_what_was_there_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"after")
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_leaves_is_known_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[Path] = []
    replace = os.replace

    def remember(source: Path, target: Path) -> None:
        left.append(Path(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", remember)
    for _ in range(2):
        write_atomically(tmp_path / "file", b"whole")
    assert len(set(left)) == 2
    for path in left:
        path.write_bytes(b"half")
    assert all(map(is_unfinished, left)) and not is_unfinished(tmp_path / "file")
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["folder", "file"])
def test_what_is_locked_is_told_or_waited_for(name: str, tmp_path: Path) -> None:
    """In one process, too: each opens it anew."""
    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    with ThreadPoolExecutor(1) as pool:
        with locked(path):
            with pytest.raises(BlockingIOError), locked(path, wait=False):
                pass

            def wait() -> bool:
                with locked(path):
                    return True

            waiting = pool.submit(wait)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
        assert waiting.result(timeout=60)
    with locked(path, wait=False):
        pass


@pytest.mark.parametrize("needed", [False, True])
def test_where_the_file_system_knows_no_locks_there_is_none_or_an_error(
    needed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks") if needed else nullcontext(), locked(tmp_path, needed=needed):
        pass
