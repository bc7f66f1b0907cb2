"""Cohorts: K peers, each distilled from the mean of the others' KLs; of two, everything as it was."""

from pathlib import Path

import numerics
import pytest
import torch

from dogo_fast import DoGoLoss, functional, reference
from dogo_fast.cli import main
from dogo_fast.evaluation import load_networks
from dogo_fast.peers import PeerOutput
from dogo_fast.training import PretrainConfig, Trainer
from dogo_fast.training.objectives import Objective


def cohort(count: int, dtype: torch.dtype = torch.float32, rows: int = 24) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Peers of different widths."""
    source = numerics.generator(count)
    return [
        tuple(torch.randn(rows, 8 + peer, generator=source).to(dtype).requires_grad_() for _ in range(2))
        for peer in range(count)
    ]


def formula(peers: list, tau: float, kd: float, weights: list[float]) -> torch.Tensor:
    """Σ_p NT-Xent_p + w_p / (K − 1) Σ_q KL(P_q ‖ P_p), written out."""
    total = torch.zeros((), dtype=torch.float64)
    soft = []
    for a, b in peers:
        unit = [x / x.norm(dim=1, keepdim=True) for x in (a, b)]
        z = torch.cat(unit)
        scores = (z @ z.T / tau).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
        partner = torch.arange(len(z)).roll(len(a))
        total = total - scores.log_softmax(dim=1)[torch.arange(len(z)), partner].mean()
        soft.append((unit[0] @ unit[1].T / kd).log_softmax(dim=1))
    for p, mine in enumerate(soft):
        for q, other in enumerate(soft):
            if q != p:
                other = other.detach()
                total = total + weights[p] / (len(soft) - 1) * (other.exp() * (other - mine)).sum() / len(mine)
    return total


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_cohort_is_the_formula_in_float64_in_value_and_gradient(count: int, backend: str, cpp_device: torch.device):
    weights = [0.5 + peer for peer in range(count)]
    ours, theirs = cohort(count, torch.float64), cohort(count, torch.float64)
    output = functional.cohort_loss(ours, 0.5, 0.1, kd_weight=weights, backend=backend)
    expected = formula(theirs, 0.5, 0.1, weights)
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=1e-12)
    output.loss.backward()
    expected.backward()
    for mine, other in zip(ours, theirs, strict=True):
        for x, y in zip(mine, other, strict=True):
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-10, atol=1e-13)
    dense = reference.cohort_loss(ours, 0.5, 0.1, kd_weight=weights)
    for one, other in zip(
        (*output.losses, *output.nt_xents, *output.kls), (*dense.losses, *dense.nt_xents, *dense.kls), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_a_cohort_of_two_has_the_bits_of_the_loss_of_two(cpp_device: torch.device):
    ours, theirs = cohort(2), cohort(2)
    one = functional.cohort_loss(ours, 0.3, 0.2, kd_weight=(2.0, 0.5))
    other = functional.dogo_loss(*theirs, 0.3, 0.2, kd_weight=(2.0, 0.5))
    assert (one.loss, *one.losses, *one.nt_xents, *one.kls) == tuple(other)
    one.loss.backward()
    other.loss.backward()
    assert all(
        torch.equal(x.grad, y.grad) for p, q in zip(ours, theirs, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_the_module_takes_any_number_of_peers(cpp_device: torch.device):
    peers = cohort(3)
    output = DoGoLoss(0.5, 0.1, kd_weight=(1, 2, 3))(*peers)
    same = functional.cohort_loss(peers, 0.5, 0.1, kd_weight=(1, 2, 3))
    assert output.loss == same.loss and len(output.losses) == 3
    assert DoGoLoss(0.5, 0.1)(*peers[:2]).loss_1 == functional.dogo_loss(*peers[:2]).loss_1
    with pytest.raises(ValueError, match="kd_weight must be a number or 3 numbers, one per peer, got"):
        DoGoLoss(kd_weight=(1, 2))(*peers)
    with pytest.raises(ValueError, match=r"peers must be two pairs .* or more, got 1"):
        DoGoLoss()(peers[0])
    with pytest.raises(ValueError, match="peer_1 and peer_3 must have the same batch size N, got"):
        DoGoLoss()(*peers[:2], tuple(x[:5] for x in peers[2]))


def test_an_objective_of_three_with_a_ramp_and_a_mix_of_methods_is_its_sum(cpp_device: torch.device):
    peers = [torch.cat(pair).detach().requires_grad_() for pair in cohort(3)]
    outputs = [PeerOutput(rows, None) for rows in peers]
    objective = Objective(("simclr",) * 3, (1.0, 0.0, 2.0), 0.5, 0.1)
    assert objective.names[:4] == ("loss", "loss_1", "loss_2", "loss_3") and objective.names[-2:] == ("kl_1", "kl_3")
    parts = dict(zip(objective.names, objective(outputs, torch.tensor(0.5)), strict=True))
    for peer, weight in ((1, 1.0), (3, 2.0)):
        assert parts[f"loss_{peer}"] == parts[f"nt_xent_{peer}"] + 0.5 * weight * parts[f"kl_{peer}"]
    assert parts["loss"] == parts["loss_1"] + parts["loss_2"] + parts["loss_3"]
    mixed = [PeerOutput(outputs[0].projections, peers[0] * 2 + 1), *outputs[1:]]
    found = dict(
        zip(*((o := Objective(("simsiam", "simclr", "simclr"), (1.0,) * 3, 0.5, 0.1)).names, o(mixed)), strict=True)
    )
    expected = torch.stack(
        [reference.similarity_kl(mixed[0].predictions.chunk(2), teacher.chunk(2), 0.1) for teacher in peers[1:]]
    ).mean()
    torch.testing.assert_close(found["kl_1"], expected)


def test_three_peers_train_stop_and_go_on_as_if_they_had_not(tmp_path: Path):
    settings = {"epochs": 3, "learning_rate": "1e-3,2e-3,3e-3", "peers": ("small", "medium", "small"), "device": "cpu"}
    images = torch.randint(0, 256, (96, 3, 8, 8), dtype=torch.uint8, generator=numerics.generator(0))

    def trainer(**more: object) -> Trainer:
        return Trainer(settings["peers"], images, PretrainConfig(**settings, batch_size=32, **more))

    whole = trainer()
    whole.fit()
    broken = trainer(out=tmp_path / "run")
    broken.fit(until=1)
    again = trainer(out=tmp_path / "run", resume="auto")
    assert again.steps == 3
    again.fit()
    keys = [key for key in whole.history[-1] if not key.startswith(("images_per", "data_wait", "seconds"))]
    assert {"loss_3", "nt_xent_3", "kl_3", "deviation_3", "learning_rate_3"} <= set(keys)
    assert [whole.history[-1][key] for key in keys] == [again.history[-1][key] for key in keys]
    for one, other in zip(whole.peers, again.peers, strict=True):
        assert all(
            torch.equal(x, y) for x, y in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )
    assert [network.name for network in load_networks(tmp_path / "run")] == ["small", "medium", "small"]
    with pytest.raises(ValueError, match="backbones must be as many as `peers` of config, 2, got 3"):
        Trainer(settings["peers"], images, PretrainConfig())


def test_the_command_trains_three_and_prints_a_line_for_each(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["pretrain", "--peers", "small,small,medium", "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "peer 3 (medium)" in printed.splitlines()[-2] and "peers small,small,medium" in printed
