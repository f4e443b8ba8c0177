"""What comes before the model: reading samples, batching them, and how much padding is left."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch_geometric.loader import DataLoader

from benchmarks.cases import Case
from benchmarks.measure import Pass
from benchmarks.samples import CHANNELS, Shape, draw
from mea_graph.data import LengthBucketBatchSampler, MultimodalDataset, open_dataset
from mea_graph.nn import dense_sequences

Arrays = dict[str, list[np.ndarray]]


def arrays(shape: Shape, count: int) -> tuple[Arrays, np.ndarray]:
    """Sequences of true lengths, one of them as long as the longest of the data set."""
    samples = draw(shape, count, "one long clip")
    order = np.random.default_rng(9).permutation(count)
    x = {m: [samples.padded[m][i, : samples.lengths[m][i]].numpy() for i in order] for m in CHANNELS}
    return x, samples.y[torch.from_numpy(order)].numpy()


def batching(shape: Shape, title: str, count: int, size: int) -> Case:
    """An epoch of dense batches: by length through PyG's loader, in random order through it, and padded by plain torch."""
    x, y = arrays(shape, count)
    dataset = MultimodalDataset.from_arrays(x, y)
    buckets = LengthBucketBatchSampler(dataset.lengths, size)
    rng = np.random.default_rng(10)
    random_order = [part.tolist() for part in np.split(rng.permutation(count), range(size, count, size))]

    def loaded(batches: object) -> Pass:
        loader = DataLoader(dataset, batch_sampler=batches)  # type: ignore[arg-type]

        def run() -> list[Tensor]:
            return [*_dense(loader)]

        return run

    def plain() -> list[Tensor]:
        found = []
        for batch in random_order:
            for m in CHANNELS:
                found.append(pad_sequence([torch.from_numpy(x[m][i]) for i in batch], batch_first=True))
        return found

    contenders = {"mea_graph": loaded(buckets), "PyG loader, random order": loaded(random_order), "pad_sequence, random order": plain}
    order = list(buckets)  # the same in every pass of an epoch

    def truth() -> list[Tensor]:
        return [pad_sequence([torch.from_numpy(x[m][i]).double() for i in batch], batch_first=True) for batch in order for m in CHANNELS]

    padding = buckets.padding
    about = {"samples": count, "padding_share": round(padding.left, 4), "padding_share_random": round(padding.random, 4)}
    name = f"an epoch of {count} samples in dense batches of {size}, {title}"
    return Case(name, contenders, ["mea_graph"], truth, torch.float32, {}, about)


def _dense(loader: DataLoader) -> Iterator[Tensor]:
    for batch in loader:
        yield from dense_sequences(batch.x_dict, batch.batch_dict, batch.num_graphs)[0].values()


def opening(shape: Shape, title: str, count: int) -> Case:
    """Opening a padded file and reading all samples: from the cache, the first time (which makes the cache), and by NumPy alone."""
    x, y = arrays(shape, count)
    folder = tempfile.TemporaryDirectory(prefix="mea-graph-bench-")  # gone with the case, which holds it
    source = Path(folder.name) / "data.npz"
    padded = {m: np.zeros((count, shape.longest[m], CHANNELS[m]), np.float32) for m in CHANNELS}
    for m, rows in x.items():
        for i, row in enumerate(rows):
            padded[m][i, : len(row)] = row
    np.savez(source, y=y, **padded, **{f"{m}_len": np.array([len(v) for v in x[m]]) for m in x})
    fresh = iter(range(10**9))

    def opened(cache: str) -> list[Tensor]:
        dataset = open_dataset(source, cache_dir=Path(folder.name) / cache)
        return [sample[m].x for sample in dataset for m in CHANNELS]

    def plain() -> list[Tensor]:
        with np.load(source) as file:
            lengths, values = {m: file[f"{m}_len"] for m in CHANNELS}, {m: torch.from_numpy(file[m]) for m in CHANNELS}
        return [values[m][i, : lengths[m][i]] for i in range(count) for m in CHANNELS]

    def truth() -> list[Tensor]:
        return [torch.from_numpy(x[m][i]).double() for i in range(count) for m in CHANNELS]

    contenders = {
        "mea_graph": lambda: opened("cache"),
        "the first time": lambda: opened(f"cache{next(fresh)}"),
        "numpy.load, all into memory": plain,
    }
    about = {"samples": count, "file_bytes": source.stat().st_size}
    return Case(f"opening and reading {count} samples, {title}", contenders, list(contenders), truth, torch.float32, {}, about)
