"""The tensors of a network by the names that edits and graphs call them by."""

from torch import Tensor, nn


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, each under all of its names, in the order of the state dict.

    Not the state dict itself: it lacks buffers that are not saved, which are as long as what they meet, and may be another by
    hooks that rename what is saved, or hold more than tensors.
    """
    return {
        f"{path}.{name}" if path else name: tensor
        for path, module in network.named_modules(remove_duplicate=False)
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def check_values(network: nn.Module) -> None:
    """Raises ValueError where one of them is on the meta device: what reads weights has nothing to read there."""
    for name, tensor in tensors_of(network).items():
        if tensor.is_meta:
            raise ValueError(
                f"{name} is on the meta device, where it has no values: load the network's weights first "
                "(network.load_state_dict(weights, assign=True))"
            )
