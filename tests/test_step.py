"""One step is the equations of its parts; what capture does to it leaves no trace; it falls back in the open."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dogo_fast import functional
from dogo_fast.data import Batch
from dogo_fast.peers import Peer, build_peer
from dogo_fast.pictures import Pictures
from dogo_fast.training.objectives import Objective
from dogo_fast.training.optimisers import build_optimiser
from dogo_fast.training.step import StepSettings, TrainingStep
from dogo_fast.views import VIEW_RECIPES, Augmentation

N = 16
GPU = torch.cuda.is_available()


class WithDropout(nn.Module):
    """A backbone that draws random numbers, so that their state matters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean(dim=(2, 3))


def images_of(count: int = 40, size: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build(
    device: str = "cpu", optimiser: str = "adam", kd_weight: float = 1.0, backbone: str = "small", **settings: object
) -> TrainingStep:
    torch.manual_seed(0)
    where = torch.device(device)
    chosen = StepSettings(**settings)
    peers = [
        build_peer(WithDropout() if backbone == "dropout" else backbone, 8, 0, number).to(where).train()
        for number in (1, 2)
    ]
    optimisers = [
        build_optimiser(optimiser, peer.parameters(), learning_rate=0.01, weight_decay=1e-3, momentum=0.9, device=where)
        for peer in peers
    ]
    augmentation = Augmentation([VIEW_RECIPES["digits"]] * 4, 8, 5, dtype=chosen.dtype, device=where)
    objective = Objective(("simclr", "simclr"), (kd_weight, kd_weight), 0.5, 0.1)
    return TrainingStep(peers, optimisers, objective, augmentation, N, chosen)


def batch_of(step: TrainingStep, number: int) -> Batch:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(number))[:N].to(step.device)
    return Batch(Pictures.of(images_of().to(step.device)).select(order), order, N)


def everything(step: TrainingStep) -> list[Tensor]:
    """All that a run is continued from, in a fixed order."""
    found = [tensor for peer in step.peers for tensor in peer.state_dict().values()]
    for optimiser in step.optimisers:
        for state in optimiser.state_dict()["state"].values():
            found += [value for value in state.values() if isinstance(value, Tensor)]
    return [tensor.detach().clone() for tensor in [*found, *step.meters.tensors()]]


def train(step: TrainingStep, steps: int, first: int = 0) -> None:
    for number in range(first, first + steps):
        step(batch_of(step, number), (0.01 / (number + 1), 0.02 / (number + 1)))


def by_hand(settings: StepSettings, kd_weight: float) -> tuple[list[Peer], list[float]]:
    """Three steps in the plainest PyTorch: each part after the other, torch's unfused optimiser."""
    step = build(kd_weight=kd_weight)
    peers = step.peers
    optimisers = []
    for peer in peers:
        groups = [{"params": [p for p in peer.parameters() if (p.dim() > 1) == decays]} for decays in (True, False)]
        groups[1]["weight_decay"] = 0.0  # biases and norms
        optimisers.append(torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-3, fused=False, foreach=False))
    losses = []
    for number in range(3):
        batch = batch_of(step, number)
        for peer, optimiser in zip(peers, optimisers, strict=True):
            optimiser.zero_grad()
            for group in optimiser.param_groups:
                group["lr"] = 0.01 * (1 + (peer is peers[1])) / (number + 1)
        for rows in batch.indices.chunk(settings.accumulate):
            views = step.augmentation(images_of()[rows], rows)
            pairs = [peer(torch.cat([*views[2 * p : 2 * p + 2]])).projections.chunk(2) for p, peer in enumerate(peers)]
            output = functional.dogo_loss(*pairs, 0.5, 0.1, kd_weight=kd_weight, backend="reference")
            (output.loss / settings.accumulate).backward()
            losses.append(float(output.loss.detach()) / settings.accumulate)
        for peer, optimiser in zip(peers, optimisers, strict=True):
            if settings.clip_norm is not None:
                norm = torch.stack([p.grad.norm() for p in peer.parameters()]).norm()
                for parameter in peer.parameters():
                    parameter.grad *= min(1.0, settings.clip_norm / float(norm))
            optimiser.step()
    return list(peers), losses


