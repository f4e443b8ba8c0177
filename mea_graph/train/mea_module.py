"""`MEAModule`: trains MEA with its whole objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch_geometric.data import Batch

from mea_graph.nn import MEA, Discrimination, MEALoss, MEAOutput, ModalityCentering
from mea_graph.train.keyword_arguments import arguments_for, takes_arguments_of
from mea_graph.train.metrics import Task
from mea_graph.train.task_module import TaskModule


class MEAModule(TaskModule):
    """Trains `mea_graph.nn.MEA` with `mea_graph.nn.MEALoss` ([MEA] Eq. 20).

    Every option of the model, of the loss and of `TaskModule` is an argument here, with the default its owner gives it. With
    ``center_agnostic`` each epoch ends with one more pass over the training samples, which measures the means of `ModalityCentering`.

    Args:
        in_channels: width of each modality.
        task: what the target is.
        out_channels: width of the prediction: 1, the number of classes, or the number of labels.
        kwargs: options of `MEA`, `MEALoss` and `TaskModule`.

    Shape: as `TaskModule`; the output is the `MEAOutput` of the model.

    Raises:
        TypeError: where an option belongs to none of the three.
        ValueError: where an option is outside its range.

    Example:
        >>> module = MEAModule({"audio": 5, "text": 3}, "regression", 1, channels=8, heads=2, alpha=0.1, learning_rate=2e-3)
        >>> module.loss.alpha, module.learning_rate
        (0.1, 0.002)
    """

    @takes_arguments_of(MEA, MEALoss, TaskModule, skip=("network",))
    def __init__(self, in_channels: dict[str, int], task: Task, out_channels: int, **kwargs: Any) -> None:
        network, loss, training = (arguments_for(component, kwargs) for component in (MEA, MEALoss, TaskModule))
        unknown = sorted(set(kwargs) - set(network) - set(loss) - set(training))
        if unknown:
            raise TypeError(f"MEAModule: unknown option {', '.join(unknown)}; options are those of MEA, MEALoss and TaskModule")
        super().__init__(MEA(in_channels, out_channels, **network), task=task, out_channels=out_channels, **training)
        # not save_hyperparameters: that looks every visible argument up among the local variables of this function
        self.hparams.update(in_channels=in_channels, task=task, out_channels=out_channels, **kwargs)
        self.loss = MEALoss(task, **loss)

    def loss_terms(self, output: MEAOutput, target: Tensor) -> dict[str, Tensor]:
        """Returns the whole objective as ``loss`` and each of its terms, unweighted, by name."""
        terms = self.loss(_joined(output, self.gather), self.gather(target))._asdict()
        return {"loss": terms.pop("total"), **terms}

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """At the end of an epoch, before anyone looks: the means of `ModalityCentering` as evaluation has them."""
        centering: ModalityCentering | None = cast(MEA, self.network).centering
        if centering is None or not self.trainer.is_last_batch:
            return
        modes = {part: part.training for part in self.network.modules()}
        self.network.eval()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context(), centering.measuring():  # in evaluation's precision
            for part in cast(Iterable[Batch], self.trainer.train_dataloader):
                given = part.to(self.device)
                self(given.x_dict, given.batch_dict, batch_size=given.num_graphs)
        for module, training in modes.items():
            module.training = training
        if self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(centering.mean * centering.seen.unsqueeze(1), reduce_op="sum")
            seen = self.trainer.strategy.reduce(centering.seen, reduce_op="sum")
            centering.mean.copy_(total / seen.clamp(min=1).unsqueeze(1))
            centering.seen.copy_(seen)


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
