"""The whole objective, [MEA] Eq. 20."""

import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mea_graph.nn.mea import MEAOutput
from mea_graph.nn.objective.losses import (
    agnostic_adversarial,
    at_least_float32,
    exclusive_adversarial,
    hsic,
    modality_confusion,
    orthogonality,
)
from mea_graph.ops.eager import is_traced, is_transformed


class LossTerms(NamedTuple):
    """The objective and its terms, each unweighted but the total.

    >>> LossTerms._fields
    ('total', 'task', 'disparity', 'agnostic', 'exclusive', 'importance', 'confusion')
    """

    total: Tensor
    task: Tensor
    disparity: Tensor
    agnostic: Tensor
    exclusive: Tensor
    importance: Tensor
    confusion: Tensor


class MEALoss(nn.Module):
    r"""The objective of MEA, every term by name ([MEA] Eq. 20).

    .. math:: L = L_{task} + \alpha L_{dis} + \beta \, (L_{agn} + L_{exc} + L_{imp})

    :math:`L_{task}` is the mean squared error (regression, of one target or the mean over several), cross-entropy (classification) or
    binary cross-entropy (multilabel). :math:`L_{dis}` is the mean over modalities of `hsic` between exclusive and agnostic representations.
    :math:`L_{imp}` trains the importance discriminator, on detached representations (R6): it changes nothing else. A model with
    `adversary="confusion"` adds :math:`\beta L_{con}` (`modality_confusion`); its :math:`L_{agn}` trains the modality discriminator alone.

    Args:
        task: Kind of target.
        alpha: Weight of the disparity, finite and at least 0; 0 turns the term off (Table V, "w/o L_dis"). The paper has 0.02 on MOSI.
        beta: Weight of the discriminators, finite and at least 0; 0 turns them off (Table V, "w/o adversarial"). The paper has 0.03 on
            MOSI. Lower it if training fails: a large one can ruin it.
        disparity: What keeps the two spaces apart: "hsic", or "orthogonality" (Table V, "L_sep"). The latter is a sum over the batch and
            needs a far smaller alpha.
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1].
        class_weights: One finite weight of at least 0 for each class, which multiplies its cross-entropy, or for each label, which
            multiplies that of the samples which have it. None: all count alike. The attribute `class_weights` holds them: `to()` moves
            them, and `state_dict` leaves them out.

    The task term is a mean over samples, weighted or not, so that batches of any size add up: `torch.nn.CrossEntropyLoss` divides by the
    sum of the weights instead. Of no sample every term is 0.

    Shape:
        - output: `MEAOutput` with prediction :math:`(B, C)`; target: :math:`(B,)` float with C = 1 or :math:`(B, C)` float with C > 1
          (regression), :math:`(B,)` int64 in [0, C) (classification), :math:`(B, C)` of zeros and ones (multilabel)
        - class_weights: :math:`(C,)`
        - result: `LossTerms` of scalars

    Raises:
        ValueError: If representations differ in shape, the target or the weights do not fit the task or the prediction (only the CPU
            checks for classes out of range and numbers that are not finite: elsewhere the check would wait for the device), or an option
            is out of its range.
        TypeError: If the output is not that of a model, or the target no tensor.

    >>> import torch
    >>> from mea_graph.nn import MEA
    >>> output = MEA({"a": 3, "b": 5}, 1, channels=8, heads=2)(
    ...     {"a": torch.randn(4, 6, 3), "b": torch.randn(4, 9, 5)}
    ... )
    >>> terms = MEALoss("regression")(output, torch.randn(4))
    >>> terms.total.backward()
    >>> loss = MEALoss("classification", class_weights=torch.tensor([1.0, 3.0]))
    >>> logits = torch.zeros(2, 2)
    >>> [round(loss.task_loss(logits, torch.full((2,), c)).item(), 3) for c in (0, 1)]
    [0.693, 2.079]
    """

    class_weights: Tensor | None

    def __init__(
        self,
        task: Literal["regression", "classification", "multilabel"] = "regression",
        alpha: float = 0.02,
        beta: float = 0.001,
        disparity: Literal["hsic", "orthogonality"] = "hsic",
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        if task not in ("regression", "classification", "multilabel"):
            raise ValueError(f"task: expected 'regression', 'classification' or 'multilabel', got {task!r}")
        if disparity not in ("hsic", "orthogonality"):
            raise ValueError(f"disparity: expected 'hsic' or 'orthogonality', got {disparity!r}")
        if not (0 <= alpha < math.inf and 0 <= beta < math.inf):
            raise ValueError(f"alpha, beta: expected finite numbers of at least 0, got {alpha}, {beta}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
        _check_class_weights(class_weights, task)
        self.task, self.alpha, self.beta, self.label_smoothing = task, alpha, beta, label_smoothing
        self.disparity = disparity
        self.register_buffer("class_weights", class_weights, persistent=False)

    def task_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Returns L_task alone, for networks that have no other term."""
        if not isinstance(target, Tensor):
            raise TypeError(f"target: expected a Tensor, got {type(target).__name__}")
        if prediction.dim() != 2 or prediction.size(1) == 0:
            raise ValueError(f"prediction: expected (B, C), got {tuple(prediction.shape)}")
        by_column = self.task == "multilabel" or (self.task == "regression" and prediction.size(1) != 1)
        expected = prediction.shape if by_column else prediction.shape[:1]
        if target.shape != expected:
            raise ValueError(f"target: expected {tuple(expected)} for {self.task}, got {tuple(target.shape)}")
        if not (target.dtype == torch.int64 if self.task == "classification" else target.is_floating_point()):
            kind = "int64" if self.task == "classification" else "floats"
            raise ValueError(f"target: expected {kind} for {self.task}, got {target.dtype}")
        weights = self.class_weights
        if weights is not None and (self.task == "regression" or weights.shape != prediction.shape[1:]):
            wanted = "None for regression" if self.task == "regression" else f"({prediction.size(1)},), as the prediction has it"
            raise ValueError(f"class_weights: expected {wanted}, got {tuple(weights.shape)}")
        _check_numbers(target, self.task)
        prediction = at_least_float32(prediction)
        if prediction.size(0) == 0:
            return prediction.sum()  # 0, as every other term is then; torch's mean of no sample is NaN
        if self.task == "regression":
            return F.mse_loss(prediction if by_column else prediction.squeeze(1), target.to(prediction.dtype))
        weights = None if weights is None else weights.to(prediction)
        if self.task == "classification":
            _check_classes(target, prediction.size(1))
            if weights is None:
                return F.cross_entropy(prediction, target, label_smoothing=self.label_smoothing)
            # not torch's own mean, which divides by the weights of the batch: a batch of one would ignore them
            return F.cross_entropy(prediction, target, weights, label_smoothing=self.label_smoothing, reduction="none").mean()
        return F.binary_cross_entropy_with_logits(prediction, target.to(prediction.dtype), pos_weight=weights)

    def forward(self, output: MEAOutput, target: Tensor) -> LossTerms:
        """Returns the objective and its terms."""
        if not isinstance(output, MEAOutput):
            raise TypeError(f"output: expected the MEAOutput of a model, got {type(output).__name__}; task_loss takes a prediction alone")
        task = self.task_loss(output.prediction, target)
        zero = task.new_zeros(())
        there = _stacked("present", output.present, output.present, output.prediction.size(0), 1)  # (M, B)
        disparity = agnostic = exclusive = importance = confusion = zero
        # A term of weight zero is still computed: it is worth a look, and no parameter is left without a gradient.
        if output.exclusive is not None and output.agnostic is not None:
            term = hsic if self.disparity == "hsic" else orthogonality
            exclusive_h, agnostic_h = (
                _stacked(name, h, output.present, output.prediction.size(0), 2)
                for name, h in (("exclusive", output.exclusive), ("agnostic", output.agnostic))
            )
            disparity = term(exclusive_h, agnostic_h, there).mean()
        seen, present = output.discrimination, there.mT  # (B, M)
        if seen.agnostic is not None and seen.omega is not None:
            agnostic = agnostic_adversarial(seen.agnostic, seen.omega, present)
            if seen.confusion is not None:
                confusion = modality_confusion(seen.confusion, seen.omega, present)
        if seen.exclusive is not None and seen.importance is not None:
            if seen.importance.shape != seen.exclusive.shape:
                raise ValueError(f"importance: expected {tuple(seen.exclusive.shape)}, got {tuple(seen.importance.shape)}")
            exclusive, importance = exclusive_adversarial(torch.stack([seen.exclusive, seen.importance]), present).unbind()
        elif seen.exclusive is not None:
            exclusive = exclusive_adversarial(seen.exclusive, present)
        elif seen.importance is not None:
            importance = exclusive_adversarial(seen.importance, present)
        adversarial = [term for term in (agnostic, exclusive, importance, confusion) if term is not zero]
        total = task.add(disparity, alpha=self.alpha).add(sum(adversarial[1:], adversarial[0]) if adversarial else zero, alpha=self.beta)
        return LossTerms(total, task, disparity, agnostic, exclusive, importance, confusion)


def _stacked(name: str, given: Mapping[str, Tensor], modalities: Iterable[str], samples: int, dims: int) -> Tensor:
    """The tensors of all modalities, which have one shape: (B,) or (B, d)."""
    names = list(modalities)
    if not names or set(names) - set(given):
        raise ValueError(f"{name}: expected a tensor for each of {names or 'at least one modality'}, got {list(given)}")
    expected = (samples, *given[names[0]].shape[-1:])[:dims]
    for modality in names:
        if given[modality].shape != expected:
            raise ValueError(f"{name}[{modality!r}]: expected {expected}, as every modality has, got {tuple(given[modality].shape)}")
    return torch.stack([given[modality] for modality in names])


def _check_numbers(target: Tensor, task: str) -> None:
    """Refuses NaN, infinity and labels outside [0, 1]. CPU only: elsewhere the check would wait for the device."""
    if not target.is_floating_point() or target.device.type != "cpu" or is_traced() or is_transformed():
        return
    wrong = ~target.isfinite() if task == "regression" else ~((target >= 0) & (target <= 1))
    if bool(wrong.any()):
        kind = "finite numbers" if task == "regression" else "labels in [0, 1]"
        place = wrong.nonzero()[0].tolist()
        raise ValueError(f"target: expected {kind}, got {float(target[tuple(place)]):g} in sample {place[0]} of the batch")


def _check_classes(target: Tensor, classes: int) -> None:
    """Refuses classes out of range, -100 too, which cross_entropy ignores. CPU only: elsewhere the check would wait for the device."""
    if target.device.type == "cpu" and not torch.compiler.is_compiling() and bool(((target < 0) | (target >= classes)).any()):
        raise ValueError(f"target: expected classes in [0, {classes}), got {int(target.min())} to {int(target.max())}")


def _check_class_weights(weights: object, task: str) -> None:
    if weights is None:
        return
    if task == "regression":
        raise ValueError("class_weights: expected None for regression, which has no classes, got weights")
    expected = "a tensor (C,) of finite numbers of at least 0, some above 0"
    if not isinstance(weights, Tensor):
        raise ValueError(f"class_weights: expected {expected}, got {weights!r}"[:300])
    if weights.dim() != 1 or weights.dtype == torch.bool or weights.is_complex():
        raise ValueError(f"class_weights: expected {expected}, got {weights.dtype} {tuple(weights.shape)}")
    if not bool((weights.isfinite() & (weights >= 0)).all() & (weights > 0).any()):
        raise ValueError(f"class_weights: expected {expected}, got {weights.tolist()}"[:300])
