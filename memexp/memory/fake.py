"""Tensors without data: code runs for its shapes only, at any size, in the time of its Python."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from memexp.config import ConfigError
from memexp.memory.kernels import CORRECTIONS

_equal = torch.ops.aten.equal.default
_item = torch.ops.aten._local_scalar_dense.default


@contextmanager
def without_data() -> Iterator[list[str]]:
    """Inside, tensors have shape, dtype and device but no memory; the caller's random state is left alone.

    Yields a list that fills with the places in the network's own code where a value was read and taken to be 0.

    Raises ConfigError, which names the operation, where a shape or a result depends on values.
    """
    answers = _Answers()
    hooks = [
        register_optimizer_step_pre_hook(lambda *_: answers.count(1)),
        register_optimizer_step_post_hook(lambda *_: answers.count(-1)),
    ]
    torchs = logging.getLogger("torch._subclasses.fake_tensor")  # prints a traceback of what is raised, too
    disabled, torchs.disabled = torchs.disabled, True
    try:
        with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True), answers:
            yield answers.read
    except (DynamicOutputShapeException, DataDependentOutputException) as error:
        raise ConfigError(
            [
                f"the network uses {error.func}, whose result's shape depends on values (as of x[mask], nonzero or unique): "
                "it cannot be followed without data; use torch.where or a product with the mask, or measure it in a run "
                "(memory.steps)"
            ]
        ) from error
    except UnsupportedOperatorException as error:
        raise ConfigError(
            [
                f"the network uses {error.func}, which PyTorch cannot follow without data; measure it in a run (memory.steps)"
            ]
        ) from error
    except ZeroDivisionError as error:
        if not answers.read:
            raise
        raise ConfigError(
            [
                f"the network divides by a value read at {answers.read[-1]}, taken to be 0, as there are none without data: "
                "keep it a tensor, or measure the network in a run (memory.steps)"
            ]
        ) from error
    finally:
        torchs.disabled = disabled
        for hook in hooks:
            hook.remove()


def emptied(network: nn.Module) -> nn.Module:
    """`network` with parameters and buffers without data, for use inside `without_data`; those that are shared stay so.

    They are on the CPU, whatever the device of the network, which may be meta.
    """
    without: dict[Tensor, Tensor] = {}
    for module in network.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                continue
            if tensor not in without:
                bare = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
                wanted = tensor.requires_grad
                without[tensor] = (
                    nn.Parameter(bare, wanted) if isinstance(tensor, nn.Parameter) else bare.requires_grad_(wanted)
                )
            setattr(module, name, without[tensor])  # recurrent layers keep a list of theirs, up to date by this alone
    return network


class _Answers(TorchDispatchMode):
    """Answers what code asks of values that are not there, as in a run where nothing goes wrong.

    A number read is 0 (a gradient that overflowed, values outside of a range, draws to be repeated: none), but 1 inside an
    optimizer, which reads there which step it is, or a batch norm, which reads how many batches it has seen; tensors are equal.
    Constants, which are written in the code, have their values. Random numbers that are drawn move the real generator's state,
    as that is what recomputation compares.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []
        self._optimizers = 0

    def count(self, change: int) -> None:
        """Optimizers whose step is running; wrapped ones are nested."""
        self._optimizers += change

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _item:
            return self._number(args[0])
        if func is _equal and not any(isinstance(t, FakeTensor) for t in args):
            with _disable_current_modes():
                return func(*args)
        if func is _equal:
            return True
        if torch.Tag.nondeterministic_seeded in func.tags:
            with _disable_current_modes():
                torch.rand(())
        out = func(*args, **(kwargs or {}))
        return CORRECTIONS[func](args, out) if func in CORRECTIONS else out

    def _number(self, tensor: Tensor) -> bool | int | float:
        known = tensor.constant if isinstance(tensor, FakeTensor) else tensor
        if known is not None and not self._optimizers:
            with _disable_current_modes():
                return known.item()
        counts = self._optimizers or _is_read_by("torch.nn.modules.batchnorm")
        if not counts and (place := _reader()) is not None and place not in self.read:
            self.read.append(place)
        number = 1 if counts else 0
        kind = tensor.dtype
        return bool(number) if kind is torch.bool else float(number) if kind.is_floating_point else number


def _is_read_by(module: str) -> bool:
    """Whether code of that module reads the value."""
    frame: FrameType | None = sys._getframe(3)
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("torch._"):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") == module


def _reader() -> str | None:
    """File and line of the code that reads a value; None where it is PyTorch's or ours."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        top = str(frame.f_globals.get("__name__", "")).split(".")[0]
        if top == "memexp" and frame.f_globals["__name__"] != __name__:
            return None
        if top not in ("torch", "memexp"):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return None
