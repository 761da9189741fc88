import copy

import pytest
from omegaconf import OmegaConf

from memexp import contradictions, sequence
from memexp.config import ConfigError, compose, config_hash, first_valid
from memexp.overriding import jobs


def problems(*overrides: str, **more: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, **more)
    return caught.value.problems


def test_the_default_run_is_valid():
    cfg = compose()
    assert (cfg.model.name, cfg.dataset.name) == ("revnet", "digits")
    assert cfg.epochs == cfg.dataset.epochs


def test_every_problem_comes_at_once_with_the_nearest_name():
    found = problems(
        "modl.depth=3",
        "seed=x",
        "+typo=1",
        "model=resnt",
        "schedule=cosin",
        "epochs=-1",
        "optimizer.lr=[",
        "batch_size=0",
    )
    text = "\n".join(found)
    assert len(found) == 8
    for part in (
        "modl.depth: unknown key",
        "Did you mean 'model.depth'?",
        "seed: 'x' is not allowed; it takes a whole number at least 0",
        "typo: unknown key",
        "model: 'resnt' is not one of",
        "Did you mean 'resnet'?",
        "Did you mean 'cosine'?",
        "epochs: -1 is not allowed",
        "'optimizer.lr=[' is not an override",
        "batch_size: 0 is not allowed; it takes a whole number at least 1",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs=1.5", "epochs: 1.5 is not allowed; it takes a whole number at least 1"),
        ("deterministic=3", "deterministic: 3 is not allowed; it takes true or false"),
        ("epochs=null", "epochs: None is not allowed"),
        ("epochs=???", "epochs: has no value"),
        ("label_smoothing=1.0", "at least 0 and below 1"),
        ("~seed", "seed: missing"),
        ("epochs=${nowhere}", "nowhere"),
        ("memory=3", "memory: 3 is not a node"),
        ("dataset=null", "dataset: 'None' is not one of"),
    ],
)
def test_wrong_values_are_named(override, message):
    assert message in "\n".join(problems(override))


FLOATS = (
    "optimizer.lr",
    "optimizer.weight_decay",
    "optimizer.eps",
    "schedule.flat",
    "clip_grad",
    "ema",
    "mixup",
    "memory.limit",
)
INTEGERS = ("seed", "epochs", "max_steps", "batch_size", "optimizer.lookahead.k", "model.depth")


def test_b4_numbers_that_are_not_finite_or_beyond_64_bits_are_refused():
    sound = OmegaConf.to_container(compose(["optimizer=ranger"]), resolve=True)
    inf, nan = float("inf"), float("nan")
    cases = [(key, number) for key in (*FLOATS, *INTEGERS) for number in (inf, -inf, nan, 10**400)]
    cases += [(key, number) for key in INTEGERS for number in (10**24, -(10**24), 1e24)]
    cases += [("optimizer.betas", [nan, 0.9]), ("dataset.mean", [0.5, inf, 0.5]), ("memory.limit", "1e400GB")]
    for key, number in cases:
        *groups, last = key.split(".")
        inner = node = copy.deepcopy(sound)
        for group in groups:
            inner = inner[group]
        inner[last] = number
        found = [problem for problem in contradictions.problems(node) if problem.startswith(f"{key}: ")]
        assert found, (key, number)
        assert "is not allowed; it takes" in found[0]


@pytest.mark.parametrize("override", ["optimizer.lr=inf", "optimizer.lr=1e400", "clip_grad=nan", "seed=1e24"])
def test_b4_as_they_are_typed(override):
    (problem,) = problems(override)
    assert problem.startswith(f"{override.split('=')[0]}: ")
    assert " number" in problem


def test_a_strategy_that_the_network_does_not_allow_is_refused():
    (problem,) = problems("model=vgg16", "backprop=reversible")
    assert "backprop: 'reversible'" in problem
    assert "stored" in problem
    assert "vgg16" in problem


def test_an_unknown_key_in_a_users_yaml_file_is_found(tmp_path):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("name: sgd\nlr: 0.1\nmomentun: 0.9\n")
    text = "\n".join(problems("optimizer=mine", config_dirs=[tmp_path]))
    assert "optimizer.momentun: unknown key. Did you mean 'optimizer.momentum'?" in text
    assert "optimizer.momentum: missing" in text


