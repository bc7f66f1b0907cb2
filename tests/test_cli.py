"""The command line: one run from end to end, one line for everything the user can put right."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dogo_fast.training
from dogo_fast import cli
from dogo_fast.cli import main
from dogo_fast.commands import pretrain
from dogo_fast.data import load_data_set
from dogo_fast.errors import DivergedError
from dogo_fast.philox import derive_seed
from dogo_fast.training import PretrainConfig
from dogo_fast.training.presets import PRESETS
from dogo_fast.views import VIEW_RECIPES, Augmentation, ViewRecipe


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


def test_a_trainer_in_python_imports_no_command_line_and_says_settings_as_python_does():
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "from dogo_fast.training import PretrainConfig, Trainer\n"
        "Trainer(('small', 'small'), torch.zeros((4, 3, 8, 8), dtype=torch.uint8), batch_size=2, device='cpu')\n"
        "new = set(sys.modules) - before\n"
        "ours = {name for name in new if name.startswith(('dogo_fast.cli', 'dogo_fast.commands'))}\n"
        "print(sorted(ours | {'argparse', 'click', 'tyro', 'typer', 'pydantic_settings'} & new))\n"
        "try: PretrainConfig(batch_size=3, accumulate=2)\n"
        "except ValueError as error: print(error)"
    )
    done = run("-c", code)
    imported, _, said = done.stdout.partition("\n")
    assert imported == "[]", done.stdout + done.stderr
    assert "`accumulate` must divide `batch_size` into parts of 2 images or more, got 2 and 3" in said


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--kd-weight", "1,2", "--kd_weight=3"], "kd_weight", (3.0, 3.0)),
        (["--method", "simclr,simsiam"], "method", ("simclr", "simsiam")),
        (["--out", "-runs"], "out", Path("-runs")),
        (["--no-evaluate"], "evaluate", False),
        (["--no-graph", "--graph"], "graph", True),
        (["--view-size", "32"], "view_size", 32),
        (["--clip-norm", "2"], "clip_norm", 2.0),
        (["--data-dir", "a"], "data_dir", Path("a")),
    ],
)
def test_options_are_the_fields(words: list[str], field: str, value: object, monkeypatch: pytest.MonkeyPatch):
    seen: list[PretrainConfig] = []
    monkeypatch.setattr(pretrain, "run", seen.append)
    assert main(["pretrain", *words]) == 0
    assert seen == [PretrainConfig(**{field: value})] and getattr(seen[0], field) == value


def test_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(cli, "TRAIN_MODULES", ("pydantic", "not_a_module_at_all"))
    assert main(["pretrain"]) == 2
    assert capsys.readouterr().err == (
        "dogo-fast: error: not_a_module_at_all not installed: "
        "pip install 'dogo-fast[train]', in a checkout '.[train]'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "--data", "imagenet"], ["--data", "digits, cifar10", "hf:", "'imagenet'"]),
        (["pretrain", "--peers", "small,vgg"], ["--peers", "shufflenetv2", "'small,vgg'"]),
        (
            ["pretrain", "--kd-weight", "1,2,3"],
            ["--kd-weight must be one value, or one for each of 2 peers, got 1.0,2.0,3.0"],
        ),
        (["pretrain", "--epochs", "0"], ["--epochs", "greater than or equal to 1", "got 0"]),
        (["pretrain", "--epochs", "many"], ["--epochs must be a whole number, got 'many'"]),
        (["pretrain", "--batch-size", "1"], ["--batch-size", "greater than or equal to 2", "got 1"]),
        (["pretrain", "--batch-size", "1438"], ["--batch-size", "from 2 to 1437", "got 1438"]),
        (["pretrain", "--kd-weight", "-1"], ["--kd-weight", "greater than or equal to 0", "got '-1'"]),
        (["pretrain", "--kd-weight", "-1,2"], ["--kd-weight", "greater than or equal to 0", "got '-1'"]),
        (["pretrain", "--temperature", "-inf"], ["--temperature must be a finite number, got -inf"]),
        (["pretrain", "--view_size", "3"], ["--view-size must be greater than or equal to 4, got 3"]),
        (["pretrain", "--residence", "disk"], ["--residence must be 'auto', 'device' or 'stream', got 'disk'"]),
        (["pretrain", "--graph=3"], ["--graph", "'3'"]),
        (["pretrain", "3"], ["Unrecognized options: 3"]),
        (["benchmark", "--only", "loss"], ["--only must be 'dogo_loss', 'nt_xent'", "got 'loss'"]),
        (["benchmark", "--only"], ["--only: expected at least one argument"]),
        (["pretrain", "--kd-weight", "nan"], ["--kd-weight", "finite", "got 'nan'"]),
        (["pretrain", "--kd-weight", "much"], ["--kd-weight must be a number, got 'much'"]),
        (["pretrain", "--temperature", "0"], ["--temperature", "0.01", "got 0.0"]),
        (["pretrain", "--device", "tpu"], ["--device", "auto, cpu, cuda", "'tpu'"]),
        (["pretrain", "--data", "cifar10"], ["--data-dir", "CIFAR-10 binary version"]),
        (["pretrain", "--data", "cifar10", "--data-dir", "/nowhere"], ["--data-dir", "/nowhere", "existing folder"]),
        (["pretrain", "--epoch", "3"], ["--epoch"]),
        (
            ["pretrain", "--method", "byol"],
            ["--method must be of simclr, simsiam, one for all peers or one for each", "'byol'"],
        ),
        (["pretrain", "--optimiser", "sgd,lamb"], ["--optimiser must be of adam, adamw, sgd, lars"]),
        (["pretrain", "--recipe", "mine"], ["--recipe must be one of auto, none, digits", "'mine'"]),
        (["pretrain", "--accumulate", "3"], ["--accumulate must divide --batch-size", "got 3 and 128"]),
        (["pretrain", "--warmup-epochs", "50"], ["--warmup-epochs must be at most --epochs, got 50 and 40"]),
        (["pretrain", "--peers", "timm:nothing_like_it"], ["--peers must be a model that timm", "knows"]),
        (["pretrain", "--preset", "mine"], ["--preset must be one of digits, cifar10-r18-r18", "'mine'"]),
        (["pretrain", "--preset"], ["--preset: expected one argument"]),
        (["pretrain", "--config", "nowhere.toml"], ["--config must be a TOML or JSON file, got nowhere.toml"]),
        (["pretrain", "--resume", "auto"], ["--resume auto needs --out"]),
        (["pretrain", "--resume", "nowhere.pt"], ["--resume must be auto or an existing file, got nowhere.pt"]),
        (["pretrain", "--preset", "cifar10-r18-r50"], ["--data-dir is required with --data cifar10"]),
        (["augment", "--out", "views.xyz"], ["--out must be a picture file", "views.xyz"]),
        (["augment", "--images", "0"], ["--images must be greater than or equal to 1, got 0"]),
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
    def stop(config: object, report: object) -> None:
        raise raised

    monkeypatch.setattr(dogo_fast.training, "pretrain", stop)
    assert main(["pretrain"]) == code
    assert capsys.readouterr().err == message


def start(*arguments: str, **options: bool) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dogo_fast", "pretrain", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **pipes, **options)


def test_a_signal_ends_the_run_with_success_and_a_line_that_says_how_to_go_on(tmp_path: Path):
    run = tmp_path / "run"
    options = ["--epochs", "400", "--batch-size", "256", "--device", "cpu", "--no-evaluate"]
    with start(*options, "--out", str(run)) as process:
        deadline = time.monotonic() + 100
        while not (run / "metrics.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    last = output.splitlines()[-1]
    assert last.startswith("dogo-fast: stopped by SIGTERM after step ") and "Traceback" not in errors
    done, path = last.split()[last.split().index("step") + 1], last.split()[-1]
    assert f"To go on: dogo-fast pretrain --resume {path}" in last and Path(path).name == f"step_{int(done):09d}.pt"
    with start("--resume", path) as again:
        lines = [again.stdout.readline() for _ in range(2)]
        again.send_signal(signal.SIGINT)
        rest, errors = again.communicate(timeout=100)
    assert again.returncode == 0, errors
    assert re.search("small,small on cpu in (float32|bfloat16)", lines[0]) and str(run) in lines[0]
    assert lines[1] == f"resumed from {path}: {done} steps done\n"
    assert "dogo-fast: stopped by SIGINT" in rest and "To go on: dogo-fast pretrain --resume" in rest


def test_a_signal_to_all_processes_of_a_streaming_run_ends_it_saved(tmp_path: Path):
    """As Ctrl-C in a terminal, and a queue's SIGTERM, which the decoding workers get as well."""
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    options = [
        "--data",
        "folder",
        "--data-dir",
        str(tmp_path / "images"),
        "--view-size",
        "16",
        "--residence",
        "stream",
    ]
    options += ["--workers", "1", "--epochs", "4000", "--batch-size", "16", "--device", "cpu", "--resume", "auto"]
    for number in (signal.SIGINT, signal.SIGTERM):
        with start(*options, "--out", str(tmp_path / "run"), start_new_session=True) as process:
            begun, metrics = time.time(), tmp_path / "run" / "metrics.csv"
            known = len(metrics.read_bytes()) if metrics.exists() else 0  # which a resumed run writes before it trains
            while not (metrics.exists() and len(metrics.read_bytes()) > known) and time.time() < begun + 100:
                time.sleep(0.05)
            os.killpg(process.pid, number)
            output, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        assert f"dogo-fast: stopped by {number.name} after step" in output and "Traceback" not in errors


