"""Where the package and its configs lie: a wheel carries conf/ inside the package, a checkout beside it."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if (path / "config.yaml").is_file())
