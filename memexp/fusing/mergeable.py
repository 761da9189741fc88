"""Where linear layers follow one another, or stand side by side, in any network: what the edit `merge` could take.

A run is a row of linear pieces, each reading what the one before gives and nothing else: a layer, or a sum of rows that start
at the same tensor (branches side by side, with or without the identity). Neighbours in a run can be merged into one
convolution where that is exact, and where modules can be found that hold just them, so that one can be replaced.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from memexp.channels.hooked import twin
from memexp.edits import merge
from memexp.edits.merge import Kernel
from memexp.fusing.flow import ACTIVATIONS, Call, Flow, Same, Span, Value


@dataclass
class Piece:
    """value = item(source): the name of a layer, or a list of chains side by side, of which `rows` are the pieces."""

    source: Value
    value: Value
    item: Any
    calls: list[Call]
    rows: "list[list[Piece]]"


@dataclass
class Group:
    """Neighbouring pieces of a run that one convolution could replace, by the edit's entry `merge`.

    macs: adds-multiplies of the convolution on the example; before: of the layers as they are. grows: whether its kernel is
    larger than theirs.
    """

    pieces: list[Piece]
    merge: dict[str, Any]
    kernel: Kernel
    macs: int
    before: int
    grows: bool


class Runs:
    """The runs of a network in eval mode whose BN has been folded where it can be, and what can be merged in them."""

    def __init__(self, network: nn.Module, flow: Flow) -> None:
        self.flow = flow
        self.refused: dict[str, str] = {}
        self._modules = dict(network.named_modules())
        self._shapes = _without_data(network)  # their shapes say what a merge would be
        self._like = next(self._shapes.parameters(), torch.empty(0, device="meta"))
        self._kernels: dict[tuple[Value, Value], Kernel] = {}
        times = Counter(span.name for span in flow.spans)
        self._spans: dict[Value, list[Span]] = {}  # of modules that are called once, with one tensor in and one out
        for span in flow.spans:
            if times[span.name] == 1 and span.name and span.plain and len(span.inputs) == len(span.outputs) == 1:
                self._spans.setdefault(span.inputs[0], []).append(span)
        self._layers = flow.layers()
        self._watched = flow.hooks | flow.loose.keys() | flow.twice  # what may be seen from elsewhere
        self._pieces: dict[Value, Piece] = {}
        for call in flow.calls:
            piece = self._layer(call) if call.layer else self._sum(call)
            if piece is not None:
                self._pieces[piece.value] = piece
        self.runs = list(self._runs())

    def group(self, run: list[Piece]) -> Group | None:
        """What merges these neighbouring pieces; None where that is not exact or not possible; `refused` then says why."""
        chain = [piece.item for piece in run]
        name = _named(chain)
        if not any(call.layer and type(self._modules[call.name]) is nn.Conv2d for p in run for call in p.calls):
            return None
        try:
            kernel = self._kernel(run)
            if min(kernel.padding) < 0:
                raise ValueError("it would crop its input, which a convolution cannot")
        except ValueError as error:
            if len(run) <= 2:  # of a longer one, a part is refused already
                self.refused[name] = str(error)
            return None
        found = self._holders(run)
        if found is None:
            self.refused[name] = (
                "no module holds just these layers, so none can be replaced by their merged convolution"
            )
            return None
        holders, then = found
        entry = {"into": holders[-1], "gone": holders[:-1], "inputs": self._channels(run[0].source), "chain": chain}
        if then is not None:
            entry["then"] = then
        layers = [k for piece in run for call in piece.calls if (k := self._convolution(call)) is not None]
        grows = any(size > max((k.size[d] for k in layers), default=1) for d, size in enumerate(kernel.size))
        macs = self._macs(run[-1].value, kernel)
        before = sum(self._macs_of(call) for piece in run for call in piece.calls)
        return Group(run, entry, kernel, macs, before, grows)

    def holder(self, piece: Piece) -> tuple[str, str | None] | None:
        """The one module that computes a sum, and the module of the activation that it ends with, if that is one."""
        found = self._holders([piece]) if piece.rows else None
        if found is None or len(found[0]) > 1 or found[1] == "relu":
            return None
        return found[0][0], found[1]

    def shape(self, value: Value) -> tuple[int, ...]:
        return tuple(self.flow.shapes[value])

    def _kernel(self, run: list[Piece]) -> Kernel:
        """Of the pieces in a row, without data. Raises ValueError where it is not exact."""
        key = run[0].source, run[-1].value
        if key not in self._kernels:
            if len(run) == 1:
                kernel = merge.of_chain(self._shapes, [run[0].item], self._channels(run[0].source), self._like)
            else:
                names = _named([piece.item for piece in run[:-1]]), _named([run[-1].item])
                kernel = merge.in_a_row(self._kernel(run[:-1]), self._kernel(run[-1:]), *names)
            self._kernels[key] = kernel
        return self._kernels[key]

    def _convolution(self, call: Call) -> Kernel | None:
        layer = self._shapes.get_submodule(call.name) if call.layer else None
        return merge.of_convolution(layer, call.name) if type(layer) is nn.Conv2d else None

    def _channels(self, value: Value) -> int:
        return self.flow.shapes[value][1]

    def _macs(self, value: Value, kernel: Kernel) -> int:
        shape = self.flow.shapes[value]
        per_place = kernel.weight.numel() // kernel.groups
        return shape[0] * shape[2] * shape[3] * per_place

    def _macs_of(self, call: Call) -> int:
        kernel = self._convolution(call)
        return 0 if kernel is None else self._macs(call.outputs[0], kernel)

    def _layer(self, call: Call) -> Piece | None:
        layer = self._modules[call.name]
        if not merge.is_linear(layer) or len(call.inputs) != 1 or len(self.flow.shapes[call.inputs[0]]) != 4:
            return None
        if len(self._layers[call.name]) > 1 or call.name in self._watched:
            return None
        try:
            merge.of_chain(self._shapes, [call.name], self._channels(call.inputs[0]), self._like)
        except ValueError as error:
            self.refused[call.name] = str(error)
            return None
        return Piece(call.inputs[0], call.outputs[0], call.name, [call], [])

    def _sum(self, call: Call) -> Piece | None:
        """a + b where both come from one tensor along rows that nothing else reads."""
        if call.name not in ("add", "add_") or len(call.outputs) != 1 or len(self.flow.shapes[call.outputs[0]]) != 4:
            return None
        if (
            len(call.arguments) != 2 or call.keywords
        ):  # a + alpha * b is no sum, and `out` a tensor that others may read
            return None
        first, second = call.arguments
        if isinstance(first, Same) and second == 0:  # Python's sum() starts with 0 + the first
            return Piece(first.value, call.outputs[0], [[]], [call], [[]])
        if not (isinstance(first, Same) and isinstance(second, Same)):
            return None
        rows = self._row(first.value, call), self._row(second.value, call)
        for a in range(len(rows[0])):
            for b in range(len(rows[1])):
                if (
                    a == 0 and call.name == "add_"
                ):  # it writes to where the rows start, which others may read afterwards
                    continue
                if self._start(rows[0], a) == self._start(rows[1], b):
                    taken = [list(reversed(rows[0][:a])), list(reversed(rows[1][:b]))]
                    item = [[piece.item for piece in row] for row in taken]
                    calls = [call, *(c for row in taken for piece in row for c in piece.calls)]
                    return Piece(self._start(rows[0], a), call.outputs[0], item, calls, taken)
        return None

    def _row(self, value: Value, reader: Call) -> list[Any]:
        """Pieces backward from `value` as long as nothing else reads what is between; ends with the value it starts at."""
        row: list[Any] = []
        calls = [reader]
        while value in self._pieces and self.flow.private(value, calls):
            piece = self._pieces[value]
            row.append(piece)
            calls, value = piece.calls, piece.source
        return [*row, value]

    def _start(self, row: list[Any], count: int) -> Value:
        """Where a row begins of which `count` pieces are taken."""
        entry = row[count]
        return entry.value if isinstance(entry, Piece) else entry

    def _runs(self) -> Iterator[list[Piece]]:
        taken: set[int] = set()  # pieces that are part of a longer run, or of a branch
        for piece in reversed(list(self._pieces.values())):
            if id(piece) in taken:
                continue
            run = [piece]
            while (before := self._pieces.get(run[0].source)) and self.flow.private(before.value, run[0].calls):
                run.insert(0, before)
            yield from self._open(run, taken)

    def _open(self, run: list[Piece], taken: set[int]) -> Iterator[list[Piece]]:
        """The run, parted where a sum cannot be replaced, whose branches are then runs of their own."""
        taken.update(map(id, run))
        part: list[Piece] = []
        for piece in run:
            if piece.rows and self._holders([piece]) is None:
                if part:
                    yield part
                part = []
                for row in piece.rows:
                    if row:
                        yield from self._open(row, taken)
            else:
                part.append(piece)
                self._take(piece, taken)
        if part:
            yield part

    def _take(self, piece: Piece, taken: set[int]) -> None:
        for row in piece.rows:
            for inner in row:
                taken.add(id(inner))
                self._take(inner, taken)

    def _holders(self, run: list[Piece]) -> tuple[list[str], str | None] | None:
        """Modules, in order, that together compute just this; and the activation that the last of them ends with."""
        calls = [call for piece in run for call in piece.calls]
        ends = {piece.value: index + 1 for index, piece in enumerate(run)}
        after, then = self._activation(run[-1].value)
        at, holders = 0, []
        while at < len(run):
            start = run[at].source
            best: tuple[int, bool, str] | None = None
            for span in self._spans.get(start, []):
                name, closed = span.name, span.outputs[0] in ends
                end = ends.get(span.outputs[0], len(run) if after and span.outputs[0] == after.outputs[0] else 0)
                if end > at and (best is None or (end, closed) >= best[:2]) and self._whole(name, calls, closed, after):
                    best = end, closed, name
            if best is None:
                return None
            at, closed, name = best
            holders.append(name)
            if not closed:
                return holders, then
        return holders, None

    def _whole(self, name: str, calls: list[Call], closed: bool, after: Call | None) -> bool:
        """Whether the module does nothing but these calls (and the activation), and nobody looks into it."""
        mine = {id(call) for call in calls} | (set() if closed or after is None else {id(after)})
        if any(name in call.inside and id(call) not in mine for call in self.flow.calls):
            return False
        if any(call.layer and call.name == name and id(call) not in mine for call in self.flow.calls):
            return False
        inner = [name, *(f"{name}.{other}" for other, _ in self._modules[name].named_modules() if other)]
        return not self._watched.intersection(inner)

    def _activation(self, value: Value) -> tuple[Call | None, str | None]:
        """The activation that alone reads the value, and what the edit calls it."""
        users = self.flow.users.get(value, [])
        if len(users) != 1 or not self.flow.private(value, users):
            return None, None
        call = users[0]
        if call.layer and type(self._modules[call.name]) in ACTIVATIONS:
            return call, call.name
        return (call, "relu") if call.name in ("relu", "relu_") else (None, None)


def _without_data(network: nn.Module) -> nn.Module:
    """A copy on the meta device, for which nothing is copied."""
    tensors = [*network.parameters(), *network.buffers()]
    meta = {
        id(t): nn.Parameter(t.detach().to("meta")) if isinstance(t, nn.Parameter) else t.to("meta") for t in tensors
    }
    return twin(network, meta)


def _named(chain: list[Any]) -> str:
    """The layers of a chain, for messages."""
    return ", ".join(
        item if isinstance(item, str) else " + ".join(_named(row) or "identity" for row in item) for item in chain
    )


def edit(groups: list[Group]) -> dict[str, Any]:
    """The edit that does all of these merges."""
    return {"kind": "merge", "merges": [group.merge for group in groups]}