def test_a_users_model_is_known_by_its_target_alone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: some.where.Net\nwidth: 3\n")
    cfg = compose(["model=mine", "model.width=4"], config_dirs=[tmp_path])
    assert cfg.model.width == 4


def test_a_missing_directory_of_configs_is_named():
    assert "nowhere" in problems(config_dirs=["nowhere"])[0]


def test_a_sweep_passes_while_one_job_is_valid():
    assert first_valid(jobs(["epochs=0,1"])).epochs == 1
    with pytest.raises(ConfigError):
        first_valid(jobs(["epochs=0,-1"]))
    with pytest.raises(ConfigError):
        compose(["epochs=0,1"])


def test_the_hash_follows_values_not_spelling():
    assert config_hash(compose(["seed=0"])) == config_hash(compose())
    assert config_hash(compose(["seed=1"])) != config_hash(compose())


INTEGRAL = ["model=inn", "prune=integral", "prune.keep=0.6"]
RANDOM = ["model=resnet", "prune=random", "prune.ratio=0.3"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=revnet/table3", "scale=desktop"], "scale: 'desktop' is not allowed; it takes paper | laptop"),
        (["model=vgg16", "model.weights=nowhere.pth"], "model.weights: there is no file 'nowhere.pth'"),
        (
            ["model=inn", "model.base=resnet20", "backprop=reversible"],
            "backprop=reversible is not for model.base=resnet20",
        ),
        (["dataset.classes=[]"], "dataset.classes: [] is not allowed; it takes a list"),
        (["dataset.classes=[0,0]"], "with at least two entries, each once"),
        (["case=5"], "case: 5 is not allowed"),
        (["model=resnet,revnet"], "model: 'resnet,revnet' is several values; -m sweeps over them"),
        (["seed=range(3)"], "seed: 'range(3)' is several values"),
        (["model=[1]"], "model: [1] is a list of options; choose one"),
        (["model=[resnet,revnet]"], "sweep over them with -m model=resnet,revnet"),
        (["experiment=[revnet/table3]"], "experiment: [revnet/table3] is a list"),
        (["lr=3"], "lr: unknown key (from 'lr=3'). Did you mean 'tune.lr' or 'optimizer.lr'?"),
        (["dataset.classes=[é,a]"], "in quotes any text can stand, as in key=['a=b',c]"),
        (["model=revnet", "model.depth=20"], "is not for model.depth=20, which has no step that can be undone"),
        (
            ["model=revnet", "model.units=[1,1]", "model.channels=[8,16,32]"],
            "is not for model.units=[1, 1], which has no",
        ),
        (["="], "'=' is not an override (key=value)"),
        (["max_steps=3", "schedule.warmup=4"], "schedule.warmup: 4 steps are more than max_steps=3"),
        (["tune.max_steps=3", "tune.warmup=4"], "tune.warmup: 4 steps are more than tune.max_steps=3"),
        (
            ["schedule.warmup=1.5"],
            "schedule.warmup: 1.5 is not allowed; it takes a finite float32 number at least 0 and either whole",
        ),
        (["tune.warmup=2.5"], "tune.warmup: 2.5 is not allowed"),
        (["schedule=step", "schedule.milestones=[0.5,3.7]"], "schedule.milestones: [0.5, 3.7] is not allowed"),
        (
            ["schedule=step", "schedule.gamma=1e300"],
            "schedule.gamma: 1e+300 is not allowed; it takes a finite float32 number",
        ),
        (["distill.temperature=1e300"], "distill.temperature: 1e+300 is not allowed"),
        (["mixup=1e-300"], "mixup: 1e-300 is not allowed"),
        (
            ["prune=entropy", "prune.ratio=0.5", "prune.bins=9000000000000000000"],
            "prune.bins: 9000000000000000000 is not",
        ),
        ([f"name={'n' * 300}"], "is longer than the 255 bytes"),
        ([f"name='a/{'é' * 200}'"], "is longer than the 255 bytes"),
        (["name='a\tb'"], r"name: 'a\tb' is not allowed"),
        (["model=reducenet", "model.inplace_relu=true", "deploy=fuse"], "deploy: model.inplace_relu=true never loses"),
        ([*INTEGRAL, "stages=[train,discretise,partition]"], "stages: partition comes after discretise"),
        ([*INTEGRAL, "stages=[train,discretise,discretise]"], "stages: discretise comes after discretise"),
        ([*INTEGRAL, "prune.tune=partition", "tune.scratch=true"], "tune.scratch: true draws new weights"),
        ([*RANDOM, "prune.draws=2", "prune.unstructured=true"], "prune.draws: several draws are compared after one"),
    ],
)
def test_one_true_message(overrides, message):
    (problem,) = problems(*overrides)
    assert message in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_target_: a.b\nwidth: [1\nmore: 2\n", "mine.yaml, line 3: no YAML: "),
        ("a: 1\n b: 2\n", "mine.yaml, line 2: no YAML: "),
        ("defaults: [other]\n_target_: a.b\n", "the defaults lists of the configs lead in a circle"),
    ],
)
def test_a_users_yaml_that_is_broken_is_named_with_the_line(tmp_path, text, message):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text(text)
    (tmp_path / "model/other.yaml").write_text("defaults: [mine]\n")
    found = problems("model=mine", config_dirs=[tmp_path])
    assert len(found) == 1
    assert message in found[0]


