"""Training and evaluation: Lightning modules, metrics, the command line (extra ``train``)."""

# ruff: noqa: F401 (ruff does not see through the sum below)

try:
    import jsonargparse
    import lightning
    import rich
    import torchmetrics
except ImportError as error:
    raise ImportError(f"mea_graph.train needs {error.name}, which is not installed: pip install 'mea-graph[train]'") from error

from mea_graph.train.augmentation import augment
from mea_graph.train.config_files import find_config, packaged_configs
from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.mea_module import MEAModule
from mea_graph.train.metrics import (
    TaskMetrics,
    classification_metrics,
    multilabel_metrics,
    regression_metrics,
    sentiment_metrics,
)
from mea_graph.train.splits import SplitPolicy
from mea_graph.train.task_module import LearningRateSchedule, NonFiniteLossError, TaskModule
from mea_graph.train.training_length import TrainingLength
from mea_graph.train.versions import versions

classes = [
    "LearningRateSchedule",
    "MEAModule",
    "NonFiniteLossError",
    "SequenceDataModule",
    "SplitPolicy",
    "TaskMetrics",
    "TaskModule",
    "TrainingLength",
]
functions = [
    "augment",
    "classification_metrics",
    "find_config",
    "multilabel_metrics",
    "packaged_configs",
    "regression_metrics",
    "sentiment_metrics",
    "versions",
]
__all__ = classes + functions
