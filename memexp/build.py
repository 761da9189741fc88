"""From a configuration and edits to a network, and from a run directory to its trained network.

A network is its configuration plus edits: whatever has changed its shapes is in the edits, as plain data, so that it comes
back from a file in which nothing is executed.
"""

import functools
import importlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from memexp import data, edits, models, recorded, sequence
from memexp.backprop import Chain
from memexp.choices import FIRST_WEIGHTS, name_of
from memexp.config import ConfigError
from memexp.models import families, sizes
from memexp.training import checkpoint
from memexp.training.checkpoint import CheckpointError

Shape = tuple[int, int, int]


def network(
    cfg: DictConfig,
    changes: Sequence[edits.Edit] = (),
    classes: int | None = None,
    shape: Shape | None = None,
) -> nn.Module:
    """The network of a configuration, freshly initialised, after the edits `changes`.

    classes, shape: number of classes and shape of an image, the data set's unless given. Raises ConfigError for what does not
    fit.
    """
    if classes is None or shape is None:
        classes, shape = data.describe(cfg.dataset)
    options = {key: value for key, value in cfg.backprop.items() if key not in ("name", "limit")}
    chain = functools.partial(Chain, backprop=cfg.backprop.name, **options)
    resolved = OmegaConf.to_container(cfg.model, resolve=True)
    assert isinstance(resolved, dict)
    settings = {str(key): value for key, value in resolved.items()}
    trained = settings.pop("init_from", None)
    try:
        built = models.create(classes=classes, shape=shape, chain=chain, **settings)
        if trained is not None:
            _warm_start(cfg, built, Path(trained))
        return edits.apply_all(built, changes)
    except ValueError as error:
        raise ConfigError([f"model: {error}"]) from error


def weightless(
    cfg: DictConfig, changes: Sequence[edits.Edit], classes: int | None = None, shape: Shape | None = None
) -> nn.Module:
    """As `network`, on the meta device, where weights take neither time nor memory; on the CPU where it has to be."""
    try:
        with torch.device("meta"):
            built = network(cfg, changes, classes, shape)
    except Exception:  # a constructor that reads values; what is really wrong with it shows once more
        return network(cfg, changes, classes, shape)
    saved = {id(tensor) for tensor in built.state_dict(keep_vars=True).values()}
    held = (value for module in built.modules() for value in tree_iter(vars(module)) if isinstance(value, Tensor))
    if any(value.is_meta and id(value) not in saved for value in held):  # values that no checkpoint gives back
        return network(cfg, changes, classes, shape)
    return built


def foresee(cfg: DictConfig) -> None:
    """Raises ConfigError for a network of one of the families that cannot be built as it is asked for, before any data is read.

    Of an integral one that which it is made of is looked at: it would be converted twice.
    """
    family = families.of(cfg.model)
    if family is families.OWN or not family.images or "_target_" in cfg.dataset:
        return
    bare = without_files(cfg).copy()
    bare.model = families.plain(bare.model)
    with torch.random.fork_rng(devices=[]):
        shape = (3, cfg.dataset.image_size, cfg.dataset.image_size)
        built = weightless(bare, (), 10, shape)
        trains = any(map(sequence.recipe_of, sequence.keys(cfg)))
        if trains and not cfg.sync_batchnorm:  # which has all processes' images
            check_batch(built, shape, cfg.batch_size)


def check_batch(built: nn.Module, shape: Shape, images: int) -> None:
    """Raises ConfigError where so many images of a forward pass are too few to train the network."""
    if images == 1:
        try:
            sizes.check_alone(built, shape)
        except ValueError as error:
            raise ConfigError([str(error)]) from error


def without_files(cfg: DictConfig) -> DictConfig:
    """The configuration without the files and runs that the first weights come from: shapes are enough, or others follow."""
    named = {key: None for key in FIRST_WEIGHTS if cfg.model.get(key) is not None}
    merged = OmegaConf.merge(cfg, {"model": named}) if named else cfg
    assert isinstance(merged, DictConfig)
    return merged


