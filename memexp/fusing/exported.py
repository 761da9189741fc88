"""A network as files for other programs: ONNX, checked by onnxruntime, and a torch.export program. Any batch size.

Both come from one torch.export capture. Class names and preprocessing travel with them as JSON: in ONNX's metadata under
"classes" and "preprocessing", in the .pt2 file as the extra files classes.json and preprocessing.json.
"""

import copy
import importlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memexp.fusing.flow import refuse_training
from memexp.fusing.fused import fuse

SUFFIXES = (".onnx", ".pt2")
BATCHES = (1, 3, 64)
BOUND = 1e-4
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

    example_input: (n, ...) real images as the network takes them. classes: names in the order of its outputs. preprocessing:
    plain data, such as size, mean and std. merge: how it is fused first (memexp.fusing.fuse); None leaves it as it is.
    Returns {"files": {suffix: path}, "error": {suffix: largest difference at batch 1, 3 and 64, of the largest output},
    "fused": fuse's error or None, "edits": fuse's edits}.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing and an .onnx file is asked for; before anything is done.
        ValueError: a module is in train mode; the network cannot be fused; class names are not as many as its outputs.
        ExportError: torch cannot capture it, or the file's outputs differ by more than 1e-4; no file is left.
    """
    path = Path(path)
    suffixes = [path.suffix] if path.suffix in SUFFIXES else list(SUFFIXES)
    stem = path.with_suffix("") if path.suffix in SUFFIXES else path
    if ".onnx" in suffixes:
        _require()
    refuse_training(network)
    fused = None if merge is None else fuse(network, example_input, merge)
    deployed = (copy.deepcopy(network) if fused is None else fused.network).cpu().requires_grad_(False)
    images = example_input.detach().cpu()
    with torch.no_grad():
        outputs = deployed(images)
    if classes and (not isinstance(outputs, Tensor) or len(classes) != outputs.shape[-1]):
        raise ValueError(f"classes: {len(classes)} names for outputs of shape {tuple(outputs.shape)}")
    notes = {"classes": json.dumps(list(classes)), "preprocessing": json.dumps(dict(preprocessing or {}))}
    program = _captured(deployed, _batch(images, 3))
    error: dict[str, float] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{stem.name}-") as aside:
        written = [Path(aside) / (stem.name + suffix) for suffix in suffixes]
        for file in written:
            run = _onnx(program, file, notes) if file.suffix == ".onnx" else _pt2(program, file, notes)
            error[file.suffix] = _compared(deployed, run, images, file.suffix)
        for file in sorted(Path(aside).iterdir()):  # large weights may lie beside an .onnx file
            os.replace(file, path.parent / file.name)
    return {
        "files": {suffix: str(path.parent / (stem.name + suffix)) for suffix in suffixes},
        "error": error,
        "fused": None if fused is None else fused.error,
        "edits": [] if fused is None else fused.edits,
    }


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


def _batch(images: Tensor, size: int) -> Tensor:
    return images[torch.arange(size) % len(images)].contiguous()


def _captured(network: nn.Module, images: Tensor) -> Any:
    batch = torch.export.Dim("batch", min=1)
    try:
        return torch.export.export(network, (images,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:  # of many kinds, all of which say that this network cannot be captured
        raise ExportError(f"torch.export cannot capture this network for any batch size: {error}") from error


def _pt2(program: Any, file: Path, notes: Mapping[str, str]) -> Any:
    with warnings.catch_warnings():  # weights that share memory are saved whole; it warns as if something were missing
        warnings.filterwarnings("ignore", message="No complete tensor found")
        archive = io.BytesIO()  # torch's own writer ends the whole process where a disk is full
        torch.export.save(program, archive, extra_files={f"{name}.json": text for name, text in notes.items()})
        file.write_bytes(archive.getvalue())
    return torch.export.load(file).module()


def _onnx(program: Any, file: Path, notes: Mapping[str, str]) -> Any:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    exported = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["images"], output_names=["scores"])
    assert exported is not None
    exported.model.metadata_props.update(notes)
    exported.save(str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

    return run


@torch.no_grad()
def _compared(network: nn.Module, run: Any, images: Tensor, suffix: str) -> float:
    """Largest difference over the batch sizes, relative to the largest output."""
    worst = 0.0
    for size in BATCHES:
        batch = _batch(images, size)
        expected = network(batch)
        try:
            found = run(batch)
        except Exception as error:  # the runtime's own kinds
            raise ExportError(f"the {suffix} file does not run at batch size {size}: {error}") from error
        error_ = float((found - expected).abs().max() / expected.abs().max())
        if not error_ <= BOUND:
            raise ExportError(
                f"the {suffix} file's outputs differ from the network's by {error_:.1e} of the largest at batch size {size}, "
                f"and {BOUND:g} is allowed"
            )
        worst = max(worst, error_)
    return worst
