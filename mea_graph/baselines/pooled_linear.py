"""A linear model on statistics of each channel: what every model of sequences has to beat."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from mea_graph.data import DataError
from mea_graph.train.metrics import TASKS, Task
from mea_graph.train.splits import even_folds

PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001, 0.0001)
FOLDS = 5
FLAT = 1e-9  # what varies by less than this share of its size varies by rounding


class PooledLinear:
    r"""Logistic or ridge regression on each channel's mean, standard deviation, minimum and maximum over a sample.

    Statistics are standardised with their mean and deviation over the training samples. One that a sample lacks (its modality is missing,
    or a channel has no finite value) becomes their mean, 0; where a modality is missing from some training samples, one more input says
    whether it is there. Values that are not finite do not enter the statistics. With the inputs :math:`z_i` of N samples:

    .. math:: \min_{W, b} \; \frac{1}{N} \sum_i \ell(W z_i + b, \, y_i) + \frac{\lambda}{2} \lVert W \rVert^2

    :math:`\ell` is the cross-entropy (classification), the sum of those of the labels (multilabel) or half the squared error
    (regression). :math:`\lambda` falls from 10 by powers of ten, to 0.0001 at most, as long as samples left out are predicted better, by
    :math:`\ell`. The same samples give the same result.

    Args:
        task: The kind of target: `regression`, `classification` or `multilabel`.
        out_channels: Width of the prediction: 1, the number of classes, or the number of labels.

    Shape:
        - samples: a `MultimodalDataset` or any iterable of `HeteroData`; a sample may lack a node type.
        - predict: `(N, out_channels)` float64: values, logits of classes or log odds of labels. A class without a training sample has
          -inf, and so has a label that no training sample has.

    Raises:
        DataError: If there are no samples, targets do not fit the task, or a modality has another width than in the training samples.

    >>> from mea_graph.data import AsynchronousEvents
    >>> data = AsynchronousEvents(num_samples=60, task="classification", num_classes=2)
    >>> model = PooledLinear("classification", 2).fit(data[:40])
    >>> model.predict(data[40:]).shape
    torch.Size([20, 2])
    """

    def __init__(self, task: Task, out_channels: int) -> None:
        if task not in TASKS:
            raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
        self.task = task
        self.out_channels = out_channels
        self.channels: dict[str, int] = {}
        self.penalty = math.nan
        self._line: Line | None = None

    def fit(self, samples: Iterable[HeteroData], groups: Sequence[Any] | np.ndarray | None = None) -> PooledLinear:
        """Chooses the penalty by cross-validation in five folds, fits all samples with it and returns itself.

        Args:
            samples: What it learns from.
            groups: One value a sample, such as its speaker, of which none is in two folds; with None each sample is a group.
        """
        read = Statistics.of(samples)
        raw, y = read.raw, self._targets(read)
        self.channels = read.channels
        held = list(folds(len(raw), groups))
        paths = [self._path(raw[~out], y[~out], PENALTIES) for out in held]
        least, best = math.inf, 0
        for number in range(len(PENALTIES)):  # all folds side by side, so that weaker penalties, which take longest, may be left out
            loss = sum(self._loss(next(path)(raw[out]), y[out]) for path, out in zip(paths, held, strict=True))
            if loss >= least:
                break
            least, best = loss, number
        self.penalty = PENALTIES[best]
        *_, self._line = self._path(raw, y, PENALTIES[: best + 1])
        return self

    def predict(self, samples: Iterable[HeteroData]) -> Tensor:
        """Returns the prediction for each sample.

        Args:
            samples: With or without targets.
        """
        return self._fitted(Statistics.of(samples, self.channels).raw)

    @property
    def num_parameters(self) -> int:
        """Number of weights and biases."""
        return self._fitted.weight.numel() + self._fitted.bias.numel()

    @property
    def _fitted(self) -> Line:
        if self._line is None:
            raise DataError("PooledLinear: expected fit before anything else, got no samples to fit on yet")
        return self._line

    def _targets(self, read: Statistics) -> Tensor:
        """`(N, out_channels)` float64: the values, one column a class, or the labels."""
        if not read.y:
            raise DataError("samples: expected at least one to fit on, got none")
        width = 1 if self.task == "classification" else self.out_channels
        for name, target in zip(read.ids, read.y, strict=True):
            if target is None:
                raise DataError(f"y: expected a target in every sample, got none in sample {name!r}")
            if target.numel() != width or not bool(torch.isfinite(target).all()):
                raise DataError(f"y: expected {width} finite number(s) for {self.task}, got {target.tolist()} in sample {name!r}")
            if self.task == "classification" and (target.is_floating_point() or not 0 <= int(target) < self.out_channels):
                raise DataError(f"y: expected a class in [0, {self.out_channels}), got {target.tolist()} in sample {name!r}")
        y = torch.cat([target.reshape(1, width) for target in read.y if target is not None])
        return F.one_hot(y[:, 0], self.out_channels).double() if self.task == "classification" else y.double()

    def _path(self, raw: Tensor, y: Tensor, penalties: Sequence[float]) -> Iterator[Line]:
        """The fit with each of the penalties, which fall: each one begins where the one before it ended."""
        scale = Scale.of(raw)
        values, axes = principal_axes(scale(raw))
        z = scale(raw) @ axes
        bias, learnt = y.mean(0), torch.ones(y.size(1), dtype=torch.bool)
        if self.task != "regression":
            bias, learnt = (bias.log() if self.task == "classification" else bias.logit()), (bias > 0) & (bias < 1)
        weight, offset = z.new_zeros(z.size(1), int(learnt.sum())), bias[learnt]
        for penalty in penalties:
            if self.task == "regression":
                weight = z.mT @ (y - bias) / (values + len(y) * penalty)[:, None]
            else:
                weight, offset = logistic(z, y[:, learnt], self.task, penalty, values, weight, offset)
            whole = z.new_zeros(z.size(1), y.size(1))
            whole[:, learnt], bias[learnt] = weight, offset
            yield Line(scale, axes @ whole, bias.clone())

    def _loss(self, prediction: Tensor, y: Tensor) -> float:
        """Summed over samples and labels, without those of which nothing could be learnt: they say nothing about a penalty."""
        if self.task == "regression":
            return float((prediction - y).square().sum())
        if self.task == "classification":
            likelihood = (prediction.log_softmax(1) * y).nan_to_num(nan=0.0, neginf=0.0)  # 0 * -inf is a class that is not the sample's
            return -float(likelihood.sum())
        losses = F.binary_cross_entropy_with_logits(prediction.nan_to_num(posinf=0.0, neginf=0.0), y, reduction="none")
        return float(losses[:, torch.isfinite(prediction).all(0)].sum())


class Scale(NamedTuple):
    """Makes the linear model's inputs: the statistics that vary over the training samples, standardised, and a flag for each modality."""

    mean: Tensor
    deviation: Tensor
    varies: Tensor

    @classmethod
    def of(cls, raw: Tensor) -> Scale:
        """The scale of the training samples."""
        known = torch.isfinite(raw)
        count = known.sum(0).clamp(min=1)
        mean = raw.where(known, 0).sum(0) / count
        deviation = ((raw - mean).where(known, 0).square().sum(0) / count).sqrt()
        varies = deviation > FLAT * mean.abs()
        return cls(mean[varies], deviation[varies], varies)

    def __call__(self, raw: Tensor) -> Tensor:
        return ((raw[:, self.varies] - self.mean) / self.deviation).nan_to_num(nan=0.0)


