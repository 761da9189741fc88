"""A network as files for other programs: ONNX, checked by onnxruntime, and a torch.export program. Any batch size.

Both come from one torch.export capture. Class names and preprocessing travel with them as JSON: in ONNX's metadata under
"classes" and "preprocessing", in the .pt2 file as the extra files classes.json and preprocessing.json.
"""

import importlib
import inspect
import io
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from memexp.channels.comparing import difference
from memexp.channels.hooked import duplicate
from memexp.channels.tensors import check_values
from memexp.fusing.flow import refuse_training
from memexp.fusing.fused import BOUNDS, fuse, has_fields, opened, outputs

SUFFIXES = (".onnx", ".pt2")
BATCHES = (1, 3, 64)
BOUND = 1e-4
Run = Callable[[Tensor], list[Tensor]]
INPUT = "images"  # the name of what an .onnx file takes
NEEDED = ("onnx", "onnxscript", "onnxruntime")


class ExportError(ValueError):
    """The network cannot be exported, or what was exported does not compute what it does."""


def export(
    network: nn.Module,
    example_input: Tensor,
    path: str | Path,
    *,
    classes: Sequence[str] = (),
    preprocessing: Mapping[str, Any] | None = None,
    merge: str | None = "block",
) -> dict[str, Any]:
    """Writes path.onnx and path.pt2, or one of them if `path` has that suffix, and says what was found when they were checked.

    example_input: (n, ...) real images as the network takes them. classes: names in the order of its (first) output's channels,
    which are dimension 1, or the last of a sequence's (n, length, channels). preprocessing: plain data, such as size, mean and
    std. merge: how it is fused first (memexp.fusing.fuse); None leaves it as it is.
    Of a network that gives several tensors all are compared; in ONNX one alone is named scores, those of a tuple or list
    scores_0, scores_1, ..., those of a dict by their keys ("images", which is the input, as images_). In the files a
    dataclass or named tuple is a dict of its fields, as they need none of its code.
    Returns {"files": {suffix: path}, "error": {suffix: largest difference at batch 1, 3 and 64, of the largest output},
    "fused": fuse's error or None, "edits": fuse's edits}.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing and an .onnx file is asked for; before anything is done.
        ValueError: a module is in train mode; the network cannot be fused; it is integral; it takes other than one tensor, or
            gives other than tensors; class names are not as many as its channels.
        ExportError: torch cannot capture it, onnxruntime cannot run it, or the file's outputs differ by more than 1e-4 (in
            float16 1e-2, in bfloat16 8e-2, whole numbers and truth values at all); no file is left.
    """
    path = Path(path)
    suffixes = [path.suffix] if path.suffix in SUFFIXES else list(SUFFIXES)
    stem = path.with_suffix("") if path.suffix in SUFFIXES else path
    if ".onnx" in suffixes:
        _require()
    if not isinstance(example_input, Tensor):
        raise ValueError(
            f"example_input is a {type(example_input).__name__}, and networks of one tensor are exported: put this one into a "
            "module that takes one"
        )
    refuse_training(network)
    check_values(network)
    _refuse_integral(network)
    fused = None if merge is None else fuse(network, example_input, merge)
    deployed = (duplicate(network) if fused is None else fused.network).cpu().requires_grad_(False)
    images = example_input.detach().cpu()
    with torch.no_grad():
        if any(map(has_fields, tree_leaves(deployed(images.clone()), is_leaf=has_fields))):
            deployed = _Opened(deployed).eval()
        given = outputs(deployed, images)
    if not given:
        raise ValueError(f"{type(network).__name__} gives no tensor, so there is nothing to export")
    _check_classes(classes, next(iter(given.values())).shape)
    notes = {"classes": json.dumps(list(classes)), "preprocessing": json.dumps(dict(preprocessing or {}))}
    program = _captured(deployed, _batch(images, 3))
    error: dict[str, float] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{stem.name}-") as aside:
        written = [Path(aside) / (stem.name + suffix) for suffix in suffixes]
        for file in written:
            run = _onnx(program, file, notes, list(given)) if file.suffix == ".onnx" else _pt2(program, file, notes)
            error[file.suffix] = _compared(deployed, run, images, file.suffix)
        for file in sorted(Path(aside).iterdir()):  # large weights may lie beside an .onnx file
            os.replace(file, path.parent / file.name)
    return {
        "files": {suffix: str(path.parent / (stem.name + suffix)) for suffix in suffixes},
        "error": error,
        "fused": None if fused is None else fused.error,
        "edits": [] if fused is None else fused.edits,
    }


