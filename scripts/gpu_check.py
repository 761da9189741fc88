"""What memexp does on a GPU, part by part: measured, expected, verdict. Without one, the parts that need none are done on an
accelerator that is emulated on the CPU (emulated_accelerator.py), and nothing is said of times.

    python scripts/gpu_check.py [OUT] [--parts placement,memory,...] [--small]

Each part has a box of time; one that fails or runs over writes its row and the next goes on. Writes gpu_check.json and
gpu_check.md to OUT (outputs/gpu_check). Exit status 1 if a verdict is "wrong" or "failed".
"""

import argparse
import gc
import json
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import torch
from gpu_parts import drift, exact, launches, limits, memory, placement, resuming, waiting
from gpu_times import budgets, peers, pixels, through_a_compiler, times
from gpu_training import GPU, Row


@dataclass
class Part:
    carry_out: Callable[[bool], Iterator[Row]]
    seconds: int
    needs_gpu: bool = False


PARTS = {
    "placement": Part(placement, 70),
    "memory": Part(memory, 40),
    "exact": Part(exact, 50),
    "drift": Part(drift, 10),
    "resuming": Part(resuming, 30),
    "waiting": Part(waiting, 20),
    "launches": Part(launches, 20),
    "limits": Part(limits, 20, needs_gpu=True),
    "times": Part(times, 70, needs_gpu=True),
    "pixels": Part(pixels, 40, needs_gpu=True),
    "peers": Part(peers, 60, needs_gpu=True),
    "compiled": Part(through_a_compiler, 150, needs_gpu=True),
    "budgets": Part(budgets, 150, needs_gpu=True),
}
WHOLE = 540  # seconds of a GPU for all of it; a part that is done early leaves its time to those after it


class OverTime(BaseException):  # nothing that is carried out is to take it for an error of its own
    """A part has used up its box of time."""


def boxed(name: str, part: Part, small: bool, left: float = WHOLE) -> Iterator[Row]:
    """The rows of a part, and one of how it ended if that was not its end. left: seconds for it and all after it."""

    def over(*_: Any) -> None:
        raise OverTime

    gc.collect()  # no part pays for another's networks
    signal.signal(signal.SIGALRM, over)
    seconds = max(1, min(part.seconds, int(left))) if GPU else 4 * part.seconds
    signal.alarm(seconds)
    try:
        yield from part.carry_out(small)
    except OverTime:
        yield Row(name, "the rest", f"not done within {seconds} s", "", "measured")
    except Exception as error:
        yield Row(name, "the rest", f"{type(error).__name__}: {str(error).splitlines()[0][:100]}", "", "failed")
    finally:
        signal.alarm(0)


def machine() -> dict[str, str | None]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return {
        "device": torch.cuda.get_device_name() if GPU else "emulated on the CPU: nothing is said of times",
        "driver": _driver() if GPU else None,
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()) if GPU else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or None,
    }


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path("outputs/gpu_check"))
    parser.add_argument("--parts", default=",".join(PARTS), help="those to do, with commas between")
    parser.add_argument("--small", action="store_true", default=not GPU, help="less of each part; without a GPU always")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.parts.split(",") if name not in PARTS]:
        parser.error(f"--parts: {', '.join(unknown)} is not one of {', '.join(PARTS)}")
    about, rows, end = machine(), list[Row](), time.monotonic() + WHOLE
    options.out.mkdir(parents=True, exist_ok=True)
    print(", ".join(f"{key} {value}" for key, value in about.items() if value))
    for name in options.parts.split(","):
        part = PARTS[name]
        if part.needs_gpu and not GPU:
            rows.append(Row(name, "all of it", "needs a GPU", "", "measured"))
            write(about, rows, options.out)
            continue
        for row in boxed(name, part, options.small, end - time.monotonic()):
            rows.append(row)
            print(f"{row.part:10} {row.what:55} {row.measured:50} {row.expected:28} {row.verdict}", flush=True)
        write(about, rows, options.out)
    return int(any(row.verdict in ("wrong", "failed") for row in rows))


def write(about: dict[str, str | None], rows: list[Row], out: Path) -> None:
    """What there is so far."""
    table = ["| part | what | measured | expected | verdict |", "|---|---|---|---|---|"]
    table += [f"| {row.part} | {row.what} | {row.measured} | {row.expected} | {row.verdict} |" for row in rows]
    (out / "gpu_check.json").write_text(json.dumps({"machine": about, "rows": list(map(asdict, rows))}, indent=1))
    (out / "gpu_check.md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    sys.exit(main())
