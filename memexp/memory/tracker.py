"""Follows every storage that a piece of PyTorch code makes, on any device, real or fake.

Each new storage is counted once when it is made and taken off when it dies, rounded up to 512 bytes as the CUDA allocator
does; views and in-place operations count nothing. A dispatch mode sees operations below autograd, so it works through
custom autograd functions whose backward calls `torch.autograd.grad` (where PyTorch's own MemTracker and FlopCounterMode
fail, pytorch#131753). FLOPs are counted in the same pass, recomputation included.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from memexp.backprop.followed import done
from memexp.memory import flops
from memexp.memory.tracked import Report, Storage

GRANULE = 512  # bytes: the CUDA caching allocator rounds every request up to a multiple of this
CATEGORIES = ("parameters", "gradients", "optimizer", "buffers", "input", "activations", "temporary")
_device = torch.ops.prim.device.default


class Tracker(TorchDispatchMode):
    """Tracks what happens while it is entered; it may be entered again for the next step and goes on counting.

    model, optimizer: what they hold already is counted from the start, and what they come to hold is told apart.
    inputs: tensors of the caller that the code works on.

    Raises:
        RuntimeError: entered while it is entered.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        inputs: Iterable[Tensor] = (),
    ) -> None:
        super().__init__()
        self._model, self._optimizer = model, optimizer
        self._storages: list[Storage] = []
        self._live: dict[int, int] = {}  # storage address -> index of its record
        self._references: dict[int, weakref.ref[Any]] = {}
        self._events: list[tuple[int, int, str]] = []  # record, change in bytes, operation
        self._entered: list[int] = []
        self._modules: list[str] = []
        modules = dict(model.named_modules()) if model is not None else {}
        self._names = {module: name for name, module in modules.items()}
        self._owners = {  # parameters and buffers -> the name of their module
            tensor: name
            for name, module in modules.items()
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        }
        self._recomputed = ""  # the outermost module that ran forward last in this backward
        self._hooks: list[Any] = []
        self._forward: set[int] = set()  # records made since the last backward, outside of one
        self._backward = False
        self._kept = 0
        self._flops: Counter[str] = Counter()
        self._uncounted: set[str] = set()
        self._operation = "before"
        if model is not None:
            self._known(model.parameters(), "parameters")
            self._known(model.buffers(), "buffers")
            for p in model.parameters():
                self._accumulated(p)
        self._optimizer_stepped()
        self.add_inputs(inputs)

    def add_inputs(self, inputs: Iterable[Tensor]) -> None:
        """Counts tensors of the caller, such as the batch of the next step."""
        self._known(inputs, "input")

    def __enter__(self) -> Self:
        if self._hooks:
            raise RuntimeError(
                "this Tracker is entered already and follows what runs: leave it first, or make another one"
            )
        self._entered.append(len(self._events))
        self._hooks = [
            register_module_forward_pre_hook(self._into_module),
            register_module_forward_hook(self._out_of_module, always_call=True),
        ]
        if self._model is not None:
            self._hooks += [
                p.register_post_accumulate_grad_hook(self._accumulated)
                for p in self._model.parameters()
                if p.requires_grad
            ]
        if self._optimizer is not None:
            self._hooks.append(self._optimizer.register_step_post_hook(lambda *_: self._optimizer_stepped()))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._modules.clear()
        self._end_backward()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _device:  # three quarters of all that tensors without data are asked: it makes nothing
            return args[0].device
        kwargs = kwargs or {}
        backward = torch._C._current_graph_task_id() != -1
        if backward != self._backward:
            self._begin_backward() if backward else self._end_backward()
        if torch.is_inference_mode_enabled() and (out := self._parts(func, args, kwargs)) is not NotImplemented:
            return out
        self._operation = name = func._overloadpacket.__name__
        out = done(func, args, kwargs)
        counted = flops.count(func, args, kwargs, out)
        if counted is None:
            self._uncounted.add(str(func._overloadpacket))
        elif counted:
            self._flops["backward" if backward else "forward"] += counted
            if backward and self._modules:
                self._flops["recomputed"] += counted
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._see(tensor, name)
        return out

    def _parts(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation that is made of others, each of which is followed; elsewhere autograd takes it apart."""
        super().__enter__()
        try:
            return func.decompose(*args, **kwargs)
        finally:
            super().__exit__(None, None, None)

    @property
    def position(self) -> int:
        """Index in the timeline of what comes next."""
        return len(self._events)

    @property
    def in_backward(self) -> bool:
        return torch._C._current_graph_task_id() != -1

    @property
    def flops(self) -> int:
        """All so far."""
        return self._flops["forward"] + self._flops["backward"]

    def curve(self, since: int) -> list[int]:
        """Live bytes at the position `since` of the timeline and after each event from there on."""
        before = sum(change for _, change, _ in self._events[:since])
        return list(accumulate((change for _, change, _ in self._events[since:]), initial=before))

    def report(self) -> Report:
        """Replays what was recorded, now that each storage's category is known."""
        live: Counter[str] = Counter()
        total = peak = at = 0
        timeline: list[tuple[str, dict[str, int]]] = []
        for position, (record, change, operation) in enumerate(self._events):
            live[self._storages[record].category] += change
            total += change
            if total > peak:
                peak, at = total, position
            timeline.append((operation, dict(live)))
        held: Counter[int] = Counter()
        for record, change, _ in self._events[: at + 1]:
            held[record] += change
        modules: Counter[str] = Counter()
        for record, size in held.items():
            modules[self._storages[record].module] += size
        return Report(
            peak=peak,
            at_peak={category: (timeline[at][1].get(category, 0) if timeline else 0) for category in CATEGORIES},
            by_module={name: size for name, size in modules.most_common() if size},
            operation=timeline[at][0] if timeline else "",
            kept=self._kept,
            flops_forward=self._flops["forward"],
            flops_backward=self._flops["backward"],
            flops_recomputed=self._flops["recomputed"],
            uncounted=tuple(sorted(self._uncounted)),
            timeline=timeline,
            entered=list(self._entered),
        )

    def _see(self, tensor: Tensor, operation: str, category: str = "temporary") -> int | None:
        """The record of a tensor's storage, made if it is new."""
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse and nested tensors have none of their own
            return None
        size = -(-storage.nbytes() // GRANULE) * GRANULE
        address = storage._cdata
        record = self._live.get(address)
        if record is None:
            record = len(self._storages)
            self._storages.append(Storage(0, category, self._module(), operation))
            self._live[address] = record
            self._references[address] = weakref.ref(storage, lambda _: self._die(address))
            if not self._backward:
                self._forward.add(record)
        if size != self._storages[record].bytes:  # new, or resized
            self._events.append((record, size - self._storages[record].bytes, operation))
            self._storages[record].bytes = size
        return record

    def _die(self, address: int) -> None:
        record = self._live.pop(address, None)
        self._references.pop(address, None)
        if record is not None:
            self._forward.discard(record)
            self._events.append((record, -self._storages[record].bytes, self._operation))

    def _known(self, tensors: Iterable[Tensor], category: str, of: Tensor | None = None) -> None:
        """of: the parameter whose gradient or state the tensors are; parameters and buffers are their own."""
        for tensor in tensors:
            record = self._see(tensor, "before", category)
            if record is not None:
                self._storages[record].category = category
                self._storages[record].module = self._owners.get(tensor if of is None else of, "")
                self._forward.discard(record)

    def _module(self) -> str:
        """Whose work this is: in backward without a module, the gradient of what was recomputed last."""
        if self._modules:
            return self._modules[-1]
        return self._recomputed if self._backward else ""

    def _begin_backward(self) -> None:
        """What forward made and backward still finds alive is activations."""
        self._backward = True
        kept = 0
        for record in self._forward:
            self._storages[record].category = "activations"
            kept += self._storages[record].bytes
        self._kept = max(self._kept, kept)

    def _end_backward(self) -> None:
        self._backward = False
        self._recomputed = ""
        self._forward.clear()

    def _accumulated(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._known((parameter.grad,), "gradients", parameter)

    def _optimizer_stepped(self) -> None:
        for parameter, state in self._optimizer.state.items() if self._optimizer is not None else ():
            self._known((value for value in tree_iter(state) if isinstance(value, Tensor)), "optimizer", parameter)

    def _into_module(self, module: nn.Module, inputs: Any) -> None:
        outer = self._modules[-1] if self._modules else ""
        self._modules.append(self._names.get(module, outer))

    def _out_of_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._modules:
            name = self._modules.pop()
            if self._backward and not self._modules:
                self._recomputed = name


def track(
    fn: Callable[[], Any],
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    inputs: Iterable[Tensor] = (),
) -> Report:
    """Calls `fn` and reports the memory and FLOPs of everything PyTorch does in it.

    >>> from memexp.memory import track
    >>> report = track(lambda: loss_fn(model(x), y).backward(), model, inputs=(x, y))
    >>> report.peak, report.at_peak["activations"], report.macs_forward
    """
    with Tracker(model, optimizer, inputs) as tracker:
        fn()
    return tracker.report()
