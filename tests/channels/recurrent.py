"""Small networks with recurrent layers and tables: their states stay, what feeds them does not."""

import torch
from hand_made import Network
from torch import Tensor, nn


class Recurrent(Network):
    """Layers of both directions, one behind the other."""

    shape = (2, 7, 12)

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.a, self.layers = nn.Linear(12, 8), kind(8, 6, 2, bidirectional=True)  # type: ignore[call-arg]
        self.b, self.c = nn.Linear(12, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.layers(self.a(x))[0]).relu())


class Cells(Network):
    shape = (7, 2, 12)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gru, self.lstm, self.c = nn.Linear(12, 8), nn.GRUCell(8, 6), nn.LSTMCell(8, 4), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, h, state = self.a(x).relu(), None, None
        for step in x:
            h, state = self.gru(step, h), self.lstm(step, state)
        return self.c(torch.cat([h, state[0]], 1))


class Bags(Network):
    """Rows that are looked up and summed, beside what a layer makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.a, self.c = nn.EmbeddingBag(50, 8, mode="sum"), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words((x.flatten(1) * 9).long() % 50)
        return self.c(x + self.a(x).relu())


GROUPS: dict[type[Network], list[int]] = {Recurrent: [8, 9], Cells: [8], Bags: [8]}
