"""Small trees of pictures, and data sets loaded from them."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import memexp
from memexp import data


@functools.cache
def plain(group: str) -> DictConfig:
    return memexp.compose(["model=vgg16", f"dataset={group}"])  # a model for images of any size


def composed(group: str, root: str, *overrides: str) -> DictConfig:
    """The configuration of a data set; the groups behind it are composed once."""
    small = ["dataset.image_size=24", "dataset.workers=0"] if group == "imagefolder" else []
    own = OmegaConf.from_dotlist([f"dataset.root={root}", *small, *overrides])
    return OmegaConf.merge(plain(group), own)  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MEMEXP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Writes a picture of random pixels and returns its path."""
    generator = np.random.default_rng(0)

    def write(path: Path, size: int | tuple[int, int] = 32) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size, size) if isinstance(size, int) else size
        Image.fromarray(generator.integers(0, 256, (*shape, 3), np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def tree(tmp_path, picture) -> Callable[..., Path]:
    """Folders of pictures: tree(train=4, val=2) has so many of each class in each split."""

    def make(classes: tuple[str, ...] = ("ant", "bee"), suffix: str = ".png", size: int = 32, **splits: int) -> Path:
        for split, count in splits.items():
            for name in classes:
                for i in range(count):
                    picture(tmp_path / "set" / split / name / f"{i}{suffix}", size)
        return tmp_path / "set"

    return make


@pytest.fixture
def load() -> Callable[..., data.Splits]:
    def loaded(root: Path, *overrides: str, group: str = "imagefolder", batch_size: int = 4, **options) -> data.Splits:
        cfg = composed(group, str(root), *overrides)
        return data.load(cfg.dataset, batch_size=batch_size, seed=0, device=torch.device("cpu"), **options)

    return loaded
