"""The house: who imports whom, read from the source. Imports point one way, also those inside functions."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import memexp
from memexp.models.families import FAMILIES

ROOT = Path(memexp.__file__).parent
# From the bottom up. A file imports what stands below its own line, and its own folder.
LINES = [
    ["units", "paths", "schema", "own", "visible", "calling", "version", "modes", "rebinding"],
    ["models.families", "models.layout"],  # the table that validation reads
    ["pruning.settings"],  # which validation asks
    [
        "config",
        "overriding",
        "contradictions",
        "userfiles",
        "sequence",
        "options",
        "dataset_options",
        "choices",
        "environment",
        "lock",
        "record",
        "recorded",
        "unread",
        "given",
    ],
    ["optim", "data", "backprop"],
    ["models"],
    ["memory"],  # what is measured
    ["training"],
    ["channels"],
    ["edits"],
    ["fusing"],
    ["integral", "pruning"],
    ["build"],
    [
        f"memory.{name}" for name in ("trace", "estimate", "limit", "advice", "planner", "planned", "fitting")
    ],  # predicted, chosen
    ["report"],
    ["studies"],
    ["stages"],
    ["results", "prepared"],
    ["ended"],
    ["longer"],
    ["run"],
    ["saved"],
    ["hydra_app", "launcher", "onlooker", "sweeper", "jobs", "completion"],
    ["bench"],
    ["arguments", "commands", "explained", "train_help"],
    ["cli", "plugins"],
    ["__init__", "__main__"],
]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imported(path: Path) -> set[str]:
    """The files of the project that a file imports, anywhere in it, but for type checking."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:  # a file of a package, or a name in a file
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner.removeprefix("memexp.") in FILES else node.module)
    inside = {module.removeprefix("memexp.") for module in found if module.startswith("memexp.")}
    return {module for module in inside if module in FILES} - {name_of(path)}


GRAPH = {name: imported(path) for name, path in FILES.items()}


def line_of(name: str) -> int:
    fitting = [
        (len(entry), number)
        for number, line in enumerate(LINES)
        for entry in line
        if name == entry or name.startswith(f"{entry}.")
    ]
    assert fitting, f"{name} stands on no line of the house"
    return max(fitting)[1]


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_imports_what_stands_below_it(name):
    folder = name.split(".")[0]
    upwards = [other for other in GRAPH[name] if line_of(other) >= line_of(name) and other.split(".")[0] != folder]
    beside = [other for other in upwards if line_of(other) == line_of(name) and "." not in other + name]
    assert sorted(set(upwards) - set(beside)) == []  # single files of one line may use one another


def test_no_circle():
    order: list[str] = []
    state: dict[str, int] = {}

    def visit(name: str, way: tuple[str, ...]) -> None:
        if state.get(name) == 1:
            raise AssertionError(f"a circle: {' -> '.join([*way[way.index(name) :], name])}")
        if name in state:
            return
        state[name] = 1
        for other in sorted(GRAPH[name]):
            visit(other, (*way, name))
        state[name] = 2
        order.append(name)

    for name in sorted(GRAPH):
        visit(name, ())
    assert len(order) == len(FILES)


def test_no_file_but_a_familys_own_names_a_model():
    named = []
    for name, path in FILES.items():
        if name.split(".")[0] == "models":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in FAMILIES.keys() - {
                "torchvision",
                "linear",
            }:  # a library, a layer
                named.append(f"{name}:{node.lineno} {node.value!r}")
    assert named == []


@pytest.mark.parametrize("module", ["memexp.config", "memexp.recorded", "memexp.cli", "memexp.models.families"])
def test_it_is_imported_without_torch(module):
    code = f"import sys, {module}; print(*sorted(m for m in sys.modules if m in ('torch', 'numpy', 'matplotlib')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_a_run_imports_what_few_runs_need_only_where_it_is_needed():
    code = "import sys, memexp.run; print(*sorted({'sklearn', 'matplotlib', 'torchvision'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
