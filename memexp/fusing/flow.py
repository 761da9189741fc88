"""What feeds what in a network: found by running it once on an example and watching, so that any Python code will do.

Every tensor that appears has a value number; an operation in place gives its tensor, and all that share its memory, a new
one. Calls of layers (modules of PyTorch's own that do one thing) are kept whole, everything else is single operations, what a
layer does whose forward was replaced, too.
"""

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from memexp.backprop.untouched import untouched
from memexp.channels.called import Inputs, arguments, copied
from memexp.edits.fold import LAYERS, normalises
from memexp.edits.placing import hooks
from memexp.models.vanishing import VanishingReLU

Value = int


@dataclass(frozen=True)
class Same:
    """In an operation's arguments: the tensor of that value."""

    value: Value


@dataclass
class Call:
    """A call of a layer (`name` is the module's), or an operation outside of layers (`name` is PyTorch's).

    inside: the names of the modules that were running. arguments, keywords: what an operation was called with, tensors as
    `Same`.
    """

    name: str
    layer: bool
    inside: tuple[str, ...]
    inputs: list[Value]
    outputs: list[Value]
    arguments: list[Any] = field(default_factory=list)
    keywords: dict[str, Any] = field(default_factory=dict)


@dataclass
class Span:
    """A call of any module: the values that went in and came out; plain: one tensor in, one out."""

    name: str
    inputs: list[Value]
    outputs: list[Value]
    plain: bool


@dataclass
class Flow:
    """What was seen.

    shapes: of each value. users: the calls that read a value. results: values that the network gives out. hooked: values
    that a module with hooks took or gave, with its name. loose: parameters read outside of their own layer's one call.
    twice: modules that stand in the network under two names, by the first.
    """

    calls: list[Call] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    shapes: dict[Value, torch.Size] = field(default_factory=dict)
    users: dict[Value, list[Call]] = field(default_factory=dict)
    results: set[Value] = field(default_factory=set)
    hooked: dict[Value, str] = field(default_factory=dict)
    hooks: set[str] = field(default_factory=set)
    loose: dict[str, str] = field(default_factory=dict)
    twice: set[str] = field(default_factory=set)

    def private(self, value: Value, calls: Iterable[Call]) -> bool:
        """Whether nothing sees the value but these calls."""
        mine = {id(call) for call in calls}
        seen = value in self.results or value in self.hooked
        return not seen and all(id(user) in mine for user in self.users.get(value, []))

    def layers(self) -> dict[str, list[Call]]:
        """Calls of each layer, by name."""
        found: dict[str, list[Call]] = {}
        for call in self.calls:
            if call.layer:
                found.setdefault(call.name, []).append(call)
        return found

    def producer(self, value: Value) -> Call | None:
        """The call that gave the value; None for the network's inputs."""
        return next((call for call in self.calls if value in call.outputs), None)


def trace(network: nn.Module, example_input: Inputs) -> Flow:
    """The flow of `network(example_input)`, or of `network(*example_input)` if that is a tuple or list, on two images at most.

    The network must be in eval mode; it is run without gradients, and left as it is, as is the example. Where it does not run
    on two images, as what was cut is no batch (a weight for each class, one image alone), it is followed on the whole example.
    Raises ValueError for a network of which a module is in train mode.
    """
    refuse_training(network)
    with suppress(Exception):  # of any kind; where the network itself is at fault, it is raised again below
        return _Watch(network).run(copied(_few(example_input)))
    return _Watch(network).run(copied(example_input))


def _few(example_input: Inputs) -> tuple[Any, ...]:
    """The arguments with the first two of each batch: what is followed is all kept until the end."""
    inputs = arguments(example_input)
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if len(tensors) > 1 and any(x.dtype in (torch.int32, torch.int64) for x in tensors):
        return (
            inputs  # indices into another, as a graph's edges, which a GPU does not survive where they are out of range
        )
    size = next((len(x) for x in tensors if x.ndim), 0)
    return tuple(x[:2] if isinstance(x, Tensor) and x.ndim and len(x) == size else x for x in inputs)


def refuse_training(network: nn.Module) -> None:
    """Raises ValueError if a module is in train mode: fusing keeps the function that the network has in eval."""
    training = next((name or "the network" for name, module in network.named_modules() if module.training), None)
    if training is not None:
        raise ValueError(
            f"{training} is in train mode, and only what a network computes in eval mode can be fused: "
            "call network.eval() first"
        )


