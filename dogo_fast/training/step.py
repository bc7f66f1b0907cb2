"""One optimisation step of all peers, in eager or as one CUDA graph.

``TrainingStep.compute`` is the whole step and reads like it: views, the peers' forward side by side, the loss, the
backward, the optimisers side by side, the metrics added up on the device. It reads its inputs from tensors that stay
where they are, decides nothing from a value and waits for nothing, so on a GPU it is captured once and replayed. The
same code runs on a CPU.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dogo_fast import private
from dogo_fast.data import Batch
from dogo_fast.peers import Peer, PeerOutput
from dogo_fast.pictures import Pictures
from dogo_fast.training.objectives import Objective
from dogo_fast.training.optimisers import set_learning_rate
from dogo_fast.views import Augmentation

WARM_UP = 3
"""Steps before a capture, in which libraries choose their algorithms; what they change is put back."""


@contextmanager
def deterministic_convolutions() -> Iterator[None]:
    """cuDNN takes no algorithm that adds in an order of chance: the same bits in every run. Nothing measurable is lost:
    two ResNet-18 in bfloat16, batch 512, on an H200 18,570 and 18,590 images/s without, 18,570 and 18,610 with."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def deviation(output: PeerOutput) -> Tensor:
    """The standard deviation of normalised projections over the batch, the mean of all columns: 1/√D where they point
    everywhere, 0 where the network has collapsed (SimSiam, arXiv 2011.10566, section 4.1)."""
    with torch.no_grad():
        rows = nn.functional.normalize(output.projections.detach().float(), dim=1)
        return rows.std(dim=0, correction=0).mean()


