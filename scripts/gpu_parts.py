"""What is to be right on a GPU: where tensors are, what is kept, the bits, and that nothing waits. Parts of gpu_check.py."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from gpu_training import DEVICE, GPU, IMAGES, SMALL, STRATEGIES, Row, Training, peak, same, verdict, wait
from torch import Tensor

import memexp
from memexp.memory.scratch import scratch
from memexp.models import families
from memexp.training.loop import Trainer

if not GPU:
    import emulated_accelerator as npu


def placement(small: bool) -> Iterator[Row]:
    """Every model, strategy and precision: all tensors on the device, a finite loss."""
    for name, overrides in SMALL.items():
        cfg = memexp.compose([*IMAGES, *overrides])
        for strategy in families.proposed(cfg.model, ()):
            for precision in ("fp32", "bf16") if small else ("fp32", "tf32", "bf16", "fp16"):
                limit = ["backprop.limit=0.5"] if strategy == "budget" else []
                try:
                    training = Training(*overrides, f"backprop={strategy}", f"precision={precision}", *limit, batch=4)
                    loss = float(training.step())
                    away = [key for key, value in training.network.state_dict().items() if value.device != DEVICE]
                    found, right = f"loss {loss:.3f}", not away and loss == loss
                except Exception as error:
                    found, right = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}", False
                yield Row("placement", f"{name}, {strategy}, {precision}", found, "all on the device", verdict(right))


def memory(small: bool) -> Iterator[Row]:
    """The allocator's peak against the estimate and what kernels take beside tensors, and how it grows with depth."""
    batch = 16 if small else 100
    flat = {}
    cases = [("revnet", depth, strategy) for depth in (38, 74, 110) for strategy in ("stored", "reversible")]
    cases += [("revnet", 164, "reversible"), ("resnet", 32, "stored"), ("resnet", 110, "light")]
    for model, depth, strategy in cases[1:2] + cases[3:4] + cases[7:8] if small else cases:
        overrides = [f"model={model}", f"model.depth={depth}", f"backprop={strategy}"]
        training = Training(*overrides, batch=batch)
        training.step()
        training.step()
        with peak() as found:
            training.step()
        kernels = scratch(training.step, DEVICE)
        expected = memexp.estimate(training.cfg)["peak"]
        own = sum(value.numel() * value.element_size() for value in training.network.state_dict().values())
        flat[model, depth, strategy] = found[0] - 3 * own  # weights, gradients and momentum
        # kernels that take much need not run where tensors take most
        near = 0.99 * expected < found[0] < 1.01 * (expected + kernels)
        label = f"{model}-{depth}, {strategy}, batch {batch}"
        told = f"{expected / 2**20:.1f}" + (f" to {(expected + kernels) / 2**20:.1f}" if kernels else "") + " MiB"
        yield Row("memory", label, f"{found[0] / 2**20:.1f} MiB", told, verdict(near))
    most = 74 if small else 110
    growth = flat["revnet", most, "reversible"] / flat["revnet", 38, "reversible"]
    label = f"revnet-{most} over revnet-38, reversible, without weights"
    yield Row("memory", label, f"{growth:.2f}", "flat: below 1.1", verdict(growth < 1.1))


def exact(small: bool) -> Iterator[Row]:
    """Bitwise the weights of stored after some steps, whatever the precision and the choice of kernels."""
    steps, revnet = (2 if small else 10), SMALL["revnet"]
    ways = [(strategy, False) for strategy in ("stored", "reversible", "checkpointed")]
    ways += [(strategy, True) for strategy, _ in ways if GPU]
    for precision in ("fp32", "tf32", "bf16") if GPU else ("fp32", "bf16"):
        for autotuned, deterministic in ((False, True), (False, False), (True, False)) if GPU else ((False, False),):
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = autotuned, deterministic

            def weights(strategy: str, graph: bool, precision: str = precision) -> dict[str, Tensor]:
                options = [f"backprop={strategy}", "backprop.exact=true", f"precision={precision}"]
                return Training(*revnet, *options, graph=graph).weights(steps)

            expected = weights("stored", False)
            repeats = same(
                expected, weights("stored", False)
            )  # kernels that add up in any order give no bits to compare
            for strategy, graph in ways[1:]:
                right = same(expected, weights(strategy, graph))
                label = f"{precision}, {strategy}{', cuda_graph' if graph else ''}, autotuned={autotuned}"
                label += f", deterministic={deterministic}, {steps} steps"
                told = "stored's bits" if repeats else "stored does not repeat its own"
                found = "stored's bits" if right else "others"
                yield Row("exact", label, found, told, verdict(right) if repeats else "measured")
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False