class _Watch(TorchDispatchMode):
    """Follows one run. All tensors seen are kept until its end, so that none takes the place of another."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.flow = Flow()
        self._network = network
        self._names: dict[nn.Module, str] = {m: name for name, m in network.named_modules()}
        count = Counter(module for _, module in network.named_modules(remove_duplicate=False))
        self._owners: dict[int, nn.Module] = {}
        for module, name in self._names.items():
            for parameter in module._parameters.values():
                if parameter is None:
                    continue
                if id(parameter) in self._owners:
                    for holder in (module, self._owners[id(parameter)]):
                        self.flow.loose[self._names[holder]] = "shares a parameter with another layer"
                self._owners[id(parameter)] = module
            if hooks(module):
                self.flow.hooks.add(name)
            if count[module] > 1:
                self.flow.twice.add(name)
        self._stack: list[tuple[nn.Module, list[Value]]] = []
        self._layer: nn.Module | None = None
        self._alive: list[Tensor] = []
        self._values: dict[int, tuple[Value, int]] = {}  # id of a tensor -> its value, as of a version of its memory
        self._versions: Counter[int] = Counter()

    def run(self, inputs: tuple[Any, ...]) -> Flow:
        with ExitStack() as stack:
            for hook in (
                register_module_forward_pre_hook(self._into),
                register_module_forward_hook(self._out),
            ):
                stack.callback(hook.remove)
            stack.enter_context(untouched(self._network))
            stack.enter_context(torch.no_grad())
            stack.enter_context(self)
            out = self._network(*inputs)
        self.flow.results = set(self._read(out))
        return self.flow

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = self._read((args, kwargs))
        for tensor in tree_iter((args, kwargs)):
            owner = self._owners.get(id(tensor))
            if owner is not None and owner is not self._layer:
                self.flow.loose.setdefault(self._names[owner], "has a parameter that is read outside of it")
        out = func(*args, **kwargs)
        if self._layer is not None:
            own = self._stack[-1][1]
            read = [value for value in read if value in self.flow.users and value not in own]
            self._written(func, args, kwargs)
            if read:
                self._note(Call(func.__name__, False, self._inside(), read, []))
            return out
        arguments = [self._values_in(argument) for argument in args]
        keywords = {name: self._values_in(argument) for name, argument in kwargs.items()}
        self._written(func, args, kwargs)
        name = func._overloadpacket.__name__
        self._note(Call(name, False, self._inside(), read, self._read(out), arguments, keywords))
        return out

    def _written(self, func: Any, args: Any, kwargs: Any) -> None:
        """New values for what the operation writes to."""
        if not func._schema.is_mutable:
            return
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[position] if position < len(args) else kwargs.get(argument.name)
                for tensor in tree_iter(given):
                    if isinstance(tensor, Tensor):
                        self._versions[_memory(tensor)] += 1

    def _into(self, module: nn.Module, inputs: Any) -> None:
        values = self._read(inputs)
        self._stack.append((module, values))
        known = type(module) in KNOWN or normalises(module)
        if self._layer is None and module in self._names and known and "forward" not in vars(module):
            self._layer = module

    def _out(self, module: nn.Module, inputs: Any, output: Any) -> None:
        _, before = self._stack.pop()
        after = self._read(output)
        name = self._names.get(module)
        if name is None:
            return
        if name in self.flow.hooks:
            for value in (*before, *after):
                self.flow.hooked.setdefault(value, name)
        plain = isinstance(output, Tensor) and isinstance(inputs, tuple) and len(inputs) == 1
        self.flow.spans.append(Span(name, before, after, plain and isinstance(inputs[0], Tensor)))
        if module is self._layer:
            self._layer = None
            if before != after:  # else it handed its input on, as nn.Identity does
                self._note(Call(name, True, self._inside(), before, after))

    def _note(self, call: Call) -> None:
        self.flow.calls.append(call)
        for value in call.inputs:
            self.flow.users.setdefault(value, []).append(call)
        for value in call.outputs:
            self.flow.users.setdefault(value, [])

    def _inside(self) -> tuple[str, ...]:
        return tuple(self._names.get(module, "") for module, _ in self._stack)

    def _read(self, tree: Any) -> list[Value]:
        return [self._value(item) for item in tree_iter(tree) if isinstance(item, Tensor)]

    def _values_in(self, argument: Any) -> Any:
        return Same(self._value(argument)) if isinstance(argument, Tensor) else argument

    def _value(self, tensor: Tensor) -> Value:
        version = self._versions[_memory(tensor)]
        known = self._values.get(id(tensor))
        if known is None or known[1] != version:
            known = (len(self.flow.shapes), version)
            self._values[id(tensor)] = known
            self._alive.append(tensor)
            self.flow.shapes[known[0]] = tensor.shape
        return known[0]


ACTIVATIONS = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh),
    *(nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Softplus, nn.PReLU, VanishingReLU),
}
KNOWN = {
    *LAYERS,
    *ACTIVATIONS,
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ZeroPad2d),
}


def _memory(tensor: Tensor) -> int:
    """What tells the memory of a tensor from that of others."""
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:  # sparse and nested tensors
        return id(tensor)