class Meters:
    """Sums of the losses and the first step whose losses were not finite, all on the device.

    Args:
        names: of the losses.
        device: where.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = tuple(names)
        self.sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.first_bad = torch.zeros((), dtype=torch.int64, device=device)
        self.bad_losses = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.step = torch.zeros((), dtype=torch.int64, device=device)

    def start(self, steps: int) -> None:
        """Begin after so many steps of a run, all of them good."""
        for tensor in self.tensors():
            tensor.zero_()
        self.step.fill_(steps)

    def add(self, losses: Tensor) -> None:
        """Count one step with these losses [names]."""
        self.step += 1
        self.sums += losses
        bad = (self.first_bad == 0) & ~losses.isfinite().all()
        self.first_bad.copy_(torch.where(bad, self.step, self.first_bad))
        self.bad_losses.copy_(torch.where(bad, losses.to(torch.float64), self.bad_losses))

    def tensors(self) -> list[Tensor]:
        return [self.sums, self.first_bad, self.bad_losses, self.step]


@dataclass
class StepSettings:
    """How a step is made.

    Args:
        dtype: of the networks, float32, bfloat16 or float16 (autocast).
        accumulate: parts into which a batch is cut.
        clip_norm: largest norm of a peer's gradient, or None.
        compiled: run the peers through torch.compile.
        shared_views: both peers see the same two views.
        ramped: the distillation's weights are multiplied by ``TrainingStep.ramp``.
    """

    dtype: torch.dtype = torch.float32
    accumulate: int = 1
    clip_norm: float | None = None
    compiled: bool = False
    shared_views: bool = False
    ramped: bool = False


class TrainingStep:
    """The step of two peers or more: ``step(batch, learning_rates)``.

    Args:
        peers: on the device, channels-last.
        optimisers: one a peer, made by ``build_optimiser``.
        objective: the loss.
        augmentation: makes two views of each peer, or two where they are shared, in ``settings.dtype``, on its device.
        batch_size: images a step.
        settings: see there.
    """

    def __init__(
        self,
        peers: Sequence[Peer],
        optimisers: Sequence[torch.optim.Optimizer],
        objective: Objective,
        augmentation: Augmentation,
        batch_size: int,
        settings: StepSettings,
    ) -> None:
        self.peers, self.optimisers = tuple(peers), tuple(optimisers)
        self.objective, self.augmentation, self.settings = objective, augmentation, settings
        self.device = augmentation.device
        self.indices = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        self.pictures = Pictures(
            torch.zeros(1, dtype=torch.uint8, device=self.device),
            torch.zeros(batch_size, 3, dtype=torch.int64, device=self.device),
        )
        """Of the present batch; on a GPU places that stay where they are, counted from a byte that does (``_load``)."""
        self.ramp = torch.ones((), device=self.device) if settings.ramped else None
        """Factor of the distillation's weights, from 0 to 1; for the trainer to fill."""
        self._lent: Pictures | None = None
        self.deviations = tuple(f"deviation_{number}" for number in range(1, len(self.peers) + 1))
        """Metrics of each peer's projections, beside the losses."""
        self.meters = Meters((*objective.names, *self.deviations), self.device)
        self.networks = [torch.compile(peer) if settings.compiled else peer for peer in self.peers]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.dtype == torch.float16)
        self.scaler.scale(torch.zeros((), device=self.device))  # its state exists from now on, for graph and checkpoint
        on_gpu = self.device.type == "cuda"
        self.streams = [torch.cuda.Stream(self.device) if on_gpu else None for _ in self.peers]
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch, learning_rates: Sequence[float]) -> None:
        """Train on a batch; the losses are added to ``meters``."""
        self._load(batch)
        for optimiser, rate in zip(self.optimisers, learning_rates, strict=True):
            set_learning_rate(optimiser, rate)
        if self.graph is None:
            self.compute()
        else:
            self.graph.replay()

    @deterministic_convolutions()
    def compute(self) -> None:
        """The whole step, on the pictures and indices as they are now."""
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        parts = self.settings.accumulate
        total = torch.zeros(len(self.meters.names), dtype=torch.float32, device=self.device)
        kept = []  # what one stream made and another reads lives until all streams have met
        for places, indices in zip(self.pictures.places.chunk(parts), self.indices.chunk(parts), strict=True):
            views = self.augmentation(Pictures(self.pictures.pixels, places), indices)
            outputs = self._forward(views)
            losses = self.objective(outputs, self.ramp)
            self.scaler.scale(losses[0] / parts).backward()
            total += torch.stack([*losses, *map(deviation, outputs)]).detach() / parts
            kept.append((views, outputs))
        with self._side_by_side() as beside:
            for number, (peer, optimiser) in enumerate(zip(self.peers, self.optimisers, strict=True)):
                with beside(number):
                    self._update(peer, optimiser)
        if self.scaler.is_enabled():
            self.scaler.update()
        self.meters.add(total)

    def _forward(self, views: Tensor) -> list[PeerOutput]:
        """Each peer's output for its two views, [2N, 3, S, S] in one pass."""
        outputs = []
        dtype = self.settings.dtype
        # the cache of casts would outlive the capture that filled it
        with self._side_by_side() as beside:
            for number, network in enumerate(self.networks):
                first = 0 if self.settings.shared_views else 2 * number
                own = views[first : first + 2].flatten(0, 1)
                with (
                    beside(number),
                    torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False),
                ):
                    outputs.append(network(own))
        return outputs

    def _update(self, peer: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        if self.settings.clip_norm is not None:
            self.scaler.unscale_(optimiser)
            nn.utils.clip_grad_norm_(peer.parameters(), self.settings.clip_norm, foreach=True)
        self.scaler.step(optimiser)

    @contextmanager
    def _side_by_side(self) -> Iterator["Beside"]:
        """Work of each peer on a stream of its own, which starts from here; all meet at the end."""
        beside = Beside(self.streams)
        yield beside
        beside.join()

    def _load(self, batch: Batch) -> None:
        """Put a batch where the step reads it. A captured step cannot follow tensors that move or change shape, so on a
        GPU the places are copied, and say where the pixels lie from a byte that stays."""
        for found in (len(batch.indices), len(batch.pictures)):
            if found != len(self.indices):
                raise ValueError(f"batch must have {len(self.indices)} images, got {found}")
        if self.augmentation.backend == "triton" and self.device.type == "cuda":
            self._lent = batch.pictures  # must live until the step has read it; the next one waits for that anyway
            seen = batch.pictures.seen_from(self.pictures.pixels)
            self.pictures.places.copy_(seen.places, non_blocking=True)
        else:
            self.pictures = batch.pictures
        self.indices.copy_(batch.indices, non_blocking=True)

    # ------------------------------------------------------------------------------------------------- capturing

    def capture(self, batch: Batch) -> bool:
        """Record the step as a CUDA graph, after a warm-up on a batch that leaves no trace; false if that fails.

        Then the step goes on in eager, and one warning names the cause.
        """
        self._load(batch)
        stream = torch.cuda.Stream(self.device)
        give_generator_back = self._generator_as_it_is()
        with self.leaving_no_trace():
            try:
                stream.wait_stream(torch.cuda.current_stream(self.device))
                with torch.cuda.stream(stream):
                    self.warm_up()
                torch.cuda.current_stream(self.device).wait_stream(stream)
                torch.cuda.synchronize(self.device)
                graph = torch.cuda.CUDAGraph()
                # other threads may copy and pin memory meanwhile
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    self.compute()
                self.graph = graph
            except Exception as error:
                torch.cuda.synchronize(self.device)
                give_generator_back()
                self.graph = None
                if self.scaler.is_enabled():
                    private.abandon_step(self.scaler)
                reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
                warnings.warn(
                    f"the step cannot be captured as a CUDA graph and runs in eager, which is slower: {reason}",
                    stacklevel=2,
                )
        return self.graph is not None

    def _generator_as_it_is(self) -> Callable[[], object]:
        """To be called after a capture that failed: it leaves the GPU's random generator believing that it is being
        captured, and the next dropout in eager fails (seen in torch 2.11)."""
        if self.device.type != "cuda":
            return lambda: None
        generator = torch.cuda.default_generators[self.device.index]
        apart = generator.clone_state()
        return lambda: generator.graphsafe_set_state(apart)

    def warm_up(self) -> None:
        """Some steps on the batch as it lies, for ``leaving_no_trace`` to undo."""
        for _ in range(WARM_UP):
            self.compute()

    @contextmanager
    def leaving_no_trace(self) -> Iterator[None]:
        """Afterwards parameters, statistics, optimisers, scaler, meters and random generators are as they were.

        Values are copied back into the same tensors, which a graph may read. Optimisers may have made state: new state
        is all zeros before a first step (torch's Adam, AdamW and SGD with momentum, and our LARS).
        """
        states = self._tensors()
        before = [tensor.detach().clone() for tensor in states.values()]
        generators = torch.get_rng_state()
        on_gpu = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        yield
        with torch.no_grad():
            for tensor, value in zip(states.values(), before, strict=True):
                tensor.copy_(value)
            for key, tensor in self._tensors().items():
                if key not in states:
                    tensor.zero_()
        torch.set_rng_state(generators)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, self.device)

    def _tensors(self) -> dict[int, Tensor]:
        """Everything that a step changes, by the identity of the tensor."""
        found: list[Tensor] = self.meters.tensors()
        for peer in self.peers:
            found += [*peer.parameters(), *peer.buffers()]
        for optimiser in self.optimisers:
            for state in optimiser.state.values():
                found += [value for value in state.values() if isinstance(value, Tensor)]
        if self.scaler.is_enabled():
            found += private.scaler_tensors(self.scaler)
        return {id(tensor): tensor for tensor in found}


class Beside:
    """``with beside(n): ...`` runs on the n-th stream, which first waits for the current one; on a CPU it changes
    nothing."""

    def __init__(self, streams: Sequence[torch.cuda.Stream | None]) -> None:
        self.streams = streams

    @contextmanager
    def __call__(self, number: int) -> Iterator[None]:
        stream = self.streams[number]
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            yield

    def join(self) -> None:
        """The current stream waits for all."""
        for stream in self.streams:
            if stream is not None:
                torch.cuda.current_stream(stream.device).wait_stream(stream)
