"""The run is repeatable, goes on where it was stopped with the same bits, and its folder is complete; it stops clearly
when it must."""

import csv
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dogo_fast import DoGoLoss, locks
from dogo_fast.data import DataSet, ImageSource, StreamingLoader
from dogo_fast.errors import DivergedError, RunInterrupted, UserError
from dogo_fast.peers import build_backbone, build_peer
from dogo_fast.philox import derive_seed
from dogo_fast.pictures import Pictures
from dogo_fast.training import PretrainConfig, Trainer, pretrain
from dogo_fast.training.checkpoint import CheckpointError, load_checkpoint
from dogo_fast.training.config import resolve_device
from dogo_fast.training.interrupt import ending_at_once
from dogo_fast.training.metrics import EpochMetrics
from dogo_fast.training.options import starting_point
from dogo_fast.training.run_folder import RunFolder
from dogo_fast.training.step import Meters, TrainingStep
from dogo_fast.views import VIEW_RECIPES, Augmentation, ViewRecipe

QUICK = {"epochs": 2, "batch_size": 16, "device": "cpu"}
HALF = (0.5, 0.5, 0.5)
TIMING = {"seconds", "images_per_second", "data_wait"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny batches on several threads crawl when the machine is busy: each small operation waits for all threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pixels(count: int = 48) -> Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trainer_of(**options: object) -> Trainer:
    """On a few random images."""
    config = {**QUICK, "recipe": ViewRecipe((0.5, 1.0), (3 / 4, 4 / 3), jitter=1.0, brightness=0.4), **options}
    names = config.pop("peers", ("small", "small"))
    return Trainer(names, pixels(), **config)


def weights_of(trainer: Trainer) -> list[Tensor]:
    return [value.clone() for peer in trainer.peers for value in peer.state_dict().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def read_metrics(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def without_timing(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


# ------------------------------------------------------------------------------------------------ what is trained


def test_equal_seeds_give_equal_weights_and_metrics():
    runs = [trainer_of(seed=seed) for seed in (5, 5, 6)]
    histories = [without_timing(run.fit()) for run in runs]
    assert same(weights_of(runs[0]), weights_of(runs[1])) and histories[0] == histories[1]
    assert not same(weights_of(runs[0]), weights_of(runs[2]))
    assert not same([*runs[0].peers[0].state_dict().values()], [*runs[0].peers[1].state_dict().values()])


def test_without_distillation_peer_1_does_not_depend_on_peer_2():
    alone = {}
    for weight in (0.0, 1.0):
        for names in (("small", "small"), ("small", "shufflenetv2")):
            trainer = trainer_of(kd_weight=weight, peers=names)
            trainer.fit()
            alone[weight, names[1]] = [value.clone() for value in trainer.peers[0].state_dict().values()]
    assert same(alone[0.0, "small"], alone[0.0, "shufflenetv2"])
    assert not same(alone[1.0, "small"], alone[1.0, "shufflenetv2"])
    assert not same(alone[0.0, "small"], alone[1.0, "small"])


def test_first_metrics_are_the_loss_of_the_first_views():
    """One step over all images without augmentation: the row must hold DoGoLoss of the initial peers."""
    trainer = trainer_of(epochs=1, batch_size=48, kd_weight=3.0, recipe="none")
    (row,) = trainer.fit()
    initial = [build_peer("small", 8, 0, number) for number in (1, 2)]
    normalised = (pixels() / 255 - 0.5) / 0.5
    order = next(iter(trainer.loader.epoch(1))).indices
    pairs = [peer(normalised[order].repeat(2, 1, 1, 1)).projections.chunk(2) for peer in initial]
    expected = DoGoLoss(trainer.config.temperature, kd_weight=3.0)(*pairs)
    for name, value in expected._asdict().items():
        assert row[name] == pytest.approx(float(value.detach()), rel=1e-4), name
    assert row["loss_1"] == pytest.approx(row["nt_xent_1"] + 3.0 * row["kl_1"], rel=1e-5)
    assert row["kl_1"] > 1e-3


def test_each_peer_has_its_own_learning_rate_that_falls_as_a_half_cosine():
    rows = trainer_of(epochs=4, learning_rate="0.01,0.003").fit()
    for peer, rate in (("1", 0.01), ("2", 0.003)):
        expected = [rate * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
        assert [row[f"learning_rate_{peer}"] for row in rows] == pytest.approx(expected)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]


def test_the_rates_reach_the_optimisers(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(
        TrainingStep,
        "compute",
        lambda step: seen.append([float(optimiser.param_groups[0]["lr"]) for optimiser in step.optimisers]),
    )
    trainer_of(epochs=2, learning_rate=(0.01, 0.02), warmup_epochs=1).fit()
    assert [first for first, _ in seen] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.01, 0.0075, 0.0025])
    assert [second for _, second in seen] == pytest.approx([2 * first for first, _ in seen])


def test_every_epoch_has_views_of_its_own_that_the_seed_fixes(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, Tensor]] = []
    call = Augmentation.__call__

    def remember(self: Augmentation, pictures: Pictures, indices: Tensor) -> Tensor:
        views = call(self, pictures, indices)
        seen.append((int(self.epoch), views[:, indices == 7]))
        return views

    monkeypatch.setattr(Augmentation, "__call__", remember)
    trainer_of(epochs=3, seed=4).fit()
    views = {epoch: view[:, 0] for epoch, view in seen if view.shape[1]}
    assert [epoch for epoch, _ in seen] == [1, 1, 1, 2, 2, 2, 3, 3, 3] and set(views) == {1, 2, 3}
    assert not torch.equal(views[1], views[2]) and not torch.equal(views[2], views[3])
    alone = Augmentation([trainer_of().config.recipe] * 4, 8, derive_seed(4, "views"), mean=HALF, deviation=HALF)
    alone.epoch.fill_(2)
    assert torch.equal(call(alone, pixels()[[7]], torch.tensor([7]))[:, 0], views[2])


@pytest.mark.parametrize("options", [{}, {"method": "simsiam,simclr"}, {"optimiser": "lars,sgd", "learning_rate": 0.5}])
def test_training_lowers_the_loss(options: dict[str, object]):
    rows = trainer_of(epochs=12, kd_weight=0.1, **options).fit()
    for peer in ("1", "2"):
        assert rows[-1][f"loss_{peer}"] < rows[0][f"loss_{peer}"] - 0.05


def test_accumulating_trains_on_every_image_of_the_batch():
    whole, parts = trainer_of(epochs=1, kd_weight=0), trainer_of(epochs=1, kd_weight=0, accumulate=2)
    whole.fit()
    (row,) = parts.fit()
    assert row["nt_xent_1"] < whole.history[0]["nt_xent_1"]  # 15 negatives less in each denominator
    assert parts.steps == whole.steps == 3


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean(dim=(2, 3))


def test_a_notebook_trains_any_modules_in_ten_lines():
    first, second = WithDropout(), nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    before = first.layers[0].weight.clone()
    random = torch.get_rng_state()
    trainer = Trainer((first, second), pixels(), epochs=2, batch_size=16, device="cpu")
    history = trainer.fit()
    assert torch.equal(torch.get_rng_state(), random)
    assert trainer.backbones == (first, second) and len(history) == 2
    assert not torch.equal(first.layers[0].weight, before)
    assert trainer.config.peers == ("WithDropout", "Sequential")
    assert first(torch.rand(2, 3, 8, 8)).shape == (2, 6)


class CountedSource(ImageSource):
    """The same pixels, decoded one by one."""

    labels = None

    def __len__(self) -> int:
        return 48

    def decode(self, index: int) -> Tensor:
        return pixels()[index]

    def name(self, index: int) -> str:
        return str(index)


def test_a_streamed_data_set_trains_to_the_bits_of_a_resident_one():
    resident, streamed = (
        trainer_of(),
        Trainer(("small", "small"), CountedSource(), recipe=trainer_of().config.recipe, workers=1, **QUICK),
    )
    assert isinstance(streamed.loader, StreamingLoader)
    resident.fit()
    streamed.fit()
    assert same(weights_of(resident), weights_of(streamed))
    assert 0 <= streamed.history[0]["data_wait"] <= 1


def test_half_precision_runs_on_a_cpu_too():
    for precision in ("bfloat16", "float16"):
        rows = trainer_of(precision=precision, epochs=1, temperature=0.5).fit()
        assert rows[0]["loss"] == pytest.approx(trainer_of(epochs=1, temperature=0.5).fit()[0]["loss"], rel=0.02)


SHARED = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


def test_data_of_another_kind_is_refused_by_name():
    with pytest.raises(TypeError, match=r"got list: wrap it, dogo_fast\.data\.MapSource\(data\)"):
        Trainer(("small", "small"), [(pixels()[0], 0)], **QUICK)
    with pytest.raises(TypeError, match=r"data must be a tensor, Pictures, a DataSet or an ImageSource, got ndarray$"):
        Trainer(("small", "small"), pixels().numpy(), **QUICK)


@pytest.mark.parametrize(
    ("backbones", "data", "options", "message"),
    [
        (("small",), pixels(), {}, "backbones must be two or more, got 1"),
        (
            ("small", nn.Conv2d(3, 4, 3)),
            pixels(),
            {},
            r"must map images \(2, 3, 8, 8\) to features \[2, F\], got \(2, 4",
        ),
        (("small", nn.Linear(5, 3)), pixels(), {}, r"must take images \(2, 3, 8, 8\), this one fails"),
        (("small", "small"), pixels().float(), {}, r"data must be images uint8 \[N, 3, H, W\], got torch.float32"),
        (("small", "small"), pixels()[:, 0], {}, r"data must be images uint8 \[N, 3, H, W\], got torch.uint8"),
        ((SHARED, SHARED), pixels(), {}, "backbones must not share parameters"),
        (("small", nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()), pixels(), {}, "must have float32 param"),
        (
            ("small", "small"),
            pixels(),
            {"config": PretrainConfig(), "epochs": 3},
            "options must not be given beside config",
        ),
        (("small", "small"), pixels(), {"batch_size": 64}, "`batch_size` must be from 2 to 48"),
    ],
)
def test_a_wrong_argument_of_the_trainer_is_one_error(backbones, data, options, message):  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        Trainer(backbones, data, **{**({} if "config" in options else QUICK), **options})


# -------------------------------------------------------------------------------------------- stopping and going on


class StopAfter:
    """Sends this process a signal while its n-th step runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: int, number: int = signal.SIGTERM) -> None:
        self.steps = 0
        compute = TrainingStep.compute

        def counted(step: TrainingStep) -> None:
            self.steps += 1
            if self.steps == steps:
                os.kill(os.getpid(), number)
            compute(step)

        monkeypatch.setattr(TrainingStep, "compute", counted)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("options", [{}, {"optimiser": "sgd,lars", "accumulate": 2}, {"precision": "float16"}], ids=str)
def test_stopped_and_resumed_equals_uninterrupted(
    steps: int, options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Six steps in two epochs, stopped in one of the first five, in the middle of an epoch or at its end."""

    def backbones() -> tuple[nn.Module, str]:
        torch.manual_seed(1)
        return WithDropout(), "small"

    whole = trainer_of(peers=backbones(), **options)
    whole.fit()
    with monkeypatch.context() as patch:
        StopAfter(patch, steps, signal.SIGINT if steps % 2 else signal.SIGTERM)
        first = trainer_of(peers=backbones(), out=tmp_path / "run", **options)
        with pytest.raises(RunInterrupted, match=rf"stopped by SIG.* after step {steps} \(epoch .\); saved\.") as stop:
            first.fit()
    (path,) = re.findall(r"resume='(.*\.pt)'", str(stop.value))
    second = trainer_of(peers=backbones(), out=tmp_path / "run", **options)
    second.load_state(load_checkpoint(Path(path)))
    assert second.steps == steps
    second.fit(RunFolder(tmp_path / "run", resumed=True))
    assert same(weights_of(whole), weights_of(second))
    assert without_timing(whole.history) == without_timing(second.history)
    assert without_timing(read_metrics(tmp_path / "run")) == without_timing(whole.history)
    for ours, theirs in zip(whole.step.optimisers, second.step.optimisers, strict=True):
        for mine, other in zip(ours.state.values(), theirs.state.values(), strict=True):
            assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_a_trainer_without_a_folder_goes_on_with_a_second_fit(monkeypatch: pytest.MonkeyPatch):
    whole = trainer_of()
    whole.fit()
    stopped = trainer_of()
    with monkeypatch.context() as patch:
        StopAfter(patch, 4)
        with pytest.raises(RunInterrupted, match=r"fit\(\) goes on from here"):
            stopped.fit()
    stopped.fit()
    assert same(weights_of(whole), weights_of(stopped))


def test_a_second_fit_goes_on_in_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stopped = trainer_of(out=tmp_path / "run")
    with monkeypatch.context() as patch:
        StopAfter(patch, 4)
        with pytest.raises(RunInterrupted):
            stopped.fit()
    stopped.fit()
    assert [row["epoch"] for row in read_metrics(tmp_path / "run")] == [1, 2]
    assert (tmp_path / "run" / "peer_2.safetensors").is_file()


def test_images_that_do_not_lie_contiguously_train_the_same():
    plain, turned = trainer_of(), trainer_of()
    other = Trainer(("small", "small"), pixels().to(memory_format=torch.channels_last), turned.config)
    plain.fit()
    other.fit()
    assert same(weights_of(plain), weights_of(other))


def test_a_second_signal_ends_at_once_and_handlers_are_put_back(monkeypatch: pytest.MonkeyPatch):
    # a shell's background job ignores SIGINT, and then so does a second one
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def twice(step: TrainingStep) -> None:
        for _ in range(2):  # raised in this thread: one sent to the process may be taken by another thread, later
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingStep, "compute", twice)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer_of().fit()
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_a_fit_until_an_epoch_is_gone_on_with_by_the_next(tmp_path: Path):
    whole, parts = trainer_of(epochs=3), trainer_of(epochs=3, out=tmp_path / "run")
    whole.fit()
    assert [row["epoch"] for row in parts.fit(until=1)] == [1] and parts.steps == 3
    assert len(parts.fit(until=9)) == 3
    assert same(weights_of(whole), weights_of(parts))
    assert without_timing(whole.history) == without_timing(read_metrics(tmp_path / "run"))


@pytest.mark.parametrize("of_checkpoint", [False, True])
def test_a_run_that_was_told_no_folder_makes_one_and_what_it_wrote_is_what_it_was(
    of_checkpoint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The folder, the device and the precision stand in config.json and in the checkpoints alike."""
    monkeypatch.chdir(tmp_path)
    stray = tmp_path / "stray.pt"
    resume = None
    if of_checkpoint:  # it lies in no run's folder, which could be gone on with
        shutil.copy(finished_run(tmp_path / "run"), stray)
        resume = str(stray)
    pretrain(PretrainConfig(batch_size=512, epochs=2, device="cpu", evaluate=False, resume=resume))
    (run,) = (tmp_path / "runs").iterdir()
    saved = json.loads((run / "config.json").read_text())["config"]
    kept = load_checkpoint(max((run / "checkpoints").iterdir()))["config"] if not of_checkpoint else saved
    for settings in (saved, kept):
        assert (settings["out"], settings["device"]) == (f"runs/{run.name}", "cpu")
        assert settings["precision"] == "float32"
    assert re.fullmatch(r"digits-small-small-\d{8}-\d{6}", run.name)


def test_nothing_changes_a_trainer_s_configuration():
    trainer = trainer_of()
    assert (trainer.config.precision, trainer.config.device) == ("float32", "cpu")
    with pytest.raises(AttributeError):
        trainer.config = PretrainConfig()  # type: ignore[misc]
    with pytest.raises(ValidationError):
        trainer.config.epochs = 7  # type: ignore[misc]


def test_training_in_another_thread_works_without_signals():
    trainer = trainer_of()
    thread = threading.Thread(target=trainer.fit)
    thread.start()
    thread.join()
    assert len(trainer.history) == 2


def test_the_last_step_is_not_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    StopAfter(monkeypatch, 6)
    assert len(trainer_of(out=tmp_path / "run").fit()) == 2
    assert (tmp_path / "run" / "peer_1.safetensors").is_file()


def test_resume_by_option_continues_the_run_and_takes_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = {"batch_size": 512, "epochs": 3, "device": "cpu"}
    whole = pretrain(PretrainConfig(**options, out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        StopAfter(patch, 3)
        with pytest.raises(RunInterrupted):
            pretrain(PretrainConfig(**options, out=tmp_path / "run", resume="auto"))  # there is none: it starts
    again = pretrain(PretrainConfig(**options, out=tmp_path / "run", resume="auto"))
    assert again == whole
    for name in ("peer_1", "peer_2", "peer_1_heads", "peer_2_heads"):
        first, second = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "run"))
        assert all(torch.equal(first[key], second[key]) for key in first)
    done = pretrain(PretrainConfig(**options, out=tmp_path / "run", resume="auto"))  # there is nothing left to do
    assert done == whole


def test_resume_refuses_settings_that_would_change_the_run(tmp_path: Path):
    trainer = trainer_of(out=tmp_path / "run")
    trainer.fit()
    path = trainer.save(RunFolder(tmp_path / "run", resumed=True))
    for option, value, message in (
        ("batch_size", 24, "`batch_size` must be 16, as in the run that is resumed, got 24"),
        ("learning_rate", 0.1, r"`learning_rate` must be \[0.001, 0.001\], as in the run that is resumed, got \[0.1"),
        ("kd_weight", 2.0, "`kd_weight` must be"),
    ):
        with pytest.raises(UserError, match=message):
            trainer_of(**{option: value}).load_state(load_checkpoint(path))
    trainer_of(workers=0, save_every=3, out=tmp_path / "other").load_state(load_checkpoint(path))


def test_a_damaged_newest_checkpoint_costs_one_epoch_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = {"batch_size": 512, "epochs": 2, "device": "cpu", "evaluate": False}
    pretrain(PretrainConfig(**options, out=tmp_path / "run"))
    expected = load_file(tmp_path / "run" / "peer_1.safetensors")
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1000])
    with pytest.warns(
        UserWarning, match=r"step_000000004\.pt is not a checkpoint, or only the beginning of one; step_0"
    ):
        pretrain(PretrainConfig(**options, out=tmp_path / "run", resume="auto"))
    output = capsys.readouterr()
    assert "resumed from" in output.out and "step_000000002.pt: 2 steps done" in output.out
    again = load_file(tmp_path / "run" / "peer_1.safetensors")
    assert all(torch.equal(expected[key], again[key]) for key in expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": "auto"}, "`resume` auto needs `out`"),
        ({"resume": "/nowhere/step_1.pt"}, "`resume` must be auto or an existing file, got /nowhere/step_1.pt"),
        ({"resume": "."}, "`resume` must be auto or an existing file, a checkpoint in a folder checkpoints, got"),
    ],
)
def test_a_resume_that_cannot_be_is_refused(options: dict[str, str], message: str):
    with pytest.raises(UserError, match=message):
        pretrain(PretrainConfig(**options))


def finished_run(folder: Path, **options: object) -> Path:
    """A run of digits without evaluation; its newest checkpoint."""
    config = {"batch_size": 512, "epochs": 2, "device": "cpu", "evaluate": False, **options}
    pretrain(PretrainConfig(**config, out=folder))
    return max((folder / "checkpoints").iterdir())


def test_results_hold_no_scores_that_were_not_measured(tmp_path: Path):
    finished_run(tmp_path / "run")
    peer = {"name": "small"}
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == {"peer_1": peer, "peer_2": peer}


def test_a_run_is_never_resumed_into_the_folder_of_another(tmp_path: Path):
    first, second = finished_run(tmp_path / "first", seed=1), finished_run(tmp_path / "second", seed=2)
    config = json.loads((tmp_path / "second" / "config.json").read_text())["config"]
    before = {path: path.read_bytes() for path in (tmp_path / "first").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="`out` must be a new or an empty folder"):
        pretrain(PretrainConfig(**{**config, "out": tmp_path / "first", "resume": str(second)}))
    assert before == {path: path.read_bytes() for path in (tmp_path / "first").rglob("*") if path.is_file()}
    pretrain(PretrainConfig(**{**config, "out": tmp_path / "third", "resume": str(second)}))
    assert read_metrics(tmp_path / "third") == read_metrics(tmp_path / "second") and first.exists()


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path: Path):
    run, newest = tmp_path / "run", finished_run(tmp_path / "run", seed=1)
    stray = newest.with_name("step_000000999.pt")
    shutil.copy(finished_run(tmp_path / "other", seed=2), stray)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def resume(**options: object) -> None:
        settings = {**starting_point(None, None, "auto", run), "device": "cpu", **options}
        pretrain(PretrainConfig(**settings, resume="auto", out=run))

    with pytest.raises(UserError) as refused:
        resume()
    assert str(refused.value) == (
        f"`seed` must be 2, as in the run that is resumed, got 1: {stray} is a checkpoint of another run than the one "
        f"in {run}; move it elsewhere to go on with that one"
    )
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    stray.unlink()
    resume()
    with pytest.raises(UserError, match=f"`seed` must be 1, as in the run that is resumed, got 5: see {newest}$"):
        resume(seed=5)


def test_resume_refuses_a_data_set_of_another_size(tmp_path: Path):
    stopped = trainer_of(out=tmp_path / "run")
    stopped.fit()
    state = load_checkpoint(max((tmp_path / "run" / "checkpoints").iterdir()))
    with pytest.raises(UserError, match="`data_dir` must hold the 48 images of the run that is resumed, got 40"):
        Trainer(("small", "small"), pixels(40), recipe=stopped.config.recipe, **QUICK).load_state(state)


def test_two_runs_do_not_share_a_folder(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked(), folder.locked():
        with pytest.raises(UserError, match="`out` must be a folder that no other run is using"):
            trainer_of(out=tmp_path / "run").fit()
        assert not list((tmp_path / "run").iterdir())
    trainer_of(out=tmp_path / "run").fit()


def test_a_kill_before_the_first_file_leaves_a_folder_that_can_be_used(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.partial").write_text("{")
    trainer_of(out=tmp_path / "run", resume="auto").fit()
    assert not list((tmp_path / "run").glob(".*"))


def test_a_trainer_resumes_by_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = trainer_of()
    whole.fit()
    with monkeypatch.context() as patch:
        StopAfter(patch, 4)
        with pytest.raises(RunInterrupted):
            trainer_of(out=tmp_path / "run").fit()
    again = trainer_of(out=tmp_path / "run", resume="auto")
    assert again.steps == 4 and again.resumed_from is not None
    again.fit()
    assert same(weights_of(whole), weights_of(again))


def test_state_is_a_copy_and_random_numbers_are_part_of_it(monkeypatch: pytest.MonkeyPatch):
    def made() -> Trainer:
        torch.manual_seed(1)
        return trainer_of(peers=(WithDropout(), "small"))

    whole, first, second = made(), made(), made()
    whole.fit()
    with monkeypatch.context() as patch:
        StopAfter(patch, 4)
        with pytest.raises(RunInterrupted):
            first.fit()
    torch.manual_seed(99)  # what happens outside does not matter
    second.load_state(first.state())
    second.fit()
    first.fit()
    assert same(weights_of(whole), weights_of(second)) and same(weights_of(whole), weights_of(first))


def test_after_an_exception_between_steps_a_later_fit_goes_on_from_the_last_whole_step(
    monkeypatch: pytest.MonkeyPatch,
):
    share, calls = EpochMetrics.wait_share, []

    def fail_once(self: EpochMetrics) -> float:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("a terminal that is gone, say")
        return share(self)

    whole, failing = trainer_of(), trainer_of()
    whole.fit()
    monkeypatch.setattr(EpochMetrics, "wait_share", fail_once)
    with pytest.raises(RuntimeError, match="a terminal that is gone"):
        failing.fit()
    assert failing.steps == 5
    failing.fit()
    assert same(weights_of(whole), weights_of(failing))
    assert without_timing(whole.history) == without_timing(failing.history)


def test_a_step_that_an_exception_left_in_its_middle_is_not_gone_on_from(monkeypatch: pytest.MonkeyPatch):
    """Batch norms have moved, or one peer is a step ahead: the trajectory would silently be another one."""
    update, calls = TrainingStep._update, []

    def fail_between_the_peers(step: TrainingStep, *pair: Any) -> None:
        calls.append(1)
        if len(calls) == 2 * 5:
            raise KeyboardInterrupt
        update(step, *pair)

    whole, failing = trainer_of(), trainer_of()
    whole.fit()
    beginning = failing.state()
    monkeypatch.setattr(TrainingStep, "_update", fail_between_the_peers)
    with pytest.raises(KeyboardInterrupt):
        failing.fit()
    with pytest.raises(RuntimeError, match=r"step 5 was left in its middle, .*: load_state\(\) an earlier state"):
        failing.fit()
    failing.load_state(beginning)
    failing.fit()
    assert same(weights_of(whole), weights_of(failing))


def test_after_fitting_the_networks_are_in_evaluation_mode():
    trainer = trainer_of()
    trainer.fit()
    assert not any(module.training for peer in trainer.peers for module in peer.modules())


def test_settings_survive_a_damaged_configuration_beside_good_checkpoints(tmp_path: Path):
    from dogo_fast.training.options import starting_point

    newest = finished_run(tmp_path / "run", seed=3)
    for damage in ("{", None):
        config = tmp_path / "run" / "config.json"
        config.unlink() if damage is None else config.write_text(damage)
        for resume, out in (("auto", tmp_path / "run"), (str(newest), None)):
            settings = starting_point(None, None, resume, out)
            assert (settings["seed"], settings["batch_size"]) == (3, 512)
            pretrain(PretrainConfig(**{**settings, "resume": resume, "out": out}))


# --------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_naming_the_step_and_keeps_what_was_good(
    bad: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    add = Meters.add

    def explode(meters: Meters, losses: Tensor) -> None:
        add(meters, losses * (bad if int(meters.step) == 4 else 1.0))

    monkeypatch.setattr(Meters, "add", explode)
    trainer = trainer_of(out=tmp_path / "run", epochs=3)
    with pytest.raises(DivergedError, match=r"not finite at step 5 \(epoch 2\): loss (nan|inf), loss_1"):
        trainer.fit()
    assert [row["epoch"] for row in read_metrics(tmp_path / "run")] == [1]
    (path,) = RunFolder(tmp_path / "run", resumed=True).checkpoints.files()
    assert load_checkpoint(path)["step"] == 3
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_a_diverged_trainer_goes_on_from_an_earlier_state(monkeypatch: pytest.MonkeyPatch):
    whole, trainer = trainer_of(), trainer_of()
    good = trainer.state()
    whole.fit()
    with monkeypatch.context() as patch:
        add = Meters.add
        patch.setattr(Meters, "add", lambda meters, losses: add(meters, losses * math.nan))
        with pytest.raises(DivergedError, match="step 1"):
            trainer.fit()
    trainer.load_state(good)
    trainer.fit()
    assert same(weights_of(whole), weights_of(trainer))


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The loss of the epoch's last step was still good; its update was not."""
    compute = TrainingStep.compute

    def spoil(step: TrainingStep) -> None:
        compute(step)
        if int(step.meters.step) == 6:
            with torch.no_grad():
                step.peers[1].projector[0].weight[0, 0] = math.nan

    monkeypatch.setattr(TrainingStep, "compute", spoil)
    trainer = trainer_of(out=tmp_path / "run", epochs=3)
    with pytest.raises(DivergedError, match=r"the weights are not finite after step 6 \(epoch 2\)"):
        trainer.fit()
    (path,) = RunFolder(tmp_path / "run", resumed=True).checkpoints.files()
    assert load_checkpoint(path)["step"] == 3


def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import errno

    fsync = os.fsync
    trainer = trainer_of(out=tmp_path / "run", epochs=3)

    def full(number: int) -> None:
        if trainer.steps >= 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"step_000000006\.pt cannot be written \(No space left on device\)"):
        trainer.fit()
    monkeypatch.undo()
    whole, resumed = trainer_of(epochs=3), trainer_of(epochs=3)
    whole.fit()
    (path,) = RunFolder(tmp_path / "run", resumed=True).checkpoints.files()
    resumed.load_state(load_checkpoint(path))
    resumed.fit()
    assert same(weights_of(whole), weights_of(resumed))


# -------------------------------------------------------------------------------------------------------- the folder


def test_whole_run_leaves_a_complete_folder(tmp_path: Path):
    config = PretrainConfig(epochs=1, batch_size=512, peers="small, small", device="cpu", out=tmp_path / "run")
    results = pretrain(config)
    names = {file.name for file in (tmp_path / "run").iterdir()}
    weights = {f"peer_{number}{part}.safetensors" for number in (1, 2) for part in ("", "_heads")}
    assert names == {"config.json", "metrics.csv", "results.json", "checkpoints", *weights}

    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert PretrainConfig(**saved["config"]) == config.resolve()
    assert saved["versions"]["torch"] == torch.__version__

    scores = json.loads((tmp_path / "run" / "results.json").read_text())
    assert scores["peer_2"]["trained"] == {"knn": results[1].trained.knn, "linear": results[1].trained.linear}
    assert all(
        0.5 < scores[peer][when][measure] <= 1
        for peer in ("peer_1", "peer_2")
        for when in ("untrained", "trained")
        for measure in ("knn", "linear")
    )
    state = load_file(tmp_path / "run" / "peer_1.safetensors")
    build_backbone("small", 8).load_state_dict(state, strict=True)
    initial = build_peer("small", 8, 0, 1)
    heads = load_file(tmp_path / "run" / "peer_1_heads.safetensors")
    assert heads.keys() == initial.heads().keys()
    assert not torch.equal(state["0.weight"], initial.backbone[0].weight)


def test_exported_weights_load_strictly_into_torchvisions_and_timms_own_networks(tmp_path: Path):
    import timm

    images = pixels(4).repeat(1, 1, 14, 14)  # 112 pixels: the original stem
    recipe = VIEW_RECIPES["none"]
    trainer = Trainer(
        ("resnet18", "timm:resnet10t"),
        images,
        batch_size=4,
        epochs=1,
        device="cpu",
        recipe=recipe,
        out=tmp_path / "run",
    )
    trainer.fit()
    torchvisions = torchvision.models.resnet18(weights=None)
    torchvisions.fc = nn.Identity()
    networks = [
        torchvisions,
        timm.create_model("resnet18", num_classes=0),
        timm.create_model("resnet10t", num_classes=0),
    ]
    batch = torch.rand(2, 3, 112, 112)
    for number, network in zip((1, 1, 2), networks, strict=True):
        network.load_state_dict(load_file(tmp_path / "run" / f"peer_{number}.safetensors"), strict=True)
        with torch.no_grad():
            torch.testing.assert_close(network.eval()(batch), trainer.backbones[number - 1].eval()(batch))
    with safe_open(tmp_path / "run" / "peer_2.safetensors", "pt") as file:
        about = file.metadata()
    assert about["backbone"] == "timm:resnet10t" and about["image_size"] == "112" and about["mean"] == "[0.5, 0.5, 0.5]"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_evaluating_ends_the_run_which_can_be_finished(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = PretrainConfig(epochs=1, batch_size=512, device="cpu", out=tmp_path / "run", resume="auto")
    with monkeypatch.context() as patch:
        patch.setattr("dogo_fast.training.pretraining.evaluate_features", lambda *_: os.kill(os.getpid(), number))
        with pytest.raises(RunInterrupted, match=rf"stopped by {number.name}; .*--resume auto --out {tmp_path}/run$"):
            pretrain(config)
    assert len(read_metrics(tmp_path / "run")) == 1
    assert pretrain(config)[0].trained is not None


def test_tensorboard_has_every_column_of_every_epoch(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = trainer_of(out=tmp_path / "run", tensorboard=True)
    trainer.fit()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(trainer.history[0])
    for name in ("loss", "kl_2", "learning_rate_1"):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [3, 6]
        assert [scalar.value for scalar in scalars] == pytest.approx([row[name] for row in trainer.history])


def test_a_logger_that_is_not_installed_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("tensorboard", "wandb"):
        with pytest.raises(UserError, match=f"`{name}` needs the package {name}, which is not installed: pip install"):
            trainer_of(**{name: True})


def test_wandb_is_given_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stand-in with the three calls that are made of it: the package itself would look for a network."""
    import importlib.util
    import sys
    from types import ModuleType, SimpleNamespace

    rows: list[tuple[int, dict[str, float]]] = []
    finished: list[bool] = []
    module = ModuleType("wandb")
    module.__spec__ = importlib.util.spec_from_loader("wandb", None)
    arguments: dict[str, object] = {}

    def init(**given: object) -> SimpleNamespace:
        arguments.update(given)
        return SimpleNamespace(log=lambda row, step: rows.append((step, row)), finish=lambda: finished.append(True))

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    trainer = trainer_of(out=tmp_path / "run", wandb=True)
    trainer.fit()
    assert rows == [(3, trainer.history[0]), (6, trainer.history[1])] and finished == [True]
    assert arguments["id"] == "run" and arguments["resume"] == "allow"


def test_wrong_run_touches_nothing(tmp_path: Path):
    for options in ({"batch_size": 1438}, {"data": "cifar10", "data_dir": tmp_path}, {"device": "cuda:99"}):
        with pytest.raises(UserError):
            pretrain(PretrainConfig(**{"device": "cpu", **options}, out=tmp_path / "run"))
        assert not list(tmp_path.iterdir())


def test_run_folder_refuses_to_overwrite(tmp_path: Path):
    RunFolder(tmp_path)
    (tmp_path / "file").write_text("mine")
    for resumed in (False, True):
        with pytest.raises(UserError, match="`out` must be a new or an empty folder"):
            RunFolder(tmp_path, resumed)
    with pytest.raises(UserError, match="`out` must be a folder that can be made here"):
        RunFolder(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    trainer_of(out=tmp_path / "run").fit()
    with pytest.raises(UserError, match="a run: `resume` auto goes on"):
        trainer_of(out=tmp_path / "run").fit()


def test_devices_are_checked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"`device` must be auto or cpu.*'cuda'"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda") and resolve_device("cuda:1") == torch.device("cuda:1")
    for name in ("cuda:2", "cuda:", "gpu", "cuda:x", ""):
        with pytest.raises(UserError, match=f"`device` must be .*'{name}'"):
            resolve_device(name)


def test_recipes_follow_the_data_set_unless_one_is_named():
    from dogo_fast.training.building import choose_recipe

    def data(name: str, size: int) -> DataSet:
        return DataSet(name, torch.zeros(1, 3, size, size, dtype=torch.uint8), None, None, ())

    assert choose_recipe("auto", data("digits", 8)) == VIEW_RECIPES["digits"]
    assert choose_recipe("auto", data("cifar10", 32)) == VIEW_RECIPES["cifar"]
    assert choose_recipe("auto", data("stl10", 96)) == VIEW_RECIPES["simclr"]
    assert choose_recipe("cifar", data("stl10", 96)) == VIEW_RECIPES["cifar"]
    assert choose_recipe(ViewRecipe(flip=0.1), data("stl10", 96)) == ViewRecipe(flip=0.1)
    with pytest.raises(ValidationError, match="must be one of auto, none, digits"):
        PretrainConfig(recipe="mine")
    assert PretrainConfig(recipe={"flip": 0.25}).recipe == ViewRecipe(flip=0.25)


def test_a_folder_that_is_no_run_s_or_another_run_s_is_left_alone(tmp_path: Path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(UserError, match="has files in it that are no run's"):
        trainer_of(out=foreign, resume="auto").fit()
    assert [path.name for path in foreign.iterdir()] == ["config.json"]

    trainer_of(out=tmp_path / "run").fit()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(
        UserError, match=r"`seed` must be 0, as in the run that `out` names, .*, which has no checkpoint"
    ):
        trainer_of(out=tmp_path / "run", resume="auto", seed=7).fit()
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}


def test_a_second_run_into_a_folder_with_checkpoints_is_told_what_differs_and_what_to_do(tmp_path: Path):
    trainer_of(out=tmp_path / "run").fit()
    with pytest.raises(
        UserError,
        match=r"`batch_size` must be 16, as in .*, which has checkpoints, got 8; go on with it by `resume`.*another",
    ):
        trainer_of(out=tmp_path / "run", batch_size=8).fit()


def test_a_trainer_under_a_default_dtype_of_float64_trains_float32_networks(monkeypatch: pytest.MonkeyPatch):
    expected = trainer_of(epochs=1).fit()
    torch.set_default_dtype(torch.float64)
    try:
        trainer = trainer_of(epochs=1)
        rows = trainer.fit()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for peer in trainer.peers for parameter in peer.parameters()} == {torch.float32}
    assert rows[0]["loss"] == expected[0]["loss"]


def test_a_run_starts_from_the_weights_of_another_with_a_schedule_of_its_own(tmp_path: Path):
    first = trainer_of(out=tmp_path / "first", epochs=3)
    first.fit()
    ended = weights_of(first)
    for path in (tmp_path / "first", max((tmp_path / "first" / "checkpoints").iterdir())):
        second = trainer_of(start_from=path, epochs=2, seed=9, learning_rate=0.002, warmup_epochs=1)
        assert same(weights_of(second), ended) and second.steps == 0 and second.history == []
        rows = second.fit()
        assert [row["epoch"] for row in rows] == [1, 2] and rows[0]["learning_rate_1"] == pytest.approx(0.002 / 3)
    with pytest.raises(
        UserError, match=r"`start_from` must be a run of the same networks, .* peer 2 is small and does not"
    ):
        trainer_of(start_from=tmp_path / "first", peers=("small", "shufflenetv2"))
    for nothing in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="`start_from` must be a run folder with checkpoints, or a checkpoint, got"):
            trainer_of(start_from=nothing)


def test_a_run_that_was_started_from_another_goes_on_from_its_own_checkpoint(tmp_path: Path):
    trainer_of(out=tmp_path / "first").fit()
    options = {"start_from": tmp_path / "first", "out": tmp_path / "second", "resume": "auto", "seed": 3, "epochs": 4}
    half = trainer_of(**options)
    half.fit(until=2)
    rest, whole = trainer_of(**options), trainer_of(**{**options, "out": None, "resume": None})
    assert rest.started_from is None and same(weights_of(rest), weights_of(half))
    rest.fit()
    whole.fit()
    assert same(weights_of(rest), weights_of(whole))


def test_a_finished_run_started_again_with_more_epochs_is_told_how(tmp_path: Path):
    trainer_of(out=tmp_path / "run").fit()
    with pytest.raises(
        UserError, match=r"`epochs` must be 2, .* got 5: .* a schedule of 2 epochs; `start_from` begins"
    ):
        trainer_of(out=tmp_path / "run", resume="auto", epochs=5)


@pytest.mark.parametrize(
    ("pace", "expected"), [(0.4, "float32"), (1.2, "float32"), (1.3, "bfloat16"), (2.5, "bfloat16")]
)
def test_precision_auto_is_what_was_measured_and_the_first_line_says_it(
    pace: float, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setattr("dogo_fast.training.precision.pace_of_bfloat16", lambda: pace)
    options = {"batch_size": 512, "epochs": 1, "device": "cpu", "evaluate": False, "resume": "auto", "out": tmp_path}
    pretrain(PretrainConfig(**options))
    first = capsys.readouterr().out.splitlines()[0]
    assert f"on cpu in {expected} (" in first and f"{pace:.1f} ×" in first
    monkeypatch.setattr("dogo_fast.training.precision.pace_of_bfloat16", lambda: 5 - pace)  # another machine
    pretrain(PretrainConfig(**options))
    assert f"on cpu in {expected}; results" in capsys.readouterr().out.splitlines()[0]


def test_the_pace_of_bfloat16_is_measured_once_and_leaves_random_numbers_alone():
    from dogo_fast.training.precision import pace_of_bfloat16 as patched  # the fixture's

    assert patched() == 0.5
    program = (
        "import torch\nfrom dogo_fast.training.precision import pace_of_bfloat16\ntorch.manual_seed(1)\n"
        "before = torch.get_rng_state()\npace = pace_of_bfloat16()\n"
        "assert 0.01 < pace < 100 and pace == pace_of_bfloat16() and torch.equal(before, torch.get_rng_state())"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_sizes_that_are_asked_for_hold_for_images_given_in_python_too():
    source = CountedSource()
    trainer = Trainer(("small", "small"), source, **QUICK, view_size=12, decode_size=7)
    assert (trainer.data.view_size, trainer.step.augmentation.view_size, source.decode_size) == (12, 12, 7)
    assert source.read(0).shape == (3, 7, 7)
    source.decode_size = 5
    assert Trainer(("small", "small"), source, **QUICK).data.view_size == 8 and source.decode_size == 5


def test_a_peer_that_collapses_is_said_once_and_seen_in_every_row(tmp_path: Path):
    class Constant(nn.Module):
        """What it maps images to hardly depends on them."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(torch.ones(len(images), 1)) + 0 * images.mean()

    options = {**QUICK, "epochs": 3, "method": "simsiam", "out": tmp_path / "run"}
    trainer = Trainer(("small", Constant()), pixels(), **options)
    with pytest.warns(UserWarning, match=r"peer 2 has collapsed in epoch 1: .* and 1/√2048 = 0\.022 where") as warned:
        rows = trainer.fit()
    assert len([each for each in warned if "collapsed" in str(each.message)]) == 1
    assert all(row["deviation_2"] < 1e-3 and row["deviation_1"] * 2048**0.5 > 0.3 for row in rows)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [float(row["deviation_1"]) for row in csv.DictReader(file)] == [row["deviation_1"] for row in rows]


def test_two_trainers_that_found_the_same_empty_folder_do_not_both_write_into_it(tmp_path: Path):
    late, first = (trainer_of(out=tmp_path / "run", resume="auto", seed=seed) for seed in (5, 5))
    first.fit()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="no other run has used meanwhile"):
        late.fit()
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_images_of_another_size_are_not_gone_on_with(tmp_path: Path):
    finished_run(tmp_path / "run", seed=3)
    state = trainer_of().state()
    state["view_size"] = 16
    with pytest.raises(UserError, match="images for the views of 16 px of the run that is resumed, got 8 px"):
        trainer_of().load_state(state)


def test_tied_weights_and_extra_state_are_exported(tmp_path: Path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3 * 8 * 8, 3 * 8 * 8)
            self.second = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x.flatten(1)))

        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    trainer = trainer_of(peers=("small", Tied()), out=tmp_path / "run")
    trainer.fit()
    weights = load_file(tmp_path / "run" / "peer_2.safetensors")
    assert set(weights) == {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert torch.equal(weights["first.weight"], weights["second.weight"])


def test_checkpoints_may_lie_behind_a_link_or_outside_a_run_folder(tmp_path: Path):
    newest = finished_run(tmp_path / "run", seed=3)
    shutil.move(tmp_path / "run" / "checkpoints", tmp_path / "elsewhere")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    for resume in ("auto", str(newest)):
        settings = starting_point(None, None, resume, tmp_path / "run")
        assert settings["seed"] == 3
        pretrain(PretrainConfig(**settings, resume=resume, out=tmp_path / "run"))
    copy = tmp_path / "copy.pt"
    shutil.copy(newest, copy)
    assert starting_point(None, None, str(copy), None)["seed"] == 3


def test_a_checkpoint_with_parts_missing_is_refused(tmp_path: Path):
    state = trainer_of().state() | {"random": {}}
    folder = RunFolder(tmp_path / "run")
    for damage in ({"random": None}, {"peers": state["peers"][:1]}):
        path = folder.checkpoints.save(state | damage)
        with pytest.raises(CheckpointError, match=rf"not a whole checkpoint: {next(iter(damage))} missing"):
            load_checkpoint(path)
    with pytest.raises(UserError, match="the checkpoint does not fit these networks and optimisers"):
        trainer_of().load_state(state | {"peers": [{}, {}]})


def test_a_lock_ends_with_its_process_though_a_forked_worker_lives_on(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        ready, begun = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(begun, b"1")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)
        (descriptor,) = locks._held
        os.close(descriptor)  # as the kernel does where this process is killed
        try:
            with RunFolder(tmp_path / "run").locked():
                pass
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            locks._held.discard(descriptor)


def test_weights_that_are_not_finite_after_the_last_step_of_an_epoch_are_told_again():
    trainer = trainer_of()
    with torch.no_grad():
        next(iter(trainer.peers[0].parameters())).fill_(torch.nan)
    for _ in range(2):
        with pytest.raises(DivergedError):
            trainer.fit()


def test_a_signal_in_the_last_step_ends_the_run_before_its_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = PretrainConfig(epochs=1, batch_size=512, device="cpu", out=tmp_path / "run")
    StopAfter(monkeypatch, 2)
    with pytest.raises(RunInterrupted, match=r"stopped by SIGTERM after the last step; saved\. To evaluate: dogo"):
        pretrain(config)
    assert not (tmp_path / "run" / "results.json").exists()
    monkeypatch.undo()
    first, _ = pretrain(PretrainConfig(**config.model_dump(exclude={"resume"}), resume="auto"))
    assert first.trained is not None


def test_shared_batch_norms_are_refused():
    norm = nn.BatchNorm1d(3 * 8 * 8, affine=False)

    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), norm, nn.Linear(3 * 8 * 8, 16))

    with pytest.raises(ValueError, match="backbones must not share buffers"):
        trainer_of(peers=(network(), network()))


