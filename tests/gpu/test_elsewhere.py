"""Steps that take their streams to another device, emulated on the CPU: what they draw there is drawn again."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
STEPS = """
import copy, json, sys
sys.path.insert(0, sys.argv[1])
import emulated_accelerator as npu
import torch
from torch import nn
from memexp.backprop import AdditiveCoupling, Chain, check

class Elsewhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.drop = nn.Linear(16, 16).to(npu.DEVICE), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.layer(x.to(npu.DEVICE))).tanh().to(x.device)

def gradients(steps, backprop, count):
    chain = Chain(copy.deepcopy(steps), backprop, exact=True)
    streams = [torch.randn(4, 16, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    torch.manual_seed(1)
    sum(y.square().sum() for y in [*map(torch.atleast_2d, chain(*streams))]).backward()
    return [p.grad.cpu() for p in chain.parameters()]

torch.manual_seed(0)
found = {}
for backprop, count, made in (("checkpointed", 1, Elsewhere), ("reversible", 2, lambda: AdditiveCoupling(*pair()))):
    pair = lambda: (Elsewhere(), Elsewhere())
    steps = [made() for _ in range(3)]
    pairs = zip(gradients(steps, backprop, count), gradients(steps, "stored", count))
    found[backprop] = all(torch.equal(a, b) for a, b in pairs)
state = npu._generator.get_state()
report = check(Chain(steps, "reversible", exact=True), [torch.randn(4, 16)] * 2)
found["check"] = all(step.repeatable for step in report.steps) and torch.equal(state, npu._generator.get_state())
print(json.dumps(found))
"""


def test_what_a_step_draws_on_a_device_of_its_own_is_drawn_again():
    """Emulated in a process of its own: an accelerator is registered once and for good."""
    done = subprocess.run([sys.executable, "-c", STEPS, SCRIPTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"checkpointed": True, "reversible": True, "check": True}
