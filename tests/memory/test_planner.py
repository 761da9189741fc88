"""The choice is the best there is for its model of cost, and what is planned is what is measured."""

import json
from itertools import product
from random import Random

import pytest
import torch

import memexp
from memexp.config import ConfigError
from memexp.memory.choice import WORDS, Costs, choose, least, search
from memexp.memory.fake import without_data
from memexp.memory.limit import answer
from memexp.memory.planner import Steps, plan
from memexp.memory.trace import Training
from memexp.record import summary
from memexp.training import loop
from memexp.units import shown_bytes

SMALL = ["dataset=digits", "dataset.limit=64", "dataset.test_limit=10", "batch_size=8", "device=cpu", "monitor_every=0"]
REVNET = ["model=revnet", "model.units=[3,2]", "model.channels=[8,8,16]"]
SHALLOW = ["model=revnet", "model.units=[2,1]", "model.channels=[8,8,16]"]


CONTEXTS = list(product((False, True), WORDS, (False, True)))


def more_than_least(plan):
    """How many steps are stored or light."""
    return len(plan["stored_steps"][0]) + len(plan["light_steps"][0])


def choices(count):
    return list(product(WORDS, repeat=count))


@pytest.mark.parametrize("seed", range(20))
def test_d6_the_choice_is_exact_for_its_model_of_cost(seed):
    """Every choice for six steps, whose costs depend on their neighbours at random."""
    random = Random(seed)
    costs = Costs(7, [(0.0, *sorted(random.random() for _ in range(2))) for _ in range(6)])
    for _ in range(6):
        costs.kept.append({context: random.randint(-5, 60) for context in CONTEXTS})
        costs.beside.append({context: random.randint(1, 90) for context in CONTEXTS})
    peaks = {chosen: costs.peak(chosen) for chosen in choices(6)}
    lowest, highest = min(peaks.values()), max(peaks.values())
    for budget in range(lowest, highest + 1, 7):
        chosen = choose(costs, budget)
        assert peaks[chosen] <= budget
        best = max(costs.saved(other) for other, peak in peaks.items() if peak <= budget)
        assert costs.saved(chosen) == pytest.approx(best)
    assert choose(costs, lowest - 1) is None
    assert peaks[least(costs, highest)] == lowest


SMALL_NETWORKS = {
    "revnet": [*SHALLOW, "batch_size=16"],
    "resnet": ["model=resnet", "model.units=[2,1]", "model.channels=[8,8,16]", "batch_size=16"],
    "simple": ["model=resnet", "model.kind=simple", "model.depth=3"],
}


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_d6_d7_a_plan_is_within_5_percent_of_the_best_at_every_budget_and_least_is_least(name):
    cfg = memexp.compose([*SMALL, *SMALL_NETWORKS[name], "backprop=budget"])
    with without_data():
        steps = Steps(Training(cfg))
        steps.peak((0,) * len(steps.units))
        steps.seen.clear()
        costs = steps.costs(None)
        peaks = {chosen: steps.peak(chosen) for chosen in choices(len(steps.units))}
    lowest, highest = min(peaks.values()), max(peaks.values())
    assert peaks[least(costs, highest)] == lowest
    for part in range(21):
        budget = lowest + (highest - lowest) * part // 20
        chosen = search(budget, lambda b: choose(costs, b), costs.peak, peaks.__getitem__, costs.saved)
        best = max(costs.saved(other) for other, peak in peaks.items() if peak <= budget)
        assert costs.saved(chosen) >= best - 0.05 * sum(gains[-1] for gains in costs.gains)