@pytest.mark.parametrize(
    "settings",
    [
        StepSettings(),
        StepSettings(accumulate=4),
        StepSettings(clip_norm=0.05),
        StepSettings(accumulate=2, clip_norm=0.1),
    ],
    ids=str,
)
def test_three_steps_are_those_of_plain_pytorch(settings: StepSettings):
    step = build(optimiser="sgd", kd_weight=2.0, **vars(settings))
    before = [parameter.detach().clone() for peer in step.peers for parameter in peer.parameters()]
    train(step, 3)
    now = [parameter.detach() for peer in step.peers for parameter in peer.parameters()]
    moved = max(float((a - b).abs().max()) for a, b in zip(now, before, strict=True))
    peers, losses = by_hand(settings, 2.0)
    assert moved > 1e-5
    for ours, theirs in zip(step.peers, peers, strict=True):
        for value, exact in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(value, exact, rtol=1e-5, atol=0.03 * moved)
    assert float(step.meters.sums[0]) == pytest.approx(sum(losses), rel=1e-3)
    assert int(step.meters.step) == 3 and int(step.meters.first_bad) == 0


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd", "lars"])
@pytest.mark.parametrize("before", [0, 2])
def test_warming_up_leaves_no_trace(optimiser: str, before: int):
    """Before a first step and in the middle of a run: the run that follows has the bits of one that never warmed up."""
    plain, warmed = (build(optimiser=optimiser, backbone="dropout") for _ in range(2))
    states = []
    for step in (plain, warmed):
        torch.manual_seed(9)
        train(step, before)
        if step is warmed:
            step._load(batch_of(step, 7))
            old = everything(step) if before else None
            random = torch.get_rng_state()
            with step.leaving_no_trace():
                step.warm_up()
                assert old is None or not all(map(torch.equal, everything(step), old))
            assert old is None or all(map(torch.equal, everything(step), old))
            assert torch.equal(torch.get_rng_state(), random)
        train(step, 3, first=before)
        states.append(everything(step))
    assert all(map(torch.equal, *states))


def test_a_meter_remembers_the_first_step_that_was_not_finite():
    step = build()
    train(step, 2)
    with torch.no_grad():
        step.peers[0].projector[3].bias.fill_(torch.nan)
    train(step, 2, first=2)
    assert int(step.meters.step) == 4 and int(step.meters.first_bad) == 3
    assert not step.meters.bad_losses.isfinite().all()


@pytest.mark.parametrize("backbone", ["small", "dropout"])
def test_the_deviation_of_projections_is_that_of_float64(backbone: str):
    step = build(backbone=backbone)
    seen: list[Tensor] = []
    for peer in step.peers:
        peer.projector.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().double()))
    train(step, 1)
    rows = [projections / projections.norm(dim=1, keepdim=True) for projections in seen]
    expected = [float(each.std(dim=0, correction=0).mean()) for each in rows]
    measured = dict(zip(step.meters.names, step.meters.sums.tolist(), strict=True))
    assert [measured["deviation_1"], measured["deviation_2"]] == pytest.approx(expected, rel=1e-5)
    assert 0.2 < expected[0] * rows[0].shape[1] ** 0.5 < 1


def test_without_distillation_each_peer_has_the_bits_of_training_alone():
    """The loop is written out for one network; the other does not exist in it."""
    step = build(kd_weight=0.0)
    train(step, 4)
    for number in (0, 1):
        alone = build_peer("small", 8, 0, number + 1).train()
        optimiser = build_optimiser(
            "adam", alone.parameters(), learning_rate=1.0, weight_decay=1e-3, momentum=0.9, device=torch.device("cpu")
        )
        augmentation = Augmentation([VIEW_RECIPES["digits"]] * 4, 8, 5)
        for turn in range(4):
            order = batch_of(step, turn).indices
            views = augmentation(images_of()[order], order)[2 * number : 2 * number + 2]
            loss = functional.nt_xent(*alone(views.flatten(0, 1)).projections.chunk(2), 0.5)
            optimiser.zero_grad()
            loss.backward()
            optimiser.param_groups[0]["lr"].fill_(0.01 * (1 + number) / (turn + 1))
            optimiser.step()
        assert all(map(torch.equal, alone.state_dict().values(), step.peers[number].state_dict().values()))
    distilled = build(kd_weight=1.0)
    train(distilled, 4)
    assert not torch.equal(distilled.peers[0].projector[3].weight, step.peers[0].projector[3].weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_stay_near_float32(dtype: torch.dtype):
    losses = []
    for chosen in (torch.float32, dtype):
        step = build(dtype=chosen)
        assert step.scaler.is_enabled() == (chosen == torch.float16)
        train(step, 5)
        losses.append(step.meters.sums.clone())
        assert all(parameter.dtype == torch.float32 for peer in step.peers for parameter in peer.parameters())
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0.1)


def test_an_overflow_in_float16_skips_the_step_and_halves_the_scale():
    step = build(dtype=torch.float16)
    train(step, 1)
    step.scaler.update(torch.tensor(2.0**40))
    weights = [parameter.detach().clone() for peer in step.peers for parameter in peer.parameters()]
    train(step, 1, first=1)
    assert all(map(torch.equal, weights, (p for peer in step.peers for p in peer.parameters())))
    assert step.scaler.get_scale() == 2.0**39
    assert int(step.meters.first_bad) == 0  # the loss itself was finite


