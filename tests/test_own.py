"""A user's own model, data set, optimizer and schedule, named by `_target_` in the user's own configs (B10)."""

import json
from pathlib import Path

import pytest

import memexp
from memexp import config
from memexp.cli import main
from memexp.config import ConfigError
from memexp.data import DataError

CODE = """
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset


def network(classes, shape, chain, width=4):
    steps = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(2)]
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * shape[0], width), chain(steps),
                         nn.Linear(width, classes))


def fixed(outputs, lazy=False):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(outputs) if lazy else nn.Linear(192, outputs))


class Blobs(Dataset):
    classes = ["dark", "bright", "mid"]

    def __init__(self, count, size, channels):
        self.count, self.size, self.channels = count, size, channels

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        pixel = (30, 220, 120)[index % 3] + index % 7
        return torch.full((self.channels, self.size, self.size), pixel, dtype=torch.uint8), index % 3


def images(size=8, channels=3):
    return Blobs(48, size, channels), Blobs(12, size, channels)


def arrays(count=40):
    labels = np.arange(count) % 2
    pixels = np.broadcast_to((labels * 200)[:, None, None, None], (count, 8, 6, 3)).astype(np.uint8)
    return (pixels, labels), (torch.from_numpy(np.moveaxis(pixels[:6], -1, 1).copy()), labels[:6]), (pixels[:8], labels[:8])


class Signed(torch.optim.Optimizer):
    def __init__(self, params, lr, scale=1.0):
        super().__init__(params, {"lr": lr, "scale": scale})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * group["scale"] * p.grad.sign())


def square(step, total, floor=0.0):
    return max(floor, (1 - step / total) ** 2)


def floats(n=8):
    return (np.zeros((n, 4, 4, 3), np.float32), np.zeros(n, np.int64)), (np.zeros((n, 4, 4, 3)), np.zeros(n, np.int64))


def unequal():
    return [(np.zeros((4, 4, 3), np.uint8), 0), (np.zeros((5, 5, 3), np.uint8), 1)], [(np.zeros((4, 4, 3), np.uint8), 0)]


def nothing():
    return None


def no_lr(params):
    return Signed(params, 0.1)


def table(step, total, by, most): return min(most, by.get(step, 0.5))


def late(step): return 1.0


def endless(step, total):
    return float("inf")
"""
CONFIGS = {
    "model/mine.yaml": "_target_: mine.network\nwidth: 8\n",
    "model/fixed.yaml": "_target_: mine.fixed\n",
    "dataset/mine.yaml": "_target_: mine.images\nsize: 8\nchannels: 3\n",
    "optimizer/mine.yaml": "_target_: mine.Signed\nlr: 0.01\nscale: 0.5\n",
    "schedule/mine.yaml": "_target_: mine.square\nfloor: 0.1\n",
    "schedule/table.yaml": "_target_: mine.table\nby: {1: 0.2, 2: 0.3}\nmost: .inf\n",
}
ALL = [f"{group}=mine" for group in ("model", "dataset", "optimizer", "schedule")]
SHORT = ["device=cpu", "log_every=1", "epochs=1", "batch_size=16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(CODE)
    for name, text in CONFIGS.items():
        (folder / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "conf" / name).write_text(text)
    return folder


@pytest.fixture(autouse=True)
def place(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(memexp.__file__).parent.parent}")
    monkeypatch.chdir(tmp_path)


def compose(folder: Path, *overrides: str):
    return config.compose([*SHORT, *overrides], config_dirs=[folder / "conf"])


def test_b10_every_command_takes_a_users_own(folder, capsys):
    own = ["--config-dir", str(folder / "conf")]
    cfg = compose(folder, *ALL, "dataset.val_fraction=0.25", "ema=0.5")
    results = memexp.run(cfg, Path("run"))
    assert results["status"] == "done"
    names = {group: results[group] for group in ("model", "dataset", "optimizer")}
    assert names == {"model": "mine.network", "dataset": "mine.images", "optimizer": "mine.Signed"}
    assert results["classes"] == ["dark", "bright", "mid"]
    assert main(["evaluate", "run"]) == 2  # what a run names is not imported
    assert "--config-dir DIR" in capsys.readouterr().err
    assert main(["evaluate", "run", *own]) == 0
    assert f"top-1 {results['accuracy']['top1']:.2f} %" in capsys.readouterr().out
    assert main(["resume", "run", "--trust", "epochs=2"]) == 0
    lrs = [line["lr"] for line in map(json.loads, Path("run/metrics.jsonl").read_text().splitlines()) if "lr" in line]
    assert lrs == pytest.approx(
        [0.01, 0.01 * 0.25, 0.01 * 0.25, 0.01 * 0.1]
    )  # (1 - 1/2)^2; then of 4 steps: (1 - 2/4)^2
    assert main(["estimate", *ALL, *own, *SHORT, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["parameters"] == results["parameters"]


def test_a_resumed_run_has_the_keys_and_infinities_that_json_lacks(folder):
    memexp.run(compose(folder, "model=mine", "dataset=mine", "schedule=table", "optimizer.lr=1"), Path("run"))
    memexp.resume("run", "epochs=2", config_dir=folder / "conf")
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    assert [line["lr"] for line in map(json.loads, lines) if "lr" in line] == [0.5, 0.2, 0.3, 0.5, 0.5, 0.5]


def test_b10_e8_bench_takes_a_users_own(folder, capsys):
    assert main(["bench", *ALL, "-cd", str(folder / "conf"), *SHORT, "--strategies", "stored", "--steps", "1"]) == 0
    assert "stored" in capsys.readouterr().out


EXPERIMENT = """# @package _global_
# what I want to see
# time: paper 1 hour
case: {what: 3}
model: {units: [1, 1, 1], channels: [4, 4, 4, 8]}
hydra: {sweeper: {params: {seed: "0,1", epochs: "${epochs}"}}}
"""
PUBLISHED = "source: my book\nrows:\n- {label: net, match: {model: revnet}, quantity: steps, unit: '', value: 3}\n"


def test_e8_experiments_and_reports_take_a_users_own(tmp_path, capsys):
    own = ["-cd", str(tmp_path / "conf")]
    for folder, text in (("experiment", EXPERIMENT), ("published", PUBLISHED)):
        (tmp_path / "conf" / folder).mkdir(parents=True)
        (tmp_path / "conf" / folder / "mine.yaml").write_text(text)
    assert main(["experiments", *own]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "what I want to see" in line)
    assert [cell.strip() for cell in line.split("│")[1:4]] == ["mine", "what I want to see", "2 / 2"]
    assert memexp.experiments(tmp_path / "conf") == memexp.experiments() | {"mine": "what I want to see"}
    few = ["dataset.limit=32", "dataset.test_limit=16", "max_steps=1"]
    assert main(["train", *own, "experiment=mine", *SHORT, *few, "hydra.run.dir=run"]) == 0  # without an id
    assert main(["report", "run", "--no-plots", "--paper", "mine", *own]) == 0
    assert "my book" in capsys.readouterr().out
    found = memexp.report("run", paper="mine", config_dir=tmp_path / "conf")["published"][0]
    assert (found["published"], found["measured"]) == (3, 1.0)
    row = "source: x\nrows:\n- {label: a, match: 3, quantity: parameters, unit: x, value: 3}"
    for bad in ("rows: [3]", "- 1", "a: [", "source: x\nrows:\n- {label: a}", row):
        (tmp_path / "conf/published/mine.yaml").write_text(bad)
        assert main(["report", "run", "--no-plots", "--paper", "mine", *own]) == 2
        assert "published/mine.yaml" in capsys.readouterr().err


def test_b10_arrays_tensors_and_a_split_of_their_own_for_the_choice(folder):
    cfg = compose(
        folder,
        "+dataset._target_=mine.arrays",
        "~dataset.image_size",
        "~dataset.padding",
        "~dataset.name",
        "model=mine",
    )
    results = memexp.run(cfg, Path("run"))
    assert (results["classes"], results["stages"][0]["accuracy"]["split"]) == (["0", "1"], "val")
    assert results["stages"][0]["accuracy"]["images"] == 6
    assert results["accuracy"]["images"] == 8


def test_b10_a_torch_optimizer_is_named_alone(folder, tmp_path):
    (tmp_path / "conf/optimizer").mkdir(parents=True)
    (tmp_path / "conf/optimizer/rmsprop.yaml").write_text("_target_: torch.optim.RMSprop\nlr: 1e-3\nalpha: 0.9\n")
    text = ["optimizer=rmsprop", "optimizer.lookahead.k=2", "optimizer.gradient_centralization=true", *ALL[:2], *SHORT]
    cfg = config.compose(text, config_dirs=[folder / "conf", tmp_path / "conf"])
    assert memexp.run(cfg, Path("run"))["status"] == "done"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset._target_=mine.nowhere"], "dataset: _target_: 'mine.nowhere' cannot be imported"),
        (["dataset._target_=mine.CODE"], "'mine.CODE' cannot be imported"),
        (["+dataset.sise=3"], "dataset: mine.images takes no sise; it takes size, channels"),
        (["dataset._target_=mine.nothing", "~dataset.size", "~dataset.channels"], "mine.nothing made a NoneType"),
        (
            ["dataset._target_=mine.floats", "~dataset.size", "~dataset.channels"],
            "float32 and shape (8, 4, 4, 3); they must be uint8",
        ),
        (["dataset._target_=mine.unequal", "~dataset.size", "~dataset.channels"], "images of different sizes"),
        (["optimizer._target_=mine.nowhere"], "optimizer: _target_: 'mine.nowhere' cannot be imported"),
        (["optimizer._target_=mine.no_lr", "~optimizer.scale"], "optimizer: mine.no_lr takes no lr; it takes params"),
        (["optimizer._target_=mine.square", "~optimizer.scale"], "optimizer: mine.square takes no params, lr"),
        (["+optimizer.momentun=1"], "optimizer: mine.Signed takes no momentun"),
        (["schedule._target_=mine.nowhere"], "schedule: _target_: 'mine.nowhere' cannot be imported"),
        (["schedule._target_=mine.late", "~schedule.floor"], "schedule: mine.late takes no total; it takes step"),
        (["schedule._target_=mine.endless", "~schedule.floor"], "schedule: mine.endless gives inf at step 0"),
        (["schedule.floor=high"], "schedule: "),
        (["model._target_=mine.square"], "mine.square takes no width"),
    ],
)
def test_b10_what_does_not_fit_is_said_as_of_models_before_anything_is_trained(folder, overrides, message):
    with pytest.raises((config.ConfigError, DataError)) as caught:
        memexp.run(compose(folder, *ALL, *overrides), Path("run"))
    assert message in str(caught.value)
    assert not Path("run/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=inf"], "optimizer.lr: inf is not allowed"),
        (["~optimizer.lr"], "optimizer.lr: missing"),
        (["optimizer.weight_decay=x"], "optimizer.weight_decay: 'x' is not allowed"),
        (["dataset.val_fraction=2"], "dataset.val_fraction: 2 is not allowed"),
        (["+dataset.padding=x"], "dataset.padding: 'x' is not allowed"),
        (["schedule.warmup=-1"], "schedule.warmup: -1 is not allowed"),
        (["dataset.mean=[0.5,0.5,0.5]"], "set dataset.mean and dataset.std together"),
        (["model._target_=3"], "model._target_: 3 is not allowed; it takes a dotted path"),
        (["optimizer._target_=Adam"], "optimizer._target_: 'Adam' is not allowed; it takes a dotted path"),
        (["+backprop._target_=mine.square"], "backprop._target_: 'mine.square' is not allowed"),
        (["+precision._target_=mine.square"], "precision._target_: 'mine.square' is not allowed"),
    ],
)
def test_b10_the_runners_keys_of_an_own_option_are_checked(folder, overrides, message):
    with pytest.raises(config.ConfigError) as caught:
        compose(folder, *ALL, *overrides)
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


