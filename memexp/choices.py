"""The groups of a configuration, the options of each, and which keys of a user's own option are the runner's."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from memexp.dataset_options import Cifar, Digits, Downloadable, ImageFolder, OwnDataset, Synthetic
from memexp.models.families import FAMILIES
from memexp.options import (
    Adam,
    Adjoint,
    Budget,
    Checkpointed,
    Deploy,
    Entropy,
    FlatCosine,
    Integral,
    Light,
    Obd,
    Obs,
    OwnOptimizer,
    OwnSchedule,
    Precision,
    Prune,
    Reversible,
    Schedule,
    Sgd,
    StepSchedule,
    Stored,
    TaylorWeight,
)

CRITERIA: tuple[str, ...] = (
    "apoz",
    "bn_scale",
    "entropy",
    "fisher",
    "fpgm",
    "l1_norm",
    "l2_norm",
    "lamp",
    "mean",
    "obd",
    "obs",
    "random",
)
CRITERIA += ("signed_sum", "skeletonization", "snip", "std", "taylor_activation", "taylor_weight")
ELEMENTWISE = ("l1_norm", "taylor_weight", "obd", "snip", "random")  # criteria that score single weights
INTEGRAL = "integral"  # of the group prune: no criterion, but sampling at another size
FIRST_WEIGHTS = ("weights", "init_from")  # keys of a model that name where its first weights come from
STARTS = ("init_from", "model.init_from", "distill.teacher")  # keys that name a run which is to be there
UNDOING = ("reversible", "adjoint", "budget")  # strategies whose figures tell how well steps were undone
OPTIONAL = ("prune", "deploy")  # groups of which there may be none
GROUPS: dict[str, dict[str, type]] = {
    "prune": dict.fromkeys(CRITERIA, Prune)
    | {"entropy": Entropy, "obd": Obd, "obs": Obs, "taylor_weight": TaylorWeight, INTEGRAL: Integral},
    "deploy": {"fuse": Deploy},
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
        "light": Light,
        "checkpointed": Checkpointed,
        "reversible": Reversible,
        "adjoint": Adjoint,
        "budget": Budget,
    },
    "optimizer": {"sgd": Sgd, "ranger": Adam, "adamw": Adam},
    "schedule": {"constant": Schedule, "step": StepSchedule, "cosine": Schedule, "flat_cosine": FlatCosine},
    "precision": dict.fromkeys(("fp32", "tf32", "bf16", "fp16"), Precision),
    "model": {name: family.options for name, family in FAMILIES.items() if family.options is not None},
}

# Groups whose option may be a user's own (`_target_`): the keys that stay the runner's; all others are arguments of the target.
OWN: dict[str, type | None] = {
    "model": None,
    "dataset": OwnDataset,
    "optimizer": OwnOptimizer,
    "schedule": OwnSchedule,
}

# What an experiment may measure without a training run: the modules of memexp.studies.
STUDIES = ("affine", "gradient_error", "linear_ode", "parameters", "summary")


def name_of(node: Mapping[str, Any]) -> str:
    """What a group's option is called: its name, or the target of a user's own."""
    return str(node.get("name") or node.get("_target_"))


def of_runner(group: str) -> set[str]:
    """The keys of a user's own option that are not arguments of its target."""
    kind = OWN[group]
    return {"_target_", "name", *(field.name for field in (fields(kind) if kind is not None else ()))}


def arguments(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """What the target of a user's own option is called with."""
    return {str(key): value for key, value in node.items() if key not in of_runner(group)}
