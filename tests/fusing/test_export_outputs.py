"""Whatever tensors a network gives, each is named in the file and compared; what cannot be exported is said in one sentence."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp import fusing, integral

Pair = namedtuple("Pair", "a b")


@dataclass
class Scores:
    y: Tensor


class Opaque:
    def __init__(self, y: Tensor) -> None:
        self.y = y


class Net(nn.Module):
    def __init__(self, gives) -> None:
        super().__init__()
        self.c, self.scale, self.gives = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(torch.ones(4, 1, 1)), gives

    def forward(self, x: Tensor):
        return self.gives(self.c(x) * self.scale)


OUTPUTS = {
    "tuple": (lambda y: (y, y.mean((2, 3))), ["scores_0", "scores_1"]),
    "tuple of one": (lambda y: (y,), ["scores_0"]),
    "list": (lambda y: [y, y.sum()], ["scores_0", "scores_1"]),
    "dict": (lambda y: {"out": y, "aux": y * 2}, ["out", "aux"]),
    "nested": (lambda y: {"a": (y, y + 1), "b": [y]}, ["a_0", "a_1", "b_0"]),
    "a dataclass": (lambda y: Scores(y), ["y"]),
    "a named tuple": (lambda y: Pair(y, y * 2), ["a", "b"]),
    "named within others": (
        lambda y: (y, {"c": Pair(Scores(y + 1), y * 2)}),
        ["scores_0", "scores_1_c_a_y", "scores_1_c_b"],
    ),
    "the same name twice": (lambda y: {"a_0": y, "a": [y * 2]}, ["a_0", "a_0_"]),
    "the input's name": (lambda y: {"images": y, "images_": y + 1}, ["images__", "images_"]),
    "names within": (lambda y: {"scale": y, "conv2d": y + 1, "mul": [y * 2]}, ["scale", "conv2d", "mul_0"]),
    "truth values": (lambda y: y > 0, ["scores"]),
    "whole numbers": (lambda y: y.argmax(1), ["scores"]),
    "zeros": (lambda y: y * 0, ["scores"]),
    "zeros beside others": (lambda y: (y * 0, y), ["scores_0", "scores_1"]),
    "infinities": (lambda y: y.masked_fill(y < 0, -torch.inf), ["scores"]),
}


def export(gives, path, **options):
    torch.manual_seed(0)
    return fusing.export(Net(gives).eval(), torch.randn(2, 3, 6, 8), path, **options)


@pytest.mark.parametrize("case", OUTPUTS)
def test_every_output_is_named_and_compared(case, tmp_path):
    import onnxruntime

    gives, names = OUTPUTS[case]
    report = export(gives, tmp_path / "net")
    assert set(report["error"]) == {".onnx", ".pt2"}
    assert max(report["error"].values()) <= 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == names


WRONG = {
    "the second of a tuple": lambda y, n: (y, y + 1e-3 * n),
    "one of a dict": lambda y, n: {"a": y, "b": y + 1e-3 * n},
    "truth values": lambda y, n: (y + n) > 0,
    "large whole numbers": lambda y, n: (y * 0).long() + 10**6 + int(n),
    "zeros": lambda y, n: y * 0 + n,
    "the shape": lambda y, n: y.mean(0, keepdim=True) if n else y,
    "infinities": lambda y, n: y - torch.inf * n if n else y,
}


@pytest.mark.parametrize("case", WRONG)
def test_an_output_that_differs_in_the_file_is_refused(case, tmp_path, monkeypatch):
    from memexp.fusing import exported

    now = {"n": 1.0}
    captured = exported._captured

    def other(*args):  # what is written is another network than what it is compared with
        program = captured(*args)
        now["n"] = 0.0
        return program

    monkeypatch.setattr(exported, "_captured", other)
    with pytest.raises(fusing.ExportError, match=r"differs from the network's by|of shape"):
        export(lambda y: WRONG[case](y, now["n"]), tmp_path / "net.pt2", merge=None)
    assert list(tmp_path.iterdir()) == []


CHANNELS = {  # outputs, numbers of names that fit, and that do not
    "scores": (lambda y: y.mean((2, 3)), [4], [3]),
    "segmentation": (lambda y: y, [4], [6, 8]),
    "the first of several": (lambda y: {"out": y, "aux": y[:, :3]}, [4], [3, 8]),
    "a sequence": (lambda y: y.flatten(2).transpose(1, 2), [4], [8]),
    "one number each": (lambda y: y.mean((1, 2, 3)), [], [1, 2]),
}


@pytest.mark.parametrize("case", CHANNELS)
def test_class_names_are_those_of_the_channels(case, tmp_path):
    gives, fit, unfit = CHANNELS[case]
    for count in fit:
        export(gives, tmp_path / "net.pt2", classes=["a"] * count)
    for count in unfit:
        with pytest.raises(ValueError, match=f"{count} names for outputs of shape .* channels: give one name for each"):
            export(gives, tmp_path / "other.pt2", classes=["a"] * count)


REFUSED = {
    "a class of one's own": (Opaque, ".pt2", "scores is a Opaque, whose tensors cannot be compared"),
    "a number": (lambda y: (y, 3), ".onnx", "torch.onnx cannot write this network"),
    "nothing": (lambda y: (), ".pt2", "gives no tensor"),
    "what ONNX has not": (
        lambda y: functional.adaptive_max_pool2d(y, 5),
        ".onnx",
        "No ONNX function found for .*max_pool2d",
    ),
    "what values decide": (
        lambda y: y[: 2 if y.sum() > 0 else 1],
        ".pt2",
        r"data-dependent .*test_export_outputs.py, line",
    ),
    "a bounded batch": (
        lambda y: y if y.shape[0] < 10 else -y,
        ".pt2",
        r"violated \(batch\): Not all .*guard .* <= 9$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_outputs_that_cannot_be_exported_are_refused(case, tmp_path):
    gives, suffix, message = REFUSED[case]
    with pytest.raises((ValueError, fusing.ExportError), match=message) as told:
        export(gives, tmp_path / f"net{suffix}")
    assert not {"\n", "\x1b"} & set(str(told.value))  # torch's own are reports of many lines
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_type_that_onnxruntime_has_not_is_said(dtype, tmp_path):
    network, x = Net(lambda y: y).eval().to(dtype), torch.randn(2, 3, 6, 8, dtype=dtype)
    with pytest.raises(fusing.ExportError, match=r"onnxruntime cannot run .* export network\.float\(\), or to a path"):
        fusing.export(network, x, tmp_path / "net")
    assert fusing.export(network, x, tmp_path / "net.pt2")["error"][".pt2"] <= 1e-4


def test_an_integral_network_and_several_inputs_are_refused(tmp_path):
    x = torch.randn(2, 4)
    whole = integral.convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), x)
    for network in (whole.eval(), nn.Sequential(whole).eval()):
        with pytest.raises(ValueError, match="discretise it first"):
            fusing.export(network, x, tmp_path / "net.pt2")
    assert fusing.export(whole.discretize(0.5).eval(), x, tmp_path / "net.pt2")["error"][".pt2"] <= 1e-4
    with pytest.raises(ValueError, match="example_input is a tuple"):
        fusing.export(whole, (x,), tmp_path / "net.pt2")


def test_numbers_of_16_bits_may_round(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3)).half().eval()
    report = fusing.export(network, torch.randn(2, 3, 8, 8).half(), tmp_path / "net")
    assert 1e-4 < report["error"][".onnx"] < 1e-2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.pt2"]


def test_a_network_that_takes_any_number_of_inputs(tmp_path):
    torch.manual_seed(0)
    network = torch.optim.swa_utils.AveragedModel(
        Net(lambda y: y.mean((2, 3)))
    ).eval()  # forward(self, *args, **kwargs)
    assert fusing.export(network, torch.randn(2, 3, 6, 8), tmp_path / "net.pt2")["error"] == {".pt2": 0.0}


def test_a_batch_size_that_is_made_a_number_is_said(tmp_path):
    with pytest.raises(fusing.ExportError, match=r"write x.shape\[0\] or -1 in place of len\(x\)"):
        export(lambda y: y.reshape(len(y), -1), tmp_path / "net.pt2")
