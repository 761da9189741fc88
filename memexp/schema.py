"""What a configuration may hold: every key, its type and its range. The values themselves stand in conf/.

A group's option is checked by the dataclass of its `name`; an option with `_target_` is a user's own and its keys are
the arguments of what it names.
"""

import difflib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from memexp.units import parse_bytes


class Rule(NamedTuple):
    """A range: what it allows, in words, and the test."""

    allows: str
    holds: Callable[[Any], bool]


def at_least(low: float) -> Rule:
    return Rule(f"at least {low}", lambda value: value >= low)


def between(low: float, high: float) -> Rule:
    return Rule(f"between {low} and {high}", lambda value: low <= value <= high)


def _is_bytes(value: Any) -> bool:
    try:
        return parse_bytes(value) > 0
    except ValueError:
        return False


Positive = Annotated[int, at_least(1)]
Count = Annotated[int, at_least(0)]
PositiveFloat = Annotated[float, Rule("above 0", lambda value: value > 0)]
NonNegative = Annotated[float, at_least(0)]
Share = Annotated[float, between(0, 1)]
ShareBelow1 = Annotated[float, Rule("at least 0 and below 1", lambda value: 0 <= value < 1)]


@dataclass
class Memory:
    steps: Positive
    limit: Annotated[str | int | float, Rule("of bytes, such as 11GB or 900MiB", _is_bytes)] | None
    timeline: bool
    snapshot: bool


@dataclass
class Report:
    tsne: bool
    tsne_epochs: list[Positive] | None


@dataclass
class Config:
    """The keys outside the groups."""

    name: str
    seed: Count
    deterministic: bool
    device: str
    epochs: Positive
    max_steps: Positive | None
    batch_size: Positive
    accumulate: Positive
    evaluate_every: Positive
    checkpoint_every: Positive | None
    log_every: Positive
    monitor_every: Count
    monitor_gradient: bool
    clip_grad: PositiveFloat | None
    label_smoothing: ShareBelow1
    mixup: NonNegative
    cutmix: NonNegative
    ema: ShareBelow1
    channels_last: bool
    compile: bool
    sync_batchnorm: bool
    scale: Literal["paper", "laptop"]
    case: dict[str, Any] | None
    memory: Memory
    report: Report


@dataclass
class Precision:
    name: Literal["fp32", "bf16", "fp16"]


@dataclass
class Stored:
    name: Literal["stored"]
    exact: bool
    exact_bits: Annotated[int, between(1, 22)]


@dataclass
class Checkpointed(Stored):
    name: Literal["checkpointed"]  # type: ignore[assignment]
    every: Positive


@dataclass
class Reversible(Stored):
    name: Literal["reversible"]  # type: ignore[assignment]


def _is_budget(value: Any) -> bool:
    return (isinstance(value, int | float) and 0 <= value <= 1) or _is_bytes(value)


@dataclass
class Budget(Stored):
    name: Literal["budget"]  # type: ignore[assignment]
    limit: Annotated[str | int | float, Rule("of bytes, such as 6GB, or a share of stored's peak in 0..1", _is_budget)]


@dataclass
class Adjoint:
    name: Literal["adjoint"]
    refine: Count
    min_steps: Count


Three = Annotated[list[Share], Rule("(three of them)", lambda value: len(value) == 3)]
Numbers = Annotated[list[Positive], Rule("with at least one entry", lambda value: len(value) > 0)]
Size = Annotated[int, at_least(8)]


@dataclass
class Dataset:
    """What every data set has."""

    name: str
    image_size: Size
    flip: bool
    mean: Three | None
    std: Three | None
    limit: Positive | None
    test_limit: Positive | None
    classes: list[str | int] | None
    val_fraction: ShareBelow1
    epochs: Positive
    batch_size: Positive


@dataclass
class Digits(Dataset):
    padding: Count


@dataclass
class Synthetic(Digits):
    images: Positive
    test_images: Positive
    num_classes: Annotated[int, at_least(2)]


@dataclass
class Downloadable(Digits):
    root: str | None
    download: bool


@dataclass
class Cifar(Downloadable):
    skip_broken: bool