class Line(NamedTuple):
    """A fitted model: raw statistics `(N, F)` to predictions `(N, out_channels)`."""

    scale: Scale
    weight: Tensor
    bias: Tensor

    def __call__(self, raw: Tensor) -> Tensor:
        return self.scale(raw) @ self.weight + self.bias


class Statistics(NamedTuple):
    """What a linear model reads of samples: raw statistics `(N, F)` float64, targets and ids; F is the sum over modalities of 4 d + 1."""

    channels: dict[str, int]
    raw: Tensor
    y: list[Tensor | None]
    ids: list[Any]

    @classmethod
    def of(cls, samples: Iterable[HeteroData], channels: Mapping[str, int] | None = None) -> Statistics:
        """Reads each sample once: statistics of each channel, NaN where there are none, and 1 or 0 for each modality, there or not.

        Args:
            samples: The samples.
            channels: Width of each modality; as the samples have it if None.
        """
        widths = dict(channels or {})
        found: list[dict[str, Tensor]] = []
        y: list[Tensor | None] = []
        ids: list[Any] = []
        for sample in samples:
            ids.append(sample.get("id", len(ids)))
            y.append(torch.as_tensor(sample.y) if "y" in sample else None)
            found.append({})
            for name in sample.node_types:
                if (x := sample[name].get("x")) is None:
                    continue
                if channels is not None and name not in channels:
                    raise DataError(f"samples: expected modalities {', '.join(channels)}, got {name!r} in sample {ids[-1]!r}")
                if x.dim() != 2 or x.size(1) != widths.setdefault(name, x.size(-1)):
                    raise DataError(f"{name}: expected (T, {widths[name]}), got {tuple(x.shape)} in sample {ids[-1]!r}")
                if len(x):
                    found[-1][name] = torch.cat(of_channels(x.double()))
        raw = [
            torch.stack([torch.cat([row[name], row[name].new_ones(1)]) if name in row else absent(width) for row in found])
            for name, width in widths.items()
            if found
        ]
        return cls(widths, torch.cat(raw, 1) if raw else torch.zeros(len(found), sum(4 * d + 1 for d in widths.values())).double(), y, ids)


