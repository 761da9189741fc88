"""What conf/experiment holds: each published result as one command."""

from pathlib import Path


def listing(conf: Path) -> list[tuple[str, str]]:
    """(id, first line of the opening comment) of every experiment, in order."""
    root = conf / "experiment"
    found = []
    for path in sorted(root.rglob("*.yaml")):
        lines = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        described = next((line for line in lines if line and not line.startswith("@package")), "")
        found.append((str(path.relative_to(root).with_suffix("")), described))
    return found
