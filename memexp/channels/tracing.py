"""One pass of a network's own forward, in which every tensor carries its planes.

Operations are seen at ATen level, below modules, autograd and Python, so any control flow is admitted; what an operation says
about channels is its rule (memexp.channels.rules), and an operation on channels that has none is an error that names it.
One level higher, where the source calls torch, the arguments show which lengths follow a narrower tensor and which do not.
"""

import sys
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from memexp.backprop.untouched import untouched
from memexp.channels import contracting, moving, normalising, picking, rules, slicing  # noqa: F401  (rules register themselves)
from memexp.channels.attention import all_adapted
from memexp.channels.called import apart, copied
from memexp.channels.graph import OUTPUT, ChannelError, Graph
from memexp.channels.outputs import tensors_in
from memexp.channels.planes import tidy
from memexp.channels.settling import settle
from memexp.channels.sizes import COUNTED, Derived, Size, tracked_attributes
from memexp.channels.skipping import shaped
from memexp.channels.tape import Tape
from memexp.channels.tensors import tensors_of
from memexp.channels.unwritten import unwritten
from memexp.modes import evaluating

PLAIN = frozenset({int, float, bool, str, type(None)})  # most of an operation's arguments
# carried out in smaller operations, among them a number that follows from a length: a scale from that of a head
WHOLE = {scaled_dot_product_attention: torch.ops.aten.scaled_dot_product_attention.default}
ARITHMETIC = {
    "add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "div", "rdiv", "truediv", "rtruediv",
    "itruediv", "true_divide", "pow", "rpow", "float_power", "tensor", "as_tensor", "scalar_tensor", "full",
    "new_full", "full_like", "fill", "masked_fill", "where", "lerp", "addcmul", "addcdiv", "clamp", "clamp_min",
    "clamp_max", "clip", "floordiv", "rfloordiv", "floor_divide", "mod", "rmod", "remainder", "fmod", "gt", "lt",
    "ge", "le", "eq", "ne",
}  # fmt: skip


@apart()
def trace(network: nn.Module, *example_inputs: Any) -> Graph:
    """The groups of channels of `network` that can be removed, found by one forward in evaluation mode without gradient.

    example_inputs: what the network is called with; small ones do (batch 1 or 2). Of convolutions and matrix products the
    shapes alone are worked out, so control flow that depends on activations sees zeros.
    The network is as before afterwards. Raises ChannelError, which names the operation, where one has no rule.
    """
    modules = dict(network.named_modules())
    for path, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise ChannelError(
                f"{path or 'the network'} is a TorchScript module, which cannot be narrowed: give the network as it was "
                "before torch.jit.script or torch.jit.trace"
            )
        if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):  # it takes no mode
            raise ChannelError(
                f"{path or 'the network'} is an exported graph, which stands in the mode that it was exported in and cannot be "
                "narrowed: give the network as it was before torch.export"
            )
        if any(map(is_lazy, (*module._parameters.values(), *module._buffers.values()))):
            raise ChannelError(
                f"{path or 'the network'} is a {type(module).__name__} whose parameters have no shape yet: call the network "
                "once on an example first"
            )
    tape = Tape()
    for path, module in modules.items():
        if isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm):
            tape.adopt_together({f"{path}.{n}" if path else n: t for n, t in tensors_of(module).items()})
    for name, tensor in tensors_of(network).items():
        tape.adopt(name, tensor)
    inputs = copied(example_inputs)
    for tensor in tensors_in(inputs):
        tape.known(tensor).activation = True
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with evaluating(network), untouched(network), unwritten(network):
            with (
                all_adapted(network),
                tracked_attributes(network, tape.values.add),
                torch.no_grad(),
                _Source(tape),
                _Operations(tape),
            ):
                outputs = network(*inputs)
            if not tensors_in(outputs):
                raise ChannelError(
                    f"the network returns a {type(outputs).__name__}: return tensors, or tuples or dicts of them"
                )
            for tensor in tensors_in(outputs):
                tape.used(tape.known(tensor))
                for plane in tape.planes(tensor):
                    tape.atoms.freeze(plane, OUTPUT)
            graph = settle(network, tape, example_inputs, outputs)
        _without_graphs(network)
        return graph
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _without_graphs(network: nn.Module) -> None:
    """Weights that each forward makes anew (torch.nn.utils.prune, weight_norm) lose theirs, with which none can be copied."""
    for module in network.modules():
        for name in [
            name.removesuffix(end) for name in module._parameters for end in ("_orig", "_v") if name.endswith(end)
        ]:
            value = vars(module).get(name)
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(module)[name] = value.detach()


class _Source(TorchFunctionMode):
    """What the source calls: shapes come back as `Size`, and the arguments of the call under way are known to the rules."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "").strip("_") in ARITHMETIC:
            for number in (*args, *(kwargs or {}).values()):
                if isinstance(number, Derived):
                    number.used()
        self.tape.transformed = torch._C._functorch.peek_interpreter_stack() is not None
        outer, self.tape.call = self.tape.call, (func, args, kwargs or {})
        whole = WHOLE.get(func)
        try:
            with self.tape.unseen() if whole else nullcontext():
                out = func(*args, **(kwargs or {}))
            if whole:
                _note(self.tape, whole, args, kwargs or {}, out)
        finally:
            self.tape.call = outer
        if isinstance(out, torch.Size):
            return tuple(self._size(args[0], n, [dim]) for dim, n in enumerate(out))
        if func is Tensor.size and type(out) is int:
            return self._size(args[0], out, [args[1] if len(args) > 1 else (kwargs or {})["dim"]])
        if func in (Tensor.numel, torch.numel) and type(out) is int:
            return self._size(args[0], out, range(args[0].ndim))
        return out

    def _size(self, tensor: Tensor, length: int, dims: Iterable[int]) -> Size:
        axes = [(plane, dim % tensor.ndim) for dim in dims for plane in self.tape.planes(tensor)]
        axes = [(p, axis) for p, axis in axes if p.shape[axis] > 1]
        size = Size.of(length, [partial(self.tape.fix, p, axis, COUNTED) for p, axis in axes])
        size.lines = tuple((p, axis) for p, axis in axes if p.shape[axis] == length)
        return size


class _Operations(TorchDispatchMode):
    """What is carried out: each operation, and then its rule."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = shaped(func, args, kwargs)
        if not self.tape.closed:
            _note(self.tape, func, args, kwargs, out)
        return out


def _note(tape: Tape, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """What the operation's rule says of its outputs."""
    known = [*map(tape.known, _tensors((args, kwargs)))]
    active = False
    for one in known:
        tape.used(one)
        active |= one.activation
    if active:
        for tensor in _tensors(out):
            tape.known(tensor).activation = True
            if tensor._base is not None:  # written into a part of it
                tape.known(tensor._base).activation = True
    marked = [one for one in known if one.planes]
    if not marked:
        return
    if not active and all(one.constant for one in marked):
        for tensor in _tensors(out):
            tape.known(tensor).constant = True
    if tape.transformed:
        raise ChannelError(
            f"{func} in {_place()} runs within torch.vmap or another transform of torch.func, where channels cannot be "
            "followed: write the forward for a batch"
        )
    rule = rules.of(func)
    if rule is None and not any(one.activation for one in marked):
        rule = rules.kept  # what a weight is made of stays as it is, whatever is done to it
    if rule is None:
        raise ChannelError(
            f"{func} in {_place()} has no rule for channels: write the forward without it, or leave this network as it is"
        )
    planes = rule(rules.Call(tape, func, args, kwargs, out))
    outs, planes = (
        ([out], [planes]) if isinstance(out, Tensor) else (out if isinstance(out, tuple | list) else [], planes)
    )
    for tensor, own in zip(outs, planes, strict=False):
        if isinstance(tensor, Tensor):
            tape.known(tensor).planes = tidy(own)


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in it, in order."""
    found: list[Tensor] = []
    _gather(value, found)
    return found


def _gather(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, list | tuple):
        for item in value:
            if type(item) not in PLAIN:
                _gather(item, found)
    elif isinstance(value, dict):
        _gather([*value.values()], found)


def _place() -> str:
    """The innermost module whose forward is running."""
    frame = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not type(owner).__module__.startswith("torch.nn.modules.module"):
            return f"{type(owner).__name__}'s forward"
        frame = frame.f_back  # type: ignore[assignment]
    return "the forward"
