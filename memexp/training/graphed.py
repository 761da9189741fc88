"""Forward, loss and backward of a batch as one CUDA graph: recorded once, replayed in every step.

A step of a small network, or of one that is recomputed, is bound by the CPU, which launches its kernels one by one. A replay
launches all of them at once; they are the same kernels on the same memory, so that the numbers and the peak stay as they are.
What Python does between two launches is done once, while recording: batches of another shape are launched one by one, and so
are the first passes, in which libraries choose their kernels and compilers compile.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from memexp.backprop import chains
from memexp.backprop.late import Verdicts
from memexp.config import ConfigError

log = logging.getLogger("memexp")
WARM_UP = 3  # steps that are launched one by one

Pass = Callable[
    [Tensor, Any], Tensor
]  # images and what their scores are compared with -> the loss; gradients accumulate
Capture = Callable[[Callable[[], Tensor], Any], tuple[Any, Tensor]]


def check_recordable(device: torch.device, processes: int) -> None:
    """Raises ConfigError where no pass can be recorded."""
    if device.type != "cuda" or processes > 1:
        found = f"the device is {device}" if device.type != "cuda" else f"there are {processes} processes"
        raise ConfigError(
            [f"cuda_graph: true needs one process on a GPU of NVIDIA's, and {found}; use cuda_graph=false."]
        )


def cuda_graph(function: Callable[[], Tensor], pool: Any) -> tuple[Any, Tensor]:
    """A CUDA graph of `function()`, which is recorded and not carried out, and what it will give. pool: of memory, or None."""
    graph, failed = torch.cuda.CUDAGraph(), list[Exception]()
    try:
        # other threads go on meanwhile: a loader's pins what workers have read, by which the recording would break off
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            try:
                result = function()
            except Exception as error:
                failed.append(error)
                raise
    except Exception as error:  # the end of a recording that has broken off fails, too
        raise (failed[0] if failed else error) from None
    return graph, result


@dataclass
class Recording:
    """inputs, loss, grads: tensors that each replay reads and writes. verdicts: what the engine says of a pass, of theirs."""

    graph: Any
    inputs: list[Tensor]
    loss: Tensor
    grads: list[Tensor | None]
    verdicts: Verdicts
    form: Any
    place: Any


class Graphed:
    """Passes of one network. capture: as `cuda_graph`, or a stand-in. followed: first steps, which are launched, too, and
    perhaps not by the code that the others run.

    The first batch of a step makes its gradients, and further ones are added to them: two recordings.
    """

    def __init__(self, network: nn.Module, followed: int = 0, capture: Capture = cuda_graph) -> None:
        self._network, self._left, self._capture = network, followed + WARM_UP, capture
        self._recorded: dict[bool, Recording] = {}
        self._forms: dict[bool, Any] = {}  # of the latest batches
        self._own_grads = False  # whether the parameters' gradients are those of the recordings

    def __call__(self, run: Pass, first: bool, images: Tensor, target: Any) -> Tensor:
        """The loss of `run(images, target)`, which is the same function in every call; first: of the batches of a step.

        Raises ConfigError where the pass cannot be recorded.
        """
        leaves, structure = tree_flatten((images, target))
        form = structure, [(x.shape, x.stride(), x.dtype) for x in leaves]
        repeated, self._forms[first] = form == self._forms.get(first), form
        if self._left > 0 if first else not self._own_grads:
            self._left -= first
            return self._launched(run, first, images, target)
        place = self._place()
        recording = self._recorded.get(first)
        if recording is None or recording.place != place:
            if not repeated:  # the last batch of an epoch, perhaps
                return self._launched(run, first, images, target)
            recording = self._recorded[first] = self._record(run, first, leaves, structure, form, place)
        if recording.form != form:
            return self._launched(run, first, images, target)
        for own, given in zip(recording.inputs, leaves, strict=True):
            own.copy_(given)
        recording.graph.replay()
        if first:
            for p, grad in zip(self._network.parameters(), recording.grads, strict=True):
                p.grad = grad
            self._own_grads = True
        for verdict in recording.verdicts:  # at once: the next replay writes over what it reads
            verdict()
        return recording.loss.clone()

    def _launched(self, run: Pass, first: bool, images: Tensor, target: Any) -> Tensor:
        if first:
            self._own_grads = False
        return run(images, target)

    def _place(self) -> Any:
        """Where the network's numbers are, and its modes: other ones are another recording."""
        network = self._network
        tensors = [t.data_ptr() for t in (*network.parameters(), *network.buffers())]
        return tensors, [p.requires_grad for p in network.parameters()], network.training

    def _record(self, run: Pass, first: bool, leaves: list[Tensor], structure: Any, form: Any, place: Any) -> Recording:
        inputs = [leaf.clone(memory_format=torch.preserve_format) for leaf in leaves]
        parameters = list(self._network.parameters())
        if first:
            self._recorded.clear()
            for p in parameters:
                p.grad = None
        said = {id(c.verdicts): c.verdicts for c in chains(self._network) if c.verdicts is not None}
        before = {key: len(verdicts) for key, verdicts in said.items()}
        pool = None if first else self._recorded[True].graph.pool()
        try:
            graph, loss = self._capture(lambda: run(*tree_unflatten(inputs, structure)), pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ConfigError(
                [
                    f"cuda_graph: true: this step cannot be recorded ({str(error).strip().splitlines()[0]}): it waits for the "
                    "device; use cuda_graph=false."
                ]
            ) from error
        verdicts = []
        for key, every in said.items():
            verdicts += every[before[key] :]
            del every[before[key] :]
        log.info("forward and backward are recorded as a CUDA graph%s", "" if first else ", of further batches, too")
        return Recording(graph, inputs, loss, [p.grad for p in parameters], verdicts, form, place)
