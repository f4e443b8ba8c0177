"""From a PyG batch to padded sequences."""

from collections.abc import Mapping

from torch import Tensor
from torch_geometric.utils import to_dense_batch

from mea_graph.nn._sequences import check_keys


def dense_sequences(
    x_dict: Mapping[str, Tensor], batch_dict: Mapping[str, Tensor], batch_size: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    r"""Pads the sequences of a PyG batch and returns them with their masks, for layers that cannot take rows.

    Args:
        x_dict: The steps of all samples, one after the other, by modality.
        batch_dict: The sample number of each step, sorted.
        batch_size: Number of samples B; None: one more than the largest index that occurs.

    Shape:
        - x_dict[m]: :math:`(\sum_b T_m, d_m)`; batch_dict[m]: :math:`(\sum_b T_m,)`, int64
        - result: by modality :math:`(B, T, d_m)` and bool :math:`(B, T)`, T the longest length, at least 1 so that no parameter is idle

    Raises:
        ValueError: If a shape is wrong, indices are not sorted, or the two dicts have different modalities.

    >>> import torch
    >>> x, mask = dense_sequences(
    ...     {"a": torch.ones(3, 2)}, {"a": torch.tensor([0, 0, 2])}
    ... )
    >>> x["a"].shape, mask["a"].sum(1).tolist()
    (torch.Size([3, 2, 2]), [2, 0, 1])
    """
    check_keys(batch_dict, tuple(x_dict), "batch_dict")
    for m, x in x_dict.items():
        batch = batch_dict[m]
        if x.dim() != 2 or batch.shape != x.shape[:1]:
            raise ValueError(f"{m}: expected x (N, d) and batch (N,), got {tuple(x.shape)} and {tuple(batch.shape)}")
        if batch.device.type == "cpu" and bool((batch[1:] < batch[:-1]).any()):
            raise ValueError(f"{m}: expected sorted sample indices in batch, got unsorted ones")
    if batch_size is None:
        batch_size = max((int(batch[-1]) + 1 for batch in batch_dict.values() if batch.numel()), default=0)
    dense, masks = {}, {}
    for m, x in x_dict.items():
        if x.size(0) == 0:
            dense[m] = x.new_zeros(batch_size, 1, x.size(1))
            masks[m] = batch_dict[m].new_zeros(batch_size, 1).bool()
        else:
            dense[m], masks[m] = to_dense_batch(x, batch_dict[m], batch_size=batch_size)
    return dense, masks
