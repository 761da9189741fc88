"""Window attention (Liu et al. 2021, arXiv 2103.14030) whose heads together are narrower or wider than its input."""

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.swin_transformer import ShiftedWindowAttention


class WindowAttention(ShiftedWindowAttention):
    """torchvision's ShiftedWindowAttention, of `num_heads` heads of length `head_dim` over an input of any width."""

    head_dim: int

    def forward(self, x: Tensor) -> Tensor:
        """(n, h, w, width) -> the same."""
        _, h, w, _ = x.shape
        rows, columns = self.window_size
        x = functional.pad(x, (0, 0, 0, -w % columns, 0, -h % rows))
        height, width = x.shape[1:3]
        down = 0 if rows >= height else self.shift_size[0]
        right = 0 if columns >= width else self.shift_size[1]
        windows = _windows(x.roll((-down, -right), (1, 2)), rows, columns)
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).movedim(-3, 0).transpose(-2, -3)
        scores = q * self.head_dim**-0.5 @ k.transpose(-2, -1) + self.get_relative_position_bias()
        if down or right:
            region = _regions(height, rows, down).unsqueeze(1) * 3 + _regions(width, columns, right)
            region = _windows(region.to(x.device)[None, :, :, None], rows, columns)
            apart = region != region.transpose(-2, -1)
            scores = scores + torch.where(apart, -100.0, 0.0).to(scores.dtype).unsqueeze(3)
        shares = functional.dropout(scores.softmax(-1), self.attention_dropout, self.training)
        y = functional.dropout(self.proj((shares @ v).transpose(-2, -3).flatten(-2)), self.dropout, self.training)
        y = y.unflatten(3, (rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return y.roll((down, right), (1, 2))[:, :h, :w].contiguous()


def _windows(x: Tensor, rows: int, columns: int) -> Tensor:
    """(n, h, w, c) -> (n, h / rows, w / columns, rows * columns, c)."""
    return x.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).transpose(2, 3).flatten(3, 4)


def _regions(size: int, window: int, shift: int) -> Tensor:
    """Which of three regions each line is in, that were no neighbours before the shift."""
    if not shift:
        return torch.zeros(size, dtype=torch.long)
    lines = torch.arange(size)
    return (lines >= size - window).long() + (lines >= size - shift).long()