@dataclass
class ImageFolder(Dataset):
    root: str | None
    skip_broken: bool
    resize_size: Size
    augment: bool
    workers: Count
    mean: Three
    std: Three


@dataclass
class Lookahead:
    k: Positive | None
    alpha: Share


@dataclass
class Optimizer:
    """What every optimizer has."""

    name: str
    lr: PositiveFloat
    weight_decay: NonNegative
    lookahead: Lookahead
    gradient_centralization: bool
    centralize: Literal["gradient", "update"]
    conv_only: bool
    evaluate_slow: bool


@dataclass
class Sgd(Optimizer):
    momentum: ShareBelow1
    nesterov: bool


Betas = Annotated[list[ShareBelow1], Rule("(two of them)", lambda value: len(value) == 2)]


@dataclass
class Adam(Optimizer):
    """Ranger and AdamW."""

    betas: Betas
    eps: NonNegative


@dataclass
class Schedule:
    name: str
    warmup: NonNegative


@dataclass
class StepSchedule(Schedule):
    milestones: list[PositiveFloat]
    gamma: PositiveFloat


@dataclass
class FlatCosine(Schedule):
    flat: Share


@dataclass
class RevNet:
    name: str
    depth: Positive
    units: Numbers | None
    channels: Numbers | None
    bottleneck: bool | None


@dataclass
class ResNet(RevNet):
    kind: Literal["preactivation", "simple", "ode"]
    tied: bool
    init_from: str | None


@dataclass
class HeunNet:
    name: str
    depth: Annotated[int, at_least(2)]
    init_from: str | None


@dataclass
class Linear:
    name: str
    d: Positive


@dataclass
class Vgg:
    name: str
    layout: Literal["imagenet", "cifar"] | None
    weights: str | None


@dataclass
class Torchvision:
    name: str
    arch: str
    weights: str | None


GROUPS: dict[str, dict[str, type]] = {
    "dataset": {
        "digits": Digits,
        "cifar10": Cifar,
        "cifar100": Cifar,
        "fashion_mnist": Downloadable,
        "imagenet": ImageFolder,
        "imagefolder": ImageFolder,
        "synthetic": Synthetic,
    },
    "backprop": {
        "stored": Stored,
        "checkpointed": Checkpointed,
        "reversible": Reversible,
        "adjoint": Adjoint,
        "budget": Budget,
    },
    "optimizer": {"sgd": Sgd, "ranger": Adam, "adamw": Adam},
    "schedule": {"constant": Schedule, "step": StepSchedule, "cosine": Schedule, "flat_cosine": FlatCosine},
    "precision": {"fp32": Precision, "bf16": Precision, "fp16": Precision},
    "model": {
        "resnet": ResNet,
        "revnet": RevNet,
        "heunnet": HeunNet,
        "linear": Linear,
        "vgg16": Vgg,
        "torchvision": Torchvision,
    },
}

# What an experiment may measure without a training run: the modules of memexp.studies.
STUDIES = ("gradient_error", "linear_ode", "parameters", "summary")

# The strategies that are mathematically valid for a network; a user's own network is not restricted here.
STRATEGIES = {
    "resnet": ("stored", "checkpointed", "adjoint", "budget"),
    "revnet": ("stored", "checkpointed", "reversible", "budget"),
    "heunnet": ("stored", "checkpointed", "adjoint", "budget"),
    "linear": ("stored", "checkpointed", "adjoint"),
    "vgg16": ("stored", "checkpointed", "budget"),
    "torchvision": ("stored",),
}


def nearest(word: str, allowed: typing.Iterable[str]) -> str:
    """' Did you mean ...?' for a misspelt word, or nothing."""
    allowed = list(allowed)
    found = difflib.get_close_matches(word, allowed, n=1, cutoff=0.55)
    if not found:  # a right last part under a wrong group
        found = [name for name in allowed if name.split(".")[-1] == word.split(".")[-1]][:1]
    return f" Did you mean '{found[0]}'?" if found else ""


