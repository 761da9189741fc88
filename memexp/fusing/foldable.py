"""Which batch normalisations can be folded into the layer before them, and why the others cannot."""

from collections.abc import Mapping

import torch
from torch import nn

from memexp.backprop.untouched import untouched
from memexp.channels.called import Inputs, copied
from memexp.edits import fold
from memexp.edits.placing import put
from memexp.fusing.flow import Call, Flow, trace


def folds(network: nn.Module, example_input: Inputs) -> list[list[str]]:
    """Pairs [layer, its batch normalisation] that the edit `fold` may take, in the order in which they run.

    A layer is a plain convolution, transposed convolution or linear layer that is called once and whose output nothing but
    that normalisation reads. The network is run once on `example_input` (a tensor, or a tuple of arguments).
    Raises ValueError for a network of which a module is in train mode.
    """
    return found(network, trace(network, example_input), example_input)[0]


def found(network: nn.Module, flow: Flow, example_input: Inputs) -> tuple[list[list[str]], dict[str, str]]:
    """The pairs, and each other batch normalisation that runs with the reason why it stays."""
    modules = dict(network.named_modules())
    layers = flow.layers()
    pairs, stay = [], {}
    for name, calls in layers.items():
        if not fold.normalises(modules[name]):
            continue
        source = flow.producer(calls[0].inputs[0]) if calls[0].inputs else None
        if (reason := _why_not(modules, flow, layers, calls, source)) is None:
            assert source is not None
            pairs.append([source.name, name])
        else:
            stay[name] = reason
    rests = {norm: fold.rest(modules[norm]).eval() for _, norm in pairs}
    for norm, error in missed(network, rests, example_input).items():
        stay[norm] = f"the network reads what only a normalisation has: {error}"
    return [pair for pair in pairs if pair[1] not in stay], stay


def missed(network: nn.Module, places: Mapping[str, nn.Module], example_input: Inputs) -> dict[str, str]:
    """Of the modules of these names, those of which the network reads an attribute that what comes in their place has not, and
    what Python says then."""
    if _fault(network, places, example_input) is None:
        return {}
    faults = {name: _fault(network, {name: module}, example_input) for name, module in places.items()}
    return {name: fault for name, fault in faults.items() if fault is not None}


@torch.no_grad()
def _fault(network: nn.Module, places: Mapping[str, nn.Module], example_input: Inputs) -> str | None:
    """The attribute that is missing where these modules are in the places of others. None where none is."""
    others = {network.get_submodule(name): module for name, module in places.items()}
    try:
        with untouched(network):  # which puts the others back
            put(network, others)
            network(*copied(example_input))
    except AttributeError as error:
        return str(error)
    except Exception:  # of what is not normalised, not of what is missing
        return None
    return None


def _why_not(
    modules: dict[str, nn.Module], flow: Flow, layers: dict[str, list[Call]], calls: list[Call], source: Call | None
) -> str | None:
    norm = calls[0].name
    if source is None or not source.layer or type(modules[source.name]) not in fold.LAYERS:
        return "what it normalises is not the output of a plain convolution or linear layer"
    if reason := fold.unfit(modules[source.name], modules[norm]):
        return reason
    value = source.outputs[0]
    for name in (source.name, norm):
        if len(layers[name]) > 1:
            return f"{name} is called more than once"
        if name in flow.loose:
            return f"{name} {flow.loose[name]}"
        if name in flow.hooks:
            return f"{name} has hooks, which would see what changes"
    if value in flow.hooked:
        return f"{flow.hooked[value]} has hooks, which would see what changes"
    if not flow.private(value, calls):
        return f"the output of {source.name} is read elsewhere too"
    dimensions = 2 if isinstance(modules[source.name], nn.Linear) else modules[source.name].weight.ndim
    if len(flow.shapes[value]) != dimensions:
        return f"it normalises another dimension of {source.name}'s output than its channels"
    return None
