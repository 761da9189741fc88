import pytest
import torch
from torch import nn
from torch.nn import functional

from memexp.training.precision import Precision
from memexp.training.step import train_step

CPU = Precision("fp32", torch.device("cpu"))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3).double()


def data(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, 4, dtype=torch.double), torch.arange(n) % 3


def test_accumulated_batches_step_as_one_large_batch():
    whole, parts = network(), network()
    images, labels = data(8)
    losses = []
    for model, batches in ((whole, [(images, labels)]), (parts, [(images[:4], labels[:4]), (images[4:], labels[4:])])):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        losses.append(train_step(model, functional.cross_entropy, optimizer, batches, CPU))
        assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(whole.weight, parts.weight)


def test_the_step_is_no_longer_than_the_clipped_gradient():
    model = network()
    before = model.weight.detach().clone()
    bias = model.bias.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    train_step(model, lambda y, t: 1e6 * functional.cross_entropy(y, t), optimizer, [data(6)], CPU, clip_grad=0.25)
    moved = torch.cat([(model.weight - before).flatten(), (model.bias - bias).flatten()])
    assert moved.norm().item() == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_low_precision_computes_in_that_format_and_keeps_weights_in_float32(name):
    torch.manual_seed(0)
    model, seen = nn.Linear(4, 3), []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    images, labels = data(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    precision = Precision(name, torch.device("cpu"))
    train_step(model, functional.cross_entropy, optimizer, [(images.float(), labels)], precision)
    assert seen == [precision.dtype]
    assert model.weight.dtype == torch.float32
    assert not torch.equal(model.weight, before)


def test_no_batches_is_an_error():
    model = network()
    with pytest.raises(ValueError, match="no batches"):
        train_step(model, functional.cross_entropy, torch.optim.SGD(model.parameters()), [], CPU)
