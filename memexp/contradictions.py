"""Every problem of a configuration: key by key, and values that are allowed alone but not together. Nothing imports torch."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from memexp import sequence
from memexp.choices import ELEMENTWISE, FIRST_WEIGHTS, GROUPS, INTEGRAL, OPTIONAL, OWN, STUDIES, name_of, of_runner
from memexp.models import families
from memexp.options import Config
from memexp.pruning.settings import Settings, Target
from memexp.schema import mismatches, nearest

NODES = {field.name for field in fields(Config) if is_dataclass(field.type)}  # keys that hold keys
LONGEST_FOLDER = 255  # bytes, of every usual file system


def problems(cfg: Mapping[str, Any]) -> list[str]:
    """Every problem of a resolved configuration, each naming the key, its value and what is allowed."""
    found = list(mismatches({key: value for key, value in cfg.items() if key not in GROUPS}, Config, "", extra=GROUPS))
    sound: set[str] = set()
    for group, options in GROUPS.items():
        before = len(found)
        node = cfg.get(group)
        if node is None and group in OPTIONAL:
            pass
        elif not isinstance(node, Mapping):
            found.append(f"{group}: {node!r} is not a group option; choose one of {', '.join(options)}.")
        elif "_target_" in node:
            found.extend(_own(group, node))
        else:
            name = node.get("name")
            if not isinstance(name, str) or name not in options:
                found.append(f"{group}.name: {name!r} is not one of {', '.join(options)}.{nearest(str(name), options)}")
            else:
                found.extend(mismatches(node, options[name], f"{group}."))
        if len(found) == before:
            sound.add(group)
    plausible = {key: value for key, value in cfg.items() if _plausible(key, value)}
    for rule in RULES:
        found.extend(rule(plausible, sound))
    return found


def _plausible(key: str, value: Any) -> bool:
    """Whether the rules may look at a key: one of another kind than theirs has been told already."""
    if key == "stages":
        return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))
    return isinstance(value, Mapping) or not (key in GROUPS or key in NODES)


def _own(group: str, node: Mapping[str, Any]) -> Iterator[str]:
    """A user's own option: the keys that are the runner's; the arguments of the target are looked at when it is imported."""
    target = node["_target_"]
    if group not in OWN:
        yield f"{group}._target_: {target!r} is not allowed; an own {' | '.join(OWN)} may be named so, no {group}."
    elif not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")) or "." not in target:
        yield f"{group}._target_: {target!r} is not allowed; it takes a dotted path, such as mine.{group}."
    elif (kind := OWN[group]) is not None:
        keys = of_runner(group)
        yield from mismatches({key: node[key] for key in node if key in keys - {"_target_", "name"}}, kind, f"{group}.")


def _study(cfg: Mapping[str, Any], sound: set[str]) -> Iterator[str]:
    study = sequence.study_of(cfg)
    if study is not None and study not in STUDIES:
        yield f"case.study: {study!r} is not one of {', '.join(STUDIES)}.{nearest(str(study), STUDIES)}"
    if "model" in sound and not families.of(cfg["model"]).images and study is None:
        name = cfg["model"]["name"]
        yield f"model: {name!r} is fitted to a matrix and takes no images; use experiment=node/fig2."


def _strategy(cfg: Mapping[str, Any], sound: set[str]) -> Iterator[str]:
    if not {"model", "backprop"} <= sound:
        return
    backprop, allowed = cfg["backprop"]["name"], families.of(cfg["model"]).strategies
    if allowed is not None and backprop not in allowed:
        yield (
            f"backprop: {backprop!r} is not valid for model={cfg['model']['name']}, whose steps have no such inverse; "
            f"use {' | '.join(allowed)}."
        )
    elif backprop not in (others := families.valid(cfg["model"]) or (backprop,)):
        told = families.caution(cfg["model"], backprop)
        yield f"{told}, which has no step that can be undone; use {' | '.join(others)}."
    memory = cfg.get("memory")
    if cfg.get("cuda_graph") is True and isinstance(memory, Mapping) and memory.get("enforce") is True:
        yield (
            "memory.enforce: true holds what the allocator reserves, and cuda_graph=true reserves what its recording takes "
            "beside all else; use one of them."
        )
    if families.of(cfg["model"]).integral:
        for key, done in (("compile", "compile"), ("cuda_graph", "record")):
            if cfg.get(key) is True:
                yield (
                    f"{key}: true would {done} model={cfg['model']['name']} anew in each step, which has sizes of its own; "
                    f"use {key}=false."
                )


def _family(cfg: Mapping[str, Any], sound: set[str]) -> Iterator[str]:
    """What a family says of its settings for images of the data set's size."""
    if not {"model", "dataset"} <= sound or "_target_" in cfg["dataset"]:
        return
    size = cfg["dataset"]["image_size"]
    try:
        families.of(cfg["model"]).check(cfg["model"], (3, size, size))
    except ValueError as error:
        yield f"model: {error}"


