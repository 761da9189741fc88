"""The wheel: what it says about itself, and that it works where there is no source tree."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import memexp

ROOT = Path(memexp.__file__).parent.parent


def carry_out(*command, **more):
    found = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built as pip builds it, which takes hatchling from the package index."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("an installed package has no source to build from")
    out = tmp_path_factory.mktemp("wheel")
    carry_out(sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT))
    (found,) = out.glob("*.whl")
    return found


@pytest.mark.long
def test_the_wheel_has_licence_types_and_configs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        told = Parser().parsestr(archive.read(metadata).decode())
    assert {"memexp/py.typed", "memexp/conf/config.yaml", "memexp/plugins/hydra_plugins/memexp_launcher.py"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert told["License-Expression"] == "MIT"
    assert "Typing :: Typed" in told.get_all("Classifier")


@pytest.mark.long
def test_the_wheel_trains_in_a_fresh_environment_outside_the_tree(wheel, tmp_path):
    """The environment is new; torch and the other dependencies, gigabytes, come from this one."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    target = ["--no-deps", "--no-index", "--target", str(site), str(wheel)]
    carry_out(sys.executable, "-m", "pip", "install", "-q", *target)
    # behind the wheel's own files; addsitedir is not called, so an editable install of the tree is not seen
    (site / "zz-dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    where = carry_out(
        str(python), "-c", "import memexp, memexp.paths; print(memexp.paths.CONF)", cwd=tmp_path, env=environment
    )
    assert where.strip() == str(site / "memexp" / "conf")
    arguments = ["train", "max_steps=1", "dataset.limit=64", "dataset.test_limit=32", "batch_size=16", "device=cpu"]
    told = carry_out(str(python), "-m", "memexp", *arguments, cwd=tmp_path, env=environment)
    assert "status             done" in told
    assert list((tmp_path / "outputs").rglob("results.json"))