def test_b10_a_mandatory_key_is_asked_for(folder, tmp_path):
    (tmp_path / "conf/optimizer").mkdir(parents=True)
    (tmp_path / "conf/optimizer/bare.yaml").write_text("_target_: torch.optim.SGD\n")
    with pytest.raises(config.ConfigError) as caught:
        config.compose(["optimizer=bare"], config_dirs=[tmp_path / "conf"])
    assert caught.value.problems == ["optimizer.lr: has no value; set optimizer.lr=..."]


@pytest.mark.parametrize("lazy", [False, True])
def test_a_network_of_another_number_of_outputs_is_refused_before_data_are_read(folder, lazy, monkeypatch):
    """More outputs than classes were trained without a word, and fewer died in torch's words, as lazy layers did."""
    own = ["model=fixed", f"+model.lazy={lazy}", "dataset=mine", "max_steps=1"]
    assert memexp.run(compose(folder, *own, "+model.outputs=3"), "right")["status"] == "done"
    monkeypatch.setattr("memexp.data.load", lambda *given, **named: pytest.fail("data were read"))
    for outputs in (2, 4):
        with pytest.raises(
            ConfigError, match=rf"model: this network gives {outputs} scores an image, and .* 3 classes"
        ):
            memexp.run(compose(folder, *own, f"+model.outputs={outputs}"), "wrong")


def test_an_own_experiment_needs_no_identifier(tmp_path):
    """case.id says whose published figures stand beside the measured ones; an experiment of one's own has none."""
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(
        "# @package _global_\ncase: {rate: 0.2}\noptimizer: {lr: '${case.rate}'}\nhydra: {sweeper: {params: {seed: 0}}}\n"
    )
    typed = ["experiment=mine", "dataset=digits", "dataset.limit=20", "dataset.test_limit=10", "max_steps=1"]
    typed += ["model=resnet", "model.units=[1,1]", "model.channels=[4,4,8]", "device=cpu"]
    cfg = config.compose(typed, config_dirs=[tmp_path / "conf"])
    assert memexp.run(cfg, tmp_path / "run")["experiment"] is None
