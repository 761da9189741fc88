"""Settings that nothing reads beside others: a run that is given one is told so, and in no table does it set runs apart."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memexp.choices import UNDOING
from memexp.sequence import keys, recipe_of, stage_of

# What training alone reads, and of that what an average has part in, as an evaluation in the middle of a stage takes it.
TRAINS = "schedule optimizer.lr clip_grad label_smoothing mixup cutmix sync_batchnorm compile cuda_graph log_every"
TRAINS += (
    " evaluate_every checkpoint_every monitor_every monitor_gradient memory profile report name arm scale overwrite"
)
AVERAGES = "optimizer ema epochs max_steps accumulate precise_batchnorm"


def unread(cfg: Mapping[str, Any]) -> dict[str, str]:
    """The dotted keys of a configuration that nothing reads -> why. The record of an earlier version may lack some."""
    return dict(_unread(cfg))


def typed(cfg: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Of what was typed, in words."""
    found = unread(cfg)
    asked = dict.fromkeys(text.partition("=")[0].lstrip("+") for text in overrides)
    return [f"{key} has no effect: {found[key]}" for key in asked if key in found]


def evaluated(overrides: Sequence[str], ended: bool) -> list[str]:
    """Of what was typed where a network is only evaluated or exported, in words. ended: it stands in the middle of no stage."""
    nothing = [*TRAINS.split(), *(AVERAGES.split() if ended else ())]
    asked = dict.fromkeys(text.partition("=")[0].lstrip("+~") for text in overrides)
    return [
        f"{key} has no effect: only training reads it, and nothing is trained here"
        for key in asked
        if key in nothing or any(key.startswith(f"{group}.") for group in nothing)
    ]


def _unread(cfg: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    model, optimizer, backprop = (_node(cfg, group) for group in ("model", "optimizer", "backprop"))
    if "_target_" not in model and model.get("units") is not None:
        yield "model.depth", f"model.units={model['units']} says how deep the network is"
    dataset = _node(cfg, "dataset")
    if dataset and not any(dataset.get(key) for key in ("limit", "test_limit", "val_fraction")):
        yield "dataset.draw", "all images are taken (no dataset.limit, test_limit or val_fraction)"
    if _node(optimizer, "lookahead").get("k") is None:
        for name in ("lookahead.alpha", "evaluate_slow"):
            yield f"optimizer.{name}", "there is no Lookahead (optimizer.lookahead.k=null)"
    if not optimizer.get("gradient_centralization"):
        for name in ("centralize", "conv_only"):
            yield f"optimizer.{name}", "optimizer.gradient_centralization is false"
    if not backprop.get("exact"):
        yield "backprop.exact_bits", "backprop.exact is false"
    if backprop.get("name") not in UNDOING:
        for name in ("monitor_every", "monitor_gradient"):
            yield name, f"backprop={backprop.get('name')} undoes no steps, and has no figures to be read"
    elif cfg.get("monitor_every") == 0:
        yield "monitor_gradient", "monitor_every is 0"
    if not _node(cfg, "report").get("tsne"):
        yield "report.tsne_epochs", "report.tsne is false"
    if _node(cfg, "distill").get("teacher") is None:
        for name in ("alpha", "temperature"):
            yield f"distill.{name}", "there is no distill.teacher"
    try:
        stages = [str(key) for key in keys(cfg)]
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):  # of a stranger's record
        return
    if "tune" not in map(recipe_of, stages):
        for name in _node(cfg, "tune"):
            yield f"tune.{name}", f"this run has the stages {', '.join(stages)}"
    if "grow" not in map(stage_of, stages):
        yield "grow.expansion", f"this run has the stages {', '.join(stages)}"


def _node(cfg: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    node = cfg.get(key)
    return node if isinstance(node, Mapping) else {}
