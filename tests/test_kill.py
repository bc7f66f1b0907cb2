"""kill -9 at random moments of a small run, resumed each time: nothing is lost, the final weights are equal."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file


def run(images: Path, runs: Path, epochs: int, kills: int) -> int:
    """Returns how many runs there are in the folder ``runs`` now, all of them finished."""
    runs.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DOGO_FAST_BACKEND": "auto", "TRITON_INTERPRET": "0"}
    program = [sys.executable, str(Path(__file__).with_name("kill_me.py"))]
    command = [*program, str(images), str(runs), str(epochs), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, check=False)
    log = "".join(path.read_text()[-3000:] for path in runs.glob("*.log"))
    assert done.returncode == 0, done.stderr + log
    result = json.loads(done.stdout)
    assert result["status"] == 0 and result["killed"] == kills, f"{result}\n{log}"
    return int(result["runs"])


def rows(folder: Path) -> list[dict[str, str]]:
    timing = {"seconds", "images_per_second", "data_wait"}
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in timing} for row in csv.DictReader(file)]


@pytest.mark.parametrize(("epochs", "kills"), [(30, 8), pytest.param(120, 50, marks=pytest.mark.whole)])
def test_killed_at_random_moments_a_run_ends_with_the_weights_of_one_that_never_was(
    epochs: int, kills: int, tmp_path: Path
):
    images = tmp_path / "images"
    images.mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(images / f"{number:02}.png")
    assert run(images, tmp_path / "whole", epochs, 0) == 1
    whole = tmp_path / "whole" / "0"
    assert len(rows(whole)) == epochs
    log = ""
    for number in range(run(images, tmp_path / "killed", epochs, kills)):
        killed = tmp_path / "killed" / str(number)
        for name in ("peer_1", "peer_1_heads", "peer_2", "peer_2_heads"):
            first, second = (load_file(folder / f"{name}.safetensors") for folder in (whole, killed))
            assert first.keys() == second.keys()
            assert all(torch.equal(first[key], second[key]) for key in first)
        assert rows(whole) == rows(killed)
        for part in (".", "checkpoints"):
            names = [{path.name for path in (folder / part).iterdir()} for folder in (whole, killed)]
            assert names[0] == names[1]
        log += killed.with_suffix(".log").read_text()
    assert log.count("resumed from") >= kills // 2, "most kills must hit a run that has something to lose"
    assert "warning" not in log, log  # no checkpoint was ever found damaged
