"""Runs side by side: arms, paired gains and their intervals by hand, tables, pictures, the report of a run."""

import csv
import importlib.util
import json
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from dogo_fast.cli import main
from dogo_fast.data import load_data_set
from dogo_fast.errors import UserError
from dogo_fast.reporting.comparison import Run, as_records, compare, half_width, markdown, read_run
from dogo_fast.reporting.report import SHOWN, some_pictures, write_report
from dogo_fast.training import PretrainConfig, Trainer
from dogo_fast.training.run_folder import RunFolder
from dogo_fast.views.sheet import arrange

ROOT = Path(__file__).resolve().parents[1]


def run(
    weight: float, seed: int, knn: list[float], peers: tuple[str, ...] = ("small", "medium"), **scores: float
) -> Run:
    settings = PretrainConfig(kd_weight=weight, seed=seed, peers=peers).model_dump(mode="json")
    found = tuple({"knn": [each], **{name: [value] for name, value in scores.items()}} for each in knn)
    return Run(Path(f"{weight}-{seed}-{'-'.join(peers)}"), "", settings, peers, found, {"loss": [2.0, 1.0]})


def test_gains_are_means_of_differences_between_runs_of_a_seed_with_students_interval():
    alone = [run(0, seed, [0.5 + 0.1 * seed, 0.4]) for seed in range(3)]
    better = [run(1, seed, [0.52 + 0.1 * seed + 0.01 * seed, 0.45]) for seed in (0, 1, 2)]
    (found,) = compare([*alone, *better])
    assert list(found.arms) == ["kd_weight 0", "kd_weight 1"] and found.baseline == "kd_weight 0"
    cell = found.rows[1, "knn"]["kd_weight 1"]
    differences = [0.02, 0.03, 0.04]
    assert cell.gain == pytest.approx(0.03) and cell.runs == 3
    low, high = stats.t.interval(0.95, 2, statistics.fmean(differences), stats.sem(differences))
    assert (cell.gain - cell.half_width, cell.gain + cell.half_width) == pytest.approx((low, high))
    # the spread between seeds, 0.1, is far larger than that of the differences
    assert cell.deviation == pytest.approx(0.11) and cell.half_width < 0.03
    assert found.rows[1, "knn"]["kd_weight 0"].gain is None
    assert "| 1 (small) | knn | 60.0 ± 10.0 | 63.0 ± 11.0 (+3.0 ± 2.5) |" in markdown(found)


def test_one_seed_has_no_interval_and_seeds_without_a_partner_no_part_in_the_gain():
    (found,) = compare([run(0, 0, [0.5, 0.5]), run(1, 0, [0.6, 0.6]), run(1, 7, [0.9, 0.9])])
    cell = found.rows[2, "knn"]["kd_weight 1"]
    assert (cell.gain, cell.half_width, cell.runs) == (pytest.approx(0.1), None, 2)
    assert half_width([0.3]) is None and half_width([0.3, 0.3]) == 0


