"""What a network costs to run: parameters, adds-multiplies, latency, peak memory of inference."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from memexp.backprop.untouched import untouched
from memexp.channels.called import Inputs, copied, rows, samples
from memexp.channels.outputs import tensors_in
from memexp.memory.tracker import track

SECONDS = 0.2  # spent on each thing that is timed, at least; more where one run takes longer
RUNS = 5


def latency(
    functions: Mapping[str, Callable[[], Any]],
    device: torch.device,
    seconds: float,
    of: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Median seconds (or what `of` makes of all) of each function, called in turns, so that disturbances fall on all alike.

    Each is called once before it counts.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    _wait(device)
    while sum(map(sum, times.values())) < seconds * len(functions) or min(map(len, times.values())) < RUNS:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            _wait(device)
            times[name].append(time.perf_counter() - start)
    return {name: of(found) for name, found in times.items()}


def costs(networks: Mapping[str, nn.Module], inputs: Sequence[Inputs]) -> dict[str, dict[str, Any]]:
    """For each network: parameters, bytes of its weights as they are saved (tied ones once), macs of one image (of the whole
    call where it is no batch), and for each batch of `inputs` latency in seconds and peak bytes.

    Keys of figures that depend on the batch end with its size: latency_1, peak_1. Latencies are medians of one run, the
    networks in turns; the peak is that of inference, weights and batch included.
    """
    found: dict[str, dict[str, Any]] = {
        name: {
            "parameters": sum(p.numel() for p in network.parameters()),
            "bytes": _bytes(network),
        }
        for name, network in networks.items()
    }
    with ExitStack() as stack:
        for network in networks.values():
            stack.enter_context(untouched(network))
        for given in inputs:
            # a batch of its own: one that is a part of a larger tensor would count as the whole of it
            batch = copied(given)
            size, device = rows(batch), tensors_in(batch)[0].device
            calls = {name: partial(network, *batch) for name, network in networks.items()}
            with torch.no_grad():  # in inference mode the tracker sees no convolutions
                for name, network in networks.items():
                    outputs: list[Any] = []
                    report = track(lambda: outputs.append(calls[name]()), network, inputs=tensors_in(batch))  # noqa: B023  (called at once)
                    found[name] |= {
                        "macs": report.macs_forward // samples(batch, outputs[0]),
                        f"peak_{size}": report.peak,
                    }
            with torch.inference_mode():
                for name, seconds in latency(calls, device, SECONDS).items():
                    found[name][f"latency_{size}"] = seconds
    return found


def _bytes(network: nn.Module) -> int:
    saved = network.state_dict(keep_vars=True).values()
    return sum({id(value): value.nbytes for value in saved if isinstance(value, Tensor)}.values())


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
