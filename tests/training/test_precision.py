"""What a precision is called is how numbers are rounded, whatever the process did before (case D10)."""

import pytest
import torch

import memexp
from memexp.config import ConfigError
from memexp.training.precision import Precision

BACKENDS = torch.backends
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def before_all():
    BACKENDS.fp32_precision = "tf32"


def before_convolutions():
    BACKENDS.cudnn.conv.fp32_precision = "tf32"
    BACKENDS.cudnn.rnn.fp32_precision = "ieee"


def before_legacy():
    BACKENDS.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")


def before_cpu():
    BACKENDS.mkldnn.conv.fp32_precision = "bf16"
    BACKENDS.mkldnn.fp32_precision = "bf16"


@pytest.fixture(autouse=True)
def clean():
    yield
    Precision("fp32", CPU).set_up()


@pytest.fixture
def ampere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H100")


@pytest.mark.parametrize("before", [lambda: None, before_all, before_convolutions, before_legacy, before_cpu])
@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16", "tf32"])
def test_d10_float32_is_what_the_precision_says(ampere, before, name):
    before()
    Precision(name, CUDA if name == "tf32" else CPU).set_up()
    expected = {"tf32"} if name == "tf32" else {"ieee", "none"}
    assert {BACKENDS.cudnn.conv.fp32_precision, BACKENDS.cudnn.rnn.fp32_precision} <= expected
    assert BACKENDS.cuda.matmul.fp32_precision in expected
    assert BACKENDS.mkldnn.matmul.fp32_precision in expected
    assert BACKENDS.mkldnn.conv.fp32_precision == BACKENDS.fp32_precision == BACKENDS.cudnn.fp32_precision == "none"
    assert BACKENDS.cudnn.allow_tf32 is BACKENDS.cuda.matmul.allow_tf32 is (name == "tf32")  # torch.compile reads these
    with BACKENDS.cudnn.flags(enabled=True):  # refused by torch where the old and the new flags differ
        pass


def test_d10_tf32_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    for device in (CPU, CUDA):
        with pytest.raises(ValueError, match=f"precision: 'tf32' needs an NVIDIA GPU of Ampere or later, not {device}"):
            Precision("tf32", device).set_up()


def test_d10_it_is_recorded(ampere):
    Precision("fp32", CPU).set_up()
    ieee = {"matmul": "ieee", "convolution": "ieee"}
    assert Precision("fp32", CPU).record() == {"precision": "fp32", "float32": ieee}
    precision = Precision("tf32", CUDA)
    precision.set_up()
    found = precision.record()
    assert found["float32"] == {"matmul": "tf32", "convolution": "tf32"}
    assert (found["gpu"], found["capability"]) == ("NVIDIA H100", "9.0")
    assert {"cuda", "cudnn"} <= found.keys()


def test_tf32_is_an_option_of_the_configuration_and_estimated_as_float32(tmp_path):
    overrides = ["model=resnet", "model.depth=8", "dataset=synthetic", "dataset.image_size=8", "batch_size=2"]
    reports = [memexp.estimate(memexp.compose([*overrides, f"precision={name}"])) for name in ("fp32", "tf32")]
    assert reports[0] == reports[1]
    with pytest.raises(ConfigError, match="precision: 'tf32' needs an NVIDIA GPU"):
        memexp.run(memexp.compose([*overrides, "precision=tf32", "device=cpu"]), tmp_path)
