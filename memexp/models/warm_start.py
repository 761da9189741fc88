"""A deeper or untied network that starts where a trained one of the same kind is (Sander et al. 2022, section 5).

Each residual function of the trained network is repeated: N functions in a stage start 2N, 3N, ... of them, and the copies
of a tied one are free to differ.
"""

from torch import nn

from memexp.models.ode import OdeNet


def warm_start(network: nn.Module, trained: nn.Module) -> None:
    """Copies weights and running statistics of `trained` into `network`.

    Raises ValueError where the two differ in more than depth and tying, or a stage's depth is no multiple; and for a tied stage
    that would start from functions which differ.
    """
    if not isinstance(network, OdeNet) or not isinstance(trained, OdeNet):
        raise ValueError("init_from is for model=heunnet and for model=resnet with kind=simple or kind=ode")
    if len(network.functions) != len(trained.functions):
        raise ValueError(f"init_from: {len(trained.functions)} stages cannot start {len(network.functions)}")
    inside = {id(module) for stage in network.functions for f in stage for module in f.modules()}
    outside = {id(module) for stage in trained.functions for f in stage for module in f.modules()}
    pairs = list(zip(_others(network, inside), _others(trained, outside), strict=False))
    for stage, (deep, shallow) in enumerate(zip(network.functions, trained.functions, strict=True)):
        if bool(deep) != bool(shallow) or (shallow and len(deep) % len(shallow)):
            raise ValueError(
                f"init_from: stage {stage + 1} has {len(deep)} functions, no multiple of the trained {len(shallow)}"
            )
        if len(set(deep)) < len(set(shallow)):
            raise ValueError(
                f"init_from: the functions of stage {stage + 1} are tied, and the trained one has {len(set(shallow))} that "
                "differ; set model.tied=false"
            )
        pairs += [(f, shallow[i * len(shallow) // len(deep)]) for i, f in enumerate(deep)]
    for target, source in pairs:
        try:
            target.load_state_dict(source.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"init_from: the trained network differs: {str(error).splitlines()[-1].strip()}"
            ) from error


def _others(network: OdeNet, functions: set[int]) -> list[nn.Module]:
    """Stem, head, and the leaves of the body outside of the residual functions."""
    leaves = [
        module for module in network.body.modules() if not list(module.children()) and id(module) not in functions
    ]
    return [network.stem, network.head, *leaves]