def drift(small: bool) -> Iterator[Row]:
    """How far the reversible gradient is from stored's without exact."""
    for precision, most in (("fp32", 1e-4), ("bf16", 0.3)):
        networks = [
            Training(*SMALL["revnet"], f"backprop={strategy}", f"precision={precision}")
            for strategy in ("stored", "reversible")
        ]
        gradients = []
        for training in networks:
            with training.recipe.precision.autocast():
                loss = training.recipe.loss_fn(training.network(training.batch[0]), training.batch[1])
            loss.backward()
            gradients.append(
                torch.cat([p.grad.flatten().float().cpu() for p in training.network.parameters() if p.grad is not None])
            )
        error = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
        yield Row("drift", f"gradient, {precision}", f"{error:.1e}", f"below {most:g}", verdict(error < most))


def resuming(small: bool) -> Iterator[Row]:
    """A run of the command, stopped and resumed: the same weights as one that was not."""
    run = [*SMALL["revnet"], "dataset=digits", "dataset.limit=96", "dataset.test_limit=40", f"device={DEVICE.type}"]
    run += ["epochs=2", "monitor_every=0", "deterministic=true", "ema=0.9"]
    with tempfile.TemporaryDirectory() as folder:
        memexp.run(memexp.compose(run), f"{folder}/whole")
        original = Trainer._step

        def stopping(self: Trainer, batches: Any) -> Tensor:
            if self.progress.step == 3:
                raise KeyboardInterrupt
            return original(self, batches)

        with patch.object(Trainer, "_step", stopping), suppress(KeyboardInterrupt):
            memexp.run(memexp.compose([*run, "checkpoint_every=3"]), f"{folder}/parts")
        memexp.resume(f"{folder}/parts")
        states = [
            torch.load(f"{folder}/{name}/checkpoints/last.pt", weights_only=True, map_location="cpu")["model"]
            for name in ("whole", "parts")
        ]
        right = same(*states)
    yield Row(
        "resuming",
        "train, stopped after 3 of 6 steps",
        "the same bits" if right else "others",
        "the same bits",
        verdict(right),
    )


def waiting(small: bool) -> Iterator[Row]:
    """Reads of the host between the start of a step and the end of its backward."""
    for strategy, extra in STRATEGIES:
        training = Training(*SMALL["revnet"], f"backprop={strategy}", *extra)
        training.step()
        label = " ".join([strategy, *extra])
        if GPU:
            torch.cuda.set_sync_debug_mode("error")
            try:
                training.step()
                found, right = "none", True
            except RuntimeError as error:
                found, right = str(error).splitlines()[0][:80], False
            finally:
                torch.cuda.set_sync_debug_mode("default")
        else:
            with npu.counted() as counts:
                training.step()
            right = not counts.reads
            found = "; ".join(f"{count} x {line}" for line, count in counts.reads.items()) or "none"
        yield Row("waiting", label, found, "none", verdict(right))


def launches(small: bool) -> Iterator[Row]:
    """Kernels of a training step of RevNet-38, over stored's and a forward pass's."""
    counted = {}
    for strategy, extra in STRATEGIES:
        training = Training("model=revnet", "model.depth=38", f"backprop={strategy}", *extra, batch=4)
        training.step()
        counted[strategy, *extra] = kernels(training.step)
    training = Training("model=revnet", "model.depth=38", "backprop=stored", batch=4)

    def forward() -> None:
        with torch.no_grad():
            training.network(training.batch[0])

    whole = counted["stored",] + kernels(forward)
    most = {("reversible",): 1.15, ("reversible", "backprop.exact=true"): 1.3}
    for key, count in counted.items():
        limit = most.get(key)
        told = verdict(count <= limit * whole) if limit else "measured"
        expected = f"at most {limit} of {whole}" if limit else ""
        yield Row("launches", " ".join(key), str(count), expected, told)


def kernels(function: Callable[[], Any]) -> int:
    if not GPU:
        with npu.counted() as counts:
            function()
        return counts.kernels
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        wait()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def limits(small: bool) -> Iterator[Row]:
    """A run that does not fit ends with a message that says what would."""
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        run = [
            "model=revnet",
            "model.depth=110",
            "backprop=stored",
            "dataset=synthetic",
            "batch_size=4096",
            "max_steps=2",
        ]
        with tempfile.TemporaryDirectory() as folder:
            try:
                memexp.run(memexp.compose([*run, "device=cuda", "dataset.images=4096"]), folder)
                found = "it ran"
            except torch.OutOfMemoryError:
                found = json.loads((Path(folder) / "results.json").read_text())["error"].splitlines()[-1][:100]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    yield Row("limits", "RevNet-110, batch 4096, 2 % of the memory", found, "what fits", verdict(found != "it ran"))