def test_a_bar_that_nobody_reads_does_not_end_the_training(monkeypatch: pytest.MonkeyPatch):
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    for stream in (Broken(), None):
        monkeypatch.setattr("sys.stderr", stream)
        assert len(trainer_of().fit()) == 2


def test_what_only_suits_a_device_is_not_taken_from_a_checkpoint():
    trainer = trainer_of()
    state = trainer.state()
    for optimiser in state["optimisers"]:
        for group in optimiser["param_groups"]:
            group["fused"], group["capturable"] = False, True
    wanted = [group.get("capturable") for group in trainer.step.optimisers[0].param_groups]
    trainer.load_state(state)
    assert [group.get("capturable") for group in trainer.step.optimisers[0].param_groups] == wanted


def test_a_checkpoint_comes_within_an_epoch_after_so_many_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain, often = trainer_of(), trainer_of(out=tmp_path / "run", save_minutes=1e-9)
    saved = []
    save = often.save
    monkeypatch.setattr(
        often, "save", lambda folder: saved.append((often.steps, often.progress.partial is not None)) or save(folder)
    )
    plain.fit()
    often.fit()
    assert saved == [(1, True), (2, True), (3, False), (4, True), (5, True), (6, False)]
    assert same(weights_of(plain), weights_of(often))
    assert without_timing(plain.history) == without_timing(often.history)
    again = trainer_of(out=tmp_path / "again", resume=str(tmp_path / "run" / "checkpoints" / "step_000000005.pt"))
    again.fit()
    assert same(weights_of(plain), weights_of(again))
    assert without_timing(plain.history) == without_timing(again.history)


