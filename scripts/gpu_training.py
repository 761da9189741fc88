"""A training step on the GPU, or on an accelerator that is emulated on the CPU, as the parts of gpu_check.py take it."""

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
GPU = torch.cuda.is_available()
if not GPU:
    import emulated_accelerator as npu

import memexp  # noqa: E402  once the emulated accelerator is registered
from memexp import build  # noqa: E402
from memexp.backprop import late  # noqa: E402
from memexp.training import recipe  # noqa: E402
from memexp.training.graphed import Graphed  # noqa: E402

DEVICE = torch.device("cuda:0" if GPU else "npu:0")
IMAGES = ["dataset=cifar10"]
SMALL = {
    "revnet": ["model=revnet", "model.units=[2,1]", "model.channels=[8,8,16]"],
    "resnet": ["model=resnet", "model.kind=simple", "model.depth=4"],
    "heunnet": ["model=heunnet", "model.depth=4"],
    "reducenet": ["model=reducenet", "model.depth=8"],
    "inn": ["model=inn", "model.base=resnet8"],
    "vgg16": ["model=vgg16", "model.layout=cifar"],
}


STRATEGIES: list[tuple[str, list[str]]] = [
    ("stored", []),
    ("checkpointed", []),
    ("reversible", []),
    ("reversible", ["backprop.exact=true"]),
]
TIMED = [STRATEGIES[0], ("light", []), *STRATEGIES[1:]]


@dataclass
class Row:
    """One thing that was looked at. verdict: right, wrong, measured (nothing is expected of it) or failed."""

    part: str
    what: str
    measured: str
    expected: str
    verdict: str


class Training:
    """A training step of a configuration on random images, on the device."""

    def __init__(self, *overrides: str, batch: int = 8, size: int = 32, graph: bool = False) -> None:
        self.cfg = memexp.compose([*IMAGES, f"batch_size={batch}", *overrides])
        torch.manual_seed(0)
        network = build.network(self.cfg).to(DEVICE)
        self.network = network.to(memory_format=torch.channels_last) if GPU else network
        self.recipe = recipe.make(self.cfg, self.network, DEVICE, 10)
        self.recipe.precision.set_up()
        if graph:
            self.recipe.graphed = Graphed(self.network)
        self.verdicts: late.Verdicts = []
        late.collect(self.network, self.verdicts)  # as the training loop does
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(batch, 3, size, size, generator=generator)
        self.batch = images.to(DEVICE), torch.randint(10, (batch,), generator=generator).to(DEVICE)

    def step(self) -> Tensor:
        return self.recipe.step(self.network, [self.batch])

    def weights(self, steps: int) -> dict[str, Tensor]:
        for _ in range(steps):
            self.step()
        late.judge(self.verdicts)
        return {name: value.detach().cpu() for name, value in self.network.state_dict().items()}

    def seconds(self, steps: int = 20) -> float:
        for _ in range(5):
            self.step()
        times = []
        for _ in range(steps):
            wait()
            started = time.perf_counter()
            self.step()
            wait()
            times.append(time.perf_counter() - started)
        late.judge(self.verdicts)
        return statistics.median(times)


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def verdict(right: bool) -> str:
    return "right" if right else "wrong"


@contextmanager
def peak() -> Iterator[list[int]]:
    """Bytes at the peak of what is done inside."""
    found: list[int] = []
    if GPU:
        torch.cuda.reset_peak_memory_stats()
        yield found
        found.append(torch.cuda.max_memory_allocated())
    else:
        npu.memory.peak = npu.memory.live
        yield found
        found.append(npu.memory.peak)