def test_preset_file_and_command_line_override_each_other_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[PretrainConfig] = []
    monkeypatch.setattr(pretrain, "run", seen.append)
    toml, as_json = tmp_path / "settings.toml", tmp_path / "settings.json"
    toml.write_text(
        "epochs = 7\nwarmup_epochs = 3\nbatch-size = 64\nlearning_rate = [0.1, 0.2]\n[recipe]\nflip = 0.25\n"
    )
    as_json.write_text(json.dumps({"config": {"epochs": 9, "peers": ["small", "resnet18"]}, "versions": {}}))
    assert main(["pretrain", "--preset", "cifar10-r18-r50", "--config", str(toml), "--batch-size", "32"]) == 0
    assert main(["pretrain", f"--config={as_json}", "--kd-weight", "2,0.5", "--no-graph"]) == 0
    first, second = seen
    assert (first.data, first.peers, first.optimiser) == ("cifar10", ("resnet18", "resnet50"), ("adamw", "adamw"))
    assert (first.epochs, first.batch_size, first.learning_rate) == (7, 32, (0.1, 0.2))
    assert first.recipe == ViewRecipe(flip=0.25) and first.warmup_epochs == 3
    assert (second.epochs, second.peers, second.kd_weight) == (9, ("small", "resnet18"), (2.0, 0.5))
    assert second.graph is False and second.data == "digits"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "epochs = ", ["--config must be a TOML or JSON file", "a.toml"]),
        ("a.json", "[1]", ["--config must have fields and values", "with list"]),
        ("a.toml", "epoch = 3", ["--config must have fields of data, data_dir", "has epoch"]),
        ("a.toml", "epochs = 0", ["--epochs must be greater than or equal to 1, got 0"]),
    ],
)
def test_a_wrong_file_is_one_line(
    name: str, text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / name).write_text(text)
    assert main(["pretrain", "--config", str(tmp_path / name)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and all(word in message for word in words), message


def test_every_preset_is_a_valid_configuration():
    for name, settings in PRESETS.items():
        config = PretrainConfig(**settings)
        assert config.data == (settings.get("data") or "digits"), name


def test_augment_saves_a_sheet_of_the_images_and_their_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "views.png"
    assert main(["augment", "--out", str(path), "--images", "3", "--epochs", "1", "--device", "cpu"]) == 0
    assert "3 images of digits, each with 4 views" in capsys.readouterr().out
    sheet = torch.from_numpy(np.asarray(Image.open(path)).copy())
    cell = 100  # 8 pixels, enlarged 12 times, and a margin of 2
    assert sheet.shape == (3 * cell, 5 * cell, 3)
    images = load_data_set("digits").pretraining[:3]
    corners = sheet[8::cell, 8::cell]  # one pixel of each picture's first
    assert torch.equal(corners[:, 0], images[:, :, 0, 0])
    augmentation = Augmentation([VIEW_RECIPES["digits"]] * 4, 8, derive_seed(0, "views"))
    augmentation.epoch.fill_(1)
    views = augmentation(images, torch.arange(3)).permute(1, 0, 3, 4, 2)
    for pixel in (0, 7):
        shown = sheet[8 + 12 * pixel :: cell, 8 + 12 * pixel :: cell][:, 1:]
        assert (shown - views[:, :, pixel, pixel] * 255).abs().max() < 0.51


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["pretrain", "augment", "benchmark", "tune", "Save a sheet of views"]),
        (
            ["pretrain", "--help"],
            ["--method simclr|simsiam[,...]", "(default: simclr)", "results:\n  --out DIR"],
        ),
        (["augment", "--help"], ["--view-size PIXELS", "(default: views.png)"]),
        (["benchmark", "--help"], ["--only SUITE", "similarity_kl", "{short,check,smoke}"]),
        (["tune", "--help"], ["--rows INT [INT ...]", "(default: 256 1024 4096 16384)"]),
    ],
)
def test_help_is_on_stdout(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "dogo-fast" in said and all(word in said for word in words), said


def test_what_is_wrong_in_a_recipe_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for text, message in (
        (
            "[recipe]\ncrop_area = [0.2, 1.0]\ncrop_ratio = [0.75, 1.333]\nflop = 5\n",
            "[recipe] flop Unexpected keyword argument, got 5",
        ),
        ("[recipe]\ncrop_area = [0.2, 1.0]\ncrop_ratio = [0.75, 1.333]\nflip = 5\n", "flip"),
    ):
        (tmp_path / "mine.toml").write_text(text)
        assert main(["pretrain", "--config", str(tmp_path / "mine.toml")]) == 2
        error = capsys.readouterr().err
        assert message in error and "valid string" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--epoch", "3"], "--epoch, 3; did you mean --epochs or --kd-ramp-epochs or --warmup-epochs?"),
        (["pretrain", "--batchsize=3", "--sed", "1"], "--batchsize=3, --sed, 1; did you mean --batch-size or --seed?"),
        (["augment", "--epoch", "3"], "--epoch, 3; did you mean --epochs?"),
        (["augment", "--imags", "3"], "--imags, 3; did you mean --images?"),
        (["tune", "--qick"], "--qick; did you mean --quick?"),
        (["pretrain", "--no-evaluat"], "--no-evaluat; did you mean --evaluate or --no-evaluate?"),
        (["pretrain", "--grph"], "--grph; did you mean --graph?"),
        (["benchmark", "--onyl", "step"], "--onyl, step; did you mean --only?"),
        (["pretrain", "--zzz"], "--zzz"),
    ],
)
def test_a_mistyped_option_is_answered_with_those_like_it(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"dogo-fast: error: Unrecognized options: {message}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrian"], "'pretrian'; did you mean pretrain?"),
        (["Train", "--epochs", "3"], "'Train'; did you mean pretrain?"),
        (["bench"], "'bench'; did you mean benchmark?"),
        (["tuen", "--quick"], "'tuen'; did you mean tune?"),
        (["zzz"], "'zzz'"),
    ],
)
def test_a_mistyped_command_is_answered_with_those_like_it(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    allowed = "the command must be one of pretrain, evaluate, compare, augment, benchmark, tune"
    assert capsys.readouterr().err == f"dogo-fast: error: {allowed}, got {message}\n"


def test_an_option_of_another_command_is_not_proposed(capsys: pytest.CaptureFixture[str]):
    assert main(["augment", "--epochs", "3", "--peers", "small"]) == 2
    error = capsys.readouterr().err
    assert "--peers" in error and "did you mean" not in error


def test_a_run_s_configuration_is_a_start_for_another_run(tmp_path: Path):
    options = ["pretrain", "--epochs", "1", "--batch-size", "512", "--no-evaluate", "--device", "cpu"]
    assert main([*options, "--seed", "3", "--out", str(tmp_path / "first")]) == 0
    again = ["pretrain", "--config", str(tmp_path / "first" / "config.json"), "--out", str(tmp_path / "second")]
    assert main(again) == 0
    first, second = (
        json.loads((tmp_path / name / "config.json").read_text())["config"] for name in ("first", "second")
    )
    assert second == first | {"out": str(tmp_path / "second")} and second["seed"] == 3
