"""The command line: one run from end to end, one line for everything the user can put right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dogo_fast.training
from dogo_fast import cli
from dogo_fast.cli import main
from dogo_fast.errors import DivergedError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_pretrain_from_end_to_end(tmp_path: Path):
    options = ["--epochs", "1", "--batch-size", "256", "--seed", "3", "--device", "cpu", "--out", str(tmp_path / "run")]
    done = run("-m", "dogo_fast", "pretrain", *options)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "run" / "results.json").read_text())
    lines = done.stdout.splitlines()
    assert lines[0].startswith("digits: 1437 training and 360 test images; peers small,small on cpu")
    for number, line in zip((1, 2), lines[-3:-1], strict=True):
        peer = scores[f"peer_{number}"]
        pairs = (f"{100 * peer['untrained'][m]:.1f} → {100 * peer['trained'][m]:.1f}" for m in ("knn", "linear"))
        assert line.split(maxsplit=3)[:3] == ["peer", str(number), "(small)"]
        assert all(pair in line for pair in pairs)
    assert lines[-1].endswith("s in total")
    assert "images/s" in done.stderr and "Traceback" not in done.stderr


def test_losses_import_nothing_of_the_train_extra():
    code = (
        "import sys, torch; before = set(sys.modules); import dogo_fast;"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before} & set(sys.argv[1:])))"
    )
    done = run("-c", code, *cli.TRAIN_MODULES)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(cli, "TRAIN_MODULES", ("tyro", "not_a_module_at_all"))
    assert main(["pretrain"]) == 2
    assert capsys.readouterr().err == (
        "dogo-fast: error: not_a_module_at_all not installed: "
        "pip install 'dogo-fast[train]', in a checkout '.[train]'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "--data", "imagenet"], ["--data", "digits, cifar10", "'imagenet'"]),
        (["pretrain", "--peers", "small,vgg"], ["--peers", "shufflenetv2", "'small,vgg'"]),
        (["pretrain", "--peers", "small"], ["--peers", "two of", "'small'"]),
        (["pretrain", "--epochs", "0"], ["--epochs", "greater than or equal to 1", "got 0"]),
        (["pretrain", "--epochs", "many"], ["--epochs must be a whole number, got 'many'"]),
        (["pretrain", "--batch-size", "1"], ["--batch-size", "greater than or equal to 2", "got 1"]),
        (["pretrain", "--batch-size", "1438"], ["--batch-size", "from 2 to 1437", "got 1438"]),
        (["pretrain", "--kd-weight", "-1"], ["--kd-weight", "greater than or equal to 0", "got -1.0"]),
        (["pretrain", "--kd-weight", "nan"], ["--kd-weight", "finite", "got nan"]),
        (["pretrain", "--kd-weight", "much"], ["--kd-weight must be a number, got 'much'"]),
        (["pretrain", "--temperature", "0"], ["--temperature", "0.01", "got 0.0"]),
        (["pretrain", "--device", "tpu"], ["--device", "auto, cpu, cuda", "'tpu'"]),
        (["pretrain", "--data", "cifar10"], ["--data-dir", "CIFAR-10 binary version"]),
        (["pretrain", "--data", "cifar10", "--data-dir", "/nowhere"], ["--data-dir", "/nowhere", "existing folder"]),
        (["pretrain", "--epoch", "3"], ["--epoch"]),
        (["pretrane"], ["pretrane"]),
        ([], ["pretrain"]),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("dogo-fast: error: ") and message.count("\n") == 1
    assert all(word in message for word in words), message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (DivergedError("the loss is not finite at step 3"), 1, "dogo-fast: error: the loss is not finite at step 3\n"),
        (KeyboardInterrupt("see runs/a"), 130, "dogo-fast: interrupted; see runs/a\n"),
        (KeyboardInterrupt(), 130, "dogo-fast: interrupted\n"),
    ],
)
def test_runs_that_stop_early_say_why_in_one_line(
    raised: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def stop(config: object) -> None:
        raise raised

    monkeypatch.setattr(dogo_fast.training, "pretrain", stop)
    assert main(["pretrain"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"]])
def test_help_is_on_stdout(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    assert "pretrain" in capsys.readouterr().out
