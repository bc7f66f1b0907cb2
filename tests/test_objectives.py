"""Each combination of methods is the sum that the table in objectives.py states, in value and gradient."""

import pytest
import torch
from numerics import generator
from torch import Tensor

from dogo_fast import reference
from dogo_fast.peers import PeerOutput
from dogo_fast.training.objectives import Objective

N = 12


def outputs(methods: tuple[str, str], dtype: torch.dtype = torch.float32) -> list[PeerOutput]:
    made = []
    for peer, method in enumerate(methods):
        source = generator(peer)
        z = torch.randn(2 * N, 9 + peer, generator=source).to(dtype).requires_grad_()
        p = torch.randn(2 * N, 9 + peer, generator=source).to(dtype).requires_grad_() if method == "simsiam" else None
        made.append(PeerOutput(z, p))
    return made


def expected(methods: tuple[str, str], weights: tuple[float, float], made: list[PeerOutput]) -> dict[str, Tensor]:
    """By the reference, one term at a time."""
    parts: dict[str, Tensor] = {}
    for peer, (method, weight) in enumerate(zip(methods, weights, strict=True)):
        mine, other = made[peer], made[1 - peer]
        z = mine.projections.chunk(2)
        if method == "simclr":
            own = parts[f"nt_xent_{peer + 1}"] = reference.nt_xent(*z, 0.5)
        else:
            own = parts[f"simsiam_{peer + 1}"] = reference.simsiam(*z, *mine.predictions.chunk(2))
        parts[f"loss_{peer + 1}"] = own
        if weight:
            student = (mine.projections if mine.predictions is None else mine.predictions).chunk(2)
            teacher = other.projections.detach().chunk(2)
            kl = parts[f"kl_{peer + 1}"] = reference.similarity_kl(student, teacher, 0.1)
            parts[f"loss_{peer + 1}"] = own + weight * kl
    return parts | {"loss": parts["loss_1"] + parts["loss_2"]}


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 0.5), (0.0, 0.0), (0.0, 2.0)], ids=str)
@pytest.mark.parametrize(
    "methods", [("simclr", "simclr"), ("simclr", "simsiam"), ("simsiam", "simclr"), ("simsiam", "simsiam")], ids=str
)
def test_every_combination_is_its_sum_of_terms(
    methods: tuple[str, str], weights: tuple[float, float], cpp_device: torch.device
):
    objective = Objective(methods, weights, 0.5, 0.1)
    made, exact = outputs(methods), outputs(methods, torch.float64)
    parts = dict(zip(objective.names, objective(made), strict=True))
    oracle = expected(methods, weights, exact)
    assert parts.keys() == oracle.keys()
    for name, value in parts.items():
        assert float(value.detach()) == pytest.approx(float(oracle[name].detach()), rel=1e-5, abs=1e-6), name
    parts["loss"].backward()
    oracle["loss"].backward()
    for mine, theirs in zip(made, exact, strict=True):
        for tensor, double in zip(mine, theirs, strict=True):
            if tensor is not None:
                if double.grad is None:
                    assert tensor.grad is None or not tensor.grad.any()
                else:
                    torch.testing.assert_close(tensor.grad.double(), double.grad, rtol=1e-4, atol=1e-6)


def test_the_losses_are_reported_under_the_names_of_what_they_are():
    assert Objective(("simclr", "simclr"), (1.0, 1.0), 0.5, 0.1).names == (
        "loss",
        "loss_1",
        "loss_2",
        "nt_xent_1",
        "nt_xent_2",
        "kl_1",
        "kl_2",
    )
    assert Objective(("simsiam", "simclr"), (0.0, 1.0), 0.5, 0.1).names[3:] == ("simsiam_1", "nt_xent_2", "kl_2")


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(ValueError, match="methods must be of simclr, simsiam, got 'byol'"):
        Objective(("byol", "simclr"), (1.0, 1.0), 0.5, 0.1)


@pytest.mark.parametrize("methods", [("simclr", "simclr"), ("simclr", "simsiam")], ids=str)
def test_a_ramp_is_the_same_as_a_smaller_weight(methods: tuple[str, str], cpp_device: torch.device):
    ramped, smaller = outputs(methods), outputs(methods)
    parts = Objective(methods, (2.0, 0.5), 0.5, 0.1)(ramped, torch.tensor(0.25))
    fewer = Objective(methods, (0.5, 0.125), 0.5, 0.1)(smaller)
    torch.testing.assert_close(torch.stack(parts), torch.stack(fewer), rtol=1e-6, atol=1e-7)
    parts[0].backward()
    fewer[0].backward()
    for one, other in zip(ramped, smaller, strict=True):
        torch.testing.assert_close(one.projections.grad, other.projections.grad, rtol=1e-5, atol=1e-8)