def _dataset(cfg: Mapping[str, Any], sound: set[str]) -> Iterator[str]:
    if "dataset" not in sound:
        return
    dataset = cfg["dataset"]
    if (dataset["mean"] is None) != (dataset["std"] is None):
        yield "dataset.mean: set dataset.mean and dataset.std together, or neither."
    if "_target_" in dataset:
        return
    size, resize, padding = dataset["image_size"], dataset.get("resize_size"), dataset.get("padding", 0)
    if resize is not None and resize < size:
        yield (
            f"dataset.resize_size: {resize} is less than dataset.image_size={size}, and a crop cannot be larger than the "
            f"image it is cut from; set at least {size}, or null for {round(size * 256 / 224)}."
        )
    if padding > size // 2:
        yield f"dataset.padding: {padding} is more than half of dataset.image_size={size}; set at most {size // 2}."
    if dataset["name"] == "fashion_mnist" and dataset["image_size"] < 28:
        yield f"dataset.image_size: {dataset['image_size']} is below Fashion-MNIST's 28."


def _optimizer(cfg: Mapping[str, Any], sound: set[str]) -> Iterator[str]:
    if "optimizer" not in sound or "_target_" in cfg["optimizer"]:
        return
    if cfg["optimizer"].get("nesterov") and not cfg["optimizer"].get("momentum"):
        yield "optimizer.nesterov: true needs optimizer.momentum above 0."


def _name(cfg: Mapping[str, Any], sound: set[str]) -> Iterator[str]:
    """The name is that of a folder."""
    name = cfg.get("name")
    if not isinstance(name, str):
        return
    if not name or any(ord(character) < 32 or ord(character) == 127 for character in name):
        yield f"name: {name!r} is not allowed; it takes the name of a folder below outputs/."
    elif ".." in name.split("/"):
        yield f"name: {name!r} leads out of outputs/, where the folder of that name is made; hydra.run.dir=DIR is anywhere."
    elif max(len(part.encode(errors="replace")) for part in name.split("/")) > LONGEST_FOLDER:
        yield f"name: {name[:20]!r}... is longer than the {LONGEST_FOLDER} bytes that the name of a folder may have."


def _warm_up(cfg: Mapping[str, Any], sound: set[str]) -> Iterator[str]:
    """Where the number of steps is known; else a run looks before it trains."""
    for prefix, group in (("", "schedule"), ("tune.", "tune")):
        node = cfg.get(group)
        warmup = node.get("warmup") if isinstance(node, Mapping) else None
        steps = cfg.get("max_steps") if not prefix else node.get("max_steps") if isinstance(node, Mapping) else None
        if isinstance(steps, int) and isinstance(warmup, int | float) and warmup > max(1, steps):
            yield f"{group}.warmup: {warmup} steps are more than {prefix}max_steps={steps}; set at most that many."


def _stages(cfg: Mapping[str, Any], sound: set[str]) -> Iterator[str]:
    if cfg.get("stages") is None or isinstance(cfg["stages"], list):
        yield from sequence.problems(cfg)


def _partition(cfg: Mapping[str, Any], sound: set[str]) -> Iterator[str]:
    scratch = (cfg.get("tune") or {}).get("scratch") is True
    if scratch and isinstance(cfg.get("stages"), list | None) and "partition" in sequence.keys(cfg):
        yield "tune.scratch: true draws new weights, and partition trains the nodes of those that there are; set false."


