"""What every model has to beat, measured: the scores of a constant and of `PooledLinear`."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mea_graph.baselines.constant import constant_prediction
from mea_graph.baselines.pooled_linear import PooledLinear
from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.metrics import TaskMetrics
from mea_graph.train.reports import plain


def constant_scores(data: SequenceDataModule, part: str, sentiment: bool = False) -> dict[str, float]:
    """Returns the metrics of the constant predictor, which looks at nothing.

    Args:
        data: Its training targets make the prediction.
        part: `test` or `valid`, whose targets it is measured on.
        sentiment: As for `TaskMetrics`.

    >>> data = SequenceDataModule(
    ...     events={"num_samples": 60, "task": "classification", "num_classes": 2}
    ... )
    >>> constant_scores(data, "test")["auc"]
    0.5
    """
    constant = constant_prediction(data.targets("train"), data.task, data.out_channels)
    return _scores(data, part, sentiment, constant.expand(len(data.targets(part)), -1))


def pooled_linear(data: SequenceDataModule) -> PooledLinear:
    """Returns `PooledLinear`, fitted to the training samples as a network sees them.

    Its penalty is chosen in folds of which each leaves out other values of the field that divides the data, such as other speakers, where
    the training samples have several; else other samples.

    Args:
        data: Has the samples.

    >>> data = SequenceDataModule(events={"num_samples": 60})
    >>> pooled_linear(data).num_parameters
    201
    """
    by = data.split.by
    # the file's own splits are no field: their names say nothing of which samples are alike
    groups = data.dataset.fields[by][data.parts["train"]] if by in data.dataset.fields else None
    if groups is not None and len(np.unique(groups)) < 2:
        groups = None
    data.targets("train")  # says what is missing
    return PooledLinear(data.task, data.out_channels).fit(data.samples("train"), groups)


def pooled_linear_scores(
    data: SequenceDataModule, part: str, sentiment: bool = False, model: PooledLinear | None = None
) -> dict[str, float]:
    """Returns the metrics of the pooled linear model, which does not look at the order of steps.

    Args:
        data: Its training samples make the model.
        part: `test` or `valid`, which it is measured on.
        sentiment: As for `TaskMetrics`.
        model: What `pooled_linear` made of the data, where it is at hand.

    >>> data = SequenceDataModule(
    ...     events={"num_samples": 300, "task": "classification", "num_classes": 2}
    ... )
    >>> pooled_linear_scores(data, "test")["auc"] > constant_scores(data, "test")["auc"]
    True
    """
    model = pooled_linear(data) if model is None else model
    return _scores(data, part, sentiment, model.predict(data.samples(part)))


def baseline_scores(data: SequenceDataModule, part: str, sentiment: bool = False) -> dict[str, dict[str, float]]:
    """Returns the metrics of what every model has to beat, by name, in the order of the table.

    The arguments are those of `constant_scores`.

    >>> list(baseline_scores(SequenceDataModule(events={"num_samples": 60}), "test"))
    ['constant', 'pooled linear']
    """
    return {"constant": constant_scores(data, part, sentiment), "pooled linear": pooled_linear_scores(data, part, sentiment)}


def _scores(data: SequenceDataModule, part: str, sentiment: bool, prediction: Tensor) -> dict[str, float]:
    metrics = TaskMetrics(data.task, data.out_channels, sentiment, data.label_names if data.task == "multilabel" else None)
    return plain(metrics.scores(prediction, data.targets(part)))
