"""What `memexp train --help` shows."""

from memexp.paths import CONF, PART

TEXT = """usage: memexp train [Hydra flags] [key=value ...]

Trains one network, evaluates it and records accuracy, peak memory and step time in a run directory.

  memexp train                                             the default run: handwritten digits, about a minute
  memexp train model=resnet model.depth=32 dataset=cifar10 dataset.root=DIR epochs=3
  memexp train model=vgg16 dataset=imagenet dataset.root=DIR max_steps=2 batch_size=2
  memexp train -m model=resnet model.depth=20,32 seed=0,1  a sweep: every combination, in processes of their own
  memexp train -m experiment=resnet/baselines              a published comparison (`memexp experiments` lists them)
  memexp train model=resnet --cfg job                      shows the configuration and stops

Groups and their options (memexp train GROUP=OPTION, then GROUP.KEY=VALUE):
{groups}

Hydra flags: -m (sweep), --cfg job|hydra|all, --info, -cn NAME, --config-dir DIR (your own configs), --hydra-help,
  --shell-completion (tab completion: eval "$(memexp -sc install=bash)")
A sweep started again runs only what is not done. Jobs at a time: hydra.launcher.n_jobs=2.
"""


def train_help() -> str:
    """With the groups and options of memexp's own conf."""
    groups = sorted(path for path in CONF.iterdir() if path.is_dir() and path.name not in ("experiment", "hydra"))
    options = {group.name: sorted(path.stem for path in group.glob("*.yaml") if path.stem != PART) for group in groups}
    lines = [f"  {name:<10} {', '.join(found)}" for name, found in options.items()]
    return TEXT.format(groups="\n".join(lines))
