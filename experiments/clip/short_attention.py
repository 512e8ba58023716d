"""Self-attention among a few tokens, trained in bfloat16 on a CPU: torch's result, sooner.

torch's backward pass multiplies each head of each sample by itself. With 16 tokens these products are so small that
setting them up took a quarter of a training step of the small CLIP. Here the heads of all samples are multiplied
together, by the same formula (Dao et al., FlashAttention, NeurIPS 2022, appendix B.4). Sums are taken in torch's
order: with torch 2.15 on an AMD processor with AVX-512 the gradients are the same to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST_TOKENS = 32  # torch takes this many queries at a time; with more, it rounds its sums in between
HEAD_DIMS = (32, 64)  # numbers in a head with which torch adds in the order of `_row_sums`


class ShortAttention(nn.MultiheadAttention):
    """torch's module, with another way to the same result where tokens are few."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As torch's: (b, tokens, width) -> the same shape, and None for the weights that nobody asked for."""
        plain = (
            not args and {"need_weights", "attn_mask"}.issuperset(kwargs) and not kwargs.get("need_weights", True)
        )
        if not (plain and query is key and key is value and self._fits(query)):
            return super().forward(query, key, value, *args, **kwargs)
        x = query.transpose(0, 1)  # tokens first, the order in which torch sums the gradients of the weights
        packed = functional.linear(x, self.in_proj_weight, self.in_proj_bias)  # (tokens, b, 3 width)
        heads = packed.unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 1, 3, 0, 4)
        mask = kwargs.get("attn_mask")
        if mask is not None:
            mask = mask.to(packed.dtype)[None, None]
        attended = _Attention.apply(*heads, mask)  # (b, heads, tokens, head_dim)
        rows = attended.permute(2, 0, 1, 3).reshape(-1, self.embed_dim)
        out = functional.linear(rows, self.out_proj.weight, self.out_proj.bias)
        return out.view(x.shape).transpose(0, 1), None

    def _fits(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and torch.is_grad_enabled()
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and x.ndim == 3
            and self.batch_first
            and x.shape[1] <= MOST_TOKENS
            and self.head_dim in HEAD_DIMS
            and not self.dropout
        )


class _Attention(torch.autograd.Function):
    """Queries, keys, values (b, heads, tokens, head_dim) and a mask (1, 1, tokens, tokens) -> like the queries."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=mask
        )
        ctx.save_for_backward(query, key, value, mask, out, normaliser)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        *parts, mask, out, normaliser = ctx.saved_tensors
        query, key, value, out, grad = (part.flatten(0, 1) for part in (*parts, out, grad))  # (b heads, tokens, d)
        scale = query.shape[2] ** -0.5
        logits = _product(query.float(), key.float().mT, scale)  # (b heads, tokens, tokens)
        if mask is not None:
            logits += mask[0].float()
        weights = (logits - normaliser.flatten(0, 1)[..., None]).exp_()
        of_weights = torch.bmm(grad.float(), value.float().mT)
        of_value = torch.bmm(weights.to(grad.dtype).mT, grad)
        of_weights -= _row_sums(grad.float() * out.float())
        of_logits = of_weights.mul_(weights).to(grad.dtype)
        of_query, of_key = _product(of_logits, key, scale), _product(of_logits.mT, query, scale)
        return *(part.unflatten(0, parts[0].shape[:2]) for part in (of_query, of_key, of_value)), None


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * a @ b of each matrix, rounded once."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)


def _row_sums(x: Tensor) -> Tensor:
    """(..., d) -> (..., 1), summed by halves, as processors with wide registers do."""
    while x.shape[-1] > 1:
        first, second = x.chunk(2, dim=-1)
        x = first + second
    return x


def use_short_attention(network: nn.Module) -> None:
    """Let the attention modules of a network take the way above; the names of the weights stay."""
    for module in network.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = ShortAttention
