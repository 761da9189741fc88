"""Unstructured pruning: single weights become zero and stay zero. The tensors stay as large as they were, so nothing is faster.

    masks, record = mask_weights(network, criterion="snip", ratio=0.9, data=batches)
    hook = masks.hold(optimizer)                  # while training goes on

A network that comes back from its checkpoint has its zeros, and `Masks.of(network)` reads them.
"""

import difflib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from memexp.channels.called import apart
from memexp.channels.hooked import twin
from memexp.channels.tensors import check_values
from memexp.channels.unread import few
from memexp.pruning import selection
from memexp.pruning.calibration import Batch, Loss, given
from memexp.pruning.criteria import CRITERIA, Criterion, OfElements, check_scores, create, name_of
from memexp.pruning.filters import check_plain
from memexp.pruning.settings import Settings

log = logging.getLogger("memexp")


@dataclass
class Masks:
    """For each parameter its mask, true where the weight stays."""

    masks: dict[nn.Parameter, Tensor]

    @classmethod
    def of(cls, network: nn.Module) -> "Masks":
        """The masks of a network whose weights have been masked: false where a weight is zero."""
        return cls({weight: weight.detach() != 0 for weight in maskable(network).values()})

    @torch.no_grad()
    def apply(self) -> None:
        """Sets to zero, in place, what does not stay."""
        for weight, mask in self.masks.items():
            weight.mul_(mask)

    def hold(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Keeps the zeros at zero after every step of `optimizer`, in the weights and in what it remembers of them."""

        def after_step(stepped: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            self.apply()
            for weight, mask in self.masks.items():
                for value in stepped.state.get(weight, {}).values():
                    if isinstance(value, Tensor) and value.shape == weight.shape:
                        value.mul_(mask)

        return optimizer.register_step_post_hook(after_step)


def maskable(network: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of convolutions and linear layers, by name, each once."""
    found: dict[str, nn.Parameter] = {}
    for name, module in network.named_modules():
        weight = module._parameters.get("weight")
        if (
            isinstance(module, _ConvNd | nn.Linear)
            and weight is not None
            and all(weight is not w for w in found.values())
        ):
            found[f"{name}.weight" if name else "weight"] = weight
    return found


@apart()
def mask_weights(
    network: nn.Module,
    *,
    criterion: str | Criterion = "l1_norm",
    ratio: float | None = None,
    scope: str | Mapping[str, float] = "layer",
    floor: float = 0.01,
    options: Mapping[str, Any] | None = None,
    data: Iterable[Batch] | None = None,
    loss_fn: Loss = functional.cross_entropy,
    seed: int = 0,
) -> tuple[nn.Module, Masks, dict[str, Any]]:
    """A copy of `network` with single weights of convolutions and linear layers set to zero, its masks, and a record.

    criterion: one that scores single weights: l1_norm, taylor_weight, obd, snip, random. ratio, scope, floor: as of
    memexp.pruning.settings.Settings, with weights in place of channels; weights that are zero go first. record: what was asked,
    and the sparsity that there is, counted in the copy: of each layer, of all masked weights and of all parameters. A warning
    names the layers that have zeros beside those that went.

    Raises ValueError for an integral network, a criterion that scores filters only, a layer that is not there or whose weight
    is no parameter, and what `Settings` refuses.
    """
    made = create(criterion, options)
    if not isinstance(made, OfElements):
        able = [name for name, kind in CRITERIA.items() if issubclass(kind, OfElements)]
        raise ValueError(f"criterion={name_of(made)} scores filters, not single weights: use one of {', '.join(able)}")
    Settings(ratio=ratio, scope=scope, floor=floor).check()
    check_plain(network)
    check_values(network)
    calibration = given(f"criterion={name_of(made)}", made.needs_data, data, loss_fn, seed)
    shares = _shares(network, maskable(network), scope, ratio)
    pruned = twin(network)
    weights = maskable(pruned)
    scores = {name: score.detach().double() for name, score in made.elements(pruned, list(shares), calibration).items()}
    for name, score in scores.items():
        check_scores(made, name.rpartition(".")[0], score, weights[name].shape)
    if scope == "global" and not made.comparable:
        scores = {name: score / score.square().mean().sqrt().clamp_min(1e-300) for name, score in scores.items()}
    # what is zero has gone, whatever its score: a criterion may find less in others (obd), or draw
    scores = {name: score.masked_fill(weights[name] == 0, -math.inf) for name, score in scores.items()}
    stay = _over_all(scores, ratio, floor) if scope == "global" and ratio is not None else None
    masks = Masks(
        {
            weights[name]: _least_gone(score, shares[name]) if stay is None else stay[name]
            for name, score in scores.items()
        }
    )
    masks.apply()
    stuck = [
        name.rpartition(".")[0] for name in scores if bool((masks.masks[weights[name]] & (weights[name] == 0)).any())
    ]
    if stuck:
        log.warning(
            "%s: more of the weights are zero than were to go, and a network that comes back from its checkpoint holds all "
            "that are at zero: start these layers from other weights, or leave them out (scope={LAYER: ratio} of the others)",
            few(stuck),
        )
    record = {
        "criterion": name_of(made),
        "ratio": ratio,
        "scope": scope if isinstance(scope, str) else dict(scope),
        "floor": floor,
        "seed": seed,
        "sparsity": {
            "masked": _sparsity(weights[name] for name in scores),
            "network": _sparsity(pruned.parameters()),
            "layers": {name.rpartition(".")[0]: _sparsity([weights[name]]) for name in scores},
        },
    }
    return pruned, masks, record


def foresee_mask(
    network: nn.Module, *, ratio: float | None, scope: str | Mapping[str, float], floor: float, **_: Any
) -> None:
    """Raises what `mask_weights` would raise whatever the weights are: for a layer that is not there, a ratio beyond floors."""
    weights = maskable(network)
    _shares(network, weights, scope, ratio)
    if scope == "global" and ratio is not None:
        _check_floors([weight.numel() for weight in weights.values()], ratio, floor)


def _check_floors(sizes: Sequence[int], ratio: float, floor: float) -> None:
    total = sum(sizes)
    count, free = total - selection.left(total, ratio), total - sum(selection.at_least(size, floor) for size in sizes)
    if count > free:
        raise ValueError(
            f"ratio={ratio:g} is {count} of {total} weights, and with every layer at its floor {free} go: choose a smaller "
            "ratio or a smaller floor"
        )


def _shares(
    network: nn.Module, weights: Mapping[str, nn.Parameter], scope: str | Mapping[str, float], ratio: float | None
) -> dict[str, float]:
    """Of each weight the share that goes; in scope=global all are named."""
    made = [
        name
        for name, module in network.named_modules()
        if isinstance(module, _ConvNd | nn.Linear) and "weight" not in module._parameters
    ]
    asked = [layer for layer in made if not isinstance(scope, Mapping) or layer in scope]
    if asked:
        raise ValueError(
            f"the weight of layer {asked[0] or type(network).__name__} is no parameter but is computed from others (a weight "
            "norm, say), which a mask cannot set to zero: make it plain first (torch.nn.utils.parametrize."
            "remove_parametrizations), or name the other layers by scope={LAYER: ratio}"
        )
    if not weights:
        raise ValueError(
            "the network has no convolution and no linear layer with a weight of its own, and masks are of these alone"
        )
    if not isinstance(scope, Mapping):
        assert ratio is not None
        return dict.fromkeys(weights, ratio)
    layers = {name.rpartition(".")[0]: name for name in weights}
    if unknown := [layer for layer in scope if layer not in layers]:
        near = difflib.get_close_matches(unknown[0], layers, n=3) or list(layers)[:3]
        raise ValueError(f"scope: there is no convolution or linear layer {unknown[0]!r}; nearest: {', '.join(near)}")
    return {layers[layer]: share for layer, share in scope.items()}


def _least_gone(score: Tensor, ratio: float) -> Tensor:
    """The mask without the share of least scores."""
    count = score.numel() - selection.left(score.numel(), ratio)
    mask = torch.ones(score.numel(), dtype=torch.bool, device=score.device)
    mask[score.flatten().argsort(stable=True)[:count]] = False
    return mask.view(score.shape)


def _over_all(scores: Mapping[str, Tensor], ratio: float, floor: float) -> dict[str, Tensor]:
    """Masks without the least scores of all layers, of which each keeps its floor."""
    flat = {name: score.flatten() for name, score in scores.items()}
    guarded = []
    for score in flat.values():
        safe = score.argsort(stable=True)[len(score) - selection.at_least(len(score), floor) :]
        guarded.append(score.index_fill(0, safe, math.inf))
    _check_floors([len(score) for score in flat.values()], ratio, floor)
    everything = torch.cat(guarded)
    count = len(everything) - selection.left(len(everything), ratio)
    mask = torch.ones(len(everything), dtype=torch.bool, device=everything.device)
    mask[everything.argsort(stable=True)[:count]] = False
    parts = mask.split([len(score) for score in flat.values()])
    return {name: part.view(scores[name].shape) for name, part in zip(flat, parts, strict=True)}


def _sparsity(tensors: Iterable[Tensor]) -> float:
    zeros, total = 0, 0
    for tensor in tensors:
        zeros, total = zeros + int((tensor == 0).sum()), total + tensor.numel()
    return zeros / total