def test_b9_a_users_directory_is_known_to_validation(tmp_path):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer/mine.yaml").write_text("_target_: some.where.Optimizer\nlr: 1\n")
    assert problems("optimizer=mine", "optimizer.lrr=3", config_dirs=[tmp_path]) == [
        "optimizer.lrr: unknown key (from 'optimizer.lrr=3'). Did you mean 'optimizer.lr'?"
    ]
    (text,) = problems("optimizer=mien", config_dirs=[tmp_path])
    assert "mine" in text
    assert "Did you mean 'mine'?" in text


KINDS = [3, "x", True, [], [[1]], {}, {"a": 1}, {1: 2}]
WHOLE = {
    "pruned": ["prune=l1_norm", "prune.ratio=0.5", "deploy=fuse", "stages=[train,prune,deploy]"],
    "integral": ["model=inn", "model.base=resnet20", "prune=integral", "prune.keep=0.5", "discretise.sizes=[1]"],
}


@pytest.mark.parametrize("base", WHOLE)
def test_a_value_of_another_kind_is_a_problem_of_its_key_and_no_fault_of_ours(base):
    sound = OmegaConf.to_container(compose(WHOLE[base]), resolve=True)
    nodes = [(key,) for key in sound] + [(key, "name") for key, node in sound.items() if isinstance(node, dict)]
    for *groups, last in nodes:
        for value in KINDS:
            inner = changed = copy.deepcopy(sound)
            for group in groups:
                inner = inner[group]
            inner[last] = value
            found = contradictions.problems(changed)
            told = ".".join([*groups, last])
            if isinstance(sound.get(last), dict) and not isinstance(value, dict) and last != "case":
                assert any(problem.startswith(told) for problem in found), (told, value)
    for stages in (3, "train", [[1]], [None], [1]):
        assert contradictions.problems(sound | {"stages": stages})[0].startswith("stages: ")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["prune=l1_norm", "prune.ratio=0.5", "deploy=fuse", "stages=[train,evaluate]"],
            ["prune=l1_norm", "deploy=fuse"],
        ),
        (["prune=l1_norm", "prune.ratio=0.5", "stages=[train,prune,evaluate]"], []),
        (["prune=l1_norm", "prune.ratio=0.5", "deploy=fuse"], []),
        (["model=inn", "model.base=resnet8", "discretise.sizes=[0.5]", "stages=[train]"], ["discretise.sizes=[0.5]"]),
        (["prune=snip", "prune.ratio=0.5", "tune.scratch=true"], ["tune.scratch=true"]),
    ],
)
def test_what_no_stage_carries_out_is_told(overrides, told):
    assert sequence.unused(compose(overrides)) == told