def test_other_peers_are_another_comparison_and_what_cannot_be_compared_is_said():
    runs = [run(w, 0, [0.5, 0.5], peers) for peers in (("small", "small"), ("small", "medium")) for w in (0, 1)]
    assert [each.peers for each in compare(runs)] == [("small", "small"), ("small", "medium")]
    assert {record["peers"] for record in as_records(compare(runs))} == {"small,small", "small,medium"}
    with pytest.raises(UserError, match="different seeds, got several of kd_weight 0"):
        compare([run(0, 0, [0.5, 0.5]), run(1, 0, [0.5, 0.5]), run(0, 0, [0.4, 0.5])])
    with pytest.raises(
        UserError, match=r"`baseline` must name one arm of kd_weight 1; kd_weight 2: 0 of them have a `kd"
    ):
        compare([run(1, 0, [0.5, 0.5]), run(2, 0, [0.5, 0.5])])
    other = replace(run(1, 0, [0.5, 0.5]), settings={"data": "cifar10", "kd_weight": (0, 0)})
    with pytest.raises(UserError, match="must be on one data set, got digits, cifar10"):
        compare([run(1, 0, [0.5, 0.5]), other])
    (found,) = compare([run(1, 0, [0.5, 0.5]), run(2, 0, [0.7, 0.5])], "kd_weight 1")
    assert found.rows[1, "knn"]["kd_weight 2"].gain == pytest.approx(0.2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("compare")
    paths = []
    for weight in (0, 1):
        for seed in (0, 1):
            paths.append(folder / f"{weight}-{seed}")
            words = ["--kd-weight", str(weight), "--seed", str(seed), "--out", str(paths[-1])]
            assert main(["pretrain", "--epochs", "2", "--score-every", "1", "--device", "cpu", *words]) == 0
    assert main(["evaluate", *map(str, paths), "--only", "knn", "labels", "noise"]) == 0
    return paths


def test_the_command_writes_tables_that_agree_and_pictures(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "c"), "--features", "pca", "--images", "60"]) == 0
    printed = capsys.readouterr().out
    text = (tmp_path / "c" / "comparison.md").read_text()
    assert "- kd_weight 1: seeds 0, 1" in printed and "| 2 (small) | labels-10 |" in text
    with (tmp_path / "c" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    records = json.loads((tmp_path / "c" / "comparison.json").read_bytes())
    assert len(rows) == len(records) == 2 * 2 * (2 + 3 + 6)
    scores = [[read_run(path).scores[0]["knn"][0] for path in runs[place : place + 2]] for place in (0, 2)]
    gain = statistics.fmean(b - a for a, b in zip(*scores, strict=True))
    (record,) = [r for r in records if (r["peer"], r["score"], r["arm"]) == (1, "knn", "kd_weight 1")]
    assert record["gain"] == pytest.approx(gain)
    pictures = {path.name for path in (tmp_path / "c").glob("*.png")}
    names = ("curves", "noise", "labels", "features", "similarities")
    assert pictures == {f"small-small-{name}.png" for name in names} and all(name in text for name in pictures)
    for name in pictures:
        assert len(Image.open(tmp_path / "c" / name).convert("L").getcolors()) > 20  # not an empty picture


def test_what_is_no_run_is_one_line(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for words, message in (
        ([str(runs[0])], "RUN must be two run folders or more, got 1"),
        ([str(runs[0]), str(tmp_path)], "RUN must be a run folder with scores"),
        ([*map(str, runs), "--baseline", "nothing"], "--baseline must name one arm of kd_weight 0; kd_weight 1"),
        ([*map(str, runs), "--out", str(runs[0] / "config.json")], "--out must be a folder that can be made here"),
    ):
        assert main(["compare", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_run_leaves_a_report_with_its_pictures_and_its_numbers(runs: list[Path]):
    report = (runs[2] / "report.md").read_text()
    results = json.loads((runs[2] / "results.json").read_bytes())
    for number in (1, 2):
        each = results[f"peer_{number}"]
        values = [each[state][name] for name in ("knn", "linear") for state in ("untrained", "trained")]
        assert f"| peer {number} (small) | {' | '.join(f'{100 * value:.1f}' for value in values)} |" in report
    assert "1437 images, 2 epochs, 22 steps of 128" in report and "Other than the defaults: `epochs` 2" in report
    for name in ("views.png", "curves.png", "similarities.png"):
        assert f"![{name}]({name})" in report
        assert len(Image.open(runs[2] / name).convert("L").getcolors()) > 20


def test_a_report_draws_the_first_epochs_views_and_passes_over_damaged_images(tmp_path: Path):
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    for image in range(128):
        (folder / f"{image:03}.png").write_bytes(b"")
        if image:
            Image.new("RGB", (9, 9), (2 * image, 60, 0)).save(folder / f"{image:03}.png")
    out = tmp_path / "a run"
    words = ["--data", "folder", "--data-dir", str(tmp_path / "images"), "--residence", "stream", "--epochs", "1"]
    words += ["--view-size", "8", "--batch-size", "32", "--device", "cpu"]
    assert main(["pretrain", *words, "--out", str(out)]) == 0
    report = (out / "report.md").read_text()
    assert "of two views of 63 training images: a row" in report and "dogo-fast evaluate" not in report
    trainer = Trainer(("small", "small"), load_data_set("digits"), PretrainConfig(epochs=1, device="cpu"))
    trainer.fit()
    write_report(trainer, RunFolder(tmp_path / "other"), ())
    images, numbers = some_pictures(trainer.data.pretraining, SHOWN)
    augmentation = trainer.step.augmentation
    augmentation.epoch.fill_(1)
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (trainer.data.mean, trainer.data.deviation))
    views = augmentation(images, numbers).float() * deviation + mean  # the trainer's own, normalised
    expected = arrange(views.transpose(0, 1)).float()
    found = torch.tensor(np.array(Image.open(tmp_path / "other" / "views.png"))).float()
    assert (found - expected).abs().max() <= 2


def test_no_report_leaves_none(tmp_path: Path):
    assert main(["pretrain", "--epochs", "1", "--no-report", "--no-evaluate", "--out", str(tmp_path / "run")]) == 0
    assert not list((tmp_path / "run").glob("*.png")) and not (tmp_path / "run" / "report.md").exists()


# ---------------------------------------------------------------------------------------------------- experiment


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dogo_vs_simclr", ROOT / "experiments" / "dogo_vs_simclr.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_experiment_runs_its_cells_once_and_makes_its_page_of_the_records(
    experiment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    records, page = tmp_path / "records", tmp_path / "results.md"
    words = ["x", "--preset", "trial", "--records", str(records), "--work", str(tmp_path / "work"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", words)
    assert experiment.main() == 0
    names = {path.stem for path in records.glob("*.json")}
    assert len(names) == 5 + 2 * 5 and "main-small-small-dogo-shared-1" in names
    before = {path: path.stat().st_mtime_ns for path in records.iterdir()}
    assert experiment.main() == 0 and before == {path: path.stat().st_mtime_ns for path in records.iterdir()}
    settings = {
        arm: json.loads((records / f"main-small-small-{arm}-0.json").read_bytes())["config"]
        for arm in ("alone", "alone-best", "dogo", "dogo-authors", "dogo-shared")
    }
    assert settings["alone"]["kd_weight"] == settings["alone-best"]["kd_weight"] == [0, 0]
    assert settings["dogo-authors"]["kd_weight"] == [100, 1] and settings["dogo-authors"]["kl_reduction"] == "mean"
    assert {**settings["dogo"], "shared_views": True} == settings["dogo-shared"]
    assert all(each["hold_out"] is None for each in settings.values())
    monkeypatch.setattr(sys, "argv", [*words, "--page", str(page)])
    assert experiment.main() == 0
    text = page.read_text()
    assert "| dogo-ramp |" in text and "| 1 (small) | knn |" in text and "Chosen: alone: " in text


def test_what_is_chosen_is_the_best_on_what_was_held_out_and_nothing_before_all_is_there(
    experiment: ModuleType, tmp_path: Path
):
    preset, pair = experiment.PRESETS["cpu"], ("small", "small")

    def write(cell, value: float) -> None:
        scores = {"scores": {"knn": [value], "linear": [value]}}
        (tmp_path / f"{cell.name}.json").write_text(json.dumps({"peer_1": scores, "peer_2": scores}))

    cells = list(experiment.choice_cells(preset, pair, tmp_path))
    assert len(cells) == 3 + 6 and all(cell.settings["hold_out"] == 0.1 for cell in cells)
    for place, cell in enumerate(cells):
        assert experiment.choose(preset, pair, "dogo", tmp_path) is None
        write(cell, 0.9 if cell.arm == "dogo-t0.2-w3" else 0.8 if cell.arm == "alone-t0.1" else 0.01 * place)
    assert experiment.choose(preset, pair, "alone", tmp_path) == {"temperature": 0.1, "kd_weight": 0.0}
    more = [cell for cell in experiment.choice_cells(preset, pair, tmp_path) if cell not in cells]
    assert [cell.arm for cell in more] == ["dogo-k0.05", "dogo-k0.2", "dogo-ramp"]
    assert not list(experiment.main_cells(preset, pair, tmp_path, more=False))
    for cell in more:
        write(cell, 0.95 if cell.arm == "dogo-k0.2" else 0.1)
    best = {"temperature": 0.2, "kd_temperature": 0.2, "kd_weight": 3.0}
    assert experiment.choose(preset, pair, "dogo", tmp_path) == best
    primary = list(experiment.main_cells(preset, pair, tmp_path, more=False))
    assert len(primary) == 9 and primary[2].settings == best


def test_every_record_in_the_repository_is_whole(experiment: ModuleType):
    for path in (ROOT / "experiments" / "records").rglob("*.json"):
        record = json.loads(path.read_bytes())
        name = experiment.Cell(**{**record["cell"], "settings": {}}).name
        assert path.stem == name and record["config"]["seed"] == record["cell"]["seed"]
        assert set(record["about"]) >= {"device", "commit", "torch", "dogo_fast"}
        assert (
            all(math.isfinite(loss) for loss in record["losses"])
            and len(record["losses"]) == record["config"]["epochs"]
        )
        for number in (1, 2):
            values = [value for each in record[f"peer_{number}"]["scores"].values() for value in each]
            assert values and bool(((torch.tensor(values) >= 0) & (torch.tensor(values) <= 1)).all())


def test_the_page_of_results_is_what_the_records_make(experiment: ModuleType, tmp_path: Path):
    experiment.write_page("cpu", ROOT / "experiments" / "records" / "cpu", tmp_path / "results.md")
    advice = "python experiments/dogo_vs_simclr.py --preset cpu --page docs/results.md"
    assert (ROOT / "docs" / "results.md").read_text() == (tmp_path / "results.md").read_text(), advice
    named = {path.name for path in (tmp_path / "results").iterdir()}
    assert {path.name for path in (ROOT / "docs" / "results").glob("cpu-*.png")} == named
