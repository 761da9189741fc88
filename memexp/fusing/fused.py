"""From a trained network to the one that is deployed: folded, merged, checked."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import SUPPORTED_NODES, keystr, tree_flatten_with_path, tree_map

from memexp import edits
from memexp.backprop.untouched import untouched
from memexp.channels.called import Inputs, copied, rows
from memexp.channels.comparing import difference
from memexp.channels.drawing import drawn_alike
from memexp.channels.hooked import duplicate
from memexp.channels.tensors import check_values
from memexp.edits import linearise
from memexp.fusing import cuts, mergeable
from memexp.fusing.flow import refuse_training, trace
from memexp.fusing.foldable import found
from memexp.fusing.measure import costs
from memexp.models.vanishing import ArtefactReLU, VanishingReLU

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


log = logging.getLogger(__name__)


class FusingError(ValueError):
    """The fused, or grown, network does not compute what the network does."""


class Fused(NamedTuple):
    """network: a new one. edits: what made it of the old one. error: largest difference, relative to the largest output."""

    network: nn.Module
    edits: list[dict[str, Any]]
    error: float


class Comparison(NamedTuple):
    """fused, costs: of none, block, auto, all. refused: merges that would not be exact, BN that stays, with the reason."""

    fused: dict[str, Fused]
    costs: dict[str, dict[str, Any]]
    refused: dict[str, str]


def fuse(network: nn.Module, example_input: Inputs, merge: str = "block", batches: Iterable[Inputs] = ()) -> Fused:
    """The network as it is deployed: the same function with fewer layers. `network` itself is left as it is.

    merge: none (BN into the layers before them); block (branches side by side, 1x1 with 3x3: no kernel grows and no work is
    added); all (as few convolutions as can be exact, and one nn.Linear where the whole is affine); auto (the fastest on a
    batch like the example, on its device). example_input: a tensor, or a tuple of arguments; a real batch, as outputs on it
    and on each of `batches` are compared. Of what can be merged see memexp.edits.merge.

    Raises:
        ValueError: a module is in train mode, an activation that is meant to vanish has not, or there is no such merge.
        FusingError: outputs differ by more than 1e-5 of the largest (float32; float64 1e-12).
    """
    if merge == "auto":
        return compare(network, example_input, batches=batches).fused["auto"]
    fusing = _Fusing(network, example_input)
    made = fusing.made(merge)
    for name, reason in fusing.refused.items():
        log.info("not fused: %s: %s", name, reason)
    del fusing  # and with it a copy of the network
    return _checked(network, made, [example_input, *batches])


def compare(
    network: nn.Module, example_input: Inputs, inputs: Sequence[Inputs] = (), batches: Iterable[Inputs] = ()
) -> Comparison:
    """The network fused in every way, and what each costs, in one run.

    inputs: batches on which all are measured, beside the example, such as one of 1 and one of 256 images; auto is the fastest
    on the example, so that it is never slower there than the others. costs: see memexp.fusing.measure.costs; `predicted`:
    the latency on the example that the measured parts add up to.
    """
    fusing = _Fusing(network, example_input)
    by_time = cuts.ByTime(fusing.folded, fusing.runs, example_input)
    chosen = {"block": cuts.chosen(fusing.runs, cuts.by_block), "cuts": cuts.chosen(fusing.runs, by_time)}
    made = {name: fusing.made(name) for name in ("none", "block", "all")} | {"cuts": fusing.merged(chosen["cuts"])}
    every = [example_input, *batches]
    alike = {name: next(first for first in made if made[first] == made[name]) for name in made}  # measured only once
    fused = {name: _checked(network, made[name], every) for name in made if alike[name] == name}
    sizes = {rows(given): given for given in (example_input, *inputs)}
    networks = {"trained": network} | {name: result.network for name, result in fused.items()}
    measured = costs(networks, list(sizes.values()))
    latency = f"latency_{rows(example_input)}"
    for name, groups in chosen.items():
        measured[alike[name]]["predicted"] = measured["none"][latency] - by_time.saved(groups)
    fastest = min(fused, key=lambda name: measured[name][latency])
    alike["auto"] = fastest
    levels = ("none", "block", "auto", "all")
    return Comparison(
        {name: fused[alike[name]] for name in levels},
        {"trained": measured["trained"]} | {name: dict(measured[alike[name]]) for name in levels},
        fusing.refused,
    )


class _Fusing:
    """One network: what can be done with it, and the edits for each way to do it."""

    def __init__(self, network: nn.Module, example_input: Inputs) -> None:
        refuse_training(network)
        check_values(network)
        _refuse_activations(network)
        self.example = example_input
        self.folded = duplicate(network)
        pairs, self.refused = found(self.folded, trace(self.folded, example_input), example_input)
        self.fold: list[dict[str, Any]] = [{"kind": "fold", "pairs": pairs}] if pairs else []
        self.folded = edits.apply_all(self.folded, self.fold)
        self.runs = mergeable.Runs(self.folded, trace(self.folded, example_input))

    def made(self, merge: str) -> list[dict[str, Any]]:
        """The edits of a way to merge."""
        if merge == "none":
            return self.fold
        if merge == "block":
            return self.merged(cuts.chosen(self.runs, cuts.by_block))
        if merge != "all":
            raise ValueError(f"merge={merge!r}: use one of {', '.join(cuts.MERGES)}")
        if (shapes := _affine_on(self.folded, self.example)) is not None:
            return [*self.fold, {"kind": "linearise"} | shapes]
        made = self.merged(cuts.chosen(self.runs, cuts.by_count))
        self.refused |= self.runs.refused
        return made

    def merged(self, groups: list[mergeable.Group]) -> list[dict[str, Any]]:
        return [*self.fold, mergeable.edit(groups)] if groups else self.fold


def _checked(network: nn.Module, made: list[dict[str, Any]], batches: Iterable[Inputs]) -> Fused:
    """A copy of the network after the edits, compared with it."""
    deployed = edits.apply_all(duplicate(network), made)
    return Fused(deployed, made, check(network, deployed, batches))


@torch.no_grad()
def check(
    network: nn.Module,
    changed: nn.Module,
    batches: Iterable[Inputs],
    how: str = "fused",
    instead: str = "merge=none fuses least",
) -> float:
    """Largest difference of their outputs on the batches, relative to the largest output.

    how: it was changed, and instead: what else may be done, for the message.
    Raises FusingError where it is not a number, or above 1e-5 (float32; 1e-12 in float64) and above three times what rounding
    alone does to the network's own outputs, as float64 shows.
    """
    worst = 0.0
    with untouched(network), untouched(changed), drawn_alike():
        for batch in batches:
            before = outputs(network, batch)
            try:
                after = outputs(changed, batch)
            except (AttributeError, TypeError, LookupError) as missing:
                raise FusingError(
                    f"the {how} network does not run, as its forward reads of a layer what is gone: {missing}; {instead}"
                ) from missing
            for (name, x), y in zip(before.items(), after.values(), strict=True):
                if x.shape != y.shape:
                    raise FusingError(
                        f"the {how} network's output {name} is of shape {tuple(y.shape)}, the network's {tuple(x.shape)}: it "
                        "depends on values, so the two cannot be compared; fuse the part before that (a backbone)"
                    )
                bound = BOUNDS.get(x.real.dtype, 0.0)
                error = difference(y, x)
                if error > bound and x.dtype == torch.float32:
                    bound = max(bound, 3 * _rounding(network, batch))
                    log.info(
                        "%s: outputs differ by %.1e, three times the network's own rounding is %.1e", how, error, bound
                    )
                if not error <= bound:
                    raise FusingError(
                        f"the {how} network's outputs differ from the network's by {error:.1e} of the largest, and {bound:g} "
                        f"is allowed in {x.dtype}: it is not used; {instead}"
                    )
                worst = max(worst, error)
    return worst


def outputs(network: nn.Module, batch: Inputs) -> dict[str, Tensor]:
    """The tensors that it gives, by name: scores for one alone, scores_0 in a tuple or list, its key in a dict, its field in a
    dataclass or named tuple.

    Raises ValueError for an output that may hold tensors and cannot be looked into.
    """
    found: dict[str, Tensor] = {}
    for path, leaf in tree_flatten_with_path(opened(network(*copied(batch))))[0]:
        parts = re.findall(r"\w+", keystr(path))
        name = "_".join(parts if parts and not parts[0].isdigit() else ["scores", *parts])
        while name in found:  # {"a_0": y, "a": [z]}
            name += "_"
        if isinstance(leaf, Tensor):
            found[name] = leaf
        elif not isinstance(leaf, bool | int | float | complex | str | None):
            raise ValueError(
                f"the network's output {name} is a {type(leaf).__name__}, whose tensors cannot be compared: let it give "
                "tensors, or tuples, lists and dicts of them"
            )
    return found


def opened(value: Any) -> Any:
    """With dicts in place of dataclasses, which torch takes for leaves, and of named tuples, which its programs have not."""

    def by_field(leaf: Any) -> Any:
        if not has_fields(leaf):
            return leaf
        names = getattr(leaf, "_fields", None) or [field.name for field in fields(leaf)]
        return {name: opened(getattr(leaf, name)) for name in names}

    return tree_map(by_field, value, is_leaf=has_fields)


def has_fields(value: Any) -> bool:
    """Whether it is a dataclass or a named tuple, of a class that torch has not been told of."""
    if type(value) in SUPPORTED_NODES or isinstance(value, type):
        return False
    return is_dataclass(value) or (isinstance(value, tuple) and bool(getattr(value, "_fields", ())))


def _rounding(network: nn.Module, batch: Inputs) -> float:
    """How far the network's outputs are from those that it has in float64."""
    exact = linearise.exactly(network)
    right = outputs(exact, tuple(_given(exact, batch)))
    pairs = zip(outputs(network, batch).values(), right.values(), strict=True)
    return max(difference(x.to(y.device), y) for x, y in pairs if x.real.is_floating_point())


