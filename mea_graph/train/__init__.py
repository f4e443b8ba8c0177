"""Training and evaluation: Lightning modules, metrics, the command line (extra `train`)."""

# ruff: noqa: F401, I001 (the extra is imported to see whether it is there, Lightning after rich, since it takes seconds)

try:
    import jsonargparse
    import rich
    import lightning
    import torchmetrics
except ImportError as error:
    raise ImportError(f"mea_graph.train needs {error.name}, which is not installed: pip install 'mea-graph[train]'") from error

from mea_graph.configurations import packaged_configs
from mea_graph.train.augmentation import augment
from mea_graph.train.config_files import find_config
from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.finite_loss import NonFiniteLossError
from mea_graph.train.mea_module import MEAModule
from mea_graph.train.metrics import (
    TaskMetrics,
    classification_metrics,
    multilabel_metrics,
    regression_metrics,
    sentiment_metrics,
)
from mea_graph.train.predictions import Embeddings, Predictions
from mea_graph.train.predictor import Predictor
from mea_graph.train.sampling import Sampling
from mea_graph.train.splits import SplitPolicy
from mea_graph.train.task_module import LearningRateSchedule, TaskModule
from mea_graph.train.training_length import TrainingLength
from mea_graph.train.versions import versions

__all__ = [
    "Embeddings",
    "LearningRateSchedule",
    "MEAModule",
    "NonFiniteLossError",
    "Predictions",
    "Predictor",
    "Sampling",
    "SequenceDataModule",
    "SplitPolicy",
    "TaskMetrics",
    "TaskModule",
    "TrainingLength",
    "augment",
    "classification_metrics",
    "find_config",
    "multilabel_metrics",
    "packaged_configs",
    "regression_metrics",
    "sentiment_metrics",
    "versions",
]
