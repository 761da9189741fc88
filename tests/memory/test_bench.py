"""Strategies side by side: the cases, a process each, the table and the plot."""

import json
from pathlib import Path

import pytest
import torch

import memexp
from memexp import bench
from memexp.bench import case
from memexp.cli import main
from memexp.config import ConfigError

REVNET = ["model=revnet", "model.units=[3,3]", "model.channels=[8,8,16]", "dataset=digits", "batch_size=4"]


def names(cases):
    return [case.name for case in cases]


@pytest.mark.long
def test_cases_are_what_the_model_allows_and_budgets_lie_between_the_ends():
    cases = bench.cases(REVNET, None, 2)
    assert names(cases)[:4] == ["stored", "light", "checkpointed", "reversible"]
    plan = memexp.estimate(memexp.compose([*REVNET, "backprop=budget", "backprop.limit=0.0"]))["plan"]
    least, stored = plan["least_peak"], plan["stored_peak"]
    reversible = memexp.estimate(memexp.compose([*REVNET, "backprop=reversible"]))["peak"]
    assert least <= reversible < stored
    limits = [memexp.compose(case.overrides).backprop.limit for case in cases[4:]]
    third = (stored - least) / 3
    assert [float(limit.removesuffix("B")) for limit in limits] == pytest.approx(
        [least + third, least + 2 * third], abs=1
    )
    assert names(bench.cases(["model=torchvision", "model.arch=squeezenet1_1"], None, 0)) == [
        "stored",
        "light",
        "checkpointed",
    ]


@pytest.mark.parametrize("model", [["model=revnet", "model.depth=20"], ["model=inn", "model.base=resnet20"]])
def test_a_strategy_that_would_be_refused_is_no_case(model):
    assert [case.name for case in bench.cases(model, None, 0)] == ["stored", "light", "checkpointed"]


