"""Subtracts the mean of its modality from each representation, so that no linear classifier recognises the modality."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mea_graph.nn._sequences import apart, check_keys, check_modalities, check_same_samples, check_sizes


class ModalityCentering(nn.Module):
    r"""Subtracts the mean of each modality from its representations.

    .. math:: h_m \leftarrow h_m - \mathrm{E}[h_m]

    No linear classifier can recognise the modality of a representation if all modalities have the same mean (Belrose et al., arXiv
    2306.03819). An adversary only approaches that; centering does it exactly, and leaves everything else that a representation holds. A
    non-linear classifier may still recognise the modality.

    The means run along with training as in batch normalisation, and stay fixed in evaluation; they are not differentiated. In training
    mode they include the current batch, which activation checkpointing counts once. Samples that lack a modality do not count and get
    zeros.

    Dropout and noise shift the means of training, and a probe sees the smallest shift: `measuring` replaces them by those of evaluation.

    Args:
        channels: Width d_h of the representations.
        modalities: Names of the modalities, at least two.
        momentum: Weight of a batch in the running mean, in (0, 1].

    Shape:
        - h: dict of :math:`(B, d_h)`; present: dict of :math:`(B,)`, bool, all present where it is None
        - result: dict of :math:`(B, d_h)`

    Raises:
        ValueError: If the modalities are not those named, a shape is wrong, or the momentum is out of its range.

    >>> import torch
    >>> layer = ModalityCentering(2, ["text", "audio"])
    >>> h = {"text": torch.tensor([[1.0, 2.0], [3.0, 2.0]]), "audio": torch.zeros(2, 2)}
    >>> layer(h)["text"]
    tensor([[-1.,  0.],
            [ 1.,  0.]])
    >>> layer.eval()(
    ...     h,
    ...     {
    ...         "text": torch.tensor([True, False]),
    ...         "audio": torch.ones(2, dtype=torch.bool),
    ...     },
    ... )["text"]
    tensor([[-1.,  0.],
            [ 0.,  0.]])

    >>> with (
    ...     layer.measuring()
    ... ):  # in a model: after `model.eval()`, under `torch.no_grad()`
    ...     for batch in (
    ...         {m: v[:1] for m, v in h.items()},
    ...         {m: v[1:] for m, v in h.items()},
    ...     ):
    ...         _ = layer(batch)
    >>> layer.mean[0]
    tensor([2., 2.])
    """

    mean: Tensor
    seen: Tensor

    def __init__(self, channels: int, modalities: Iterable[str], momentum: float = 0.01) -> None:
        super().__init__()
        check_sizes(channels=channels)
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum: expected a number in (0, 1], got {momentum}")
        self.modalities, self.channels, self.momentum = check_modalities(modalities, at_least=2), channels, momentum
        self._measuring = False
        self._joint: Callable[[Tensor], Tensor] | None = None  # sums over the processes that train together, where there are several
        self.register_buffer("mean", torch.zeros(len(self.modalities), channels))
        self.register_buffer("seen", torch.zeros(len(self.modalities), dtype=torch.long))  # samples that count, by modality

    def reset_parameters(self) -> None:
        """Forgets the means."""
        self.mean.zero_()
        self.seen.zero_()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measures, inside the block, the means of all samples that pass, with equal weights, in either mode."""
        self.reset_parameters()
        self._measuring = True
        try:
            yield
        finally:
            self._measuring = False

    def forward(self, h: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Returns the representations without the mean of their modality."""
        check_keys(h, self.modalities, "h")
        check_same_samples(h, "h")
        for m in self.modalities:
            if h[m].dim() != 2 or h[m].size(1) != self.channels:
                raise ValueError(f"h[{m!r}]: expected (B, {self.channels}), got {tuple(h[m].shape)}")
        stacked = torch.stack([h[m] for m in self.modalities])  # (M, B, d_h)
        if present is None:
            there = torch.ones_like(stacked[..., :1], dtype=torch.bool)
        else:
            check_keys(present, self.modalities, "present")
            for m, mask in present.items():
                if mask.shape != h[m].shape[:1] or mask.dtype != torch.bool:
                    raise ValueError(f"present[{m!r}]: expected bool {tuple(h[m].shape[:1])}, got {mask.dtype} {tuple(mask.shape)}")
            there = torch.stack([present[m] for m in self.modalities]).unsqueeze(-1)  # (M, B, 1)
        if (self.training or self._measuring) and not _is_computed_again():
            self._update(stacked.detach().to(self.mean.dtype), there)
        centred = (stacked - self.mean.unsqueeze(1).to(stacked.dtype)).masked_fill(~there, 0)
        return apart(dict(zip(self.modalities, centred.unbind(0), strict=True)), None)

    def _update(self, h: Tensor, there: Tensor) -> None:
        count, total = there.sum((1, 2)), h.masked_fill(~there, 0).sum(1)
        if not self._measuring and self._joint is not None:
            count, total = self._joint(count), self._joint(total)
        share = count.to(h.dtype)
        batch_mean = total / share.clamp(min=1).unsqueeze(1)
        if self._measuring:
            weight = share / (self.seen + count).clamp(min=1)
        else:  # the first batch with samples sets the mean
            weight = torch.full_like(share, self.momentum).masked_fill(self.seen == 0, 1) * (count > 0)
        self.mean.add_(weight.unsqueeze(1) * (batch_mean - self.mean))
        self.seen.add_(count)


def _is_computed_again() -> bool:
    """Whether a backward pass is at work, as where activation checkpointing calls the layer once more: its batch has been counted."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