class _Opened(nn.Module):
    """A network that gives dicts where it gave dataclasses or named tuples, which a file would need their code for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return opened(self.network(images))


def _require() -> None:
    missing = []
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ImportError(
            f"export to ONNX needs {', '.join(missing)}: pip install {' '.join(missing)}, or export to a path that ends in .pt2"
        )


def _refuse_integral(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if hasattr(module, "become_discrete"):
            raise ValueError(
                f"{name or 'the network'} is integral, and its layers are sampled anew in each call: discretise it first, and "
                "export the plain network that discretize(size) gives"
            )


def _check_classes(classes: Sequence[str], shape: torch.Size) -> None:
    channels = {1: [], 2: [1], 3: [1, 2]}.get(len(shape), [1])
    if classes and not any(len(classes) == shape[dim] for dim in channels):
        found = " or ".join(str(shape[dim]) for dim in channels) or "no"
        raise ValueError(
            f"classes: {len(classes)} names for outputs of shape {tuple(shape)}, which have {found} channels: give one "
            "name for each, or leave classes out"
        )


def _batch(images: Tensor, size: int) -> Tensor:
    return images[torch.arange(size) % len(images)].contiguous()


def _captured(network: nn.Module, images: Tensor) -> Any:
    first = next(iter(inspect.signature(network.forward).parameters.values()))
    free = {0: torch.export.Dim("batch", min=1)}
    shapes = ((free,),) if first.kind is first.VAR_POSITIONAL else (free,)  # forward(self, *inputs): of all in one
    try:
        return torch.export.export(network, (images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # of many kinds, all of which say that this network cannot be captured
        size = "; its forward makes the batch size a number: write x.shape[0] or -1 in place of len(x) or int(...)"
        hint = size if "specialized" in str(error) else ""
        raise ExportError(
            f"torch.export cannot capture this network for any batch size: {_cause(error)}{hint}"
        ) from error


def _pt2(program: Any, file: Path, notes: Mapping[str, str]) -> Run:
    with warnings.catch_warnings():  # weights that share memory are saved whole; it warns as if something were missing
        warnings.filterwarnings("ignore", message="No complete tensor found")
        archive = io.BytesIO()  # torch's own writer ends the whole process where a disk is full
        try:
            torch.export.save(program, archive, extra_files={f"{name}.json": text for name, text in notes.items()})
        except Exception as error:  # of many kinds, such as for a namedtuple that is not registered
            raise ExportError(f"torch.export cannot write this network: {_cause(error)}") from error
        file.write_bytes(archive.getvalue())
    loaded = torch.export.load(file).module()
    return lambda images: list(outputs(loaded, images).values())


def _onnx(program: Any, file: Path, notes: Mapping[str, str], names: Sequence[str]) -> Run:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    names = [_another(name, {INPUT, *names}) if name == INPUT else name for name in names]
    try:
        exported = torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT], output_names=names)
    except Exception as error:  # of many kinds
        raise ExportError(
            f"torch.onnx cannot write this network: {_cause(error)}; a path that ends in .pt2 needs no ONNX"
        ) from error
    assert exported is not None
    _set_apart(exported.model.graph, names)
    exported.model.metadata_props.update(notes)
    exported.save(str(file))
    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own kinds
        raise ExportError(
            f"onnxruntime cannot run the .onnx file: {error}; it has few layers in other types than float32: export "
            "network.float(), or to a path that ends in .pt2"
        ) from error
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(found) for found in session.run(names, {name: images.numpy()})]

    return run


def _cause(error: BaseException) -> str:
    """What went wrong first, and the line of code where it did, without advice for who develops torch."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    first = re.split(r"\n|\. Failure message|! For more information", text)[0].strip() or type(error).__name__
    if reason := re.search(r"^  - (.+?)(\. |$)", text, re.M):  # of a constraint on the batch size
        first = f"{first}: {reason[1]}"
    where = re.search(r'File "(.+)", line (\d+), in', text)
    return f"{first} ({where[1]}, line {where[2]})" if where else first


def _set_apart(graph: Any, names: Sequence[str]) -> None:
    """What lies within, a weight too, takes another name where an output has its own: in ONNX each name is there once."""
    outputs = {id(value) for value in graph.outputs}
    inner = [*(value for node in graph for value in node.outputs), *graph.initializers.values()]
    used = {*names, *(value.name for value in inner)}
    for value in inner:
        if value.name in names and id(value) not in outputs:
            value.name = _another(value.name, used)
            used.add(value.name)


def _another(name: str, used: Collection[str]) -> str:
    """The name with as many lines behind it as make it one that is not used."""
    while name in used:
        name += "_"
    return name


@torch.no_grad()
def _compared(network: nn.Module, run: Run, images: Tensor, suffix: str) -> float:
    """Largest difference over the batch sizes, relative to the largest output."""
    worst = 0.0
    for size in BATCHES:
        batch = _batch(images, size)
        expected = outputs(network, batch)
        try:
            found = run(batch.clone())
        except Exception as error:  # the runtime's own kinds
            raise ExportError(f"the {suffix} file does not run at batch size {size}: {error}") from error
        for (name, x), y in zip(expected.items(), found, strict=True):
            if (x.shape, x.dtype) != (y.shape, y.dtype):
                raise ExportError(
                    f"the {suffix} file gives {name} of shape {tuple(y.shape)} and type {y.dtype} at batch size {size}, the "
                    f"network {tuple(x.shape)} and {x.dtype}: what it gives depends on more than the batch size"
                )
            # numbers of 16 bits may round as far as fusing allows
            bound = max(BOUND, BOUNDS.get(x.real.dtype, 0.0)) if x.real.is_floating_point() else 0.0
            error_ = difference(y, x)
            if not error_ <= bound:
                raise ExportError(
                    f"the {suffix} file's {name} differs from the network's by {error_:.1e} of the largest at batch size "
                    f"{size}, and {bound:g} is allowed in {x.dtype}"
                )
            worst = max(worst, error_)
    return worst