def _given(exact: nn.Module, batch: Inputs) -> list[Any]:
    """The arguments as the network takes them that `linearise.exactly` gives."""
    like = next(exact.parameters(), torch.empty(0, dtype=torch.float64))
    return [x.to(like) if isinstance(x, Tensor) and x.is_floating_point() else x for x in copied(batch)]


def _refuse_activations(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, ArtefactReLU):
            raise ValueError(
                f"{name} is the ReLU of inplace_relu=true, which never vanishes: this network cannot be fused"
            )
        if isinstance(module, VanishingReLU) and module.lambda_ > 0:
            raise ValueError(
                f"{name} is at lambda={module.lambda_:g}: it can be merged when it has vanished, "
                "at the end of the training (network.set_lambda(0) gives another function)"
            )


@torch.no_grad()
def _affine_on(network: nn.Module, example_input: Inputs) -> dict[str, Any] | None:
    """Shape of one input, and outputs, of a network that is affine, as far as a few inputs show; None for any other."""
    if not isinstance(example_input, Tensor) or not example_input.is_floating_point():
        return None
    exact = linearise.exactly(network)
    (x,) = _given(exact, example_input[:1])
    try:
        out = exact(x)
    except RuntimeError:  # the example is no batch, but one image alone
        return None
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 1 or not linearise.is_affine(exact, x):
        return None
    return {"shape": list(x.shape[1:]), "outputs": out.shape[1]}
