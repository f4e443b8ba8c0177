"""One reading of the test samples, whole and with modalities taken away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch

from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.reports import plain
from mea_graph.train.task_module import TaskModule, prediction_of

ANY = "any"  # the condition in which every modality of every sample may be missing


class Seen(NamedTuple):
    """Outputs of a network, batch by batch, and the numbers of the samples in the data set, in the same order.

    >>> Seen([], []).samples
    []
    """

    outputs: list[Any]
    samples: list[int]


class Scores(NamedTuple):
    """Test metrics of whole samples; those by missing modality and probability; what the network said of whole samples.

    >>> Scores._fields
    ('whole', 'missing', 'seen')
    """

    whole: dict[str, float]
    missing: dict[str, dict[str, dict[str, float]]]
    seen: Seen


def evaluate(module: TaskModule, data: SequenceDataModule, probabilities: Sequence[float], seed: int) -> Scores:
    """Reads the test samples once and measures the network on them.

    For each modality, and for all at once (`any`), and each probability p the samples are tried again with that modality missing from a
    share p of them. A sample that misses it at p also misses it at every larger p, and with every model of the same seed, so that
    curves and models are compared on the same samples. With `any` each sample keeps one of its modalities.

    Args:
        module: A trained module.
        data: Has the test samples.
        probabilities: In [0, 1]; none where only whole samples count.
        seed: Decides which samples miss what.
    """
    modalities = list(data.in_channels)
    part = data.parts["test"]
    row = {number: n for n, number in enumerate(part.tolist())}
    number = numbers(data)
    has = np.stack([data.dataset.lengths[m][part] > 0 for m in modalities], 1)
    draw = np.random.default_rng([seed, 0x155]).random(has.shape)
    conditions = [(m, p) for m in [*modalities, ANY] for p in probabilities]
    predictions: dict[tuple[str, float] | None, list[Tensor]] = {condition: [] for condition in [None, *conditions]}
    targets, seen = [], Seen([], [])
    with torch.inference_mode():
        for batch in batches(module, data, "test"):
            samples = [number[name] for name in batch.id]
            rows = [row[sample] for sample in samples]
            targets.append(batch.y.cpu())
            output = module.run(batch)
            predictions[None].append(prediction_of(output).double().cpu())
            seen.outputs.append(output)
            seen.samples.extend(samples)
            for condition in conditions:
                gone = {
                    m: torch.as_tensor(lost, device=batch.y.device)
                    for m, lost in zip(modalities, which_missing(draw[rows], has[rows], modalities, *condition).T, strict=True)
                }
                predictions[condition].append(prediction_of(module.run(batch, gone)).double().cpu())
    target = torch.cat(targets)
    scores = {condition: plain(module.test_metrics.scores(torch.cat(found), target)) for condition, found in predictions.items()}
    missing: dict[str, dict[str, dict[str, float]]] = {}
    for m, p in conditions:
        missing.setdefault(m, {})[f"{p:g}"] = scores[m, p]
    return Scores(scores[None], missing, seen)


def which_missing(draw: np.ndarray, has: np.ndarray, modalities: Sequence[str], which: str, probability: float) -> np.ndarray:
    """Returns which modalities to remove from each sample.

    Args:
        draw: A number in [0, 1) for each sample and modality, which decides.
        has: Which modalities the samples have.
        modalities: Names of the modalities.
        which: The modality that may be missing, or `any`.
        probability: With which it is.

    Shape:
        - `draw`, `has` and the result :math:`(N, M)`.

    >>> which_missing(
    ...     np.array([[0.1, 0.3]]), np.ones((1, 2), bool), ["a", "b"], "any", 0.5
    ... ).tolist()  # b stays
    [[True, False]]
    """
    lost = draw < probability
    if which != ANY:
        return lost & (np.array(modalities) == which)
    keeps = np.where(has, draw, -1).argmax(1)
    lost[np.arange(len(lost)), keeps] = False
    return lost


def batches(module: TaskModule, data: SequenceDataModule, part: str) -> Iterator[Batch]:
    """Yields each sample of a part once, in batches on the module's device.

    Args:
        module: Knows the device.
        data: Has the samples.
        part: `train`, `valid` or `test`.
    """
    for batch in data.part_dataloader(part):
        yield batch.to(module.device)


def numbers(data: SequenceDataModule) -> dict[str, int]:
    """Returns the number of each sample by its id.

    Args:
        data: Has the samples.
    """
    return {name: number for number, name in enumerate(data.dataset.ids)}
