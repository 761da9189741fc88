"""torch.compile under every strategy: steps are compiled one by one, and the engine between them stays as it is.

One compilation serves all steps of one shape. A network whose Chains are all `stored`, or all `light` where nothing draws
random numbers, is compiled as a whole, in one graph. Otherwise the compiler does within a step what it is good at, and the
engine between the steps what it cannot:

| plan of the step | its branches are compiled                                                                     |
|------------------|-----------------------------------------------------------------------------------------------|
| `stored`         | as they are                                                                                   |
| `light`          | with a budget: what is cheap to make is remade in the compiled backward, and not kept         |
| `checkpointed`   | with no budget: all is remade there from the input (groups of steps: by the engine, as usual) |
| `undone`         | as they are, for the pass that undoes the step                                                |

A step that may draw random numbers or change buffers is recomputed by the engine, which replays them, its branches compiled as
they are; `light` remakes it uncompiled. Under `exact` both passes go through one and the same graph (replay.py): the one that
is compiled without gradients rounds otherwise. Blocks of single layers are not compiled. Hooks on modules are to be there
before: torch looks at none that come after its first call.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._triton import has_triton_package

from memexp.backprop.chain import Chain
from memexp.backprop.plan import Keep, is_single
from memexp.backprop.quiet import is_quiet, survey
from memexp.backprop.step import Step
from memexp.backprop.wrapped import chains

log = logging.getLogger("memexp")
COMPILER = "inductor"
VARIANTS = 1024  # of one piece of code (shapes, modes, types); torch goes on uncompiled after 8


def check_compiler(device: str) -> None:
    """Raises ValueError where code for this kind of device cannot be compiled here."""
    if COMPILER != "inductor":
        return
    if device == "cuda":
        _check_triton()
    if device != "cpu":
        return
    from torch._inductor import config, cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, OSError):
        tried = ", ".join(str(name) for name in config.cpp.cxx if name)
        raise ValueError(
            f"compile: true needs a C++ compiler on the CPU, and there is none (tried {tried}): install g++ or clang, name it "
            "in the environment variable CXX, or use compile=false."
        ) from None


def _check_triton() -> None:
    """Triton compiles what launches its kernels by a C compiler, as it looks for it here."""
    if not has_triton_package():
        raise ValueError(
            "compile: true needs Triton on a GPU, and it cannot be imported: pip install triton, or use compile=false."
        )
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise ValueError(
            "compile: true needs a C compiler for Triton on a GPU, and there is none (tried gcc, clang): install one, name it "
            "in the environment variable CC, or use compile=false."
        )


class Compilation:
    """seconds: spent on compiling so far."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def starts(self, _: Any) -> None:
        self._since = time.perf_counter()

    def ends(self, _: Any) -> None:
        self.seconds += time.perf_counter() - self._since


@contextmanager
def compiled(network: nn.Module) -> Iterator[Compilation]:
    """Inside, calls of the network run compiled code, which is made as it is needed. Keys of its state dict stay."""
    from torch._dynamo import callback, config

    found = chains(network)
    clock = Compilation()
    callback.callback_handler.register_start_callback(clock.starts)
    callback.callback_handler.register_end_callback(clock.ends)
    try:
        with (
            config.patch(recompile_limit=VARIANTS, accumulated_recompile_limit=VARIANTS),
            uncompiled(network),  # at the end all is as it was before
        ):
            whole = _whole(network, found)
            parts = {network: whole} if whole else _parts(found)
            left = [step for c in found for step in c if not any(module in parts for module in step.modules())]
            steps = f"{sum(map(len, found)) - len(left)} steps one by one, {len(left)} left as they are"
            log.info("compile: %s", "the network as a whole" if whole else steps)
            if not parts:
                kinds = ", ".join(sorted({type(step).__name__ for step in left}))
                log.warning(
                    "warning: compile: true compiles nothing here: the steps (%s) are single layers, or under light of classes "
                    "that do not say by `quiet = True` that they draw no random numbers; backprop=stored is compiled",
                    kinds,
                )
            for part, backend in parts.items():
                part._compiled_call_impl = partial(torch.compile(_call, backend=backend, dynamic=False), part)
            yield clock
    finally:
        callback.callback_handler.remove_start_callback(clock.starts)
        callback.callback_handler.remove_end_callback(clock.ends)


