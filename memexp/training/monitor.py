"""What a strategy that computes activations back can be asked of itself while a network is trained."""

from collections.abc import Callable

from torch import Tensor, nn

from memexp.backprop import chains
from memexp.backprop.monitor import compare, reconstruction_error
from memexp.choices import UNDOING
from memexp.training.precision import Precision
from memexp.training.step import Loss

Monitor = Callable[[Tensor, Tensor], dict[str, float]]


def strategy_monitor(network: nn.Module, loss_fn: Loss, precision: Precision, gradient: bool) -> Monitor | None:
    """Reads, for a batch, the reconstruction error and, with `gradient`, how far the gradient is from the stored one.

    The latter needs the memory of stored activations. None where no strategy of the network undoes steps.
    """
    if not any(chain.backprop in UNDOING for chain in chains(network)):
        return None

    def read(images: Tensor, labels: Tensor) -> dict[str, float]:
        def loss() -> Tensor:
            with precision.autocast():
                value = loss_fn(network(images), labels)
            return precision.scaler.scale(value)

        if gradient:
            return vars(compare(network, loss)).copy()
        return {"reconstruction_error": reconstruction_error(network, loss)}

    return read
