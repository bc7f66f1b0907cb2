"""How much of a test its quick form runs, make test; tests/conftest.py chooses between that and the whole one."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings


def examples(number: int) -> int:
    """So many of Hypothesis' examples in the whole form, and the same share as everywhere in the quick one."""
    return -(-number * settings().max_examples // 100)


def thinned(*parameters: Sequence[Any]) -> list[Any]:
    """Every combination for parametrize, of which the quick form runs a diagonal: each value once at least."""
    diagonal = {tuple(i % len(values) for values in parameters) for i in range(max(map(len, parameters)))}
    combinations = itertools.product(*map(enumerate, parameters))
    return [
        pytest.param(*values, marks=[] if places in diagonal else pytest.mark.whole)
        for places, values in (zip(*combination, strict=True) for combination in combinations)
    ]
