"""What is measured of a contender, and in which order: with a GPU that is made up and memory that is told."""

import pytest
import torch
from dogo_fast.bench import timing


@pytest.mark.parametrize(("gibibytes", "fits"), [(16, True), (18, False)])
def test_what_does_not_fit_is_told_with_the_rule(gibibytes: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """18 GiB are less than the 21 that are free."""
    monkeypatch.setattr(timing, "_field", lambda path, name: 21 * 2**30)
    contender = timing.Contender("large", lambda: torch.sum, takes=lambda N, D, itemsize: gibibytes * 2.0**30)
    sentence = "does not fit: needs about 18 GiB, more than 0.8 of the 21 that are free"
    assert timing._too_large(contender, [torch.ones(2, 2)]) == (None if fits else sentence)