def test_images_given_in_python_are_not_taken_for_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    StopAfter(monkeypatch, 4)
    trainer = trainer_of(out=tmp_path / "run", resume="auto")
    with pytest.raises(
        RunInterrupted, match=r"saved\. To go on: fit\(\) again, or the same Trainer with resume='.*pt'"
    ):
        trainer.fit()
    monkeypatch.undo()
    assert starting_point(None, None, "auto", tmp_path / "run")["data"] == "python"
    with pytest.raises(ValidationError, match="must not be images that were given in Python"):
        PretrainConfig(**starting_point(None, None, "auto", tmp_path / "run"))
    again = trainer_of(out=tmp_path / "run", resume="auto")
    assert again.steps == 4 and len(again.fit()) == 2


def test_other_images_of_the_same_number_and_size_are_not_gone_on_with():
    state = trainer_of().state()
    other = (pixels().int() + 1).clamp(max=255).to(torch.uint8)
    with pytest.raises(UserError, match="got others of the same number and size"):
        Trainer(("small", "small"), other, trainer_of().config).load_state(state)


@pytest.mark.parametrize("size", ["2", "16"])
def test_one_process_of_several_is_refused(size: str, monkeypatch: pytest.MonkeyPatch):
    """As torchrun starts them: each would train on a loss of its own batch alone."""
    monkeypatch.setenv("WORLD_SIZE", size)
    for start in (trainer_of, lambda: pretrain(PretrainConfig(device="cpu"))):
        with pytest.raises(UserError, match=rf"several processes is not supported yet, got a world size of {size}"):
            start()
    monkeypatch.setenv("WORLD_SIZE", "1")
    trainer_of()


