"""Goes back to a run that is on disk: to resume it, or to evaluate its checkpoint. What it holds is read as data."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from memexp import recorded, unread
from memexp.config import ConfigError, check_data
from memexp.longer import differences, made_longer, start_of
from memexp.record import FINISHED, RunDirectory, read_json, writing
from memexp.sequence import keys, recipe_of, stage_of

if TYPE_CHECKING:
    from torch import nn

    from memexp.stages import Run

log = logging.getLogger("memexp")
SPLITS = ("train", "val", "test")
# What an evaluation or export has no part in: it would be another network, or work that it does not do.
ANOTHER = {"model", "init_from", "stages", "deploy", "discretise", "grow", "tune", "distill"}
AS_IT_IS = (
    "the network of a run is evaluated and exported as it is, but for the size of an integral one (prune=integral "
    "prune.keep=0.6); to change it, start a run with init_from"
)
RESIZE = (
    "RGB, the shorter side to resize_size (bilinear, antialiased), then the middle: torchvision's Resize and CenterCrop"
)
UNTRAINED = (
    "evaluate and export train nothing, and take a size's uniform nodes; to train them, start a run with init_from and "
    "stages=[partition,discretise,evaluate]"
)


@dataclass(frozen=True)
class Own:
    """What a user names again of a run that has classes or functions of their own: directories of configs, or trust in all."""

    config_dirs: Sequence[str] = ()
    trust: bool = False

    def targets(self, run: Path) -> set[str]:
        if not self.trust:
            return recorded.targets_in(self.config_dirs)
        return recorded.targets(read_json(run / "results.json") or {})


def resume(path: Path, overrides: Sequence[str] = (), own: Own = Own()) -> dict[str, Any]:
    """Goes on with the run in `path`, in its own directory; a finished run is left as it is unless overrides make it longer.

    Overrides are remembered by the run. Raises ConfigError, with nothing changed, for one that would make it another run.
    """
    trusted = own.targets(path)
    before = recorded.of_run(path, trusted=trusted)
    cfg = recorded.of_run(path, overrides, trusted, own.config_dirs)
    longer = made_longer(before, cfg)
    results = read_json(path / "results.json") or {}
    if results.get("status") == "done" and not longer:
        log.info("%s is done already: nothing to resume", path)
        return results
    check_data(cfg)
    _check_kept(path, ("best.pt",))
    from memexp.run import run

    told = results.get("overrides")  # a program has told it none
    every = None if told is None else [*map(str, told), *overrides]
    return run(cfg, path, every, start=start_of(path, cfg))


def evaluate(
    path: Path, overrides: Sequence[str] = (), split: str = "test", name: str = "last", own: Own = Own()
) -> dict[str, Any]:
    """Accuracy of a run's checkpoint on a split; `overrides` may name other data, and the size of an integral network.

    Nothing in the run is changed.
    """
    if split not in SPLITS:
        raise ConfigError([f"split: {split!r} is not one of {', '.join(SPLITS)}."])
    cfg = _of_its_network(path, overrides, own)
    from memexp import build

    with _read(cfg, path, name, overrides) as (run, model):
        known = build.in_order_of(model, run.known, run.splits.classes)
        result = run.evaluated(known, split)
    return {
        **result.as_dict(),
        "split": split,
        "images": result.images,
        "checkpoint": str(run.source),
        "classes_matched_by_name": known is not model,
    }


def export(
    path: Path,
    output: Path | None = None,
    name: str = "last",
    merge: str | None = "block",
    overrides: Sequence[str] = (),
    own: Own = Own(),
) -> dict[str, Any]:
    """Writes the network of a run as ONNX and torch.export files, checked on real images; what was found.

    output: path without suffix, or with .onnx or .pt2; by default network in the run directory. merge: how it is fused first;
    None leaves it as it is. overrides: as for `evaluate`. Raises NotWritten for an output that cannot be written.
    """
    cfg = _of_its_network(path, overrides, own)
    from memexp import fusing
    from memexp.channels.hooked import twin
    from memexp.integral import IntegralNetwork

    cfg.device = "cpu"
    with _read(cfg, path, name, overrides) as (run, model):
        images, _ = next(iter(run.splits.test.epoch(0)))
        network = twin(model).eval()
    if isinstance(network, IntegralNetwork):  # as the plain network of its size of evaluation
        network = network.discretize().eval()
    target = path / "network" if output is None else output
    classes = list(run.splits.classes if run.known is None else run.known)  # its own, whatever data it is checked on
    try:
        with writing(target):
            return fusing.export(
                network, images[:8], target, classes=classes, preprocessing=_preprocessing(run), merge=merge
            )
    except (fusing.FusingError, fusing.ExportError):
        raise
    except ValueError as error:
        told = "" if merge is None else " (--merge no fuses nothing)"
        raise ConfigError([f"export: {error}{told}"]) from error


def _preprocessing(run: Run) -> dict[str, Any]:
    """What makes of a file the image that the network takes. resize, resize_size: None where the image is taken as it is."""
    from memexp.data import resize_size

    settings = run.cfg.dataset
    resized = "resize_size" in settings and "_target_" not in settings  # whose own arguments may have any name
    return {
        "shape": list(run.splits.shape),
        "values": "0 to 1, then (x - mean) / std by channel",
        "mean": run.splits.mean,
        "std": run.splits.std,
        "resize": RESIZE if resized else None,
        "resize_size": resize_size(settings) if resized else None,
    }


def _of_its_network(path: Path, overrides: Sequence[str], own: Own) -> DictConfig:
    """The configuration of the run with `overrides`. Raises ConfigError for those that would have another network."""
    trusted = own.targets(path)
    cfg = recorded.of_run(path, overrides, trusted, own.config_dirs)
    before = recorded.of_run(path, trusted=trusted)
    changed = {_group(key) for key, *_ in differences(before, cfg)} & ANOTHER
    problems = [f"'{text}' is not allowed: {AS_IT_IS}" for text in overrides if _group(text) in changed]
    problems += [f"'{text}' is not allowed: {UNTRAINED}" for text in overrides if _trains_nodes(text)]
    if problems:
        raise ConfigError(problems)
    check_data(cfg)
    return cfg


def _trains_nodes(text: str) -> bool:
    """Whether an override asks for the partition tuning of an integral network."""
    key, _, value = text.partition("=")
    return key == "prune.tune" and value != "null"


def _group(text: str) -> str:
    """Of a key, or of an override: deploy of deploy.merge=all."""
    return text.partition("=")[0].partition(".")[0]


def _check_there(run: Path, name: str) -> None:
    """Raises ConfigError where the run has no such checkpoint, nor another in place of its last."""
    file = run / "checkpoints" / f"{name}.pt"
    found = sorted(other.name for other in file.parent.glob("*.pt"))
    there = file.name in found and "/" not in name  # what lies elsewhere is no checkpoint of this run
    if not there and (name != "last" or not found):
        raise ConfigError([f"there is no checkpoint {file}; there are {', '.join(found) or 'none yet'}"])


def _check_kept(run: Path, others: Sequence[str] = ()) -> None:
    """Raises ConfigError where the run has once ended and its checkpoints, but for `others`, are gone: it would begin anew."""
    records = [read_json(run / name) or {} for name in ("results.json", FINISHED)]
    folder = run / "checkpoints"
    if any(record.get("status") == "done" for record in records) and not any(
        file.name not in others for file in folder.glob("*.pt")
    ):
        raise ConfigError(
            [
                f"{run} was trained to its end, and what it ended with is gone: there is no {folder / 'last.pt'}; put it back, "
                "or train it anew in another directory (its settings are in .hydra/overrides.yaml)"
            ]
        )


@contextmanager
def _read(cfg: DictConfig, path: Path, name: str, overrides: Sequence[str]) -> Iterator[tuple[Run, nn.Module]]:
    """A run as its checkpoint `name` has left it, and its network as it would be deployed, at the size that overrides name."""
    from memexp.prepared import prepare
    from memexp.stages import check_images
    from memexp.training.distribution import World
    from memexp.training.signals import StopRequest

    _check_there(path, name)
    check_images(cfg)
    with StopRequest() as stop:
        own_moments = _names_moments(overrides)
        run = prepare(cfg, _ReadOnly(path), World(), stop, start=name, to_train=False, as_trained=not own_moments)
        for told in unread.evaluated(overrides, ended=run.unfinished is None):
            log.warning("warning: %s", told)
        with _deployed(run) as whole, _resampled(run, whole, overrides) as model:
            yield run, model


def _names_moments(overrides: Sequence[str]) -> bool:
    """Whether the user says how images are normalised; else they are as in training, whatever data they are of."""
    return any(text.startswith(("dataset.mean=", "dataset.std=")) for text in overrides)


@contextmanager
def _resampled(run: Run, model: nn.Module, overrides: Sequence[str]) -> Iterator[nn.Module]:
    """An integral network as the plain one of the size that prune=integral among `overrides` names; else the model itself."""
    asked = [text for text in overrides if _group(text) == "prune"]
    if not asked:
        yield model
        return
    from memexp.stages import discretise

    if not discretise.resampled(run.cfg):
        raise ConfigError([f"'{asked[0]}' is not allowed: {AS_IT_IS}"])
    network = discretise.integral(model)
    plain = network.discretize(discretise.sizes_of(run.cfg, network, run.splits.shape))
    with discretise.statistics_of(run, plain):
        yield plain


@contextmanager
def _deployed(run: Run) -> Iterator[nn.Module]:
    """The network that was read as it would be deployed: what a stage has left as it is, and what is still being trained
    as the evaluations of its own stage take it.
    """
    if run.unfinished is None:
        yield run.network
        return
    from memexp.stages import tune
    from memexp.stages.train import trainer_for

    cfg = tune.recipe(run.cfg) if recipe_of(run.key) == "tune" else run.cfg
    trainer = trainer_for(run, cfg, run.unfinished["progress"].get("total"))  # whatever images it is evaluated on
    assert run.source is not None
    trainer.load(run.unfinished, run.source)
    with trainer.deployed(run.stop) as model:
        yield model


def changed(path: Path, overrides: Sequence[str] = (), own: Own = Own()) -> tuple[DictConfig, list[Any]]:
    """The configuration of the run in `path`, with `overrides`, and what has changed its network so far."""
    trusted = own.targets(path)
    cfg, before = recorded.of_run(path, overrides, trusted, own.config_dirs), recorded.of_run(path, trusted=trusted)
    from memexp import build
    from memexp.training import checkpoint

    last = path / "checkpoints" / "last.pt"
    if any(last.parent.glob("*.pt")):
        state = checkpoint.load_last(last, to_train=False)[1]
        same = all(cfg.dataset.get(key) == before.dataset.get(key) for key in ("name", "num_classes", "classes"))
        if state["classes"] and same and "_target_" not in cfg.dataset:  # not counted from folders that may be gone
            cfg.dataset.classes = state["classes"]
        return cfg, list(state["edits"])
    if set(map(stage_of, keys(cfg))) - {"train", "tune", "evaluate"}:
        _check_kept(path)
    return cfg, list(build.start_edits(cfg))


class _ReadOnly(RunDirectory):
    """A run's directory that is looked at only."""

    def rewind(self, appended: dict[str, int] | None, step: int) -> None:
        return None
