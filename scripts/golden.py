"""Whether a change left what is computed alone: final weights of short runs, here and at another commit, bit for bit.

    python scripts/golden.py REVISION [--steps 20]

Each case is trained by `memexp train` on handwritten digits, in this checkout and in a copy of REVISION, on one thread; the
weights in the two checkpoints must be equal in every bit. Exit status 1 if some are not.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

TOP = Path(__file__).resolve().parent.parent
CASES = {
    "resnet-20": ["model=resnet", "model.depth=20"],
    "revnet-38 reversible": ["model=revnet", "backprop=reversible"],
    "revnet-38 exact": ["model=revnet", "backprop=reversible", "backprop.exact=true"],
    "heunnet adjoint": ["model=heunnet", "model.depth=8", "backprop=adjoint"],
    "vgg16": ["model=vgg16"],
    "revnet-38 budget 0.5 exact": ["model=revnet", "backprop=budget", "backprop.limit=0.5", "backprop.exact=true"],
    "revnet-38 ranger": ["model=revnet", "optimizer=ranger"],
}


def weights(tree: Path, case: list[str], steps: int, directory: Path) -> dict[str, torch.Tensor]:
    """The weights after `steps` steps of the case, by the memexp in `tree`."""
    settings = ["schedule.warmup=0", f"max_steps={steps}", f"hydra.run.dir='{directory}'"]
    command = [sys.executable, "-m", "memexp", "train", *case, *settings]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, cwd=tree, check=True, capture_output=True)
    state = torch.load(directory / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert isinstance(state, dict)
    return state


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        subprocess.run(["git", "-C", str(TOP), "worktree", "add", "-q", "-f", other, options.revision], check=True)
        try:
            for number, (name, case) in enumerate(CASES.items()):
                mine, theirs = (
                    weights(tree, case, options.steps, Path(folder) / f"{number}-{side}")
                    for side, tree in (("mine", TOP), ("theirs", other))
                )
                same = mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
                differing += not same
                print(f"{name:<28} {'equal' if same else 'DIFFERENT'}", flush=True)
        finally:
            subprocess.run(["git", "-C", str(TOP), "worktree", "remove", "--force", other], check=True)
    return int(differing > 0)


if __name__ == "__main__":
    raise SystemExit(main())
