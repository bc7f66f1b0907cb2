"""The run is repeatable, its losses are the formula's, its folder complete; it stops clearly when it must."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dogo_fast import DoGoLoss, DoGoLossOutput
from dogo_fast.augment import ViewRecipe
from dogo_fast.data import Loader
from dogo_fast.errors import DivergedError, UserError
from dogo_fast.peers import Peer
from dogo_fast.philox import derive_seed
from dogo_fast.training import PretrainConfig, pretrain
from dogo_fast.training.config import make_generator, resolve_device
from dogo_fast.training.metrics import READ_EVERY, EpochMetrics
from dogo_fast.training.run_folder import RunFolder
from dogo_fast.training.trainer import build_peer, train


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny batches on several threads crawl when the machine is busy: each small operation waits for all threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


RECIPE = ViewRecipe((0.5, 1.0), (3 / 4, 4 / 3), jitter=1.0, brightness=0.4)


def quick_run(folder: Path, **options: object) -> tuple[list[Peer], list[dict[str, float]]]:
    """Two peers trained on a few random images; the peers and the rows of metrics.csv."""
    config = PretrainConfig(**{"epochs": 2, "batch_size": 16, "device": "cpu", "out": folder, **options}).resolve()
    pixels = torch.randint(0, 256, (48, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    peers = [build_peer(name, 8, config.seed, number) for number, name in enumerate(config.peer_names, 1)]
    loader = Loader(pixels, config.batch_size, make_generator(config.seed, "order"))
    train(peers, loader, RECIPE, config, RunFolder(folder))
    return peers, read_metrics(folder)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_equal_seeds_give_equal_weights_and_metrics(tmp_path: Path):
    peers, rows = quick_run(tmp_path / "a", seed=5)
    again, rows_again = quick_run(tmp_path / "b", seed=5)
    other, _ = quick_run(tmp_path / "c", seed=6)
    assert all(map(same_weights, peers, again))
    timing = {"seconds", "images_per_second"}
    for row, row_again in zip(rows, rows_again, strict=True):
        assert {k: v for k, v in row.items() if k not in timing} == {
            k: v for k, v in row_again.items() if k not in timing
        }
    assert not same_weights(peers[0], other[0]) and not same_weights(peers[0], peers[1])


def test_without_distillation_peer_1_does_not_depend_on_peer_2(tmp_path: Path):
    alone = {}
    for weight in (0.0, 1.0):
        for names in ("small,small", "small,shufflenetv2"):
            alone[weight, names] = quick_run(tmp_path / f"{weight}{names}", kd_weight=weight, peers=names)[0][0]
    assert same_weights(alone[0.0, "small,small"], alone[0.0, "small,shufflenetv2"])
    assert not same_weights(alone[1.0, "small,small"], alone[1.0, "small,shufflenetv2"])
    assert not same_weights(alone[0.0, "small,small"], alone[1.0, "small,small"])


def test_first_metrics_are_the_loss_of_the_first_views(tmp_path: Path):
    """One step over all images without augmentation: the row must hold DoGoLoss of the initial peers."""
    config = PretrainConfig(epochs=1, batch_size=16, kd_weight=3.0, device="cpu", out=tmp_path / "run").resolve()
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    peers = [build_peer("small", 8, 0, number) for number in (1, 2)]
    initial = [build_peer("small", 8, 0, number) for number in (1, 2)]
    train(peers, Loader(images, 16, torch.Generator()), ViewRecipe(), config, RunFolder(config.out))
    pairs = [peer(torch.cat([images, images]) / 255).chunk(2) for peer in initial]
    expected = DoGoLoss(kd_weight=3.0)(*pairs)
    (row,) = read_metrics(config.out)
    for name, value in expected._asdict().items():
        assert row[name] == pytest.approx(float(value.detach()), rel=1e-4), name
    assert row["loss_1"] == pytest.approx(row["nt_xent_1"] + 3.0 * row["kl_1"], rel=1e-5)
    assert row["kl_1"] > 1e-3


def test_learning_rate_falls_as_a_half_cosine_over_all_steps(tmp_path: Path):
    _, rows = quick_run(tmp_path / "run", epochs=4, learning_rate=0.01)
    expected = [0.01 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]


def test_training_lowers_the_loss(tmp_path: Path):
    _, rows = quick_run(tmp_path / "run", epochs=12, kd_weight=0.1)
    assert rows[-1]["nt_xent_1"] < rows[0]["nt_xent_1"] - 0.1
    assert rows[-1]["nt_xent_2"] < rows[0]["nt_xent_2"] - 0.1


def losses(value: float) -> DoGoLossOutput:
    return DoGoLossOutput(*(torch.tensor(value + index) for index in range(7)))


def test_epoch_metrics_are_means_over_every_step():
    metrics = EpochMetrics(epoch=1, first_step=1)
    read = [metrics.add(losses(float(step))) for step in range(READ_EVERY + 3)]
    assert read == [step == READ_EVERY - 1 for step in range(READ_EVERY + 3)]
    row = metrics.finish(images=100, learning_rate=0.5)
    assert row["loss"] == pytest.approx((READ_EVERY + 2) / 2)
    assert row["kl_2"] == pytest.approx((READ_EVERY + 2) / 2 + 6)
    assert row["images_per_second"] == pytest.approx(100 / row["seconds"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_the_run_naming_the_step(bad: float):
    metrics = EpochMetrics(epoch=3, first_step=41)
    for step in range(4):
        metrics.add(losses(bad if step == 2 else 1.0))
    with pytest.raises(DivergedError, match=r"not finite at step 43 \(epoch 3\)"):
        metrics.finish(images=1, learning_rate=0.1)


def test_diverging_run_keeps_the_metrics_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def explode(self: DoGoLoss, *pairs: object) -> DoGoLossOutput:
        calls.append(1)
        output = forward(self, *pairs)
        return output if len(calls) <= 4 else DoGoLossOutput(*(value * math.nan for value in output))

    forward = DoGoLoss.forward
    monkeypatch.setattr(DoGoLoss, "forward", explode)
    with pytest.raises(DivergedError, match=r"step 5 \(epoch 2\)"):
        quick_run(tmp_path / "run")
    assert [row["epoch"] for row in read_metrics(tmp_path / "run")] == [1]
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_whole_run_leaves_a_complete_folder(tmp_path: Path):
    config = PretrainConfig(epochs=1, batch_size=512, peers="small, small", device="cpu", out=tmp_path / "run")
    results = pretrain(config)
    names = {file.name for file in (tmp_path / "run").iterdir()}
    weights = {f"peer_{number}{part}.safetensors" for number in (1, 2) for part in ("", "_head")}
    assert names == {"config.json", "metrics.csv", "results.json", *weights}

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

    peer = Peer("small", 8)
    peer.backbone.load_state_dict(load_file(tmp_path / "run" / "peer_1.safetensors"), strict=True)
    peer.head.load_state_dict(load_file(tmp_path / "run" / "peer_1_head.safetensors"), strict=True)
    assert not same_weights(peer, build_peer("small", 8, 0, 1))


def test_saved_weights_are_the_trained_ones_and_say_which_stem(tmp_path: Path):
    (peer_1, _), _ = quick_run(tmp_path / "run", peers="shufflenetv2,small", epochs=1)
    saved = load_file(tmp_path / "run" / "peer_1.safetensors")
    assert saved.keys() == peer_1.backbone.state_dict().keys()
    assert all(torch.equal(saved[key], value) for key, value in peer_1.backbone.state_dict().items())
    with safe_open(tmp_path / "run" / "peer_1.safetensors", "pt") as file:
        assert file.metadata()["backbone"] == "shufflenetv2" and file.metadata()["stem"] == "small images"


def test_interrupted_run_keeps_its_metrics_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_metrics = RunFolder.write_metrics

    def write_then_interrupt(self: RunFolder, rows: list[dict[str, float]]) -> None:
        write_metrics(self, rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "write_metrics", write_then_interrupt)
    with pytest.raises(KeyboardInterrupt, match=str(tmp_path / "run")):
        pretrain(PretrainConfig(epochs=3, batch_size=512, device="cpu", out=tmp_path / "run"))
    assert len(read_metrics(tmp_path / "run")) == 1


def test_wrong_run_touches_nothing(tmp_path: Path):
    for options in ({"batch_size": 1438}, {"data": "cifar10", "data_dir": tmp_path}, {"device": "cuda:99"}):
        with pytest.raises(UserError):
            pretrain(PretrainConfig(**{"device": "cpu", **options}, out=tmp_path / "run"))
        assert not list(tmp_path.iterdir())


def test_run_folder_refuses_to_overwrite(tmp_path: Path):
    RunFolder(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="--out must be a new or an empty folder"):
        RunFolder(tmp_path)
    with pytest.raises(UserError, match="--out must be a folder that can be made here"):
        RunFolder(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_devices_are_checked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"--device must be auto or cpu.*'cuda'"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda") and resolve_device("cuda:1") == torch.device("cuda:1")
    for name in ("cuda:2", "cuda:", "gpu", "cuda:x", ""):
        with pytest.raises(UserError, match=f"--device must be .*'{name}'"):
            resolve_device(name)


def test_seeds_for_different_purposes_differ():
    seeds = {derive_seed(seed, purpose) for seed in range(50) for purpose in ("order", "views", "peer 1", "peer 2")}
    assert len(seeds) == 200
    assert derive_seed(7, "order") == derive_seed(7, "order")
