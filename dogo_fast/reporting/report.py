"""The report that a run leaves in its folder: what it was, what came of it, and pictures to look at."""

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dogo_fast.atomic import write_atomically
from dogo_fast.data import DataSet, ImageSource, IterableSource, Pictures, Split, load_data_set
from dogo_fast.data.data_set import Images
from dogo_fast.errors import DamagedImageError
from dogo_fast.evaluation.features import prepare
from dogo_fast.peers import Peer, build_peer
from dogo_fast.reporting import plots
from dogo_fast.training import PeerResult, PretrainConfig, Trainer
from dogo_fast.training.building import choose_recipe
from dogo_fast.training.run_folder import RunFolder, run_settings
from dogo_fast.views import Augmentation, ViewRecipe
from dogo_fast.views.sheet import arrange

REPORT = "report.md"
COMPARED = 64
"""Images whose similarities are drawn."""
TITLES = {
    "nt_xent": "NT-Xent",
    "simsiam": "negative cosine",
    "kl": "KL from the other peers",
    "deviation": "deviation of projections",
    "learning_rate": "learning rate",
    "knn": "k-NN accuracy",
}
SHOWN = 6
"""Images whose views are drawn."""


class Seen(NamedTuple):
    """Images as networks see them: of each peer its features [N, F] and the cosines [M, M] between the projections of
    two views of the first M; of the images their labels int64 [N] (zeros where there are none), the classes' names."""

    features: list[Tensor]
    cosines: list[Tensor]
    labels: Tensor
    class_names: tuple[str, ...]


@torch.no_grad()
def look(peers: Sequence[Peer], data: DataSet, recipe: str | ViewRecipe, count: int) -> Seen:
    """Test images, spread over the split (or those that are pretrained on, where there are none), as networks see them;
    the same two views for each."""
    part = data.pretraining if data.test is None else data.test
    pictures, numbers = some_pictures(part, count)
    labels = None if isinstance(part, Pictures | Tensor | IterableSource) else part.labels
    device = next(peers[0].parameters()).device
    pictures = pictures.to(device)
    augmentation = Augmentation(
        [choose_recipe(recipe, data)] * 2, data.view_size, 0, mean=data.mean, deviation=data.deviation, device=device
    )
    views = augmentation(
        pictures.select(torch.arange(min(COMPARED, len(pictures)), device=device)), numbers[:COMPARED].to(device)
    )
    features, cosines = [], []
    for peer in peers:
        training = peer.training
        peer.eval()
        images = prepare(pictures, data)
        features.append(torch.cat([peer.backbone(batch) for batch in images.split(256)]).float().cpu())
        a, b = (torch.nn.functional.normalize(peer(view.float()).projections.float(), dim=1) for view in views)
        cosines.append((a @ b.T).cpu())
        peer.train(training)
    own = torch.zeros(len(numbers), dtype=torch.int64) if labels is None else labels.cpu()[numbers]
    return Seen(features, cosines, own, data.class_names)


def some_pictures(part: Split | ImageSource | IterableSource | Images, count: int) -> tuple[Pictures, Tensor]:
    """So many pictures of a split, spread over it, on the CPU, and their numbers int64; of an iterable the first.
    Damaged ones are left out: they were named when the data set was read."""
    if isinstance(part, IterableSource):
        found = list(part.sample(count))
        return Pictures.of(found), torch.arange(len(found))
    images = part.images if isinstance(part, Split) else part
    chosen = {}
    for number in torch.linspace(0, len(images) - 1, min(count, len(images))).long().tolist():
        with contextlib.suppress(DamagedImageError):
            chosen[number] = images.read(number) if isinstance(images, ImageSource) else images[number].cpu()
    return Pictures.of([each.contiguous() for each in chosen.values()]), torch.tensor(list(chosen))


def look_at(folder: Path, count: int) -> Seen:
    """The same for a run folder; its data set is read.

    Raises:
        UserError: data that cannot be read.
    """
    config = PretrainConfig(**{**(run_settings(folder) or {}), "out": None, "device": "cpu"})
    data = load_data_set(config.data, config.data_dir, view_size=config.view_size, decode_size=config.decode_size)
    peers = []
    for number, (name, method) in enumerate(zip(config.peers, config.method, strict=True), 1):
        peer = build_peer(name, data.view_size, config.seed, number, method)
        peer.backbone.load_state_dict(load_file(folder / f"peer_{number}.safetensors"), strict=False)
        peer.load_state_dict(load_file(folder / f"peer_{number}_heads.safetensors"), strict=False)
        peers.append(peer)
    return look(peers, data, config.recipe, count)


