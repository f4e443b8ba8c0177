r"""The predicted logits of a block, conv(A_pre) + bias, and their gradients: by folding, or from the stored map where that is small.

Folding: the maps have rank D, so the convolution commutes with the outer product. With q, k zero outside the sequence, x, y in {-1, 0, 1}:

    conv(q k^T)[o, i, j] = sum_{h, c, y} qhat[(h, c, y), (o, i)] k[h, c, j + y]
    qhat[(h, c, y), (o, i)] = sum_x weight[o, h, x, y] q[h, c, i + x]

Both sides read three shifted copies of a sequence. The folded queries have 3 K D numbers for each row of a map: where a row is shorter than
that by far, the map itself is less work.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.predictive.layout import Scratch

SHORT = 64  # up to this length the map of a whole sample is less work than folded queries


class Folded:
    """One dot product of width 3 K D for each entry; any block of rows.

    `query` and `key` are (n K, D, L), `query` already divided by sqrt(D).
    """

    def __init__(self, query: Tensor, key: Tensor, weight: Tensor, bias: Tensor, scratch: Scratch) -> None:
        self.heads, self.width, self.length = bias.numel(), *query.shape[1:]
        self.q_steps = shift_steps(query)  # (n K D, 3, L)
        self.k_hat = shift_steps(key).view(-1, 3 * self.heads * self.width, self.length)  # (n, 3 K D, L)
        folded = weight.permute(1, 3, 0, 2).flatten(1, 2)  # (h, (y, o), x)
        self.weight = folded[None, :, None].expand(len(self.k_hat), -1, self.width, -1, -1).flatten(0, 2)  # (n K D, 3 K, 3)
        self.bias, self.scratch = bias, scratch
        self.gradients: tuple[Tensor, ...] = ()

    def logits(self, rows: slice, columns: slice) -> Tensor:
        """(n K, R, C), in memory that the next tile uses again."""
        steps = self.q_steps[..., rows]
        self.q_hat = torch.bmm(self.weight, steps, out=self.scratch("q_hat", len(steps), 3 * self.heads, steps.size(2)))
        self.q_hat = self.q_hat.view(len(self.k_hat), self.k_hat.size(1), -1)  # (n, 3 K D, K R)
        k_hat = self.k_hat[..., columns]
        out = self.scratch("f", len(k_hat), self.q_hat.size(2), k_hat.size(2))
        torch.bmm(self.q_hat.mT, k_hat, out=out).unflatten(1, (self.heads, -1)).add_(self.bias.view(-1, 1, 1))
        return out.view(-1, steps.size(2), k_hat.size(2))

    def accumulate(self, rows: slice, columns: slice, grad: Tensor) -> None:
        """Adds what flows back from the tile that `logits` computed last."""
        if not self.gradients:
            transposed = self.weight.new_zeros(len(self.weight), 3, 3 * self.heads)
            self.gradients = (torch.zeros_like(self.q_steps), torch.zeros_like(self.k_hat), transposed, torch.zeros_like(self.bias))
        d_steps, d_k_hat, d_weight, d_bias = self.gradients
        steps = self.q_steps[..., rows]
        grad = grad.view(len(self.k_hat), -1, grad.size(-1))  # (n, K R, C)
        d_k_hat[..., columns].baddbmm_(self.q_hat, grad)
        d_q_hat = torch.bmm(self.k_hat[..., columns], grad.mT, out=self.scratch("d_q_hat", *self.q_hat.shape))
        d_q_hat = d_q_hat.view(len(steps), -1, steps.size(2))  # (n K D, 3 K, R)
        d_steps[..., rows] = torch.bmm(self.weight.mT, d_q_hat)
        d_weight.baddbmm_(steps, d_q_hat.mT)
        d_bias += grad.unflatten(1, (self.heads, -1)).sum((0, 2, 3))

    def finish(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients of query, key, weight and bias."""
        if not self.gradients:  # no row hears anything
            folded = self.weight.new_zeros(len(self.weight), 3, 3 * self.heads)
            self.gradients = (torch.zeros_like(self.q_steps), torch.zeros_like(self.k_hat), folded, torch.zeros_like(self.bias))
        d_steps, d_k_hat, d_weight, d_bias = self.gradients
        d_weight = d_weight.view(-1, self.heads, self.width, 3, 3, self.heads).sum(0).sum(1)  # (h, x, y, o)
        d_query, d_key = (unshift_steps(t.view_as(d_steps), self.width) for t in (d_steps, d_k_hat))
        return d_query, d_key, d_weight.permute(3, 0, 1, 2), d_bias


class Stored:
    """The formula itself, for whole short samples; has the methods of `Folded`."""

    def __init__(self, query: Tensor, key: Tensor, weight: Tensor, bias: Tensor, scratch: Scratch) -> None:
        self.query, self.key, self.weight, self.bias, self.scratch = query, key, weight, bias, scratch
        self.length = query.size(2)

    def logits(self, rows: slice, columns: slice) -> Tensor:
        self.map = self.scratch("map", len(self.query), self.length, self.length)
        torch.bmm(self.query.mT, self.key, out=self.map)
        return F.conv2d(self._images(self.map), self.weight, self.bias, padding=1).flatten(0, 1)

    def accumulate(self, rows: slice, columns: slice, grad: Tensor) -> None:
        sizes = ([len(self.bias)], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True])
        images = (self._images(grad), self._images(self.map))
        self.d_map, self.d_weight, self.d_bias = torch.ops.aten.convolution_backward(*images, self.weight, *sizes)

    def finish(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        d_map = self.d_map.flatten(0, 1)
        return torch.bmm(self.key, d_map.mT), torch.bmm(self.query, d_map), self.d_weight, self.d_bias

    def _images(self, maps: Tensor) -> Tensor:
        return maps.unflatten(0, (-1, len(self.bias)))


def shift_steps(x: Tensor) -> Tensor:
    """(n K, D, L) to (n K D, 3, L): entry [.., s, t] is step t + s - 1, zero outside the sequence."""
    return F.pad(x.flatten(0, 1), (1, 1)).unfold(1, x.size(2), 1).contiguous()


def unshift_steps(x: Tensor, width: int) -> Tensor:
    """Back to (n K, D, L), summing what goes to the same step: the adjoint of `shift_steps`."""
    total = x[:, 1].clone()
    total[:, :-1] += x[:, 0, 1:]
    total[:, 1:] += x[:, 2, :-1]
    return total.unflatten(0, (-1, width))


def predict(query: Tensor, key: Tensor, weight: Tensor, bias: Tensor, scratch: Scratch, whole: bool) -> Folded | Stored:
    """Returns what is less work; `whole`: one block holds the samples. Off the CPU always `Folded`: convolutions round to TF32."""
    stored = whole and query.size(2) <= SHORT and query.device.type == "cpu"
    return (Stored if stored else Folded)(query, key, weight, bias, scratch)
