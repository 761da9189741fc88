"""What a configuration may hold of a data set: its keys, their types and ranges. See options.py."""

from dataclasses import dataclass
from typing import Annotated

from memexp.schema import Count, Positive, Rule, Share, ShareBelow1, at_least

Three = Annotated[list[Share], Rule("(three of them)", lambda value: len(value) == 3)]
Deviations = Annotated[
    list[Annotated[float, Rule("above 0 and at most 1", lambda value: 0 < value <= 1)]],
    Rule("(three of them)", lambda value: len(value) == 3),
]
Classes = Annotated[
    list[str | int], Rule("with at least two entries, each once", lambda value: len(set(value)) == len(value) > 1)
]
Numbers = Annotated[list[Positive], Rule("with at least one entry", lambda value: len(value) > 0)]
Size = Annotated[int, at_least(8)]


@dataclass
class AnyDataset:
    """What every data set has, one of the user's own included."""

    flip: bool
    mean: Three | None
    std: Deviations | None
    limit: Positive | None
    test_limit: Positive | None
    classes: Classes | None
    val_fraction: ShareBelow1
    draw: Count
    epochs: Positive
    batch_size: Positive


@dataclass
class OwnDataset(AnyDataset):
    padding: Count = 0


@dataclass
class Dataset(AnyDataset):
    name: str
    image_size: Size


@dataclass
class Digits(Dataset):
    padding: Count


@dataclass
class Synthetic(Digits):
    images: Positive
    test_images: Positive
    num_classes: Annotated[int, at_least(2)]


@dataclass
class Downloadable(Digits):
    root: str | None
    download: bool


@dataclass
class Cifar(Downloadable):
    skip_broken: bool


@dataclass
class ImageFolder(Dataset):
    root: str | None
    skip_broken: bool
    resize_size: Size | None
    augment: bool
    workers: Count
    mean: Three
    std: Deviations
