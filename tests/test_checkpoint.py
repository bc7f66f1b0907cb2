"""Checkpoints are whole or absent, damaged ones are refused and the one before is used."""

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dogo_fast import atomic
from dogo_fast.errors import UserError
from dogo_fast.training import checkpoint
from dogo_fast.training.checkpoint import CheckpointError, CheckpointFolder, find_checkpoint, load_checkpoint


def content(step: int) -> dict[str, object]:
    other = {"image_count": 5, "view_size": 8, "epoch": 1, "position": 0, "notes": {}, "scaler": {}, "random": {}}
    other |= {"peers": [{}, {}], "optimisers": [{}, {}]}
    weights = torch.arange(1000.0) + step
    return {"step": step, "config": {}, "weights": weights, "history": [{"loss": 1.5}], "partial": None, **other}


def saved(run: Path, *steps: int, kept_steps: int = 0) -> CheckpointFolder:
    folder = CheckpointFolder(run)
    for step in steps:
        folder.save(content(step), kept_steps)
    return folder


def test_what_is_saved_is_loaded(tmp_path: Path):
    (path,) = saved(tmp_path, 7).files()
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.pop("weights"), torch.arange(1000.0) + 7)
    assert loaded["step"] == 7 and loaded["history"] == [{"loss": 1.5}] and loaded["partial"] is None
    assert path == tmp_path / "checkpoints" / "step_000000007.pt"


def test_the_two_newest_are_kept_and_those_of_every_so_many_steps(tmp_path: Path):
    folder = saved(tmp_path, *range(1, 12), kept_steps=4)
    assert [load_checkpoint(path)["step"] for path in folder.files()] == [11, 10, 8, 4]
    assert not [path for path in folder.path.iterdir() if path.suffix != ".pt"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_checkpoint_is_refused_wherever_it_ends(share: float, tmp_path: Path):
    folder = saved(tmp_path, 1, 2)
    newest, older = folder.files()
    newest.write_bytes(newest.read_bytes()[: int(share * newest.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"step_000000002\.pt is not a checkpoint, or only the beginning of one"):
        load_checkpoint(newest)
    warnings: list[str] = []
    found = find_checkpoint(tmp_path, None, warnings.append)
    assert found is not None and found[0] == older and found[1]["step"] == 1
    assert len(warnings) == 1 and warnings[0].endswith("step_000000001.pt is tried instead")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 3999), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_weights_is_refused(place: int, bit: int, tmp_path: Path):
    (path,) = saved(tmp_path, 3).files()
    data = bytearray(path.read_bytes())
    start = bytes(data).index((torch.arange(1000.0) + 3).numpy().tobytes())
    data[start + place] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged: .* has changed since it was written"):
        load_checkpoint(path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch evil",)


def foreign_files(folder: Path) -> dict[str, Path]:
    files = {name: folder / name for name in ("text.pt", "pickle.pt", "other.pt", "version.pt", "part.pt", "evil.pt")}
    files["text.pt"].write_text("not at all")
    files["pickle.pt"].write_bytes(pickle.dumps({"step": 1}))
    torch.save({"state_dict": {}}, files["other.pt"])
    torch.save({"format": checkpoint.FORMAT, "version": 99}, files["version.pt"])
    torch.save({"format": checkpoint.FORMAT, "version": 2, **content(1), "peers": 3}, files["part.pt"])
    torch.save({"format": checkpoint.FORMAT, "version": 2, "step": Evil()}, files["evil.pt"])
    return files


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.pt", "is not a checkpoint, or only the beginning of one"),
        ("pickle.pt", "is not a checkpoint, or only the beginning of one"),
        ("other.pt", "is not a checkpoint of dogo_fast$"),
        ("version.pt", "is a checkpoint of version 99, this dogo_fast reads version 2"),
        ("part.pt", "is not a whole checkpoint: peers missing or of a wrong kind"),
        ("evil.pt", r"is not a checkpoint of dogo_fast \("),
    ],
)
def test_a_foreign_file_is_refused_in_one_line_and_never_executed(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(foreign_files(tmp_path)[name])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "evil").exists()


def test_where_every_checkpoint_is_refused_nothing_starts_over_in_silence(tmp_path: Path):
    for path in saved(tmp_path, 1, 2).files():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no earlier checkpoint is left to use"):
        find_checkpoint(tmp_path, None, lambda message: None)


def test_a_checkpoint_asked_for_by_name_falls_back_to_the_one_before_it(tmp_path: Path):
    newest, asked, older = saved(tmp_path, 1, 2, 3, kept_steps=1).files()
    asked.write_bytes(b"")
    found = find_checkpoint(None, asked, lambda message: None)
    assert found is not None and found[0] == older
    assert load_checkpoint(newest)["step"] == 3


def test_going_back_to_an_earlier_step_makes_that_the_newest(tmp_path: Path):
    folder = saved(tmp_path, 4, 8, 12, 16, kept_steps=4)
    assert folder.save(content(10), 4).is_file()
    assert [load_checkpoint(path)["step"] for path in folder.files()] == [10, 8, 4]


def test_no_checkpoint_is_no_error(tmp_path: Path):
    assert find_checkpoint(tmp_path, None, lambda message: None) is None


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_full_disk_is_one_error_and_the_earlier_checkpoint_is_intact(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = saved(tmp_path, 1)
    before = folder.files()[0].read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "write":
        real_open = open

        def small_open(path: Path, mode: str) -> object:
            file = real_open(path, mode, buffering=0)
            write = file.write

            class Full:
                def __enter__(self) -> "Full":
                    return self

                def __exit__(self, *_: object) -> None:
                    file.close()

                def write(self, data: bytes) -> None:
                    write(data[:100])
                    fail()

            return Full()

        monkeypatch.setattr(atomic, "open", small_open, raising=False)
    else:
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(UserError, match=r"step_000000002\.pt cannot be written \(No space left on device\); what was"):
        folder.save(content(2))
    monkeypatch.undo()
    assert [path.name for path in folder.path.iterdir()] == ["step_000000001.pt"]
    assert folder.files()[0].read_bytes() == before


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (calls.append("fsync"), fsync(number))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths))[1])
    saved(tmp_path, 1)
    assert calls == ["fsync", "replace", "fsync"]
