"""`MEAModule`: trains MEA with its whole objective."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from mea_graph.command.options import FORMER_OF_MODEL
from mea_graph.nn import MEA, Discrimination, MEALoss, MEAOutput, ModalityCentering
from mea_graph.nn._batches import known_layout
from mea_graph.nn._parts import PARTS
from mea_graph.nn.model_options import PUBLISHED, RECOMMENDED, merged
from mea_graph.option_types import check_types, plain_value
from mea_graph.suggestions import did_you_mean
from mea_graph.train.data_module import ONE_PASS, SequenceDataModule
from mea_graph.train.evaluation_mode import evaluating
from mea_graph.train.keyword_arguments import arguments_for, takes_arguments_of
from mea_graph.train.metrics import Task
from mea_graph.train.task_module import TaskModule

# What the forms have beside the model: the loss and the training.
PUBLISHED_TRAINING = {"beta": 0.03, "weight_decay": 0.0, "warmup": 0.0, "cosine_decay": False}
RECOMMENDED_TRAINING = {"beta": 0.001, "weight_decay": 0.01, "warmup": 0.05, "cosine_decay": True}
BY_FORM: tuple[str, ...] = ("dropout", "beta", "weight_decay", "warmup", "cosine_decay")  # None: as the form has them
CHECKED_BY_THEMSELVES = ("window", "class_weights", "augmentation", "label_names")  # with more to say than of what type they are


class MEAModule(TaskModule):
    """Trains `mea_graph.nn.MEA` with `mea_graph.nn.MEALoss` ([MEA] Eq. 20).

    It takes every option of the model, of the loss and of `TaskModule`, with the same defaults. With `agnostic={"center": True}` each epoch
    ends with one more pass over the training samples, which measures the means of `ModalityCentering`.

    Args:
        in_channels: Width of each modality.
        task: The kind of target: `regression`, `classification` or `multilabel`.
        out_channels: Width of the prediction: 1, the number of classes, or the number of labels.
        form: The defaults of options that you do not set: "recommended", or "published" for those of the paper. It decides `dropout`,
            `beta`, `weight_decay`, `warmup`, `cosine_decay` and the options inside parts, if they are `None` or absent.
        kwargs: Options of `MEA` (parts as dicts of options), `MEALoss` and `TaskModule`.

    Shape:
        - as `TaskModule`; the output is a `MEAOutput`

    Raises:
        TypeError: If an option belongs to none of the three, or a part is a module, which a checkpoint could not hold.
        ValueError: If an option is outside its range.

    >>> module = MEAModule(
    ...     {"audio": 5, "text": 3},
    ...     "regression",
    ...     1,
    ...     channels=8,
    ...     heads=2,
    ...     alpha=0.1,
    ...     learning_rate=2e-3,
    ... )
    >>> module.loss.alpha, module.learning_rate
    (0.1, 0.002)
    >>> MEAModule({"audio": 5, "text": 3}, "regression", 1, form="published").hparams[
    ...     "exclusive"
    ... ]["num_layers"]
    3
    """

    @takes_arguments_of(MEA, TaskModule, MEALoss, skip=("network",), unset=BY_FORM)  # `class_weights` as the second one takes them
    def __init__(
        self,
        in_channels: dict[str, int],
        task: Task,
        out_channels: int,
        form: Literal["recommended", "published"] = "recommended",
        **kwargs: Any,
    ) -> None:
        in_channels, task, out_channels, form, kwargs = plain_value((in_channels, task, out_channels, form, kwargs))
        options = complete_options(form, kwargs)
        network, loss, training = (arguments_for(component, options) for component in (MEA, MEALoss, TaskModule))
        super().__init__(MEA(in_channels, out_channels, **network), task=task, out_channels=out_channels, **training)
        # not save_hyperparameters: that looks every visible argument up among the local variables of this function
        self.hparams.update(in_channels=in_channels, task=task, out_channels=out_channels, **options)
        self.loss = MEALoss(task, **{**loss, "class_weights": None})  # `setup` knows them: they may be counted

    @property
    def _centering(self) -> ModalityCentering | None:
        return cast(ModalityCentering | None, getattr(cast(MEA, self.network).agnostic, "centering", None))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self._centering is not None and self._trainer is not None:
            self._centering._joint = self._sum if self.trainer.world_size > 1 else None

    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        if self._centering is not None:
            self._centering._joint = None  # the processes part: the network alone waits for no other, and is saved without its trainer

    def loss_terms(self, output: MEAOutput, target: Tensor) -> dict[str, Tensor]:
        """Returns the whole objective as `loss` and each of its terms, unweighted, by name."""
        terms = self.loss(_joined(output, self.gather), self.gather(target))._asdict()
        return {"loss": terms.pop("total"), **terms}

    def _layout(self, batch: Batch, batch_dict: dict[str, Tensor]) -> dict[str, Any]:
        """The model takes pointers too: with the lengths that the batch keeps on the host, no step waits for a device to tell them."""
        return known_layout(batch, cast(MEA, self.network).modalities) or batch_dict

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Measures, at the end of an epoch, the means that `ModalityCentering` uses in evaluation."""
        centering = self._centering
        if centering is None or not self.trainer.is_last_batch:
            return
        # in evaluation's mode, without dropout and augmentation, and in its precision
        with evaluating(self), torch.no_grad(), self.trainer.precision_plugin.forward_context(), centering.measuring():
            for part in self._each_sample_once():
                self.run(part.to(self.device))
        self._average(centering)

    def _each_sample_once(self) -> Iterable[Batch]:
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, SequenceDataModule) and data.sampling != ONE_PASS:
            return data.part_dataloader("train")
        return cast(Iterable[Batch], self.trainer.train_dataloader)

    def _average(self, centering: ModalityCentering) -> None:
        """The means of all processes."""
        if self.trainer.world_size > 1:
            total, seen = self._sum(centering.mean * centering.seen.unsqueeze(1)), self._sum(centering.seen)
            centering.mean.copy_(total / seen.clamp(min=1).unsqueeze(1))
            centering.seen.copy_(seen)

    def _sum(self, values: Tensor) -> Tensor:
        """Over all processes."""
        return cast(Tensor, self.trainer.strategy.reduce(values.clone(), reduce_op="sum"))