def absent(width: int) -> Tensor:
    """What stands for a modality that a sample lacks."""
    return torch.tensor([math.nan] * 4 * width + [0.0], dtype=torch.float64)


def of_channels(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, deviation, minimum and maximum of the finite values of each channel `(T, d)`, T >= 1; NaN where there is none."""
    known = torch.isfinite(x)
    count = known.sum(0)
    mean = x.where(known, 0).sum(0) / count
    deviation = ((x - mean).where(known, 0).square().sum(0) / count).sqrt()
    least, most = x.where(known, math.inf).amin(0), x.where(known, -math.inf).amax(0)
    return mean, deviation, least.where(count > 0, math.nan), most.where(count > 0, math.nan)


def principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The axes `(F, R)` along which samples `(N, F)` vary, and the sum of squares along each: no more than there are samples."""
    wide = x.size(1) > x.size(0)
    values, vectors = torch.linalg.eigh(x @ x.mT if wide else x.mT @ x)
    kept = values > values.amax(0, keepdim=True).clamp(min=0) * 1e-10 if len(values) else values > 0
    values, vectors = values[kept], vectors[:, kept]
    return values, x.mT @ vectors / values.sqrt() if wide else vectors


def logistic(z: Tensor, y: Tensor, task: Task, penalty: float, values: Tensor, weight: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Returns weights and biases of the least penalised loss, from given ones on.

    Along principal axes the curvature is at most `values / 4 N + penalty`: in steps of that size the problem is round.
    """
    if not y.size(1):
        return weight, offset
    size = (values / (4 * len(z)) + penalty).sqrt()[:, None]
    inner, bias = (weight * size).requires_grad_(), offset.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [inner, bias], max_iter=200, tolerance_grad=1e-5, tolerance_change=1e-9, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = z @ (inner / size) + bias
        if task == "classification":
            mean = -(logits.log_softmax(1) * y).sum(1).mean()
        else:
            mean = F.binary_cross_entropy_with_logits(logits, y, reduction="none").sum(1).mean()
        whole = mean + penalty / 2 * (inner / size).square().sum()
        whole.backward()
        return whole

    optimizer.step(loss)
    return (inner / size).detach(), bias.detach()


def folds(count: int, groups: Sequence[Any] | np.ndarray | None) -> Iterator[Tensor]:
    """Yields the samples that each fold leaves out; a fold leaves out whole groups, and folds have similar sizes.

    Args:
        count: Number of samples.
        groups: One value a sample, or None.
    """
    if groups is None:
        group = np.arange(count)
    elif len(groups) != count:
        raise DataError(f"groups: expected one value for each of {count} samples, got {len(groups)}")
    else:
        _, group = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(group, minlength=1)
    number = min(FOLDS, len(sizes))
    drawn = np.random.default_rng(0).permutation(len(sizes))  # samples that stand in some order would make folds unlike each other
    fold = even_folds(sizes, number, drawn)
    for one in range(number if number > 1 else 0):
        yield torch.from_numpy(fold[group] == one)
