"""memexp's own version: of the checkout that it is imported from, installed or not, or of the installed package."""

import importlib.metadata
import tomllib

from memexp.paths import PACKAGE

UNKNOWN = "of unknown version"


def version() -> str:
    """That of the code which runs. Beside a checkout an older memexp may be installed, or none at all.

    UNKNOWN for a copy of the package alone, which nothing tells about.
    """
    try:
        project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        if project["name"] == "memexp":
            return str(project["version"])
    except (OSError, ValueError, KeyError):
        pass  # a wheel, or another project's folder
    try:
        return importlib.metadata.version("memexp")
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN
