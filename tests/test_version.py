"""Its own version is told wherever it is imported from: an installed package, a checkout that nobody installed, a copy."""

import importlib.metadata

import pytest

import memexp
from memexp import cli, environment
from memexp import version as module
from memexp.report.document import document


def told(place, capsys, tmp_path):
    if place == "--version":
        assert cli.main(["--version"]) == 0
        return capsys.readouterr().out
    if place == "report":
        return document([tmp_path], [], [], [], tmp_path)
    return environment.environment()["versions"]["memexp"] if place == "environment" else memexp.__version__


@pytest.fixture
def not_installed(monkeypatch):
    def version(name):
        if name == "memexp":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.usefixtures("not_installed")
@pytest.mark.parametrize("project", ["memexp", "another", None])
@pytest.mark.parametrize("place", ["--version", "report", "environment", "__version__"])
def test_whoever_tells_it_needs_no_installed_package(place, project, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "memexp")
    if project is not None:
        (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{project}"\nversion = "7.8.9"\n')
    assert ("7.8.9" if project == "memexp" else "of unknown version") in told(place, capsys, tmp_path)


def test_a_checkout_goes_before_an_older_package_that_is_installed_and_a_wheel_has_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    assert module.version() != "0.0.1"
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "memexp")
    assert module.version() == "0.0.1"
