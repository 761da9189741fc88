"""What a training step of an integral network asks of an accelerator, on one that is emulated on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
STEPS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import emulated_accelerator as npu
import torch
import memexp
from memexp import build
from memexp.training import recipe

cfg = memexp.compose("dataset=cifar10 model=inn model.base=resnet8 batch_size=4")
torch.manual_seed(0)
network = build.network(cfg).to(npu.DEVICE)
made = recipe.make(cfg, network, npu.DEVICE, 10)
batch = torch.randn(4, 3, 32, 32).to(npu.DEVICE), torch.randint(10, (4,)).to(npu.DEVICE)
found = []
for step in range(6):
    if step == 3:
        network._count = 0  # the sizes of the first steps once more
    with npu.counted() as counts:
        made.step(network, [batch])
    sizes = [group.drawn for group in network._continua.values()]
    found.append([sizes, counts.kernels, sum(counts.to_device.values()), sum(counts.reads.values())])
print(json.dumps(found))
"""
# kernels of the steps of three draws; a plain step of resnet8 has 81
KERNELS = [229, 223, 263]


def test_sizes_are_drawn_and_what_depends_on_them_alone_is_copied_once():
    """Emulated in a process of its own: an accelerator is registered once and for good."""
    done = subprocess.run([sys.executable, "-c", STEPS, SCRIPTS], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    sizes, kernels, copies, reads = zip(*found, strict=True)
    assert len(set(map(tuple, sizes))) == 3
    assert sizes[3:] == sizes[:3]
    assert list(kernels[3:]) == KERNELS
    assert max(copies[:3]) > 0
    assert copies[3:] == (0, 0, 0)
    assert reads == (1, 0, 0, 0, 0, 0)  # which step it is, once
