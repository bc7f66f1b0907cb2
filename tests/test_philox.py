"""The generator gives the published numbers, and orders that are permutations."""

import pytest
import torch

from dogo_fast.philox import derive_seed, permutation, philox


@pytest.mark.parametrize(
    ("counter", "seed", "expected"),
    [  # the known answers that the authors publish with Random123 (kat_vectors, philox4x32 10)
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_numbers(counter: tuple[int, ...], seed: int, expected: tuple[int, ...]):
    words = philox(seed, torch.tensor(counter[0]), *counter[1:])
    assert tuple(map(int, words)) == expected


def test_orders_are_permutations_that_differ_by_seed_and_epoch():
    orders = [permutation(seed, epoch, 1000) for seed, epoch in ((1, 1), (1, 2), (2, 1))]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(1000))
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert torch.equal(orders[0], permutation(1, 1, 1000))
    fixed = sum(int((order == torch.arange(1000)).sum()) for order in orders)
    assert fixed < 20


def test_a_longer_order_of_the_same_epoch_is_another_but_every_place_is_as_likely():
    places = torch.stack([permutation(seed, 0, 10).argsort() for seed in range(4000)])
    assert (places.float().mean(0) - 4.5).abs().max() < 0.2


def test_purposes_have_seeds_of_their_own():
    seeds = {derive_seed(seed, purpose) for seed in range(50) for purpose in ("order", "views", "peer 1")}
    assert len(seeds) == 150 and max(seeds) < 2**63
