"""`TaskModule`: trains any network that maps a batch of modalities to a prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch_geometric.data import Batch

from mea_graph import __version__
from mea_graph.data import DataError
from mea_graph.nn import MEALoss
from mea_graph.option_types import check_types, mismatch, plain_value
from mea_graph.train.augmentation import augment, checked_augmentation
from mea_graph.train.class_balance import balanced_weights
from mea_graph.train.finite_loss import FiniteLoss
from mea_graph.train.metrics import Task, TaskMetrics
from mea_graph.train.missing_modalities import draw_missing, without_modalities
from mea_graph.train.restored_paths import keep_own_paths
from mea_graph.train.restoring import check_count, check_order, count_moments, reopen_epoch
from mea_graph.train.row_gatherer import RowGatherer
from mea_graph.train.targets import check_samples
from mea_graph.train.term_means import TermMeans
from mea_graph.train.times import times_of
from mea_graph.train.trainer_options import check_same_trainer, trainer_options

_class_alone: Any = type(vars(L.LightningModule)["load_from_checkpoint"])  # Lightning's class method, which refuses an instance
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")


class TaskModule(L.LightningModule):
    r"""Trains a network for regression, classification or several binary labels.

    It is the base class of all modules here. For a model of your own, give it a network; override `loss_terms` for a loss of your own. To
    load a subclass from a checkpoint, call `self.save_hyperparameters()` after `super().__init__`, as Lightning requires.

    The optimiser is Adam as in the paper, or AdamW with weight decay, with an optional linear warm-up and cosine decay to 0, both in
    optimiser steps. The random numbers of a training batch depend only on (seed, epoch, batch, rank), so a resumed run equals an
    uninterrupted one. Several processes train on the loss of their joint batch, as one process with that batch would.
    Logs `train/<term>`, `valid/<term>` and `test/<term>` for each term of the loss, and `valid/<metric>` and
    `test/<metric>` for each of `TaskMetrics`.

    Args:
        network: A module that is called as `network(x_dict, batch_dict, batch_size)` and returns the prediction, or a NamedTuple with the
            field `prediction`. If its attribute `timed_modalities` names some, it also gets `time`, their seconds.
        task: The kind of target: `regression`, `classification` or `multilabel`.
        out_channels: Width of the prediction: 1, the number of classes, or the number of labels.
        sentiment: Whether a regression target is a sentiment score in [-3, 3], so that Acc7, Acc2 and F1 are reported.
        label_names: Names of the labels or classes, one per output.
        learning_rate: Step size after the warm-up, > 0.
        weight_decay: Decoupled weight decay, >= 0; 0 is plain Adam.
        warmup: Share of all steps over which the learning rate rises linearly, in [0, 1).
        cosine_decay: Whether the learning rate then falls to 0 along half a cosine.
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1].
        class_weights: Weights of the cross-entropy, for unequal classes: one number >= 0 for each class or label. `balanced` computes them
            from the training samples and keeps them in the checkpoint. They count in the `loss` and `task` of every part.
        augmentation: Random changes of training samples, by name; 0 if not named. `modality_dropout` in [0, 1) is the probability of
            leaving out each modality of a sample (each sample keeps one); use it if modalities may be missing. For `time_stretch`,
            `time_mask` and `feature_noise` see `mea_graph.train.augment`.

    Shape:
        - batch: as PyG's `DataLoader` makes it of a `MultimodalDataset`.
        - forward: `(B, out_channels)`, or what the network returns around it.

    Raises:
        ValueError: If an option is outside its range.
        NonFiniteLossError: If the loss is NaN or infinite. On a GPU the check comes some steps later, so that no step waits for it, but
            before the end of the epoch and before a checkpoint is written.

    >>> class Mean(nn.Module):
    ...     def forward(self, x_dict, batch_dict, batch_size):
    ...         return x_dict["audio"].new_zeros(batch_size, 1)
    >>> module = TaskModule(Mean(), task="regression", out_channels=1)
    >>> module(
    ...     {"audio": torch.randn(5, 3)},
    ...     {"audio": torch.zeros(5, dtype=torch.long)},
    ...     batch_size=2,
    ... ).shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        out_channels: int,
        sentiment: bool = False,
        label_names: Sequence[str] | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup: float = 0.0,
        cosine_decay: bool = False,
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
        augmentation: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        plain = {"sentiment": sentiment, "cosine_decay": cosine_decay, "label_smoothing": label_smoothing}
        check_types({"learning_rate": learning_rate, "weight_decay": weight_decay, "warmup": warmup, **plain}, TaskModule)
        if learning_rate <= 0 or weight_decay < 0 or not 0 <= warmup < 1:
            raise ValueError(
                f"learning_rate, weight_decay, warmup: expected > 0, >= 0 and in [0, 1), got {learning_rate}, {weight_decay} and {warmup}"
            )
        class_weights, label_names = plain_value((class_weights, label_names))
        check_class_weights(class_weights, task, out_channels)
        self.network = network
        self.loss = MEALoss(task, label_smoothing=label_smoothing)
        self.task = task
        self.out_channels = out_channels
        self.label_names = None if label_names is None else list(label_names)
        self.class_weights = class_weights
        self.sentiment = sentiment
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.cosine_decay = cosine_decay
        self.augmentation = checked_augmentation(augmentation)
        self.modality_dropout = self.augmentation.pop("modality_dropout")
        if self.augmentation["time_stretch"] > 0 and getattr(network, "timed_modalities", None):
            why = "0 with a network that reads times in seconds, which have one pace"
            raise ValueError(f"augmentation.time_stretch: expected {why}, got {self.augmentation['time_stretch']}")
        self.valid_metrics = TaskMetrics(task, out_channels, sentiment, label_names)
        self.test_metrics = TaskMetrics(task, out_channels, sentiment, label_names)
        self.gather = RowGatherer()
        self._means = TermMeans()
        self._watch = FiniteLoss()
        self._seed: int | None = None

    def forward(
        self, x_dict: dict[str, Tensor], batch_dict: dict[str, Tensor], batch_size: int, time: dict[str, Tensor] | None = None
    ) -> Any:
        """Returns what the network returns; the features are brought to the precision of its weights, times keep their own."""
        given = {} if time is None else {"time": time}
        return self.network({name: x.to(self.dtype) for name, x in x_dict.items()}, batch_dict, batch_size=batch_size, **given)

    def run(self, batch: Batch, missing: Mapping[str, Tensor] | None = None) -> Any:
        """Returns what the network returns for a batch, whose times it is given where it reads them; training changes the batch first.

        `missing`, `(B,)` bool by modality, says which samples go without it.
        """
        check_samples(batch, labelled=False)
        x_dict, batch_dict, time = batch.x_dict, batch.batch_dict, times_of(batch, self.network)
        given = batch_dict
        if self.training and any(self.augmentation.values()):  # every step stays: no stretch beside times
            x_dict, batch_dict = augment(x_dict, batch_dict, batch.num_graphs, **self.augmentation)
        if self.training and self.modality_dropout > 0:
            missing = draw_missing(batch_dict, batch.num_graphs, self.modality_dropout)
        if missing is not None:
            for m in time.get("time", {}).keys() & missing.keys():
                time["time"][m] = time["time"][m][~missing[m][batch_dict[m]]]
            x_dict, batch_dict = without_modalities(x_dict, batch_dict, missing)
        if batch_dict is given:
            batch_dict = self._layout(batch, batch_dict)
        return self(x_dict, batch_dict, batch_size=batch.num_graphs, **time)

    def _layout(self, batch: Batch, batch_dict: dict[str, Tensor]) -> dict[str, Any]:
        """What the network is given as `batch_dict` for a batch that nothing has changed."""
        return batch_dict

    def loss_terms(self, output: Any, target: Tensor) -> dict[str, Tensor]:
        """Returns the loss to minimise as `loss` and each of its terms by name; `task` is the term every module has.

        `self.gather` puts the rows of all processes one after the other while training, and changes nothing in evaluation.
        """
        task = self.loss.task_loss(self.gather(prediction_of(output)), self.gather(target))
        return {"loss": task, "task": task}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Returns the loss of one batch."""
        loss = self._step(batch, "train")[1]
        if self.gather.counts is not None:
            # DDP waits for the gradient of every parameter: one of a modality that this process's batch lacks gets zeros
            loss = loss + torch.cat([parameter.flatten()[:0] for parameter in self.parameters() if parameter.requires_grad]).sum()
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Adds one validation batch to the metrics."""
        self._evaluate(batch, "valid", self.valid_metrics)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """Adds one test batch to the metrics."""
        self._evaluate(batch, "test", self.test_metrics)

    def predict_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        """Returns ids, predictions `(B, out_channels)` and, where known, targets of one batch."""
        prediction = prediction_of(self.run(batch))
        return {"id": list(batch.id), "prediction": prediction.float().cpu(), "target": batch.y.cpu() if "y" in batch else None}

    def number_names(self, batch: Batch) -> tuple[list[str], list[str]]:
        """Returns the names of the terms of the loss and of the metrics, as this batch has them; nothing is logged."""
        output = self.run(batch)
        metrics = self.valid_metrics.scores(prediction_of(output).double(), batch.y)
        return list(self.loss_terms(output, batch.y)), list(metrics)

    def on_train_epoch_end(self) -> None:
        self._watch.end()

    def on_validation_epoch_end(self) -> None:
        self._end_evaluation("valid", self.valid_metrics)

    def on_test_epoch_end(self) -> None:
        self._end_evaluation("test", self.test_metrics)

    def setup(self, stage: str) -> None:
        if self._trainer is not None:
            check_precision(self._trainer.precision)
        self._watch = FiniteLoss()
        if self._seed is None:
            self._seed = torch.initial_seed()
        if self.class_weights is not None and (stage == "fit" or self.loss.class_weights is None):
            self.loss.class_weights = self._weights_of_classes(stage)

    @_class_alone
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads a module as Lightning does, but runs no code out of the file unless you allow it by `weights_only=False`."""
        return super().load_from_checkpoint(*args, **{"weights_only": True, **kwargs})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._watch.end()  # no checkpoint holds the weights of such a step
        checkpoint["random_seed"] = self._seed
        checkpoint["mea_graph_version"] = __version__
        checkpoint["module"] = public_name(type(self))
        checkpoint["moments"] = count_moments(checkpoint)
        checkpoint |= trainer_options(self.trainer)
        if self.loss.class_weights is not None:
            checkpoint["class_weights"] = self.loss.class_weights
        for part in checkpoint.keys() - {"state_dict"}:  # with a number of numpy anywhere no command opens the file
            checkpoint[part] = plain_value(checkpoint[part])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_order(checkpoint, self.hparams)
        self._seed = checkpoint.get("random_seed", self._seed)
        if self.class_weights is not None and "class_weights" in checkpoint:
            self.loss.class_weights = checkpoint["class_weights"]
        if self._trainer is not None:  # else only the weights are loaded
            keep_own_paths(checkpoint, self._trainer)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            check_count(checkpoint, sum(parameter.requires_grad for parameter in self.parameters()))
            check_same_trainer(checkpoint, self._trainer)
            reopen_epoch(checkpoint)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # per batch, not per epoch: how often the data loader draws before the first batch differs in a resumed epoch
        sequence = np.random.SeedSequence([self._seed or 0, self.current_epoch, batch_idx, self.global_rank])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

    def configure_optimizers(self) -> Any:
        # One call for hundreds of small tensors. Only on a CPU: on a GPU it is torch's own choice, and gradient scaling minds a fused one.
        # In mixed precision Lightning clips no gradients with a fused one.
        mixed = self._trainer is not None and "mixed" in self.trainer.precision
        fused = True if not mixed and all(parameter.device.type == "cpu" for parameter in self.parameters()) else None
        if self.weight_decay > 0:
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                self.parameters(), self.learning_rate, weight_decay=self.weight_decay, fused=fused
            )
        else:
            optimizer = torch.optim.Adam(self.parameters(), self.learning_rate, fused=fused)
        if self.warmup == 0 and not self.cosine_decay:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise DataError("warmup, cosine_decay: expected trainer.max_epochs or trainer.max_steps with them, got an endless run")
        schedule = LearningRateSchedule(int(steps), self.warmup, self.cosine_decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, schedule), "interval": "step"}}

    def _weights_of_classes(self, stage: str) -> Tensor | None:
        if self.class_weights is None or self.class_weights != "balanced":
            return None if self.class_weights is None else torch.tensor(self.class_weights)
        data: Any = None if self._trainer is None else getattr(self._trainer, "datamodule", None)
        if stage != "fit" and "train" not in getattr(data, "parts", ()):
            return None  # the checkpoint brings them
        if not hasattr(data, "targets"):
            raise DataError("class_weights: expected a SequenceDataModule, whose training targets 'balanced' counts; or give numbers")
        if getattr(getattr(data, "sampling", None), "balanced", False):
            both = "expected 'balanced' here or data.sampling.balanced, got both, which makes rare classes count too much"
            raise DataError(f"class_weights: {both}")
        return balanced_weights(data.targets("train"), self.task, self.out_channels)

    def _step(self, batch: Batch, stage: str) -> tuple[Tensor, Tensor]:
        check_samples(batch, labelled=True)
        self.gather = RowGatherer.for_rows(batch.num_graphs, batch.y.device) if self.training else RowGatherer()
        output = self.run(batch)
        terms = self.loss_terms(output, batch.y)
        self._watch.see(terms, batch.get("id"), stage, batch)
        if self.training:  # on the joint batch, so each process logs the same value
            joint = batch.num_graphs if self.gather.counts is None else sum(self.gather.counts)
            logged = {f"{stage}/{name}": value.detach() for name, value in terms.items()}
            self.log_dict(logged, on_step=False, on_epoch=True, batch_size=joint)
        else:
            self._means.update(terms, batch.num_graphs)
        return prediction_of(output), terms["loss"]

    def _evaluate(self, batch: Batch, stage: str, metrics: TaskMetrics) -> None:
        prediction, _ = self._step(batch, stage)
        metrics.update(prediction, batch.y)

    def _end_evaluation(self, stage: str, metrics: TaskMetrics) -> None:
        self._watch.end()
        self.log_dict({f"{stage}/{name}": value for name, value in self._means.compute().items()})
        # computed over all processes already, so each of them logs the same value
        self.log_dict({f"{stage}/{name}": value.float() for name, value in metrics.compute().items()}, sync_dist=True)
        metrics.reset()


class LearningRateSchedule:
    """Factor of the learning rate at a step: linear warm-up, then 1 or half a cosine down to 0.

    Args:
        steps: Number of all steps, >= 1.
        warmup: Share of them that warms up, in [0, 1).
        cosine_decay: Whether the factor falls after the warm-up.

    >>> schedule = LearningRateSchedule(10, warmup=0.2, cosine_decay=True)
    >>> [round(schedule(step), 3) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    def __init__(self, steps: int, warmup: float, cosine_decay: bool) -> None:
        self.steps = steps
        self.rising = round(warmup * steps)
        self.cosine_decay = cosine_decay

    def __call__(self, step: int) -> float:
        if step < self.rising:
            return (step + 1) / self.rising
        if not self.cosine_decay:
            return 1.0
        progress = (step - self.rising) / max(self.steps - self.rising, 1)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def prediction_of(output: Any) -> Tensor:
    """Returns the prediction: the output itself, or its field `prediction`.

    >>> prediction_of(torch.ones(2, 1)).shape
    torch.Size([2, 1])
    """
    return output if isinstance(output, Tensor) else output.prediction


def public_name(module: type) -> str:
    """Returns the name by which a class is imported; of ours the one that stays when a file moves inside its package.

    Args:
        module: A class.

    >>> public_name(TaskModule)
    'mea_graph.train.TaskModule'
    """
    package = module.__module__
    if package.startswith("mea_graph."):
        package = ".".join(package.split(".")[:2])
    return f"{package}.{module.__qualname__}"


def check_precision(precision: str) -> None:
    """Refuses weights of 16 bits: Adam's steps are lost in them, and in float16 its epsilon is 0.

    Args:
        precision: The precision of Lightning's `Trainer`.

    Raises:
        DataError: If the precision is not one of the choices, which the error lists.

    >>> check_precision("bf16-mixed")
    """
    if precision not in PRECISIONS:
        raise DataError(f"trainer.precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")


def check_class_weights(weights: object, task: str, out_channels: int) -> None:
    """Refuses weights of classes that do not fit the task.

    Args:
        weights: As for `TaskModule`.
        task: The kind of target: `regression`, `classification` or `multilabel`.
        out_channels: Number of classes or labels.

    Raises:
        ValueError: If the weights do not fit; the error says what fits.

    >>> check_class_weights([1.0, 2.5], "classification", 2)
    """
    if weights is None:
        return
    if task == "regression":
        raise ValueError(f"class_weights: expected none for regression, got {weights!r}"[:300])
    if mismatch(weights, Literal["balanced"]) is None:
        return
    numbers = weights if isinstance(weights, list | tuple) and mismatch(weights, list[float]) is None else ()
    if len(numbers) != out_channels or min(numbers, default=0) < 0 or not any(numbers):
        expected = f"'balanced' or a list of {out_channels} finite numbers >= 0, one a class or label, some above 0"
        raise ValueError(f"class_weights: expected {expected}, got {weights!r}"[:300])
