"""What conf/experiment holds: each published result as one command; and what a report of it is to show.

shown/ID.yaml, all of it optional:
    claim: what was claimed, in a sentence. checks: what must hold for a run to show it (memexp.report.claims).
    settings: keys of the configuration that tell its runs apart, beside their arms; what follows from them is no column.
    columns: its table's figures: headings of memexp.report.tables, or {heading, key, divisor, decimals}.
    pictures: names of memexp.report.plots.PLOTS, or {name, title, kind, ...} of a picture of its own.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from memexp.report.collect import Run

DATA = Path(__file__).resolve().parent / "shown"
SCALES = ("paper", "laptop")


def about(runs: Iterable["Run"]) -> dict[str, Any]:
    """What shown/ says of the experiment that all of these runs belong to; nothing where they are of none, or of several."""
    names = {str(run.get("experiment")) for run in runs}
    return shown(names.pop()) if len(names) == 1 else {}


@functools.cache
def shown(identifier: str) -> dict[str, Any]:
    """shown/ID.yaml; nothing where there is none."""
    known = {str(path.relative_to(DATA).with_suffix("")): path for path in DATA.rglob("*.yaml")}
    found = yaml.safe_load(known[identifier].read_text(encoding="utf-8")) if identifier in known else {}
    assert isinstance(found, dict)
    return found


def listing(conf: Path) -> list[tuple[str, str]]:
    """(id, first line of the opening comment) of every experiment, in order."""
    root = conf / "experiment"
    return [
        (str(p.relative_to(root).with_suffix("")), next(iter(_comment(p)), "")) for p in sorted(root.rglob("*.yaml"))
    ]


def expected(conf: Path, identifier: str, count: Callable[[Mapping[str, Any]], int]) -> dict[str, tuple[int, str]]:
    """scale -> (number of runs, time), as the file says and its sweep comes to.

    count: the number of jobs of a sweep with these settings (memexp.sweeper.count). A user's own file may take settings from
    elsewhere, and is composed, which takes longer than to read one of those that are shipped.
    """
    from omegaconf import OmegaConf

    from memexp.config import CONFIG_NAME, sweeper_of
    from memexp.paths import CONF

    path = conf / "experiment" / f"{identifier}.yaml"
    line = next((text for text in _comment(path) if text.startswith("time:")), "time:")
    times = dict(part.strip().split(" ", 1) for part in line.removeprefix("time:").split("|") if " " in part.strip())
    found = {}
    for scale in SCALES:
        if conf != CONF:
            own = sweeper_of([f"experiment={identifier}", f"scale={scale}"], CONFIG_NAME, [conf])
            found[scale] = count(own), times.get(scale, "-")
            continue
        made = OmegaConf.merge({"hydra": {"sweep": {"dir": "outputs"}}}, OmegaConf.load(path), {"scale": scale})
        told = OmegaConf.to_container(OmegaConf.select(made, "hydra.sweeper") or OmegaConf.create({}), resolve=True)
        assert isinstance(told, dict)
        found[scale] = count({str(key): value for key, value in told.items()}), times.get(scale, "-")
    return found


def _comment(path: Path) -> list[str]:
    """The lines of the comment that a file opens with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        line.lstrip("# ") for line in lines if line.startswith("#") and line.lstrip("# ") and "@package" not in line
    ]