def test_d7_below_the_least_the_fastest_of_least_peak_is_taken():
    cfg = memexp.compose([*SMALL, *SMALL_NETWORKS["revnet"], "backprop=budget", "backprop.limit=0"])
    found = plan(cfg)
    assert found.peak == found.least <= memexp.estimate(memexp.compose([*SMALL, *SMALL_NETWORKS["revnet"]]))["peak"]
    assert found.saved > 0  # storing some costs nothing at the peak


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(REVNET, marks=pytest.mark.long),
        ["model=resnet", "model.units=[2,1]", "model.channels=[8,8,16]"],
        pytest.param(["model=resnet", "model.depth=14"], marks=pytest.mark.long),
        pytest.param(["model=vgg16"], marks=pytest.mark.long),
    ],
    ids=" ".join,
)
def test_between_least_and_stored_more_memory_saves_more_and_never_takes_more_than_given(model):
    found = []
    for share in (0, 0.4, 0.8, 1.0):
        cfg = memexp.compose([*SMALL, *model, "backprop=budget", f"backprop.limit={share}"])
        found.append(plan(cfg))
        assert found[-1].peak <= max(found[-1].budget, found[-1].least)
    saved = [p.saved for p in found]
    assert saved == sorted(saved)
    assert saved[0] < saved[-1]
    least = "reversible" if model is REVNET else "checkpointed"
    ends = [memexp.estimate(memexp.compose([*SMALL, *model, f"backprop={b}"]))["peak"] for b in (least, "stored")]
    assert found[0].peak == found[0].least <= ends[0]
    assert found[-1].peak == ends[1]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (0, 4),
        (23, 3),  # 223 is 3 too much, though 17 less than 220 would still be modelled to hold all four
        (-30, 5),  # the model counts 30 too much: 5 steps take 220
        (200, 0),  # only nothing fits
        (230, None),
    ],
)
def test_what_the_model_counts_wrongly_is_corrected(error, expected):
    """Steps of 50 bytes in a budget of 220, whose true peaks are off by `error`."""
    found = search(
        220,
        lambda effective: (2,) * max(0, effective // 50),
        lambda chosen: 50 * len(chosen),
        lambda chosen: 50 * len(chosen) + error,
        len,
    )
    assert found == ((2,) * expected if expected is not None else None)


def test_a_run_takes_what_was_predicted_and_a_resumed_one_keeps_its_plan(tmp_path):
    cfg = memexp.compose([*SMALL, *SHALLOW, "backprop=budget", "backprop.limit=0.7", "max_steps=6"])
    results = memexp.run(cfg, tmp_path)
    strategy = results["strategy"]
    assert results["memory"]["peak"] == strategy["predicted"]["peak"] <= strategy["budget"]
    assert results["memory"]["estimate_ratio"] == 1
    assert strategy["least_peak"] < strategy["predicted"]["peak"] < strategy["stored_peak"]
    assert strategy["predicted"]["step_ms"] > 0
    assert strategy["measured"] == {"peak": results["memory"]["peak"], "step_ms": 1e3 * results["time"]["step_median"]}
    assert strategy["warning"] is None
    assert more_than_least(strategy) > 0
    from memexp import saved

    for path in (tmp_path / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        for figures in state["stages"]:
            if "strategy" in figures:
                figures["strategy"]["stored_steps"] = [[1]]
        torch.save(state, path)
    (tmp_path / "results.json").write_text(json.dumps(results | {"status": "interrupted"}))

    assert saved.resume(tmp_path, ["max_steps=8"])["strategy"]["stored_steps"] == [[1]]
    with pytest.raises(ConfigError, match=r"backprop\.limit: the run has 0\.7, and 0\.4 would make it another run"):
        saved.resume(tmp_path, ["backprop.limit=0.4"])


@pytest.mark.usefixtures("unestimated")
def test_a_budget_gives_the_gradients_of_stored_bit_for_bit_when_exact(tmp_path):
    weights = []
    for name, backprop in (("a", ["backprop=stored"]), ("b", ["backprop=budget", "backprop.limit=0.5"])):
        cfg = memexp.compose([*SMALL, *SHALLOW, *backprop, "backprop.exact=true", "max_steps=3"])
        strategy = memexp.run(cfg, tmp_path / name)["strategy"]
        weights.append(torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True)["model"])
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert (strategy["stored_steps"], strategy["light_steps"]) == ([[]], [[2, 3]])  # the others are undone


def test_the_estimate_of_a_budget_is_that_of_its_plan():
    def found(*more: str) -> dict:
        return memexp.estimate(memexp.compose([*SMALL, *SHALLOW, *more]))

    least, stored = found("backprop=reversible")["peak"], found("backprop=stored")["peak"]
    between = found("backprop=budget", "backprop.limit=0.7")
    assert least < between["peak"] <= between["plan"]["budget"] == round(0.7 * stored)
    assert between["plan"]["least_peak"] <= least
    assert between["plan"]["stored_peak"] == stored
    assert more_than_least(between["plan"]) > 0
    assert 0 <= between["recompute_ratio"] < found("backprop=reversible")["recompute_ratio"]


@pytest.mark.long
def test_accumulated_batches_are_planned_for_the_last_when_gradients_stand_beside_it(tmp_path):
    overrides = [
        *SMALL,
        *REVNET,
        "backprop=budget",
        "backprop.limit=0.6",
        "accumulate=2",
        "max_steps=2",
        "memory.steps=2",
    ]
    results = memexp.run(memexp.compose(overrides), tmp_path)
    assert results["memory"]["peak"] == results["strategy"]["predicted"]["peak"] <= results["strategy"]["budget"]
    assert more_than_least(results["strategy"]) > 0


@pytest.mark.long
def test_what_fits_a_limit_best_is_a_budget_of_that_limit(monkeypatch):
    monkeypatch.setattr("memexp.memory.limit.largest", lambda *_: (1, 1))  # the largest batch is not asked for here
    cfg = memexp.compose([*SMALL, *REVNET, "backprop=reversible"])
    stored = memexp.estimate(memexp.compose([*SMALL, *REVNET, "backprop=stored"]))["peak"]
    peaks = {name: peak for name, peak, _ in answer(cfg, int(0.8 * stored)).strategies}
    assert peaks["budget"] <= int(0.8 * stored)
    assert peaks["light"] < 0.8 * stored
    assert answer(cfg, peaks["light"] - 1).fastest == "budget"
    assert answer(cfg, stored).fastest == "stored"


def test_a_peak_above_the_budget_is_a_warning_in_the_results(tmp_path):
    cfg = memexp.compose([*SMALL, *SHALLOW, "backprop=budget", "backprop.limit=100kB", "max_steps=2"])
    results = memexp.run(cfg, tmp_path)
    strategy = results["strategy"]
    assert strategy["measured"]["peak"] == strategy["predicted"]["peak"] == strategy["least_peak"] > 100_000
    assert "is above the budget of 0.095 MiB, below which this run cannot go" in strategy["warning"]
    assert (
        strategy["warning"] in json.loads((tmp_path / "results.json").read_text())["stages"][0]["strategy"]["warning"]
    )
    assert f"warning            {strategy['warning']}" in summary(results, tmp_path)


def test_compiled_a_light_step_costs_no_time_and_is_preferred_to_a_stored_one():
    small = SMALL_NETWORKS["revnet"]
    plans = [
        plan(memexp.compose([*SMALL, *small, "backprop=budget", "backprop.limit=0.9", f"compile={through}"]))
        for through in ("false", "true")
    ]
    assert any(plans[0].stored)
    assert plans[1].stored == [frozenset()]
    assert len(plans[1].light[0]) > 3
    assert plans[1].peak < plans[0].peak


def test_a_run_out_of_memory_is_told_the_estimate_of_the_plan_that_ran(tmp_path, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(loop.Trainer, "_step", fails)
    with pytest.raises(torch.OutOfMemoryError):
        memexp.run(memexp.compose([*SMALL, *SHALLOW, "backprop=budget", "backprop.limit=0.8"]), tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    peak = results["strategy"]["predicted"]["peak"]
    assert shown_bytes(peak) != shown_bytes(results["strategy"]["least_peak"])
    assert f"estimate: {shown_bytes(peak)} at the peak, of " in results["error"]
