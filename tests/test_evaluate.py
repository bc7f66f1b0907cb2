"""The suite, the paper's probe, fine-tuning, weights of every kind, and the command around them."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dogo_fast.cli import main
from dogo_fast.data import DataSet, MapSource, Split, load_data_set
from dogo_fast.errors import UserError
from dogo_fast.evaluation import (
    KINDS,
    LinearProbe,
    Suite,
    balanced_subset,
    extract_features,
    finetuned_accuracy,
    flip_labels,
    hold_out,
    load_networks,
    probe_accuracies,
)
from dogo_fast.peers import build_backbone, build_peer
from dogo_fast.training import PretrainConfig, Trainer, pretrain


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_data_set("digits")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    pretrain(PretrainConfig(epochs=1, peers=("small", "medium"), evaluate=False, device="cpu", out=folder))
    return folder


def clusters(count: int, seed: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=source)
    centres = torch.randn(classes, 16, generator=torch.Generator().manual_seed(99))
    return centres[labels] + torch.randn(count, 16, generator=source), labels * 7 - 3


def test_logistic_regression_on_few_wrong_and_all_labels_is_scikit_learns():
    train, labels = clusters(1200, 1)
    test = clusters(3000, 2)
    for rows, given in (
        (torch.arange(1200), labels),
        (balanced_subset(labels, 0.05, 0), None),
        (torch.arange(1200), flip_labels(labels, 0.4, 0)),
    ):
        given = labels[rows] if given is None else given
        scaler = StandardScaler().fit(train[rows].double().numpy())
        theirs = LogisticRegression(C=1.0, max_iter=1000, tol=1e-8).fit(scaler.transform(train[rows]), given.numpy())
        expected = theirs.score(scaler.transform(test[0]), test[1].numpy())
        assert LinearProbe(train[rows], given).accuracy(*test) == pytest.approx(expected, abs=1e-3)


def test_the_probe_learns_what_can_be_learnt_and_each_seed_is_the_same_alone_and_among_others():
    train, test = clusters(1000, 1), clusters(2000, 2)
    best = LinearProbe(*train).accuracy(*test)
    together = probe_accuracies(*train, *test, seeds=(3, 1, 2))
    assert all(abs(each - best) < 0.03 for each in together)
    assert probe_accuracies(*train, *test, seeds=(1,)) == [pytest.approx(together[1], abs=1e-3)]
    strange = torch.cat([test[1], torch.full((2000,), 1000)])
    assert probe_accuracies(*train, test[0].repeat(2, 1), strange)[0] == pytest.approx(best / 2, abs=0.02)


def test_the_probe_takes_the_epoch_that_is_best_on_what_is_held_out():
    """The same layer by plain PyTorch, one seed: the best epoch, not the last, is what is tested."""
    source = torch.Generator().manual_seed(0)
    features = torch.randn(700, 100, generator=source, dtype=torch.float64)
    labels = torch.where(torch.rand(700, generator=source) < 0.5, features[:, 0] > 0, features[:, 1] > 1).long()
    kept, held = hold_out(labels[:300], 0.15, 5)
    rows = features / features[:300].std(correction=0)
    source = torch.Generator().manual_seed(5)
    weight = (torch.rand(100, 2, generator=source, dtype=torch.float64) * 2 - 1).mul_(0.1).requires_grad_()
    bias = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], lr=0.03)
    right = []
    for _ in range(20):
        for batch in kept[torch.randperm(len(kept), generator=source)].split(256):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(rows[batch] @ weight + bias, labels[batch]).backward()
            optimiser.step()
        found = (rows @ weight + bias).argmax(dim=1) == labels
        right.append((int(found[held].sum()), int(found[300:].sum())))
    best = max(right, key=lambda each: each[0])
    assert best[1] != right[-1][1]
    train, test = (features[:300], labels[:300]), (features[300:], labels[300:])
    assert probe_accuracies(*train, *test, seeds=(5,), epochs=20, learning_rate=0.03) == [best[1] / 400]


def test_random_features_give_chance():
    source = torch.Generator().manual_seed(0)
    features, labels = torch.randn(4000, 32, generator=source), torch.arange(4000) % 10
    data = DataSet("noise", torch.zeros(4000, 3, 8, 8, dtype=torch.uint8), None, None, ())
    train = Split(data.pretraining, labels)
    suite = Suite(torch.nn.Flatten(), DataSet("noise", data.pretraining, train, train, ()))
    suite._features = {"train": (features[:2000], labels[:2000]), "test": (features[2000:], labels[2000:])}
    for name, values in suite.scores(("knn", "linear", "probe", "labels", "noise", "imbalance")).items():
        assert abs(values[0] - 0.1) < 4 * (0.1 * 0.9 / 2000) ** 0.5, name


def test_all_kinds_of_a_suite_on_digits(digits: DataSet):
    """A few seconds, every kind; whatever is asked of features that separate the classes is far above chance."""
    backbone = build_peer("small", 8, 0, 1).backbone.eval()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    suite = Suite(backbone, digits, (digits,), (0, 1), severities=(1, 5))
    scores = suite.scores([kind for kind in KINDS if kind != "finetune"])
    assert scores["transfer-digits-knn"] == scores["knn"] and scores["transfer-digits-linear"] == scores["linear"]
    assert scores["linear"][0] > 0.9 > scores["labels-10"][0] > scores["labels-1"][0] > 0.3
    assert scores["linear"] > scores["noise-symmetric-20"] > scores["noise-symmetric-80"]
    assert scores["corruption-brightness-1"][0] > scores["corruption-gaussian-noise-5"][0] > 0.1
    assert len(scores["labels-1"]) == len(scores["noise-pair-40"]) == len(scores["probe"]) == 2
    assert scores["labels-1"][0] != scores["labels-1"][1]
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    with pytest.raises(ValueError, match=r"names must be of knn, .*, got nn"):
        suite.scores(["nn"])


def test_corruptions_are_done_to_the_images_before_they_are_normalised(digits: DataSet):
    seen = []

    def remember(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return 255 - images

    assert digits.test is not None
    rows, _ = extract_features(torch.nn.Flatten(), digits.test, digits, change=remember)
    assert isinstance(digits.test, Split) and torch.equal(torch.cat(seen), digits.test.images)
    mean, deviation = digits.mean[0], digits.deviation[0]
    plain = (255 - digits.test.images.float()) / 255
    torch.testing.assert_close(rows, ((plain - mean) / deviation).flatten(1))


def test_finetuning_beats_a_frozen_network_and_leaves_it_alone(digits: DataSet):
    backbone = build_peer("small", 8, 0, 1).backbone
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    few = digits.select(balanced_subset(digits.train.labels, 0.1, 0))
    accuracy = finetuned_accuracy(backbone, few, epochs=20)
    assert accuracy > Suite(backbone, few).scores(["linear"])["linear"][0]
    assert accuracy == finetuned_accuracy(backbone, few, epochs=20)
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_a_part_of_a_data_set_streams_and_resides_alike(digits: DataSet):
    rows = torch.tensor([5, 2, 900])
    items = [(image, int(label)) for image, label in zip(digits.train.images, digits.train.labels, strict=True)]
    source = MapSource(items)
    streamed = DataSet("digits", source, source, source, ()).select(rows, torch.tensor([7]))
    assert torch.equal(torch.stack([streamed.train.read(i) for i in range(3)]), digits.train.images[rows])
    assert torch.equal(streamed.train.labels, digits.train.labels[rows]) and len(streamed.test) == 1
    resident = digits.select(rows)
    assert resident.pretraining is resident.train.images and torch.equal(
        resident.train.images, digits.train.images[rows]
    )
    assert resident.test is digits.test


def test_holding_out_trains_on_the_rest_and_scores_on_what_was_held_out(digits: DataSet):
    trainer = Trainer(("small", "small"), digits, epochs=1, hold_out=0.2, imbalance=0.5, device="cpu")
    kept, held = trainer.data.train, trainer.data.test
    assert len(held) == sum(round(0.2 * int(count)) for count in digits.train.labels.bincount())
    counts = kept.labels.bincount()
    assert counts[0] > 5 * counts[-1] and trainer.data.image_count == len(kept) < 700
    pixels = {bytes(image.flatten().tolist()) for image in held.images}
    assert not pixels & {bytes(image.flatten().tolist()) for image in kept.images}
    assert trainer.data.notes[-1].startswith(f"{len(kept)} of 1437 training images are trained on")
    with pytest.raises(UserError, match="need images that all have labels"):
        Trainer(("small", "small"), digits.pretraining, epochs=1, hold_out=0.2, device="cpu")


def test_scores_on_the_way_are_in_the_metrics_keep_the_best_and_change_nothing(digits: DataSet, tmp_path: Path):
    def trainer(**more: object) -> Trainer:
        return Trainer(("small", "small"), digits, epochs=4, device="cpu", learning_rate=1e-4, **more)

    plain, scored = trainer(), trainer(score_every=2, out=tmp_path / "run")
    plain.fit()
    scored.fit(until=3)
    scored = trainer(score_every=2, out=tmp_path / "run", resume="auto")
    scored.fit()
    assert [sorted(key for key in row if "knn" in key) for row in scored.history] == [[], ["knn_1", "knn_2"]] * 2
    assert [row["loss"] for row in scored.history] == [row["loss"] for row in plain.history]
    for number, backbone in enumerate(scored.backbones, 1):
        assert scored.history[-1][f"knn_{number}"] == Suite(backbone, digits).scores(["knn"])["knn"][0]
    means = {row["epoch"]: row["knn_1"] + row["knn_2"] for row in scored.history if "knn_1" in row}
    best = max(means, key=lambda epoch: (means[epoch], -epoch))
    assert scored.progress.notes["best"]["epoch"] == best
    of_best = load_networks(tmp_path / "run" / "checkpoints" / "best.pt")
    assert sum(Suite(each.backbone, digits).scores(["knn"])["knn"][0] for each in of_best) == means[best]
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["knn_1"] != "" for row in rows] == [False, True, False, True]
    with pytest.raises(UserError, match=r"`score_every` needs labelled .*, images has not"):
        Trainer(("small", "small"), digits.pretraining, score_every=1, device="cpu")


# ------------------------------------------------------------------------------------------------------- weights


def same(network, backbone: torch.nn.Module) -> bool:
    theirs = backbone.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in network.backbone.state_dict().items())


def test_a_run_and_its_checkpoint_are_the_same_two_networks(run: Path):
    of_run, of_checkpoint = load_networks(run), load_networks(next((run / "checkpoints").iterdir()))
    assert [(each.name, each.peer, each.image_size) for each in of_run] == [("small", 1, 8), ("medium", 2, 8)]
    for one, other in zip(of_run, of_checkpoint, strict=True):
        assert same(one, other.backbone) and one.normalisation == other.normalisation and not one.backbone.training
    assert same(load_networks(run / "peer_2.safetensors")[0], of_run[1].backbone)


def test_torchvision_weights_lose_their_classifier_and_nothing_else(tmp_path: Path):
    original = torchvision.models.resnet18(weights=None)
    save_file(original.state_dict(), tmp_path / "r.safetensors")
    torch.save(original.state_dict(), tmp_path / "r.pth")
    for name in ("r.safetensors", "r.pth"):
        (network,) = load_networks(tmp_path / name, "resnet18", 224)
        assert same(network, original)
        assert sorted(network.left_out) == ["fc.bias", "fc.weight"]


def test_weights_that_do_not_fit_are_refused_by_name(run: Path, tmp_path: Path):
    small = build_backbone("small", 32).state_dict()
    cases = {
        "missing": ({key: value for key, value in small.items() if key != "0.weight"}, "misses 0.weight"),
        "foreign": ({**small, "extra": torch.zeros(2)}, "has, which it has not, extra"),
        "shape": (
            {**small, "0.weight": torch.zeros(32, 1, 3, 3)},
            r"0.weight must be \(32, 3, 3, 3\), got \(32, 1, 3, 3\)",
        ),
        "infinite": ({**small, "0.weight": small["0.weight"] / 0}, "not finite, in 0.weight"),
    }
    for name, (weights, message) in cases.items():
        save_file(weights, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=message):
            load_networks(tmp_path / f"{name}.safetensors", "small", 32)
    whole = (run / "peer_1.safetensors").read_bytes()
    for name, content, message in (
        ("half.safetensors", whole[: len(whole) // 2], "damaged or no safetensors"),
        ("text.pth", b"no weights", "damaged, or no file of weights"),
        ("list.pth", None, "must hold a dictionary of weights, got list"),
    ):
        if content is None:
            torch.save([1], tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_networks(tmp_path / name, "small", 32)
    with pytest.raises(UserError, match="`backbone` must name the network"):
        load_networks(tmp_path / "missing.safetensors")
    with pytest.raises(UserError, match=r"must be that of .*, small, got resnet18"):
        load_networks(run / "peer_1.safetensors", "resnet18")
    with pytest.raises(UserError, match=r"must hold peer_1.safetensors"):
        load_networks(tmp_path)


# ------------------------------------------------------------------------------------------------------- command


def test_the_command_scores_a_run_and_keeps_what_it_has(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", str(run), "--only", "labels", "--seeds", "3"]) == 0
    printed = capsys.readouterr().out
    assert "peer 2 (medium), digits" in printed and "± " in printed and "(3 seeds)" in printed
    assert main(["evaluate", str(run), "--peer", "1", "--transfer", "digits", "--only", "knn", "transfer"]) == 0
    found = json.loads((run / "evaluation.json").read_bytes())
    assert set(found["peer_1"]["scores"]) >= {"knn", "labels-1", "transfer-digits-knn"}
    assert found["peer_1"]["scores"]["knn"] == found["peer_1"]["scores"]["transfer-digits-knn"]
    assert set(found["peer_2"]["scores"]) == {"labels-1", "labels-5", "labels-10"}
    network, data = load_networks(run)[0], load_data_set("digits")
    assert found["peer_1"]["scores"]["knn"] == Suite(network.backbone, data).scores(["knn"])["knn"]


def test_scores_on_other_data_and_of_checkpoints_leave_a_runs_own_alone(run: Path, tmp_path: Path):
    for image in range(12):
        folder = tmp_path / "images" / ("train" if image < 8 else "val") / "ab"[image % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (20 * image, 255 * (image % 2), 0)).save(folder / f"{image}.png")
    assert main(["evaluate", str(run), "--only", "knn"]) == 0
    own = (run / "evaluation.json").read_bytes()
    assert (
        main(["evaluate", str(run), "--only", "knn", "--data", "folder", "--data-dir", str(tmp_path / "images")]) == 0
    )
    assert main(["evaluate", str(next((run / "checkpoints").iterdir())), "--only", "knn"]) == 0
    assert (run / "evaluation.json").read_bytes() == own
    names = sorted(path.name for path in run.glob("evaluation*.json"))
    assert names == ["evaluation-folder.json", "evaluation-step_000000011.json", "evaluation.json"]


def test_other_data_are_seen_at_the_size_and_with_the_mean_of_the_networks_own(digits: DataSet):
    wide = replace(digits, name="folder:wide", view_size=12, mean=(0.9,) * 3, photographs=True)
    suite = Suite(torch.nn.Flatten(), replace(digits, photographs=True), [wide])
    scores = suite.scores(["knn", "transfer"])
    assert scores["transfer-wide-knn"] == scores["knn"]
    with pytest.raises(ValueError, match="transfer must be of different names, got digits, digits"):
        Suite(torch.nn.Flatten(), digits, [digits, digits])


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    part = tmp_path / "part"
    pretrain(PretrainConfig(epochs=1, hold_out=0.3, evaluate=False, device="cpu", out=part))
    assert main(["evaluate", str(part), "--peer", "1", "--only", "all"]) == 0
    printed = capsys.readouterr().out
    assert "transfer is left out: it needs other data sets" in printed
    assert "digits: the run saw a part (hold_out 0.3); it is scored on the whole" in printed


def test_weights_of_others_are_scored_at_the_data_sets_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r.pth")
    words = ["evaluate", str(tmp_path / "r.pth"), "--backbone", "resnet18", "--image-size", "112", "--data", "digits"]
    assert main([*words, "--out", str(tmp_path / "s.json")]) == 0
    assert "the classifier's weights are left out: fc" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "s.json").read_bytes())["resnet18"]["scores"]) == {"knn", "knn-200", "linear"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "RUN must be a run folder, a checkpoint or a file of weights, got none"),
        (["nowhere"], "RUN must be .* got nowhere, which is not there"),
        (["RUN", "--only", "nn"], "--only must be of knn, linear, .*got"),
        (["RUN", "--peer", "3"], "--peer must be one of .*, got 3"),
        (["RUN", "--only", "transfer"], "--transfer data sets and the kind transfer of --only must be given together"),
        (
            ["RUN", "--only", "transfer", "--transfer", "folder=a", "folder=b"],
            "--transfer data sets must have different n",
        ),
        (["RUN", "RUN", "--out", "x.json"], "--out must not be given with several runs"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]):

    assert main(["evaluate", *(str(run) if word == "RUN" else word for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error
