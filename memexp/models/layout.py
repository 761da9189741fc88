"""From depth to units: the layouts of ResNet (He et al. 2016), RevNet (Gomez et al. 2017, table 1) and the ODE networks (Sander
et al. 2022), and which settings of each go together. Nothing here imports torch, as validation asks first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Table:
    """What is particular to a family: residual branches of a unit, channels (stem, stages) by depth, units on large images."""

    name: str
    per_unit: int
    default: tuple[int, ...]
    imagenet: Mapping[int, tuple[int, ...]]
    imagenet_channels: tuple[int, ...]
    channels: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


RESNET = Table("ResNet", 1, (16, 16, 32, 64), {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}, (64, 64, 128, 256, 512))
REVNET = Table(
    "RevNet",
    2,
    (32, 32, 64, 128),
    {56: (2, 2, 3, 2), 104: (2, 2, 11, 2)},
    (128, 128, 256, 512, 832),
    {38: (32, 32, 64, 112)},
)


def choose(
    table: Table,
    depth: int,
    units: Sequence[int] | None,
    channels: Sequence[int] | None,
    bottleneck: bool | None,
    shape: Shape,
) -> Layout:
    """The layout of a family's `depth` on images of `shape`, or the one that `units` and `channels` spell out.

    On small images three equal stages of n units make 2*per_unit*3n + 2 layers of basic units, 3*per_unit*3n + 2 of
    bottlenecks; where a depth fits both it is basic, except where the papers say otherwise (164).

    Raises ValueError for a depth that fits neither, listing the nearest that do.
    """
    family, per_unit = table.name, table.per_unit
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
        if depth not in table.imagenet:
            raise ValueError(f"depth={depth} is not a {family} for large images: {', '.join(map(str, table.imagenet))}")
        return Layout(table.imagenet[depth], table.imagenet_channels, True if bottleneck is None else bottleneck, True)
    n_basic, n_bottleneck = ((depth - 2) / (layers * per_unit * 3) for layers in (2, 3))
    if bottleneck is None:
        bottleneck = depth == 164 or not (n_basic >= 1 and n_basic.is_integer())
    n = n_bottleneck if bottleneck else n_basic
    if n < 1 or not n.is_integer():
        raise ValueError(f"depth={depth} is not a {family} for small images; nearest: {_nearest(depth, per_unit)}")
    return Layout((int(n),) * 3, table.channels.get(depth, table.default), bottleneck, False)


def _nearest(depth: int, per_unit: int) -> str:
    valid = {layers * per_unit * 3 * n + 2 for layers in (2, 3) for n in range(1, max(depth, 8))}
    return ", ".join(map(str, sorted(sorted(valid, key=lambda d: abs(d - depth))[:4])))


def resnet(
    shape: Shape,
    depth: int,
    units: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    bottleneck: bool | None = None,
    kind: str = "preactivation",
    tied: bool = False,
) -> Layout:
    """The layout of a ResNet of any kind. Raises ValueError for settings that do not go together."""
    if kind == "simple":
        if units is not None or channels is not None or bottleneck is not None or tied:
            raise ValueError("kind=simple has a depth only: no units, channels, bottleneck or tied")
        return simple(shape, depth)
    if kind == "ode":
        if bottleneck is False:
            raise ValueError("kind=ode has bottlenecks only: leave bottleneck out")
        if units is None and depth not in RESNET.imagenet:
            known = ", ".join(map(str, RESNET.imagenet))
            raise ValueError(f"depth={depth}: kind=ode knows {known}; for others set units=[3,4,6,3]")
        units = tuple(units or RESNET.imagenet[depth])
        channels = tuple(channels or RESNET.imagenet_channels[: len(units) + 1])
        if len(channels) != len(units) + 1 or min(*units, *channels) < 1:
            raise ValueError(
                f"units={list(units)}, channels={list(channels)}: give one more channel figure (the stem's)"
            )
        return Layout(units, channels, True, min(shape[1:]) > LARGE)
    if kind != "preactivation":
        raise ValueError(f"kind={kind!r}: use preactivation, simple or ode")
    if tied:
        raise ValueError("tied=true is for kind=ode")
    return choose(RESNET, depth, units, channels, bottleneck, shape)


def revnet(
    shape: Shape,
    depth: int,
    units: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    bottleneck: bool | None = None,
) -> Layout:
    """The layout of a RevNet. Raises ValueError for a depth that there is not and for odd channel counts."""
    layout = choose(REVNET, depth, units, channels, bottleneck, shape)
    if odd := [c for c in layout.channels if c % 2]:
        raise ValueError(f"channels={list(layout.channels)}: {odd} cannot be halved into two streams; use even numbers")
    return layout


def simple(shape: Shape, depth: int, heun: bool = False) -> Layout:
    """One stage of `depth` residual functions on a third of the resolution (Sander et al. 2022).

    Raises ValueError for a Heun network of fewer than two functions and for images too small for its pooling.
    """
    if min((side + 2 - 5) // 3 + 1 for side in shape[1:]) < 4:
        raise ValueError(f"images of {shape[1]}x{shape[2]} are too small: 11x11 are the least")
    if heun and depth < 2:
        raise ValueError(f"depth={depth}: Heun steps lie between two functions; use at least 2")
    return Layout((depth,), (16, 16), False, False)


def vgg(shape: Shape, layout: str | None = None) -> str:
    """ "imagenet" or "cifar": as given, or the one for images of this size. Raises ValueError for images below 32x32."""
    if min(shape[1:]) < 32:
        raise ValueError(f"VGG16 halves its input five times: images of {shape[1]}x{shape[2]} are smaller than 32x32")
    return layout or ("imagenet" if min(shape[1:]) > LARGE else "cifar")


Vanishing = Sequence[float | Sequence[float | None] | None]


@dataclass(frozen=True)
class Reducing:
    """Of a ReduceNet, block by block: (stage, stride, when the activation behind its sum is gone, None for never).

    around: zeros around the image that all 3x3 convolutions together would pad by, seen before the strides.
    """

    blocks: tuple[tuple[int, int, float | None], ...]
    around: int


def reducenet(
    depth: int,
    vanish: str = "inner",
    schedule: Vanishing | None = None,
    padding: str = "each",
    expansion: float = 1,
    plain: bool = False,
    wide: float = 0,
    inplace_relu: bool = False,
) -> Reducing:
    """Three stages of n blocks. Raises ValueError for a depth that there is not and settings that do not go together."""
    n, rest = divmod(depth - 2, 3 if plain else 6)
    if n < 1 or rest:
        raise ValueError(f"depth={depth} is not a ReduceNet: use {'3n + 2 (11, 29)' if plain else '6n + 2 (20, 56)'}")
    if vanish not in ("inner", "all", "schedule"):
        raise ValueError(f"vanish={vanish!r}: use inner, all or schedule")
    if padding not in ("each", "once"):
        raise ValueError(f"padding={padding!r}: use each or once")
    if (vanish == "schedule") != (schedule is not None):
        raise ValueError(f"schedule={schedule} and vanish={vanish}: vanish=schedule needs one, the others take none")
    if plain and (vanish != "inner" or inplace_relu or expansion != 1):
        raise ValueError("plain=true has no activation that vanishes: leave vanish, expansion and inplace_relu out")
    if wide and not plain:
        raise ValueError(
            f"wide={wide} is for plain=true: a teacher is a plain network with a branch more in each block"
        )
    always = 1.0 if vanish == "all" else None
    entries = [always] * 3 if schedule is None else schedule
    until = tuple(tuple(entry) if isinstance(entry, Sequence) else (entry,) * n for entry in entries)
    if len(until) != 3 or any(len(entry) != n for entry in until):
        raise ValueError(f"schedule={schedule}: one entry for each of 3 stages, a share or a list of {n}, one a block")
    if bad := [share for entry in until for share in entry if share is not None and not 0 < share <= 1]:
        raise ValueError(f"schedule: {bad[0]} is no share of the training, above 0 and at most 1")
    blocks = tuple(
        (i, 2 if i and not j else 1, share) for i, entry in enumerate(until) for j, share in enumerate(entry)
    )
    around, step = 1, 1
    for _, stride, _ in blocks:
        around, step = around + step, step * stride
    return Reducing(blocks, around)
