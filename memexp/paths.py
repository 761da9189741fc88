"""Where the package and its configs lie: a wheel carries conf/ inside the package, a checkout beside it."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if (path / "config.yaml").is_file())
PART = "settings"  # a config that is a part of its group's options and none itself


def from_here(path: str | Path) -> Path:
    """The path as a person would write it: relative within the working directory, absolute elsewhere."""
    absolute = Path(path).absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute
