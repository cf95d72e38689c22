"""SplitAttention: `nn.MultiheadAttention` as four linear layers, which can be factored one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.nn.linear import linear_of, parameter_of, parts_of


class SplitAttention(nn.Module):
    """What `nn.MultiheadAttention` computes, with `q_proj`, `k_proj`, `v_proj` and `out_proj` as plain linear layers.

    The original keeps query, key and value in one packed tensor and hands its tensors to fused kernels, so that
    a layer in their place would never be called. Layers that give fewer channels make narrower heads; the scale of the
    scores stays. Masks, unbatched inputs, separate key and value widths, the biases of
    key and value, zero attention and averaged or separate weights are as in the original.

    Example:
        >>> dense = nn.MultiheadAttention(8, 2, batch_first=True).eval()
        >>> x = torch.ones(1, 3, 8)
        >>> torch.allclose(SplitAttention(dense)(x, x, x)[0], dense(x, x, x)[0], atol=1e-6)
        True
    """

    def __init__(self, dense: nn.MultiheadAttention) -> None:
        super().__init__()
        width = dense.embed_dim
        self.embed_dim, self.num_heads, self.head_dim = width, dense.num_heads, dense.head_dim
        self.scaling = self.head_dim**-0.5
        self.kdim, self.vdim, self.dropout = dense.kdim, dense.vdim, dense.dropout
        self.batch_first, self.add_zero_attn = dense.batch_first, dense.add_zero_attn
        # nn.TransformerEncoderLayer asks these before it hands tensors to its own fused kernel.
        self._qkv_same_embed_dim = False
        self.in_proj_bias = None
        if dense.in_proj_weight is not None:
            weights = parts_of(dense.in_proj_weight)
        else:
            weights = (dense.q_proj_weight, dense.k_proj_weight, dense.v_proj_weight)
        biases = (None,) * 3 if dense.in_proj_bias is None else parts_of(dense.in_proj_bias)
        self.q_proj, self.k_proj, self.v_proj = (linear_of(w, b) for w, b in zip(weights, biases, strict=True))
        self.out_proj = linear_of(dense.out_proj.weight, dense.out_proj.bias)
        self.bias_k = None if dense.bias_k is None else parameter_of(dense.bias_k)
        self.bias_v = None if dense.bias_v is None else parameter_of(dense.bias_v)
        self.train(dense.training)

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
        """Attention of `query` to `key` and `value`; the arguments are those of `nn.MultiheadAttention`."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, so that mask must be given too")
        batched = query.dim() == 3
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        batch = query.shape[0]
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        # Positions that every query sees, whatever the masks say.
        extra = 0
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(batch, 1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(batch, 1, -1)], 1)
            extra += 1
        if self.add_zero_attn:
            k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
            extra += 1
        # Heads are as wide as the layers make them, which need not be `head_dim`.
        q, k, v = (t.unflatten(-1, (self.num_heads, t.shape[-1] // self.num_heads)).transpose(1, 2) for t in (q, k, v))
        mask = self._mask(key_padding_mask, attn_mask, batch, extra, q.dtype)
        dropout = self.dropout if self.training else 0.0
        weights = None
        # In a graph the fused form becomes reshapes that hide the heads from whoever reads it.
        if need_weights or torch.compiler.is_exporting():
            scores = (q * self.scaling) @ k.transpose(-1, -2)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = functional.dropout(weights, dropout)
            mixed = weights @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scaling)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        weights = weights if need_weights else None
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        if not batched:
            return output.squeeze(0), weights
        return (output if self.batch_first else output.transpose(0, 1)), weights

    def _mask(
        self, padding: Tensor | None, attention: Tensor | None, batch: int, extra: int, dtype: torch.dtype
    ) -> Tensor | None:
        """Both masks as one that is added to the scores: (batch or 1) x (heads or 1) x (queries or 1) x keys."""
        mask: Tensor | None = None
        if attention is not None:
            mask = _additive(attention, dtype)
            mask = mask.unflatten(0, (batch, self.num_heads)) if mask.dim() == 3 else mask[None, None]
        if padding is not None:
            shown = _additive(padding, dtype)[:, None, None]
            mask = shown if mask is None else mask + shown
        return functional.pad(mask, (0, extra)) if mask is not None and extra else mask


def split_attention_(root: nn.Module, where: Callable[[str], bool] = lambda _: True) -> list[str]:
    """Put a `SplitAttention` in the place of every `nn.MultiheadAttention` under a module.

    The layers and stacks around them are told not to use their fused kernels. A subclass with a `forward` of its own is
    left alone.

    Args:
        root: changed in place.
        where: whether a submodule of this name is.

    Returns:
        The names of what was replaced.
    """
    splits: dict[int, SplitAttention] = {}
    names: list[str] = []
    for name, module in list(root.named_modules(remove_duplicate=False)):
        if name and not where(name):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            # Padded batches are packed for the fused kernel only.
            module.use_nested_tensor = False
            module.enable_nested_tensor = False
        if not name or not isinstance(module, nn.MultiheadAttention):
            continue
        if type(module).forward is not nn.MultiheadAttention.forward:
            continue
        if id(module) not in splits:
            splits[id(module)] = SplitAttention(module)
        parent, _, child = name.rpartition(".")
        root.get_submodule(parent)._modules[child] = splits[id(module)]
        names.append(name)
    return names


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