def write_report(trainer: Trainer, folder: RunFolder, results: Sequence[PeerResult]) -> None:
    """``report.md`` with its pictures, beside what the run has left."""
    pictures = {"views.png": _draw_views(trainer, folder.path / "views.png")}
    plots.draw_curves(_curves(trainer.history), folder.path / "curves.png")
    seen = look(trainer.peers, trainer.data, trainer.config.recipe, COMPARED)
    titles = [f"peer {number} ({name})" for number, name in enumerate(trainer.config.peers, 1)]
    cosines = dict(zip(titles, seen.cosines, strict=True))
    plots.draw_similarities(cosines, seen.labels, folder.path / "similarities.png")
    which = "training images" if trainer.data.test is None else "test images, sorted by class"
    pictures |= {
        "curves.png": "Losses and what else was measured, epoch by epoch.",
        "similarities.png": f"Cosines between the projections of two views of {len(seen.labels)} {which}: a row's "
        "softmax over T is what the peers align; on a dark diagonal images know their other view.",
    }
    text = _describe(trainer, results)
    text += "\n\n".join(f"![{name}]({name})\n\n{caption}" for name, caption in pictures.items())
    if trainer.data.train is not None and trainer.data.test is not None:
        text += f"\n\nMore of it: `dogo-fast evaluate {shlex.quote(str(folder.path))} --only all`."
    text += "\n"
    write_atomically(folder.path / REPORT, text.encode())


def _describe(trainer: Trainer, results: Sequence[PeerResult]) -> str:
    config, data = trainer.config, trainer.data
    plain = PretrainConfig.model_validate({"peers": config.peers}).model_dump(mode="json")
    known = {"out", "resume", "device", "precision", "data", "peers", "data_dir", "workers"}
    changed = {
        name: value
        for name, value in config.model_dump(mode="json", exclude_none=True).items()
        if name not in known and value != plain[name]
    }
    settings = ", ".join(f"`{name}` {value}" for name, value in changed.items())
    lines = [
        f"# {data.name}: {', '.join(config.peers)}",
        f"{data.image_count} images, {len(trainer.history)} epochs, {trainer.steps} steps of {config.batch_size}, "
        f"{sum(row['seconds'] for row in trainer.history):.0f} s of training on {config.device} in {config.precision}. "
        f"Other than the defaults: {settings or 'nothing'}.",
        *data.notes,
    ]
    scored = [each for each in results if each.trained is not None]
    if scored:
        table = [
            "| test accuracy, % | k-NN, untrained | trained | linear probe, untrained | trained |",
            "|---|--:|--:|--:|--:|",
        ]
        for number, each in enumerate(results, 1):
            pairs = [
                "–" if state is None else f"{100 * getattr(state, name):.1f}"
                for name in ("knn", "linear")
                for state in (each.untrained, each.trained)
            ]
            table.append(f"| peer {number} ({each.name}) | {' | '.join(pairs)} |")
        lines.append("\n".join(table))
    return "\n\n".join(lines) + "\n\n"


def _curves(history: Sequence[Mapping[str, float]]) -> dict[str, dict[str, list[float]]]:
    """By measure, a line a peer."""
    names = dict.fromkeys(name for row in history for name in row)
    panels: dict[str, dict[str, list[float]]] = {}
    for name in names:
        measure, _, peer = name.rpartition("_")
        if peer.isdecimal() and measure != "loss":
            values = [row.get(name, float("nan")) for row in history]
            panels.setdefault(TITLES.get(measure, measure), {})[f"peer {peer}"] = values
    return panels


def _draw_views(trainer: Trainer, path: Path) -> str:
    """A sheet of views of the first epoch; returns its caption."""
    augmentation, data = trainer.step.augmentation, trainer.data
    pictures, numbers = some_pictures(data.pretraining, SHOWN)
    plain = Augmentation(augmentation.recipes, data.view_size, augmentation.seed, device=trainer.device)
    plain.epoch.fill_(1)
    views = plain(pictures.to(trainer.device), numbers.to(trainer.device)).float().cpu()
    sheet: Any = arrange(views.transpose(0, 1))
    Image.fromarray(sheet.numpy()).save(path)
    whose = "that both peers share" if trainer.config.shared_views else "two of each peer"
    return f"Views of the first epoch, a row an image, {whose}."
