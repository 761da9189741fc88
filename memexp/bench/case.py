"""One case of `memexp bench`, in a process of its own: python -m memexp.bench.case JSON

The training step of the configuration runs on random images of the data set's size, so that nothing of loading, augmentation
or evaluation is in the figures. The last line of the output is the result as JSON.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from memexp import build, data
from memexp.backprop import late
from memexp.backprop.compiled import compiled
from memexp.config import compose
from memexp.memory import planned
from memexp.memory.limit import hold, hold_to_budget
from memexp.memory.meter import Meter
from memexp.prepared import seed
from memexp.training import distribution, recipe
from memexp.training.distribution import World
from memexp.training.graphed import Graphed
from memexp.units import parse_bytes

TRACKED = 2  # steps whose memory is followed on a device that does not count it: the second has the optimizer's state
WARM_UP = 2  # steps after these that are not timed


def carry_out(cfg: DictConfig, steps: int) -> dict[str, Any]:
    """Memory (as in results.json, and memory.limit in bytes), strategy (with a budget: plan and prediction), and the times of
    `steps` steps in seconds: their median and quartiles. memexp.stages.train.foresee has looked at `cfg`.
    """
    seed(cfg)
    device = distribution.choose_device(cfg.device, World.from_environment())
    limit = None if cfg.memory.limit is None else parse_bytes(cfg.memory.limit)
    if cfg.memory.enforce:
        hold(limit, device)
    classes, shape = data.describe(cfg.dataset)
    edits = build.start_edits(cfg)
    network = build.network(cfg, edits, classes, shape).to(device)
    if cfg.channels_last:
        network = network.to(memory_format=torch.channels_last)
    made = recipe.make(cfg, network, device, classes)
    made.precision.set_up()
    if cfg.cuda_graph:
        made.graphed = Graphed(network)
    verdicts: late.Verdicts = []
    if device.type != "cpu":  # read after each step, as training does
        late.collect(network, verdicts)

    def batch() -> tuple[Tensor, Tensor]:
        images = torch.randn(cfg.batch_size, *shape).contiguous(memory_format=torch.channels_last)
        return images.to(device), torch.randint(classes, (cfg.batch_size,)).to(device)

    batches = [batch() for _ in range(cfg.accumulate)]
    meter = Meter.for_device(device, TRACKED)
    strategy: dict[str, Any] = {}
    if cfg.backprop.name == "budget":
        with meter.aside():
            strategy = planned.set_up(cfg, network, made.loss_fn, batches[0], made.precision, {}, edits)
        hold_to_budget(cfg, strategy, 0, device)
    synchronise: Callable[[], object] = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    times = []
    latest: Tensor | None = None  # the training loop holds a loss until the next step is done, too
    with compiled(network) if cfg.compile else nullcontext():
        for number in range(TRACKED + WARM_UP + steps):
            synchronise()
            started = time.perf_counter()
            with meter.step(number, network, made.optimizer, batches):
                latest = made.step(network, batches)
            synchronise()
            times.append(time.perf_counter() - started)
            late.judge(verdicts)
    del latest
    times = times[TRACKED + WARM_UP :]
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    images = cfg.batch_size * cfg.accumulate
    return {
        "memory": meter.results() | {"limit": limit},
        "strategy": strategy,
        "time": {
            "step_median": quartiles[1],
            "step_quartiles": [quartiles[0], quartiles[2]],
            "steps_measured": steps,
            "images_per_second": images / quartiles[1],
        },
    }


if __name__ == "__main__":
    what = json.loads(sys.argv[1])
    print(json.dumps(carry_out(compose(what["overrides"], what["name"], what["directories"]), what["steps"])))
