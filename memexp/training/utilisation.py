"""Model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B): what a training step has to compute, by the time it takes,
as a share of what the device can. What a strategy computes again is no part of it, so that strategies can be compared.
"""

# Peak of dense arithmetic in 10^12 FLOPs a second, from NVIDIA's data sheets: (fp32, tf32, bf16 and fp16).
# The first name that the device's own contains counts.
PEAKS: tuple[tuple[str, tuple[float, float | None, float]], ...] = (
    ("H100 PCIe", (51.0, 378.0, 756.0)),
    ("H100 NVL", (60.0, 417.5, 835.0)),
    ("H200 NVL", (60.0, 417.5, 835.0)),
    ("H200", (67.0, 494.5, 989.0)),
    ("H100", (67.0, 494.5, 989.0)),
    ("A100", (19.5, 156.0, 312.0)),
    ("L40S", (91.6, 183.0, 362.0)),
    ("V100", (15.7, None, 125.0)),
)
IDLE = 0.05  # utilisation below which steps are likely to wait for the CPU, which launches their kernels
BACKWARD = 2  # forward passes that a backward pass is worth


def peak(name: str, precision: str) -> float | None:
    """FLOPs a second of the device called `name` at most, in this precision; None where they are not known."""
    if "V100" in name and precision == "bf16":
        return None  # it has no such arithmetic
    if "MIG" in name:
        return None  # a part of a GPU, whose share is not in its name alone
    place = {"fp32": 0, "tf32": 1, "bf16": 2, "fp16": 2}.get(precision)
    found = next((peaks for part, peaks in PEAKS if part in name), None)
    value = None if found is None or place is None else found[place]
    return None if value is None else value * 1e12


def utilisation(macs: float, images_per_second: float, peak: float | None) -> float | None:
    """The share, in 0..1. macs: of one image's forward pass; a multiplication and an addition are two FLOPs."""
    return None if peak is None else 2 * macs * (1 + BACKWARD) * images_per_second / peak


def advice(share: float | None, recordable: bool) -> str | None:
    """What a run may be told that hardly used its GPU. recordable: whether its steps could be recorded, and are not."""
    if share is None or share >= IDLE or not recordable:
        return None
    return (
        f"the GPU did {100 * share:.1f} % of the arithmetic that it can do: steps as small as these wait for the CPU, which "
        "launches their kernels one by one; cuda_graph=true records them once and replays them"
    )