def _joined(output: MEAOutput, gather: Callable[[Tensor], Tensor]) -> MEAOutput:
    """The output with the rows of all processes in every part that the loss reads: HSIC is no mean over samples."""

    def each(h: dict[str, Tensor] | None) -> Any:
        return None if h is None else {m: gather(v) for m, v in h.items()}

    return output._replace(
        prediction=gather(output.prediction),
        exclusive=each(output.exclusive),
        agnostic=each(output.agnostic),
        present=each(output.present),
        discrimination=Discrimination(*(None if part is None else gather(part) for part in output.discrimination)),
    )


def complete_options(form: Literal["recommended", "published"], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of `MEAModule` with those that are not given, as the form has them, inside parts too.

    Args:
        form: "recommended" or "published".
        given: Options of `MEA`, `MEALoss` and `TaskModule`.

    Raises:
        TypeError: If an option belongs to none of the three, or a part is a module.
        ValueError: If there is no such form.

    >>> complete_options("published", {"head": {"norm": True}})["head"]
    {'norm': True}
    """
    if form not in ("recommended", "published"):
        raise ValueError(f"form: expected 'recommended' or 'published', got {form!r}")
    decided = ("in_channels", "out_channels", "task", "network")
    owners = (MEA, MEALoss, TaskModule)
    defaults = {n: p.default for owner in reversed(owners) for n, p in inspect.signature(owner).parameters.items() if n not in decided}
    for name, value in given.items():
        if name not in defaults:
            meant = (
                f" ({FORMER_OF_MODEL[name]} now, in models and checkpoints)" if name in FORMER_OF_MODEL else did_you_mean(name, defaults)
            )
            raise TypeError(f"MEAModule: unknown option {name}{meant}; options are those of MEA, MEALoss and TaskModule")
        if name not in (*PARTS, *CHECKED_BY_THEMSELVES) and not (value is None and name in BY_FORM):
            check_types({name: value}, *owners)
        if isinstance(value, nn.Module):
            raise TypeError(f"{name}: expected options, which a checkpoint can hold, got a module; give it to MEA in a TaskModule of yours")
    defaults |= PUBLISHED | PUBLISHED_TRAINING if form == "published" else RECOMMENDED | RECOMMENDED_TRAINING
    options = merged(defaults, {name: value for name, value in given.items() if value is not None or name not in BY_FORM})
    for name, kind in PARTS.items():
        if isinstance(options[name], Mapping):
            known = inspect.signature(kind).parameters.items()
            plain = {n: p.default for n, p in known if isinstance(p.default, int | float | str) and n not in options}
            options[name] = merged(plain, options[name])
    return options
