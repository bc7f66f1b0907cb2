"""The check on a GPU runs in slices: what is done is not done again, what is ended ends whole, and tests that passed
are left out."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dogo_fast.bench.reports import gpu_check


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_slices_go_on_where_the_last_one_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(gpu_check, "LEAST", 0.0)
    marks = tmp_path / "marks"
    mark = f"open({str(marks)!r}, 'a').write('%s ')"
    slow = f"import time; {mark % 'slow'}; time.sleep(0 if open({str(marks)!r}).read().count('slow') > 1 else 60)"
    todo = {
        "quick": lambda: python(mark % "quick"),
        "slow": lambda: python(slow),
        "fails": lambda: python("raise SystemExit(4)"),
    }
    start = time.monotonic()
    assert not gpu_check.check(tmp_path / "out", 4 / 60, todo)
    assert time.monotonic() - start < 25
    assert "slow: to be gone on with" in capsys.readouterr().out
    assert gpu_check.check(tmp_path / "out", 1.0, todo)
    assert marks.read_text() == "quick slow slow "
    state = json.loads((tmp_path / "out" / "state.json").read_bytes())
    assert state["quick"]["code"] == state["slow"]["code"] == 0 and state["fails"]["code"] == 4
    assert "fails: failed with 4: see fails.log" in capsys.readouterr().out
    machine = json.loads((tmp_path / "out" / "machine.json").read_bytes())["machine"]
    assert str(torch.__version__).startswith(machine["versions"]["torch"])


def test_what_is_ended_leaves_no_process(tmp_path: Path):
    asleep = "import time; time.sleep(300)"
    child = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {asleep!r}, 'gc-mark'])"
    assert gpu_check.run_step(python(child + "; time.sleep(300)"), tmp_path / "log", 2.0) is None
    assert "gc-mark" not in subprocess.run(["ps", "-ef"], capture_output=True, text=True).stdout.replace(child, "")


@pytest.mark.parametrize("workers", [0, 2])
def test_tests_that_passed_are_left_out_of_the_next_slice(workers: int, tmp_path: Path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_few.py").write_text(
        "import pytest\n\n\n@pytest.mark.parametrize('x', ['a b', 'c[d]', 'bad'])\ndef test_one(x):\n"
        "    assert x != 'bad'\n\n\n@pytest.mark.skip\ndef test_two():\n    pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-v", "-n", str(workers), "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    passed = gpu_check.passed_tests(done.stdout)
    assert sorted(passed) == [f"tests/test_few.py::{name}" for name in ("test_one[a b]", "test_one[c[d]]", "test_two")]
    (tmp_path / "passed.txt").write_text("".join(f"--deselect={name}\n" for name in passed))
    again = subprocess.run([*command[:-1], "@passed.txt", "tests"], cwd=tmp_path, capture_output=True, text=True)
    assert "1 failed" in again.stdout.splitlines()[-1] and "passed" not in again.stdout.splitlines()[-1]
    assert len(gpu_check.passed_tests(again.stdout)) == 0


def test_every_step_is_a_command_that_is_there(tmp_path: Path):
    from dogo_fast import cli

    for name, make in gpu_check.steps(tmp_path, tmp_path, 2).items():
        command = make()
        if name == "tests":
            assert command[1:3] == ["-m", "pytest"]
        else:
            assert command[1:3] == ["-m", "dogo_fast"] and cli.parse(command[3:])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]):
    assert gpu_check.main([]) == 2
    assert "--rehearse" in capsys.readouterr().err
