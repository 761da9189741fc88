"""What a configuration may hold: every key of every group, its type and its range. The values themselves stand in conf/.

A group's option is checked by the dataclass of its `name`; an option with `_target_` is a user's own and its keys, but for
those that every option has, are the arguments of what it names. Those of `model` stand in models/families.py, of `dataset` in
dataset_options.py; choices.py is the table of all.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from memexp.schema import (
    Count,
    NonNegative,
    Positive,
    PositiveFloat,
    Rule,
    Share,
    ShareBelow1,
    at_least,
    between,
    is_bytes,
)

STEPS = Rule("either whole, in steps, or below 1, a share of them", lambda value: value < 1 or value % 1 == 0)


@dataclass
class Memory:
    steps: Positive
    limit: Annotated[str | int | float, Rule("of bytes, such as 11GB or 900MiB", is_bytes)] | None
    enforce: bool
    timeline: bool
    snapshot: bool


@dataclass
class Profile:
    steps: Count


@dataclass
class Report:
    tsne: bool
    tsne_epochs: list[Positive] | None


@dataclass
class Tune:
    epochs: Positive
    max_steps: Positive | None
    lr: PositiveFloat
    warmup: Annotated[NonNegative, STEPS]
    scratch: bool


NativeShare = Annotated[float, between(0.01, 4)]  # of an integral network, as a share of its native size


@dataclass
class Discretise:
    sizes: list[NativeShare] | None


@dataclass
class Grow:
    expansion: Annotated[float, at_least(1)]


@dataclass
class Distill:
    teacher: str | None
    alpha: Share
    temperature: PositiveFloat


@dataclass
class Config:
    """The keys outside the groups."""

    name: str
    arm: str | None
    seed: Count
    deterministic: bool
    device: str
    epochs: Positive
    max_steps: Positive | None
    batch_size: Positive
    accumulate: Annotated[int, between(1, 65536)]  # all of a step's batches are held together
    precise_batchnorm: bool
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
    cuda_graph: bool
    sync_batchnorm: bool
    scale: Literal["paper", "laptop"]
    case: dict[str, Any] | None
    overwrite: bool
    stages: list[str] | None
    init_from: str | None
    tune: Tune
    discretise: Discretise
    grow: Grow
    distill: Distill
    memory: Memory
    report: Report
    profile: Profile


@dataclass
class Precision:
    name: Literal["fp32", "tf32", "bf16", "fp16"]


@dataclass
class Stored:
    name: Literal["stored"]
    exact: bool
    exact_bits: Annotated[int, between(1, 22)]


@dataclass
class Light(Stored):
    name: Literal["light"]  # type: ignore[assignment]


@dataclass
class Checkpointed(Stored):
    name: Literal["checkpointed"]  # type: ignore[assignment]
    every: Positive


@dataclass
class Reversible(Stored):
    name: Literal["reversible"]  # type: ignore[assignment]


def _is_budget(value: Any) -> bool:
    return (isinstance(value, int | float) and 0 <= value <= 1) or is_bytes(value)


@dataclass
class Budget(Stored):
    name: Literal["budget"]  # type: ignore[assignment]
    limit: Annotated[str | int | float, Rule("of bytes, such as 6GB, or a share of stored's peak in 0..1", _is_budget)]


@dataclass
class Adjoint:
    name: Literal["adjoint"]
    refine: Count
    min_steps: Count


@dataclass
class Lookahead:
    k: Positive | None
    alpha: Share


@dataclass
class OwnOptimizer:
    """What every optimizer has, one of the user's own included."""

    lr: PositiveFloat
    weight_decay: NonNegative
    lookahead: Lookahead
    gradient_centralization: bool
    centralize: Literal["gradient", "update"]
    conv_only: bool
    evaluate_slow: bool


@dataclass
class Optimizer(OwnOptimizer):
    name: str


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
class OwnSchedule:
    """What every schedule has, one of the user's own included."""

    warmup: Annotated[NonNegative, STEPS]


@dataclass
class Schedule(OwnSchedule):
    name: str


@dataclass
class StepSchedule(Schedule):
    milestones: list[Annotated[PositiveFloat, STEPS]]
    gamma: PositiveFloat


@dataclass
class FlatCosine(Schedule):
    flat: Share


@dataclass
class Prune:
    """What every criterion has; memexp.pruning.settings says what goes together."""

    name: str
    ratio: float | None
    target: str | None
    scope: str | dict[str, Any]
    floor: float
    order: str
    step: float
    rounds: Positive
    draws: Positive
    batches: Positive
    unstructured: bool


@dataclass
class Obs(Prune):
    damping: PositiveFloat
    largest: Positive


@dataclass
class Entropy(Prune):
    bins: Annotated[int, between(1, 65536)]  # of every channel of a layer, counted at once


@dataclass
class Obd(Prune):
    probes: Positive


@dataclass
class TaylorWeight(Prune):
    gates: bool


@dataclass
class Integral:
    """The size that an integral network is left at; memexp.contradictions says what goes together."""

    name: str
    keep: NativeShare | dict[str, Any] | None
    target: str | None
    tune: Literal["partition"] | None


@dataclass
class Deploy:
    name: str
    merge: Literal["none", "block", "auto", "all"]
    batch: Positive
