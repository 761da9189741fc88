"""The one table of families. What the rest of the house knows of a model stands in its entry here; nothing imports torch.

A further family is one module in memexp/models, one entry, one YAML in conf/model, one test. A user's own network (`_target_`)
has no entry and gets the defaults of `Family`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from memexp.models import layout
from memexp.models.layout import LARGE, RESNET, REVNET, Shape
from memexp.schema import NonNegative, Positive, PositiveFloat, Rule, at_least

DEEPEST = 1000  # layers beyond which no depth is offered
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Depths:
    """The depths to choose from, ascending, and the settings that go with them; endless: deeper ones exist."""

    values: Sequence[int]
    fixed: Settings = field(default_factory=dict)
    endless: bool = True


@dataclass(frozen=True)
class Family:
    """One family.

    factory: dotted path of the function that builds it, `memexp.models.create` says how it is called. options: dataclass of
    its keys. strategies: names of the values of backprop= that are valid for its steps, None where nothing is known of them.
    cautions: for a strategy, what a person is to be told about it with these settings, if anything; such a strategy may be
    chosen, but is never proposed. check: raises ValueError for settings that do not go together, given the shape of an image.
    depths: those to choose from. warm_start: dotted path of a function (network, trained) that starts one network from
    another. images: whether it classifies images, and so can be trained by a run. integral: whether it can be discretised.
    """

    factory: str | None = None
    options: type | None = None
    strategies: tuple[str, ...] | None = None
    cautions: Mapping[str, Callable[[Settings], str | None]] = field(default_factory=dict)
    check: Callable[[Settings, Shape], object] = lambda settings, shape: None
    depths: Callable[[Settings, Shape], Depths | None] = lambda settings, shape: None
    warm_start: str | None = None
    images: bool = True
    integral: bool = False


@dataclass
class RevNetOptions:
    name: str
    depth: Positive
    units: Annotated[list[Positive], Rule("with at least one entry", lambda value: len(value) > 0)] | None
    channels: Annotated[list[Positive], Rule("with at least one entry", lambda value: len(value) > 0)] | None
    bottleneck: bool | None


@dataclass
class ResNetOptions(RevNetOptions):
    kind: Literal["preactivation", "simple", "ode"]
    tied: bool
    init_from: str | None


@dataclass
class HeunNetOptions:
    name: str
    depth: Annotated[int, at_least(2)]
    init_from: str | None


@dataclass
class LinearOptions:
    name: str
    d: Positive


@dataclass
class VggOptions:
    name: str
    layout: Literal["imagenet", "cifar"] | None
    width: PositiveFloat
    weights: str | None


@dataclass
class ReduceNetOptions:
    name: str
    depth: Positive
    expansion: Annotated[float, Rule("above 0", lambda value: value > 0)]
    vanish: Literal["inner", "all", "schedule"]
    schedule: list[float | list[float | None] | None] | None
    padding: Literal["each", "once"]
    plain: bool
    wide: NonNegative
    inplace_relu: bool
    init_from: str | None


@dataclass
class TorchvisionOptions:
    name: str
    arch: str
    weights: str | None


@dataclass
class DiscreteOptions:
    name: str
    base: str
    weights: str | None


@dataclass
class InnOptions:
    name: str
    base: str
    weights: str | None
    fold: bool
    permute: bool
    quadrature: Literal["trapezoidal", "riemann", "simpson", "gauss_legendre"]
    groups: list[str] | None
    smallest: PositiveFloat
    largest: PositiveFloat
    seed: int
    init_from: str | None


def of(model: Settings) -> Family:
    """The entry of a configuration's `model`; the defaults for a network of the user's own."""
    return FAMILIES.get(str(model.get("name")), OWN) if "_target_" not in model else OWN


def plain(model: Settings) -> Settings:
    """The settings of the network that an integral one is made of; any other's as they are."""
    return {"name": "discrete", "base": model["base"], "weights": None} if of(model).integral else model


def valid(model: Settings) -> tuple[str, ...] | None:
    """The strategies that may be chosen: its family's, but reversible where no step of it can be undone; None: not known."""
    known = of(model).strategies
    return known and tuple(name for name in known if name != "reversible" or caution(model, name) is None)


def proposed(model: Settings, otherwise: Sequence[str]) -> tuple[str, ...]:
    """The strategies that may be proposed for it: valid, and without a caution. otherwise: where nothing is known."""
    family = of(model)
    valid = tuple(otherwise) if family.strategies is None else family.strategies
    return tuple(name for name in valid if caution(model, name) is None)


def caution(model: Settings, strategy: str) -> str | None:
    """What is to be said of a strategy that is allowed for these settings but not sound."""
    about = of(model).cautions.get(strategy)
    return about(model) if about is not None else None


def _scale_1(model: Settings) -> str | None:
    if model.get("kind") != "preactivation":
        return None
    return (
        "backprop=adjoint on a ResNet whose steps have scale 1 is the paper's failure case: reconstruction and gradient are "
        "wrong by as much as they are large; use model.kind=simple or ode, model=heunnet, or backprop.refine"
    )


