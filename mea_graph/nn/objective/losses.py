"""The terms of the objective as functions, [MEA] Eq. 13-16."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Widens half precision to float32, in which losses are summed."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Switches autocast off, on a device that has it; torch 2.9 cannot compile the question for the two that always have it."""
    kind = x.device.type
    available = kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if available else nullcontext()


def _rows(x: Tensor, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns both side by side, with zeros in the rows that do not count, and a column (*, n, 1) with ones in those that do."""
    if x.dim() < 2 or x.shape[:-1] != y.shape[:-1]:
        raise ValueError(f"x, y: expected (*, n, d) with one n, got {tuple(x.shape)}, {tuple(y.shape)}")
    both = torch.cat([at_least_float32(x), at_least_float32(y)], -1)
    if mask is None:
        return both, both.new_ones(*x.shape[:-1], 1)
    if mask.shape != x.shape[:-1] or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool {tuple(x.shape[:-1])}, got {mask.dtype} {tuple(mask.shape)}")
    rows = mask.unsqueeze(-1)
    return both.masked_fill(~rows, 0), rows.to(both.dtype)


def hsic(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Computes the Hilbert-Schmidt independence criterion with inner-product kernels ([MEA] Eq. 13).

    .. math::
        \frac{\mathrm{tr}(U K_x U K_y)}{(n - 1)^2} = \frac{\lVert (U X)^T U Y \rVert_F^2}{(n - 1)^2}, \qquad U = I - 11^T / n

    Computed in the second form (R8): O(n d^2) time, no n x n matrix. Below two rows it is zero.

    Args:
        x, y: Two representations of the same n samples, or several pairs of them.
        mask: Rows that count. None: all.

    Shape:
        - x: :math:`(*, n, d_x)`; y: :math:`(*, n, d_y)`; mask: :math:`(*, n)`, bool; result: :math:`(*)`, one number a pair

    Raises:
        ValueError: If a shape is wrong.

    >>> import torch
    >>> x = torch.tensor([[1.0], [-1.0]])
    >>> hsic(x, x).item(), hsic(x, torch.ones(2, 1)).item()
    (4.0, 0.0)
    """
    with _no_autocast(x):
        widths = x.size(-1), y.size(-1)
        both, count = _rows(x, y, mask)
        n = count.sum((-2, -1))
        both = (both - both.sum(-2, True) / n.clamp(min=1)[..., None, None]) * count
        x, y = both.split(widths, -1)
        return (x.mT @ y).square().sum((-2, -1)) / (n - 1).clamp(min=1).square()


def orthogonality(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Computes the soft orthogonality of two representations, the ablation's alternative to `hsic` (Table V, "L_sep").

    .. math:: \lVert \bar X^T \bar Y \rVert_F^2, \qquad \bar X, \bar Y \text{ with rows of unit length}

    Args:
        x, y: Two representations of the same n samples, or several pairs of them.
        mask: Rows that count. None: all.

    Shape:
        - x: :math:`(*, n, d_x)`; y: :math:`(*, n, d_y)`; mask: :math:`(*, n)`, bool; result: :math:`(*)`, one number a pair

    Raises:
        ValueError: If a shape is wrong.

    >>> import torch
    >>> orthogonality(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0]])).item()
    1.0
    """
    with _no_autocast(x):
        widths = x.size(-1), y.size(-1)
        x, y = _rows(x, y, mask)[0].split(widths, -1)
        return (F.normalize(x, dim=-1).mT @ F.normalize(y, dim=-1)).square().sum((-2, -1))


def _check_discrimination(logits: Tensor, omega: Tensor | None, present: Tensor | None) -> None:
    if logits.dim() < 3 or logits.size(-2) != logits.size(-1):
        raise ValueError(f"logits: expected (*, B, M, M), got {tuple(logits.shape)}")
    for name, value in (("omega", omega), ("present", present)):
        if value is not None and value.shape != logits.shape[-3:-1]:  # (B,) would be spread over the modalities where B = M
            raise ValueError(f"{name}: expected (B, M) = {tuple(logits.shape[-3:-1])}, got {tuple(value.shape)}")


def _own_modality(logits: Tensor, present: Tensor | None) -> Tensor:
    """log D[true modality], (*, B, M); zero where the modality is missing."""
    _check_discrimination(logits, None, present)
    log_likelihood = at_least_float32(logits).log_softmax(-1).diagonal(dim1=-2, dim2=-1)
    return log_likelihood if present is None else log_likelihood.masked_fill(~present, 0)


def agnostic_adversarial(logits: Tensor, omega: Tensor, present: Tensor | None = None) -> Tensor:
    r"""Computes the adversarial loss of the agnostic representations ([MEA] Eq. 15).

    .. math:: L_{agn} = -\frac{1}{n} \sum_m \sum_k \omega_{km} \log D_m(\mathrm{GRL}(h_{a,km}))[m]

    Args:
        logits: The logits of the modality discriminator, behind a gradient reversal; row m of a sample stems from modality m.
        omega: The degrees :math:`\omega` of the importance discriminator, detached.
        present: Which modalities the samples have. None: all.

    Shape:
        - logits: :math:`(*, B, M, M)`; omega, present: :math:`(B, M)`; result: :math:`(*)`

    Raises:
        ValueError: If a shape is wrong.

    >>> import torch
    >>> round(
    ...     agnostic_adversarial(torch.zeros(4, 2, 2), torch.ones(4, 2)).item(), 4
    ... )  # 2 log 2
    1.3863
    """
    _check_discrimination(logits, omega, present)
    return (omega * _own_modality(logits, present)).sum((-2, -1)) / -max(logits.size(-3), 1)


def modality_confusion(logits: Tensor, omega: Tensor, present: Tensor | None = None) -> Tensor:
    r"""Measures how far a modality discriminator is from being undecided about agnostic representations.

    .. math:: L_{con} = \frac{1}{n} \sum_m \sum_k \omega_{km} \, \mathrm{KL}\big(U_M \,\|\, D_m(h_{a,km})\big)

    :math:`U_M` gives each of the M modalities the same probability (Tzeng et al., arXiv 1510.02192). The loss is never below 0; the
    reversed loss has no bound.

    Args:
        logits: The logits of the modality discriminator, whose weights get no gradient from it.
        omega: The degrees :math:`\omega` of the importance discriminator, detached.
        present: Which modalities the samples have. None: all.

    Shape:
        - logits: :math:`(*, B, M, M)`; omega, present: :math:`(B, M)`; result: :math:`(*)`

    Raises:
        ValueError: If a shape is wrong.

    >>> import torch
    >>> modality_confusion(torch.zeros(4, 2, 2), torch.ones(4, 2)).item()
    0.0
    >>> round(
    ...     modality_confusion(
    ...         torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), torch.ones(1, 2)
    ...     ).item(),
    ...     4,
    ... )  # log cosh 1
    0.4338
    """
    _check_discrimination(logits, omega, present)
    away = -at_least_float32(logits).log_softmax(-1).mean(-1) - math.log(logits.size(-1))
    weight = omega if present is None else omega.masked_fill(~present, 0)
    return (weight * away).sum((-2, -1)) / max(logits.size(-3), 1)


def exclusive_adversarial(logits: Tensor, present: Tensor | None = None) -> Tensor:
    r"""Computes the classification loss of the exclusive representations ([MEA] Eq. 16).

    .. math:: L_{exc} = -\frac{1}{n} \sum_m \sum_k \log D_m(h_{e,km})[m]

    Args:
        logits: The logits of the modality discriminator; row m of a sample stems from modality m.
        present: Which modalities the samples have. None: all.

    Shape:
        - logits: :math:`(*, B, M, M)`; present: :math:`(B, M)`, bool; result: :math:`(*)`

    Raises:
        ValueError: If a shape is wrong.

    >>> import torch
    >>> round(exclusive_adversarial(torch.zeros(4, 3, 3)).item(), 4)  # 3 log 3
    3.2958
    """
    return _own_modality(logits, present).sum((-2, -1)) / -max(logits.size(-3), 1)