def test_float16_gradients_are_clipped_by_their_own_norm_not_the_scaled_one():
    moves = []
    for dtype in (torch.float32, torch.float16):
        step = build(optimiser="sgd", dtype=dtype, clip_norm=0.05)
        before = [parameter.detach().clone() for parameter in step.peers[0].parameters()]
        train(step, 1)
        after = [parameter.detach() for parameter in step.peers[0].parameters()]
        moves.append(torch.cat([(b - a).flatten() for a, b in zip(after, before, strict=True)]))
    assert float(moves[0].norm()) > 1e-4
    torch.testing.assert_close(moves[1], moves[0], rtol=0, atol=0.2 * float(moves[0].abs().max()))
    assert float(moves[1].norm()) == pytest.approx(float(moves[0].norm()), rel=0.02)


def test_streamed_images_are_copied_to_where_the_step_reads_them():
    resident, streamed = build(), build()
    streamed.images = torch.zeros(N, 3, 8, 8, dtype=torch.uint8)
    for number in range(2):
        batch = batch_of(resident, number)
        resident(batch, (0.01, 0.01))
        streamed(Batch(Pictures.of(batch.pictures.each()), batch.indices, N), (0.01, 0.01))
    assert all(map(torch.equal, everything(resident), everything(streamed)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch._replace(indices=batch.indices[:4]), "batch must have 16 images, got 4"),
        (lambda batch: batch._replace(pictures=batch.pictures.part(0, 4)), "batch must have 16 images, got 4"),
    ],
)
def test_a_batch_of_another_kind_is_refused(change: Callable[[Batch], Batch], message: str):
    step = build()
    with pytest.raises(ValueError, match=message):
        step(change(batch_of(step, 0)), (0.01, 0.01))


def test_compiled_peers_train_as_eager_ones():
    eager, compiled = build(), build(compiled=True)
    for step in (eager, compiled):
        train(step, 2)
    torch.testing.assert_close(compiled.meters.sums, eager.meters.sums, rtol=1e-3, atol=1e-3)
    assert list(compiled.peers[0].state_dict()) == list(eager.peers[0].state_dict())


def test_what_cannot_be_captured_runs_in_eager_after_one_warning(monkeypatch: pytest.MonkeyPatch):
    """The failure is made up, since nothing can be captured here; on a GPU the next test has a real one."""
    plain, failing = build(), build()

    class NoStream:
        def __init__(self, *_: object) -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    train(plain, 2)
    for name in ("synchronize", "current_stream", "get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", NoStream)
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_: type("Stream", (), {"wait_stream": lambda *_: None})())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: torch.cuda.Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda *_: warnings.catch_warnings())
    with pytest.warns(
        UserWarning, match=r"cannot be captured .*: operation not permitted when stream is capturing$"
    ) as w:
        assert failing.capture(batch_of(failing, 0)) is False
    assert len(w) == 1
    monkeypatch.undo()
    train(failing, 2)
    assert all(map(torch.equal, everything(plain), everything(failing)))


# ---------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"optimiser": "sgd"}, {"optimiser": "lars"}, {"clip_norm": 0.1}, {"accumulate": 2}, {"backbone": "dropout"}],
    ids=str,
)
def test_a_captured_run_has_the_bits_of_an_eager_one(dtype: torch.dtype, options: dict[str, object]):
    states = []
    for captured in (False, True):
        step = build("cuda", dtype=dtype, **options)
        torch.manual_seed(9)
        if captured:
            assert step.capture(batch_of(step, 3))
        train(step, 6)
        states.append(everything(step))
    assert all(map(torch.equal, *states))


@pytest.mark.gpu
def test_a_captured_step_waits_for_nothing():
    step = build("cuda", dtype=torch.bfloat16)
    step.capture(batch_of(step, 0))
    batches = [batch_of(step, number) for number in range(3)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            step(batch, (0.01, 0.01))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_network_that_reads_values_back_runs_in_eager_after_one_warning():
    class Reads(WithDropout):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * (1.0 if float(images.float().mean()) > -1e9 else 2.0)

    states = []
    for captured in (False, True):
        step = build("cuda")
        step.networks = [Peer(Reads(), 8).cuda() for _ in step.networks] if captured else step.networks
        if captured:
            with pytest.warns(UserWarning, match="cannot be captured"):
                assert step.capture(batch_of(step, 0)) is False
        train(step, 2)
        states.append(everything(step))
    assert step.meters.sums.isfinite().all()
