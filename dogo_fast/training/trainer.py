"""The main job: two peers, one loop."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn
from tqdm import tqdm

from dogo_fast import DoGoLoss
from dogo_fast.augment import VIEW_RECIPES, ViewRecipe, make_views
from dogo_fast.data import DataSet, Loader, load_data_set
from dogo_fast.errors import DivergedError
from dogo_fast.evaluation import Scores, evaluate_features, evaluate_untrained
from dogo_fast.ops.backend import resolve_backend
from dogo_fast.peers import Peer
from dogo_fast.philox import derive_seed
from dogo_fast.training.config import PretrainConfig, make_generator
from dogo_fast.training.metrics import EpochMetrics
from dogo_fast.training.run_folder import RunFolder


@dataclass(frozen=True)
class PeerResult:
    """One peer's scores, as a new network and after training."""

    name: str
    untrained: Scores
    trained: Scores


def pretrain(config: PretrainConfig) -> tuple[PeerResult, PeerResult]:
    """Train both peers as configured, evaluate them, and leave everything in the run folder.

    Raises:
        UserError: something in the configuration or the data files; nothing has been written then.
        DivergedError: a loss that is not finite; the metrics of the epochs before are kept.
        KeyboardInterrupt: the same; its message says where.
    """
    config = config.resolve()
    assert config.out is not None
    device = torch.device(config.device)
    data = load_data_set(config.data, config.data_dir).to(device)
    loader = Loader(data.train.images, config.batch_size, make_generator(config.seed, "order"))
    resolve_backend("auto", (data.train.images,))  # kernels to compile are compiled before the clock runs
    folder = RunFolder(config.out)
    folder.write_config(config)
    print(
        f"{data.name}: {len(data.train)} training and {len(data.test)} test images; "
        f"peers {config.peers} on {config.device}; results in {folder.path}",
        flush=True,
    )
    try:
        named = enumerate(config.peer_names, 1)
        peers = [build_peer(name, data.image_size, config.seed, number).to(device) for number, name in named]
        untrained = [
            evaluate(evaluate_untrained, peer, data, number, "untrained") for number, peer in enumerate(peers, 1)
        ]
        train(peers, loader, VIEW_RECIPES[data.name], config, folder)
        trained = [evaluate(evaluate_features, peer, data, number, "trained") for number, peer in enumerate(peers, 1)]
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what was finished is in {folder.path}") from None
    first, second = (PeerResult(*result) for result in zip(config.peer_names, untrained, trained, strict=True))
    folder.write_json("results.json", {"peer_1": asdict(first), "peer_2": asdict(second)})
    return first, second


def evaluate(
    measure: Callable[[nn.Module, DataSet], Scores], peer: Peer, data: DataSet, number: int, state: str
) -> Scores:
    """Both measures of a peer, announced before and told after: on a CPU and 60 000 images they take minutes."""
    print(f"evaluating peer {number} ({peer.name}), {state}: k-NN and linear probe ...", end=" ", flush=True)
    scores = measure(peer.backbone, data)
    print(f"{100 * scores.knn:.1f} %, {100 * scores.linear:.1f} %", flush=True)
    return scores


def build_peer(name: str, image_size: int, seed: int, number: int) -> Peer:
    """Peer 1 or 2 with initial weights that depend on its own name, number and the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, f"peer {number}"))
        return Peer(name, image_size).to(memory_format=torch.channels_last)


def train(peers: list[Peer], loader: Loader, recipe: ViewRecipe, config: PretrainConfig, folder: RunFolder) -> None:
    """The loop over both peers. Each draws its own two views of every image and learns from its own loss."""
    criterion = DoGoLoss(config.temperature, config.kd_temperature, kd_weight=config.kd_weight)
    both = nn.ModuleList(peers).train()
    optimiser = torch.optim.Adam(both.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=config.epochs * len(loader))
    generator = make_generator(config.seed, "views")
    history: list[dict[str, float]] = []
    with _progress_bar(config.epochs * len(loader) * loader.batch_size) as bar:
        for epoch in range(1, config.epochs + 1):
            metrics = EpochMetrics(epoch, first_step=(epoch - 1) * len(loader) + 1)
            learning_rate = float(schedule.get_last_lr()[0])
            for images in loader:
                pairs = [peer(make_views(images.repeat(2, 1, 1, 1), recipe, generator)).chunk(2) for peer in peers]
                output = criterion(*pairs)
                optimiser.zero_grad()
                output.loss.backward()
                optimiser.step()
                schedule.step()
                bar.update(len(images))
                if metrics.add(output):
                    losses = metrics.latest()
                    bar.set_postfix_str(f"loss {losses['loss_1']:.3f} + {losses['loss_2']:.3f}", refresh=False)
            history.append(metrics.finish(len(loader) * loader.batch_size, learning_rate))
            folder.write_metrics(history)
            bar.set_description(f"epoch {epoch}/{config.epochs}", refresh=False)
    # the last losses were of the weights before the last step
    if not all(parameter.isfinite().all() for parameter in both.parameters()):
        raise DivergedError("the weights are not finite after the last step; a lower --learning-rate may help")
    for number, peer in enumerate(peers, 1):
        folder.write_peer(number, peer)


def _progress_bar(images: int) -> "tqdm[None]":
    """On a terminal lively, in a log file a line now and then."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(total=images, unit=" images", mininterval=interval, dynamic_ncols=True)
