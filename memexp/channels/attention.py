"""Attention whose heads together are narrower or wider than its input: what modules become when heads are removed.

nn.MultiheadAttention and torchvision's window attention derive the length of a head from the width of their input, which holds
only as long as heads times length is that width. A narrowed one keeps its parameters and their names, and the length of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional


class HeadsAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention of `num_heads` heads of length `head_dim`, over an input of any width.

    Packed in_proj of (3 num_heads head_dim, width); as its parent otherwise, without bias_k, bias_v and add_zero_attn.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(n, length, width), or (length, n, width) unless batch_first, or (length, width) alike; as the parent's."""
        batched = query.dim() == 3
        turn = batched and not self.batch_first
        q, k, v = (x.transpose(0, 1) if turn else x if batched else x.unsqueeze(0) for x in (query, key, value))
        assert self.in_proj_weight is not None
        weights = self.in_proj_weight.chunk(3)
        biases = [None] * 3 if self.in_proj_bias is None else list(self.in_proj_bias.chunk(3))
        q, k, v = (
            functional.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, w, b in zip((q, k, v), weights, biases, strict=True)
        )
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        shares: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
            shares = functional.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            y = shares @ v
            shares = shares.mean(1) if average_attn_weights else shares
            shares = shares if batched else shares.squeeze(0)
        else:
            y = functional.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.head_dim**-0.5)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        return (y.transpose(0, 1) if turn else y if batched else y.squeeze(0)), shares

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one that is added to the scores, broadcast to (n, heads, length, length)."""
        total: Tensor | None = None
        for mask, keys in ((attn_mask, False), (key_padding_mask, True)):
            if mask is None:
                continue
            if mask.dtype == torch.bool:
                mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(mask, float("-inf"))
            if keys:
                mask = mask.reshape(-1, 1, 1, mask.shape[-1])
            elif mask.dim() == 3:
                mask = mask.unflatten(0, (-1, self.num_heads))
            total = mask if total is None else total + mask
        return total


def adapted(module: nn.Module) -> type[nn.Module] | None:
    """The class that does what `module` does with heads of a length of their own; None where it needs none."""
    if type(module) is nn.MultiheadAttention:
        plain = module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn
        return HeadsAttention if plain else None
    if (type(module).__module__, type(module).__name__) == (
        "torchvision.models.swin_transformer",
        "ShiftedWindowAttention",
    ):
        from memexp.channels.windows import WindowAttention  # here, as torchvision takes a second to import

        return WindowAttention
    return None


def adapt(module: nn.Module) -> None:
    """Makes `module` one of its adapted class, of the same parameters and the same function, if there is such a class."""
    kind = adapted(module)
    if kind is None:
        return
    if isinstance(module, nn.MultiheadAttention):
        module._qkv_same_embed_dim = (
            False  # keeps nn.TransformerEncoderLayer off its fused path, which derives head_dim
        )
    else:
        module.head_dim = module.qkv.out_features // 3 // module.num_heads  # type: ignore[assignment, operator, union-attr]
    module.__class__ = kind


@contextmanager
def all_adapted(network: nn.Module) -> Iterator[None]:
    """Inside, all modules that have an adapted class are of it."""
    changed = [
        (module, type(module), dict(module.__dict__)) for module in network.modules() if adapted(module) is not None
    ]
    try:
        for module, _, _ in changed:
            adapt(module)
        yield
    finally:
        for module, kind, attributes in changed:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(attributes)
