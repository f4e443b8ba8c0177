r"""The convolution over logit maps, folded into one dot product.

The maps have rank D, so the convolution commutes with the outer product. With q, k zero outside the sequence and x, y in {-1, 0, 1}:

    conv(q k^T)[o, i, j] = sum_{h, c, y} qhat[(h, c, y), (o, i)] k[h, c, j + y]
    qhat[(h, c, y), (o, i)] = sum_x weight[o, h, x, y] q[h, c, i + x]

Both sides read three shifted copies of a sequence, `shift_steps`; the weight becomes one (3 K, 3) matrix for each (h, c), `fold_weight`.
"""

import torch.nn.functional as F
from torch import Tensor


def shift_steps(x: Tensor) -> Tensor:
    """(n K, D, L) to (n K D, 3, L): entry [.., s, t] is step t + s - 1, zero outside the sequence."""
    return F.pad(x.flatten(0, 1), (1, 1)).unfold(1, x.size(2), 1).contiguous()


def unshift_steps(x: Tensor, width: int) -> Tensor:
    """Back to (n K, D, L), summing what goes to the same step: the adjoint of `shift_steps`."""
    total = x[:, 1].clone()
    total[:, :-1] += x[:, 0, 1:]
    total[:, 1:] += x[:, 2, :-1]
    return total.unflatten(0, (-1, width))


def fold_weight(weight: Tensor, width: int, samples: int) -> Tensor:
    """(o, h, x, y) to (n K D, 3 K, 3): for each sample and (h, c) a matrix of rows (y, o) and columns x."""
    folded = weight.permute(1, 3, 0, 2).flatten(1, 2)  # (h, (y, o), x)
    return folded[None, :, None].expand(samples, -1, width, -1, -1).flatten(0, 2)


def unfold_weight(folded: Tensor, width: int, heads: int) -> Tensor:
    """Back to (o, h, x, y), summed over samples and (within a head) channels: the adjoint of `fold_weight`."""
    return folded.reshape(-1, heads, width, 3, heads, 3).sum(0).sum(1).permute(2, 0, 3, 1)