def _start(cfg: Mapping[str, Any], sound: set[str]) -> Iterator[str]:
    if "model" not in sound or cfg.get("init_from") is None:
        return
    for key in FIRST_WEIGHTS:
        if (given := cfg["model"].get(key)) is not None and isinstance(given, str):
            yield (
                f"model.{key}: {given!r} would not be read, as this run starts from the network of "
                f"init_from={cfg['init_from']}; set one of them."
            )


def _prune(cfg: Mapping[str, Any], sound: set[str]) -> Iterator[str]:
    prune = cfg.get("prune")
    if "prune" not in sound or prune is None:
        return
    integral = "model" in sound and families.of(cfg["model"]).integral
    if prune["name"] == INTEGRAL:
        yield from _resampled(prune, integral or "model" not in sound, name_of(cfg.get("model", {})))
        return
    if integral and cfg.get("init_from") is None:
        yield (
            f"prune: {prune['name']} removes channels of a plain network, and model={name_of(cfg['model'])} is integral: "
            "choose its size with prune=integral prune.keep=0.6, and prune what is left in a run of its own, with init_from."
        )
    keys = ("ratio", "target", "scope", "floor", "order", "step")
    settings = Settings(**{key: prune[key] for key in keys})
    try:
        target = settings.check()
    except ValueError as error:
        yield f"prune.{error}"
        return
    if prune["unstructured"]:
        if prune["name"] not in ELEMENTWISE:
            yield f"prune.unstructured: {prune['name']} scores filters; single weights take {' | '.join(ELEMENTWISE)}."
        if target is not None or settings.order != "sequential":
            yield "prune.unstructured: true makes no tensor smaller, so it takes prune.ratio and no target or order."
    if prune["name"] == "random" and prune["draws"] > 1 and (prune["rounds"] > 1 or prune["unstructured"]):
        yield "prune.draws: several draws are compared after one removal of channels; set prune.rounds=1 and no unstructured."


def _resampled(prune: Mapping[str, Any], integral: bool, model: str) -> Iterator[str]:
    """prune=integral: an integral network at another size."""
    keep, target = prune["keep"], prune["target"]
    if not integral:
        yield f"prune: integral samples an integral network at another size, and model={model} is none; use model=inn."
    if (keep is None) == (target is None):
        yield f"prune.keep: {keep!r}, prune.target: {target!r}; give one of the two, such as prune.keep=0.6."
    if target is not None:
        try:
            measure = Target.parse(target).measure
        except ValueError as error:
            yield f"prune.{error}"
            return
        if measure == "latency":
            yield f"prune.target: {target!r} is not allowed for prune=integral; use params:SHARE or macs:SHARE."


def _memory(cfg: Mapping[str, Any], sound: set[str]) -> Iterator[str]:
    memory = cfg.get("memory")
    if not isinstance(memory, Mapping) or memory.get("enforce") is not True or "backprop" not in sound:
        return
    if memory.get("limit") is None and cfg["backprop"]["name"] != "budget":
        yield "memory.enforce: true needs to know the limit; set memory.limit, such as 11GB, or backprop=budget."


def _discretise(cfg: Mapping[str, Any], sound: set[str]) -> Iterator[str]:
    asked = cfg.get("discretise") or {}
    if "model" in sound and asked.get("sizes") and not families.of(cfg["model"]).integral:
        yield f"discretise.sizes: model={name_of(cfg['model'])} is not integral; use model=inn."


def _deploy(cfg: Mapping[str, Any], sound: set[str]) -> Iterator[str]:
    if cfg.get("deploy") is not None and "model" in sound and cfg["model"].get("inplace_relu") is True:
        yield "deploy: model.inplace_relu=true never loses its activations, so nothing can be fused; set one of the two only."


RULES = (
    _memory,
    _discretise,
    _start,
    _prune,
    _partition,
    _deploy,
    _study,
    _stages,
    _strategy,
    _family,
    _dataset,
    _optimizer,
    _warm_up,
    _name,
)