def _residual(table: layout.Table, least_units: int) -> Callable[[Settings, Shape], Depths | None]:
    """Depths of three equal stages on small images, or those of the table on large ones."""

    def depths(model: Settings, shape: Shape) -> Depths | None:
        if model.get("kind") == "simple":
            return Depths(range(1, DEEPEST + 1))
        if model.get("units") is not None or model.get("kind") == "ode":
            return None
        if min(shape[1:]) > LARGE:
            return Depths(sorted(table.imagenet), endless=False)
        chosen = layout.choose(table, model["depth"], None, None, model.get("bottleneck"), shape)
        per_stage = 3 * table.per_unit * (3 if chosen.bottleneck else 2)
        first = per_stage * least_units + 2
        return Depths(range(first, DEEPEST + 1, per_stage), {"bottleneck": chosen.bottleneck})

    return depths


def _resnet(model: Settings, shape: Shape) -> object:
    keys = ("depth", "units", "channels", "bottleneck", "kind", "tied")
    return layout.resnet(shape, **{key: model[key] for key in keys if key in model})


def _reducenet(model: Settings, shape: Shape) -> object:
    return layout.reducenet(**{key: value for key, value in model.items() if key not in ("name", "init_from")})


def _revnet(model: Settings, shape: Shape) -> object:
    return layout.revnet(
        shape, **{key: model[key] for key in ("depth", "units", "channels", "bottleneck") if key in model}
    )


def _inn(model: Settings, shape: Shape) -> object:
    if model["smallest"] > model["largest"]:
        raise ValueError(f"smallest={model['smallest']} is more than largest={model['largest']}")
    return _based(model, shape)


def _based(model: Settings, shape: Shape) -> object:
    base, weights = str(model["base"]), model.get("weights")
    if weights is not None and not base.startswith("torchvision/"):
        raise ValueError(
            f"weights={weights} with base={base}: weights are for a base torchvision/NAME; use init_from=RUN"
        )
    if base.startswith("torchvision/") or base == "nin":
        return None
    if base in ("vgg11", "vgg16"):
        return layout.vgg(shape)
    named = re.fullmatch("(resnet|revnet)([0-9]+)", base)
    if named is None:
        raise ValueError(f"base={base!r}: use resnetDEPTH, revnetDEPTH, vgg11, vgg16, nin or torchvision/NAME")
    return (layout.resnet if named[1] == "resnet" else layout.revnet)(shape, int(named[2]))


def _nothing_undone(model: Settings) -> str | None:
    """Of a RevNet in which each unit changes the shape, as the one of a stage does where that has bottlenecks."""
    try:
        found = _revnet(model, (3, 32, 32))
    except ValueError:  # of large images, whose networks have stages of several units
        return None
    assert isinstance(found, layout.Layout)
    first = found.stages()[0][1] == found.channels[0]
    if first or max(found.units) > 1:
        return None
    told = f"model.depth={model['depth']}" if model.get("units") is None else f"model.units={list(found.units)}"
    return f"backprop=reversible is not for {told}"


def _no_inverse(model: Settings) -> str | None:
    base = str(model["base"])
    return None if base.startswith("revnet") else f"backprop=reversible is not for model.base={base}"


OWN = Family()
OF_A_BASE = ("stored", "light", "checkpointed", "reversible", "budget")  # torchvision's blocks are taken as Chains, too
FAMILIES: dict[str, Family] = {
    "discrete": Family(
        "memexp.models.base.discrete",
        DiscreteOptions,
        OF_A_BASE,
        cautions={"reversible": _no_inverse},
        check=_based,
    ),
    "heunnet": Family(
        "memexp.models.ode.heunnet",
        HeunNetOptions,
        ("stored", "light", "checkpointed", "adjoint", "budget"),
        check=lambda model, shape: layout.simple(shape, model["depth"], heun=True),
        depths=lambda model, shape: Depths(range(2, DEEPEST + 1)),
        warm_start="memexp.models.warm_start.warm_start",
    ),
    "inn": Family(
        "memexp.integral.family.inn",
        InnOptions,
        OF_A_BASE,
        cautions={"reversible": _no_inverse},
        check=_inn,
        warm_start="memexp.integral.family.warm_start",
        integral=True,
    ),
    "linear": Family(
        "memexp.models.linear.LinearResNet", LinearOptions, ("stored", "light", "checkpointed", "adjoint"), images=False
    ),
    "reducenet": Family(
        "memexp.models.reducenet.reducenet",
        ReduceNetOptions,
        ("stored", "light", "checkpointed", "budget"),
        check=_reducenet,
        depths=lambda model, shape: Depths(
            range(*((5, DEEPEST + 1, 3) if model.get("plain") else (8, DEEPEST + 1, 6)))
        ),
        warm_start="memexp.models.reducenet.student",
    ),
    "resnet": Family(
        "memexp.models.resnet.resnet",
        ResNetOptions,
        ("stored", "light", "checkpointed", "adjoint", "budget"),
        cautions={"adjoint": _scale_1},
        check=_resnet,
        depths=_residual(RESNET, 1),
        warm_start="memexp.models.warm_start.warm_start",
    ),
    "revnet": Family(
        "memexp.models.revnet.revnet",
        RevNetOptions,
        ("stored", "light", "checkpointed", "reversible", "budget"),
        cautions={"reversible": _nothing_undone},
        check=_revnet,
        depths=_residual(REVNET, 2),  # with one unit a stage there is nothing to undo in a bottleneck network
    ),
    "torchvision": Family(
        "memexp.models.torchvision.torchvision_model", TorchvisionOptions, ("stored", "light", "checkpointed", "budget")
    ),
    "vgg16": Family(
        "memexp.models.vgg.vgg16",
        VggOptions,
        ("stored", "light", "checkpointed", "budget"),
        check=lambda model, shape: layout.vgg(shape, model.get("layout")),
    ),
}
