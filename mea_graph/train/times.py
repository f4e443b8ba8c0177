"""The times of a batch for a network that reads them."""

from __future__ import annotations

from torch import Tensor, nn
from torch_geometric.data import Batch

from mea_graph.data import DataError
from mea_graph.nn import MEA


def times_of(batch: Batch, network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Returns the argument `time` of a network, none for one that reads no times; one of a user's own may do without some.

    Args:
        batch: Samples.
        network: Its attribute `timed_modalities` names those whose times it reads.

    Raises:
        DataError: If a modality has steps and no times, which `MEA` needs.
    """
    timed = getattr(network, "timed_modalities", ())
    for m in timed if isinstance(network, MEA) else ():
        if "time" not in batch[m] and len(batch[m].x):
            remedy = f"{m}_time of an .npz has them, time= of MultimodalDataset.from_arrays takes them"
            raise DataError(f"{m}: expected the seconds of its steps, which a window or positions in seconds need, got none; {remedy}")
    return {"time": {m: batch[m].time for m in timed if "time" in batch[m]}} if timed else {}
