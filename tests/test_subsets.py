"""Labels that a probe is given have exact shares and rates, and are the same draw everywhere."""

import pytest
import torch
from forms import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from dogo_fast.evaluation import balanced_subset, flip_labels, hold_out, power_law_subset

LABELS = st.lists(st.sampled_from([-5, 0, 1, 2, 3_000_007]), min_size=2, max_size=80).map(torch.tensor)
SEEDS = st.integers(0, 2**40)


@settings(max_examples=examples(60), deadline=None)
@given(LABELS, st.floats(0.01, 1), SEEDS)
def test_a_share_has_its_part_of_every_class_and_a_smaller_one_lies_in_it(
    labels: torch.Tensor, share: float, seed: int
):
    chosen = balanced_subset(labels, share, seed)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    for label, count in zip(*labels.unique(return_counts=True), strict=True):
        assert int((labels[chosen] == label).sum()) == max(1, round(share * int(count)))
    assert set(balanced_subset(labels, share / 2, seed).tolist()) <= set(chosen.tolist())


@settings(max_examples=examples(60), deadline=None)
@given(LABELS, st.floats(0.01, 0.99), SEEDS)
def test_what_is_held_out_and_what_is_kept_are_all(labels: torch.Tensor, share: float, seed: int):
    kept, held = hold_out(labels, share, seed)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    for label, count in zip(*labels.unique(return_counts=True), strict=True):
        assert int((labels[held] == label).sum()) == min(int(count) - 1, round(share * int(count)))


@settings(max_examples=examples(60), deadline=None)
@given(
    LABELS.filter(lambda labels: len(labels.unique()) > 1),
    st.floats(0, 1),
    SEEDS,
    st.sampled_from(["symmetric", "pair"]),
)
def test_exactly_the_rate_is_wrong_and_a_lower_rate_flips_a_part_of_it_in_the_same_way(
    labels: torch.Tensor, rate: float, seed: int, kind: str
):
    flipped = flip_labels(labels, rate, seed, kind)
    wrong = flipped != labels
    assert int(wrong.sum()) == round(rate * len(labels))
    classes = labels.unique()
    assert bool(torch.isin(flipped, classes).all())
    if kind == "pair":
        following = dict(zip(classes.tolist(), classes.roll(-1).tolist(), strict=True))
        assert flipped[wrong].tolist() == [following[label] for label in labels[wrong].tolist()]
    fewer = flip_labels(labels, rate / 2, seed, kind)
    changed = fewer != labels
    assert bool((changed <= wrong).all()) and torch.equal(fewer[changed], flipped[changed])


def test_symmetric_noise_goes_to_every_other_class_alike():
    labels = torch.arange(10).repeat(6000)
    flipped = flip_labels(labels, 0.5, 3)
    counts = torch.zeros(10, 10).index_put_((labels, flipped), torch.ones(()), accumulate=True)
    counts.fill_diagonal_(333)
    assert float((counts - 1000 / 3).abs().max()) < 5 * (1000 / 3) ** 0.5


def test_the_power_law_has_the_counts_of_the_authors_code():
    """a / (b + c^γ) with a and b from n(1) = 5000 and n(10) = 250, as their linear system gives them; γ = 0.2."""
    labels = torch.arange(10).repeat(5000)
    a, b = torch.linalg.solve(
        torch.tensor([[1.0, -5000], [1, -250]], dtype=torch.float64),
        torch.tensor([5000.0, 250 * 10**0.2], dtype=torch.float64),
    )
    theirs = [round(float(a / (b + c**0.2))) for c in range(1, 11)]
    chosen = power_law_subset(labels, 0.2, 0)
    assert theirs[0] == 5000 and theirs[-1] == 250
    assert labels[chosen].bincount().tolist() == theirs


def test_a_draw_is_the_same_on_every_machine():
    labels = torch.arange(5).repeat(40)
    assert balanced_subset(labels, 0.05, 7).tolist() == [6, 23, 24, 32, 37, 90, 98, 114, 120, 196]
    assert flip_labels(labels[:12], 0.5, 7).tolist() == [0, 1, 2, 4, 1, 0, 0, 2, 3, 2, 1, 2]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda labels: balanced_subset(labels, 0, 0), "share .*got 0"),
        (lambda labels: hold_out(labels, 1, 0), "share .*got 1"),
        (lambda labels: flip_labels(labels, 1.5, 0), "rate .*got 1.5"),
        (lambda labels: flip_labels(labels, 0.5, 0, "both"), "symmetric, pair.*'both'"),
        (lambda labels: flip_labels(labels * 0, 0.5, 0), "two classes.*and 1"),
        (lambda labels: power_law_subset(labels, -1, 0), "exponent .*got -1"),
    ],
)
def test_what_is_out_of_range_is_named(call, named: str):
    with pytest.raises(ValueError, match=named):
        call(torch.tensor([0, 1, 2]))
