"""From depth to units: the layouts of ResNet (He et al. 2016) and RevNet (Gomez et al. 2017, table 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Shape = tuple[int, int, int]
LARGE = 64  # images wider than this get the ImageNet stem and layout


@dataclass(frozen=True)
class Layout:
    """Units of each stage, channels of the stem and of each stage, bottleneck units or basic ones, ImageNet's stem or not."""

    units: tuple[int, ...]
    channels: tuple[int, ...]
    bottleneck: bool
    large: bool

    def stages(self) -> list[tuple[int, int, int]]:
        """(units, width, stride) of each stage; a bottleneck stage is four times its channel figure wide."""
        widths = [c * (4 if self.bottleneck else 1) for c in self.channels[1:]]
        return [(n, w, 1 if i == 0 else 2) for i, (n, w) in enumerate(zip(self.units, widths, strict=True))]


def choose(
    family: str,
    depth: int,
    units: Sequence[int] | None,
    channels: Sequence[int] | None,
    bottleneck: bool | None,
    shape: Shape,
    per_unit: int,
    cifar_channels: Mapping[int, tuple[int, ...]],
    cifar_default: tuple[int, ...],
    imagenet: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]],
) -> Layout:
    """The layout of a family's `depth` on images of `shape`, or the one that `units` and `channels` spell out.

    per_unit: residual branches of a unit (1 in ResNet, 2 in RevNet). On small images three equal stages of n units make
    2*per_unit*3n + 2 layers of basic units, 3*per_unit*3n + 2 of bottlenecks; where a depth fits both it is basic,
    except where the papers say otherwise (164).

    Raises ValueError for a depth that fits neither, listing the nearest that do.
    """
    large = min(shape[1:]) > LARGE
    if units is not None or channels is not None:
        if units is None or channels is None or len(channels) != len(units) + 1:
            raise ValueError(
                f"units={units} and channels={channels} do not fit: give both, with one more channel figure (the stem's) "
                "than stages"
            )
        if min(*units, *channels) < 1:
            raise ValueError(f"units={units}, channels={channels}: every figure must be at least 1")
        return Layout(tuple(units), tuple(channels), bool(bottleneck), large)
    if large:
        if depth not in imagenet:
            raise ValueError(f"depth={depth} is not a {family} for large images: {', '.join(map(str, imagenet))}")
        found_units, found_channels = imagenet[depth]
        return Layout(found_units, found_channels, True if bottleneck is None else bottleneck, True)
    n_basic, n_bottleneck = ((depth - 2) / (layers * per_unit * 3) for layers in (2, 3))
    if bottleneck is None:
        bottleneck = depth == 164 or not (n_basic >= 1 and n_basic.is_integer())
    n = n_bottleneck if bottleneck else n_basic
    if n < 1 or not n.is_integer():
        raise ValueError(f"depth={depth} is not a {family} for small images; nearest: {_nearest(depth, per_unit)}")
    return Layout((int(n),) * 3, cifar_channels.get(depth, cifar_default), bottleneck, False)


def _nearest(depth: int, per_unit: int) -> str:
    valid = {layers * per_unit * 3 * n + 2 for layers in (2, 3) for n in range(1, max(depth, 8))}
    return ", ".join(map(str, sorted(sorted(valid, key=lambda d: abs(d - depth))[:4])))