def test_an_arm_of_an_experiment_has_its_settings_but_for_its_strategy():
    """It was the experiment's without those of any arm."""
    typed = ["experiment=revnet/table3", "arm=RevNet-38, exact", "scale=laptop"]
    first, second = (memexp.compose(case.overrides) for case in bench.cases(typed, ["stored", "reversible"], 0))
    assert (first.model.depth, first.model.name, first.arm) == (38, "revnet", "RevNet-38, exact")
    assert (first.backprop.name, second.backprop.name) == ("stored", "reversible")
    (other,) = bench.cases(["experiment=revnet/table3", "arm=ResNet-32"], ["stored"], 0)
    assert memexp.compose(other.overrides).model.depth == 32


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_case_is_measured_with_the_kernels_that_training_takes(deterministic):
    asked = memexp.compose([*REVNET, f"deterministic={str(deterministic).lower()}", "device=cpu"])
    before = torch.are_deterministic_algorithms_enabled()
    try:
        case.carry_out(asked, 1)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize(
    ("overrides", "strategies", "message"),
    [
        (["backprop=stored"], None, "name them with --strategies"),
        (["model=vgg16"], ["reversible"], "'reversible' is not valid for model=vgg16"),
        (["batch_size=0"], None, "batch_size: 0 is not allowed"),
        (["memory.enforce=true", "memory.limit=1GB", "device=cpu"], None, "memory.enforce: true needs CUDA"),
        (["cuda_graph=true", "device=cpu"], None, "needs one process on a GPU of NVIDIA's, and the device is cpu"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(overrides, strategies, message):
    with pytest.raises(ConfigError, match=message):
        bench.cases([*REVNET, *overrides], strategies, 0)


def test_a_case_that_fails_is_a_row_that_says_why(tmp_path):
    broken = bench.Case("broken", [*REVNET, "device=cuda:99"])
    said = []
    bench.measure([broken], 2, said.append)
    assert said == ["case 1/1: broken"]
    assert broken.error.startswith("exit status 1: ")
    assert "cuda:99" in broken.error
    assert bench.table([broken]).rows[0][:2] == ["broken", broken.error]
    bench.write([broken], tmp_path / "found", "the table")
    assert json.loads((tmp_path / "found" / "bench.json").read_text())[0]["error"] == broken.error
    assert not (tmp_path / "found" / "pareto.png").exists()  # no points, no curve


def test_the_command_that_is_told_has_the_options_of_all_strategies(tmp_path):
    options = ["batch_size=2", "backprop.exact=true"]
    found = [bench.Case(name, [*options, f"backprop={name}"], error="x") for name in ("stored", "reversible")]
    found.append(bench.Case("budget", [*options, "backprop=budget", "backprop.limit=9B"], error="x"))
    bench.write(found, tmp_path, "the table")
    assert "\n    memexp bench batch_size=2 backprop.exact=true\n" in (tmp_path / "bench.md").read_text()


def test_the_plot_joins_the_budgets_and_the_ends():
    def done(name, peak, seconds, strategy=None):
        result = {"memory": {"peak": peak}, "strategy": strategy or {}}
        result["time"] = {"step_median": seconds, "step_quartiles": [seconds, seconds]}
        return bench.Case(name, [], result)

    budgets = [
        done("budget 2 MiB", 2 * 2**20, 0.25, {"budget": 2e6}),
        done("budget 1.5 MiB", 1.5 * 2**20, 0.35, {"budget": 1.5e6}),
    ]
    cases = [done("stored", 3 * 2**20, 0.2), done("reversible", 2**20, 0.4), *budgets]
    figure = bench.pareto(cases, "model=revnet, cpu")
    assert figure.get_suptitle() == "Step time against peak memory\nmodel=revnet, cpu"
    axes = figure.axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["budget"] == [[1.5, 350], [2, 250]]
    assert lines["straight line between the ends"] == [[1, 400], [3, 200]]


@pytest.mark.long
def test_the_command_measures_a_budget_and_writes_its_findings(tmp_path, capsys):
    arguments = ["bench", *REVNET, "device=cpu", "--strategies", "reversible", "--budgets", "1", "--steps", "2"]
    assert main([*arguments, "--output", str(tmp_path / "found")]) == 0
    found = {
        entry["name"].split()[0]: entry["result"] for entry in json.loads((tmp_path / "found/bench.json").read_text())
    }
    budget = found["budget"]
    assert budget["memory"]["peak"] == budget["strategy"]["predicted"]["peak"] <= budget["strategy"]["budget"]
    assert found["reversible"]["memory"]["peak"] >= budget["strategy"]["least_peak"]  # light steps take less here
    assert (tmp_path / "found" / "pareto.svg").exists()
    assert "predicted peak" in capsys.readouterr().out
    assert all(entry["time"]["step_median"] > 0 for entry in found.values())
    assert main(["bench", "--steps", "0"]) == 2


def test_e8_a_users_own_model_is_measured_too(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\n"
        "def network(classes, shape):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, classes))\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: mine.network\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(memexp.__file__).parent.parent}")
    monkeypatch.syspath_prepend(str(tmp_path))
    said = []
    found = memexp.bench(
        "model=mine batch_size=2", steps=1, config_dir=tmp_path, output=tmp_path / "out", say=said.append
    )
    assert [case["error"] for case in found] == [None]
    assert found[0]["result"]["memory"]["peak"] > 3072 * 10 * 4
    document = (tmp_path / "out" / "bench.md").read_text()
    assert document.startswith("# Strategies side by side\n\n    memexp bench model=mine batch_size=2\n")
    assert "| stored |" in document


def test_a_case_above_memory_limit_is_told_and_held_to_it_where_that_is_asked(monkeypatch):
    """Both keys were taken and nothing came of them."""
    held = []
    monkeypatch.setattr(case, "hold", lambda limit, device: held.append(limit))
    limited = [*REVNET, "device=cpu", "memory.limit=100kB"]
    for more, expected in ([], []), (["memory.enforce=true"], [100_000]):
        result = case.carry_out(memexp.compose([*limited, *more]), 1)
        (note,) = bench.table([bench.Case("stored", [], result)]).notes[1:]
        assert note.startswith("stored: ")
        assert note.endswith(" is more than memory.limit=0.095 MiB.")
        assert held == expected
    roomy = case.carry_out(memexp.compose([*limited, "memory.limit=1GB"]), 1)
    assert len(bench.table([bench.Case("stored", [], roomy)]).notes) == 1