def from_checkpoint(cfg: DictConfig, state: dict[str, Any], path: Path, deployed: bool = True) -> nn.Module:
    """The network that the checkpoint `state`, read from `path`, holds, built by `cfg` and its edits, on the CPU.

    deployed: with the weights that a user would deploy, where they are others than those that training goes on from.

    Raises CheckpointError where the weights are of another network.
    """
    bare = without_files(cfg)
    classes, shape = (len(state["classes"]), tuple(state["shape"])) if state["classes"] else data.describe(cfg.dataset)
    known = families.of(cfg.model) is not families.OWN  # its constructor makes nothing but parameters and buffers
    try:
        with torch.random.fork_rng(devices=[]):
            built = (weightless if known else network)(bare, state["edits"], classes, shape)
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {path}: its network cannot be built: {error}") from error
    weights = state["deployed"] if deployed and "deployed" in state else state["model"]
    checkpoint.load_weights(built, weights, path, assign=known)
    return built


def from_run(
    run: Path, name: str = "last", trusted: Collection[str] = ()
) -> tuple[DictConfig, nn.Module, dict[str, Any]]:
    """The configuration, the network with its weights, and the checkpoint `name` of a run directory, read as data.

    trusted: targets of a user's own (`_target_`) that may be imported; others are refused. Raises ConfigError for what is no
    run, CheckpointError for its checkpoint.
    """
    cfg, path, state = _read(run, name, trusted)
    return cfg, from_checkpoint(cfg, state, path), state


def start_of(cfg: DictConfig) -> dict[str, Any]:
    """The checkpoint of the run that `cfg` starts from (init_from), as one of a network of its own model settings.

    Raises ConfigError where that run's network is another one or knows another number of classes.
    """
    source, _, state = _read(Path(cfg.init_from), "last", recorded.targets(cfg))
    classes, _ = data.describe(cfg.dataset)
    if state["classes"] is not None and len(state["classes"]) != classes:
        raise ConfigError(
            [
                f"init_from: {cfg.init_from} was trained on {len(state['classes'])} classes, and dataset="
                f"{name_of(cfg.dataset)} has {classes}; choose those that it knows, in its order, with dataset.classes"
            ]
        )
    then, now = without_files(source).model, without_files(cfg).model
    differing = [key for key in map(str, {**then, **now}) if then.get(key) != now.get(key)]
    if differing:
        raise ConfigError(
            [
                f"init_from: {cfg.init_from} is of another network than this run's (model.{key}={then.get(key)}, not "
                f"{now.get(key)}); give this run the model settings of that one"
                for key in (["name"] if "name" in differing else differing)  # of another family, whose keys are others
            ]
        )
    return state


def start_edits(cfg: DictConfig) -> Sequence[edits.Edit]:
    """What has changed the network that a run of `cfg` begins with: that of the run which it starts from, if any."""
    found: Sequence[edits.Edit] = () if cfg.init_from is None else start_of(cfg)["edits"]
    return found


def at_start(cfg: DictConfig, changes: Sequence[edits.Edit] = ()) -> tuple[nn.Module, Shape]:
    """A network of the shapes that a run of `cfg` begins with, in eval mode, and the shape of its images; no file is read for
    its weights, and no random number of the run's is drawn.
    """
    classes, shape = data.describe(cfg.dataset)
    with torch.random.fork_rng(devices=[]):
        return network(without_files(cfg), changes, classes, shape).eval(), shape


def _read(run: Path, name: str, trusted: Collection[str]) -> tuple[DictConfig, Path, dict[str, Any]]:
    cfg = recorded.of_run(run, trusted=trusted)
    path = run / "checkpoints" / f"{name}.pt"
    path, state = checkpoint.load_last(path, to_train=False) if name == "last" else (path, checkpoint.load(path))
    if state["config"] is not None:
        cfg = recorded.from_plain(state["config"], trusted, str(path))
    return cfg, path, state