@contextmanager
def uncompiled(network: nn.Module) -> Iterator[bool]:
    """Inside, the network's parts run as they were written, where each operation can be followed and each layer heard.

    Gives whether any had been compiled.
    """
    remade = [(chain, chain.remade) for chain in chains(network)]
    # a Chain that stands before a block is not among the network's modules
    modules = dict.fromkeys(module for owner in (network, *(c for c, _ in remade)) for module in owner.modules())
    calls = [(module, module._compiled_call_impl) for module in modules]
    try:
        for module, _ in calls:
            module._compiled_call_impl = None
        for chain, _ in remade:
            chain.remade = set()
        yield any(call is not None for _, call in calls)
    finally:
        for module, call in calls:
            module._compiled_call_impl = call
        for chain, own in remade:
            chain.remade = own


def _call(module: nn.Module, *inputs: Any, **keywords: Any) -> Any:
    """What `nn.Module.compile` compiles, from a frame of our own: torch before 2.14 looks at none of its own, and so leaves a
    block of its own layers, such as a Sequential, as it is.
    """
    return module._call_impl(*inputs, **keywords)


def _whole(network: nn.Module, found: list[Chain]) -> Any:
    """The backend for the network in one graph; None where the engine has work to do between the steps."""
    if any(chain.strategy.rounding is not None for chain in found):
        return None
    plans = [set(enumerate(chain.strategy.plan(list(chain), ()))) for chain in found]
    words = {keep for plan in plans for _, keep in plan}
    if words == {"light"}:
        modules = [module for module in network.modules() if not isinstance(module, Chain)]
        if not is_quiet(modules, [step for chain in found for step in chain]):
            return None
    elif words - {"stored"}:
        return None
    for chain, plan in zip(found, plans, strict=True):
        chain.remade = plan
    return BACKENDS["light"] if words == {"light"} else COMPILER


def _parts(found: list[Chain]) -> dict[nn.Module, Any]:
    """What is compiled by itself, and its backend; tells the Chains which steps remake by themselves what is not kept."""
    inner = {
        nested for chain in found for nested in chain.modules() if nested is not chain and isinstance(nested, Chain)
    }
    parts: dict[nn.Module, Any] = {}
    for chain in found:
        steps = list(chain)
        plan: list[Keep] = list(chain.strategy.plan(steps, ())) if chain not in inner else ["stored"] * len(steps)
        for index, step in enumerate(steps):
            if is_single(step) or isinstance(step, Chain):
                continue
            keep, rounding = plan[index], chain.strategy.rounding
            alone = index + 1 == len(steps) or plan[index + 1] != "continued"
            possible = keep == "light" or (keep == "checkpointed" and alone and not rounding)
            remakes = possible and is_quiet(list(survey([step])), [step])
            if remakes:
                chain.remade.add((index, keep))
            elif keep == "light":  # what the engine follows must not be compiled
                continue
            # a step that the engine undoes, recomputes or rounds is evaluated by it branch by branch
            graph = (keep == "stored" or remakes) and not rounding and chain not in inner
            parts |= dict.fromkeys([step] if graph else _branches(step), BACKENDS[keep] if remakes else COMPILER)
    return parts


def _branches(step: nn.Module) -> Iterator[nn.Module]:
    if not isinstance(step, Step):
        yield step
        return
    for branch in step.children():
        yield from branch if isinstance(branch, nn.ModuleList) else [branch]


def within(budget: float) -> Callable[..., Any]:
    """torch's compiler with a share of the activations to keep, chosen by its own knapsack."""

    def backend(graph: Any, inputs: Any, **options: Any) -> Any:
        import torch._functorch.config as functorch
        from torch._dynamo import lookup_backend

        with functorch.patch(activation_memory_budget=budget):
            return lookup_backend(COMPILER)(graph, inputs, **options)

    return backend


# convolutions and products count as dear there, and what is pointwise as nothing
BACKENDS: dict[Keep, Any] = {"light": within(0.9), "checkpointed": within(0.0)}