def test_several_processes_are_refused_whoever_started_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with pytest.raises(UserError, match="got a world size of 3"):
        trainer_of()


def test_two_runs_that_are_the_same_leave_the_same_files(tmp_path: Path):
    """safetensors writes its metadata in the order of a hash that each process has anew."""
    program = (
        "import sys, torch\n"
        "from dogo_fast.training import Trainer\n"
        "images = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))\n"
        "Trainer(('small', 'small'), images, epochs=1, batch_size=16, device='cpu', out=sys.argv[1]).fit()\n"
    )
    for name in ("one", "two", "three"):
        subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], check=True, capture_output=True)
    for path in sorted((tmp_path / "one").glob("*.safetensors")):
        content = path.read_bytes()
        assert all((tmp_path / name / path.name).read_bytes() == content for name in ("two", "three")), path.name
        with safe_open(path, "pt") as file:
            assert list(file.metadata()) and file.metadata()["backbone"] == "small"
            assert set(load_file(path)) == set(file.keys())
    assert len(list((tmp_path / "one").glob("*.safetensors"))) == 4


def test_a_signal_that_a_library_makes_an_error_of_its_own_of_is_still_a_signal():
    """As pydantic does while it writes the configuration."""
    with pytest.raises(RunInterrupted, match=r"stopped by SIGTERM.*again"), ending_at_once("again"):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except BaseException as error:
            raise ValueError("wrapped") from error