def in_order_of(model: nn.Module, known: Sequence[str] | None, classes: Sequence[str]) -> nn.Module:
    """The model, trained on the classes `known`, with its scores in the order of `classes`, matched by name.

    Raises DataError for a class that it does not know.
    """
    if known is None or list(known) == list(classes):
        return model
    return _Chosen(model, data.match(known, classes))


class _Chosen(nn.Module):
    """Some of the scores of a model."""

    def __init__(self, model: nn.Module, rows: Sequence[int]) -> None:
        super().__init__()
        self.model, self.rows = model, list(rows)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.model(images)
        return scores[:, self.rows]


def teacher(cfg: DictConfig) -> tuple[nn.Module, dict[str, Any]] | None:
    """The network of `cfg.distill.teacher` as it was left, and the checkpoint that it was read of; or None.

    Raises ConfigError for what is no run.
    """
    if cfg.distill.teacher is None:
        return None
    if not Path(cfg.distill.teacher).is_dir():
        raise ConfigError(
            [
                f"distill.teacher: there is no run in {cfg.distill.teacher!r}; name it where it lies now, distill.teacher=DIR."
            ]
        )
    try:
        _, trained, state = from_run(Path(cfg.distill.teacher), trusted=recorded.targets(cfg))
    except ConfigError as error:
        raise ConfigError([f"distill.teacher: {problem}" for problem in error.problems]) from error
    return trained, state


def number_of_teacher(cfg: DictConfig, trained: nn.Module, before: tuple[Path, dict[str, Any]] | None) -> int:
    """One number that stands for the weights of the teacher. before: the checkpoint of a run that goes on, and its file.

    Raises ConfigError where that run was taught by others.
    """
    number = checkpoint.number_of(trained)
    if before is not None and before[1].get("teacher") not in (None, number):  # an earlier version does not tell
        raise ConfigError(
            [
                f"distill.teacher: {cfg.distill.teacher} holds other weights than those that {before[0]} was taught by; name "
                "the run of these, wherever it lies now, or start a new run."
            ]
        )
    return number


def taught_by(cfg: DictConfig, trained: nn.Module, state: dict[str, Any], splits: data.Splits) -> nn.Module:
    """The teacher in eval mode, with scores for the classes of `splits`.

    Raises ConfigError for one of other images, DataError for a class that it does not know.
    """
    named = f"distill.teacher: {cfg.distill.teacher} was trained on images"
    if (shape := state.get("shape")) is not None and tuple(shape) != splits.shape:  # schema 1 does not tell
        given, seen = ("x".join(map(str, size)) for size in (splits.shape, shape))
        raise ConfigError([f"{named} of {seen}, and these are {given}"])
    for key, own in (("mean", splits.mean), ("std", splits.std)):
        if (then := state.get(key)) is not None and not torch.allclose(
            torch.tensor(then), torch.tensor(own), atol=1e-3
        ):
            raise ConfigError(
                [f"{named} of dataset.{key}={list(then)}, and these have {list(own)}; give this run those"]
            )
    return in_order_of(trained, state["classes"], splits.classes).eval().requires_grad_(False)


def _warm_start(cfg: DictConfig, built: nn.Module, run: Path) -> None:
    """Starts `built` from the network of a run by the family's own rule. Raises ValueError where there is none."""
    path = families.of(cfg.model).warm_start
    if path is None:
        raise ValueError(f"init_from: model={name_of(cfg.model)} has no rule to start from another network")
    module, _, function = path.rpartition(".")
    try:
        _, trained, _ = from_run(run, trusted=recorded.targets(cfg))
    except (ConfigError, CheckpointError) as error:
        raise ValueError(f"init_from: {error}") from error
    getattr(importlib.import_module(module), function)(built, trained)