def problems(cfg: Mapping[str, Any]) -> list[str]:
    """Every problem of a resolved configuration, each naming the key, its value and what is allowed."""
    found = list(_mismatches({key: value for key, value in cfg.items() if key not in GROUPS}, Config, "", extra=GROUPS))
    sound: set[str] = set()
    for group, options in GROUPS.items():
        before = len(found)
        node = cfg.get(group)
        if not isinstance(node, Mapping):
            found.append(f"{group}: {node!r} is not a group option; choose one of {', '.join(options)}.")
        elif "_target_" not in node:
            name = node.get("name")
            if name not in options:
                found.append(f"{group}.name: {name!r} is not one of {', '.join(options)}.{nearest(str(name), options)}")
            else:
                found.extend(_mismatches(node, options[name], f"{group}."))
        if len(found) == before:
            sound.add(group)
    found.extend(_contradictions(cfg, sound))
    return found


def _contradictions(cfg: Mapping[str, Any], sound: set[str]) -> typing.Iterator[str]:
    """Values that are allowed alone but not together. `sound` are the groups without problems of their own."""
    study = (cfg.get("case") or {}).get("study")
    if study is not None and study not in STUDIES:
        yield f"case.study: {study!r} is not one of {', '.join(STUDIES)}.{nearest(str(study), STUDIES)}"
    if "model" in sound and cfg["model"].get("name") == "linear" and study is None:
        yield "model: 'linear' is fitted to a matrix and takes no images; use experiment=node/fig2."
    if {"model", "backprop"} <= sound and "name" in cfg["model"]:
        model, backprop = cfg["model"]["name"], cfg["backprop"]["name"]
        if backprop not in (allowed := STRATEGIES[model]):
            yield (
                f"backprop: {backprop!r} is not valid for model={model}, whose steps have no such inverse; "
                f"use {' | '.join(allowed)}."
            )
    if "backprop" in sound and cfg.get("compile") is True and cfg["backprop"]["name"] != "stored":
        name = cfg["backprop"]["name"]
        yield f"compile: true needs backprop=stored; {name} is a custom gradient that torch.compile cannot trace."
    if "dataset" in sound:
        dataset = cfg["dataset"]
        root = dataset.get("root")
        if root is not None and not dataset.get("download") and not Path(root).expanduser().is_dir():
            name = dataset["name"]
            yield f"dataset.root: there is no folder {root!r}; name the one that holds the images of dataset={name}."
        if (dataset["mean"] is None) != (dataset["std"] is None):
            yield "dataset.mean: set dataset.mean and dataset.std together, or neither."
        if dataset["name"] == "fashion_mnist" and dataset["image_size"] < 28:
            yield f"dataset.image_size: {dataset['image_size']} is below Fashion-MNIST's 28."
    if "optimizer" in sound and cfg["optimizer"].get("nesterov") and not cfg["optimizer"]["momentum"]:
        yield "optimizer.nesterov: true needs optimizer.momentum above 0."


def _mismatches(
    node: Mapping[str, Any], kind: type, prefix: str, extra: typing.Iterable[str] = ()
) -> typing.Iterator[str]:
    """Unknown, missing and mistyped keys of one node."""
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]
    for key in node:
        if key not in names:
            yield f"{prefix}{key}: unknown key.{nearest(f'{prefix}{key}', [prefix + n for n in [*names, *extra]])}"
    for name in names:
        if name not in node:
            yield f"{prefix}{name}: missing; set {prefix}{name}=..."
            continue
        value, hint = node[name], hints[name]
        if value == "???":
            yield f"{prefix}{name}: has no value; set {prefix}{name}=..."
        elif is_dataclass(hint) and isinstance(hint, type):
            if isinstance(value, Mapping):
                yield from _mismatches(value, hint, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}: {value!r} is not a node of keys"
        elif not _fits(value, hint):
            yield f"{prefix}{name}: {value!r} is not allowed; it takes {_words(hint)}.{_near(value, hint)}"


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _fits(value, arguments[0]) and all(rule.holds(value) for rule in arguments[1:])
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in arguments)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{_words(arguments[0])} {' and '.join(rule.allows for rule in arguments[1:])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_words(option) for option in arguments)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is list:
        return f"a list, each {_words(arguments[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(hint, "null")


def _near(value: Any, hint: Any) -> str:
    options = [option for part in (hint, *typing.get_args(hint)) for option in typing.get_args(part)]
    return nearest(value, [option for option in options if isinstance(option, str)]) if isinstance(value, str) else ""
