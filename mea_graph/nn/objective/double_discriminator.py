"""The two discriminators that drive the representations apart, [MEA] Eq. 15-16."""

import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mea_graph.nn._sequences import check_dtype, check_keys, check_modalities, check_same_samples, check_sizes, weight_dtype
from mea_graph.nn._side_by_side import is_watched, saves_launches
from mea_graph.nn.objective.gradient_reversal import GradientReversal


class Discrimination(NamedTuple):
    """Logits over the M modalities for each sample and modality, and the degrees omega. None where a space is absent.

    >>> import torch
    >>> h = {"a": torch.randn(4, 8), "b": torch.randn(4, 8)}
    >>> DoubleDiscriminator(8, ["a", "b"])(h, h).omega.shape
    torch.Size([4, 2])
    """

    exclusive: Tensor | None  # (B, M, M), D_m on h_e
    agnostic: Tensor | None  # (B, M, M), D_m on GRL(h_a)
    importance: Tensor | None  # (B, M, M), D_i on detached h_a
    omega: Tensor | None  # (B, M), detached
    confusion: Tensor | None = None  # (B, M, M), D_m with its weights held on h_a; only with adversary="confusion"


class DoubleDiscriminator(nn.Module):
    r"""Importance discriminator and modality discriminator ([MEA] Eq. 15-16).

    The modality discriminator :math:`D_m`, one network for both kinds of representation, guesses the modality of a representation:
    exclusive ones learn to make that easy, agnostic ones, behind a gradient reversal, hard. The importance discriminator :math:`D_i`,
    a linear one, is trained on detached agnostic representations (R6), and weighs the adversarial loss of each:

    .. math:: \omega = 1 - D_i(h_a)[m]

    That is the paper's formula: the weight is low where :math:`D_i` is sure of the modality. The strategy stems from MARN
    (arXiv 2003.07162). Where linear separation is easy, :math:`\omega` is near zero, and with it the adversarial loss.

    The reversed loss has no bound: agnostic representations can always raise it by growing. With `adversary="confusion"`
    (Tzeng et al., arXiv 1510.02192) :math:`D_m` learns from detached agnostic representations, and these learn from
    `modality_confusion`, which is least where :math:`D_m` is undecided.

    Args:
        channels: Width d_h of the representations.
        modalities: Names of the modalities, at least two.
        importance: Whether omega weighs the adversarial loss of each representation; if not, omega is 1 (Table V, "w/o omega").
        reversal: Scale of the gradient reversal; "confusion" does not use it.
        adversary: What trains agnostic representations: "reversal" raises the loss of :math:`D_m`, as in the paper; "confusion" makes
            :math:`D_m` undecided. Choose "confusion" if a larger `beta` of `MEALoss` harms the training.

    Shape:
        - exclusive, agnostic: dict of :math:`(B, d_h)`, or None where the space is not there
        - result: `Discrimination`

    Raises:
        ValueError: If the modalities are not those named, a shape is wrong, samples differ in number, or `adversary` is unknown.
        TypeError: If a representation has another dtype than the weights.

    >>> import torch
    >>> layer = DoubleDiscriminator(64, ["text", "audio", "vision"])
    >>> h = {m: torch.randn(5, 64) for m in layer.modalities}
    >>> layer(h, h).agnostic.shape
    torch.Size([5, 3, 3])
    """

    def __init__(
        self,
        channels: int,
        modalities: Iterable[str],
        importance: bool = True,
        reversal: float = 1.0,
        adversary: Literal["reversal", "confusion"] = "reversal",
    ) -> None:
        super().__init__()
        if adversary not in ("reversal", "confusion"):
            raise ValueError(f"adversary: expected 'reversal' or 'confusion', got {adversary!r}")
        if not 0 <= reversal < math.inf:
            raise ValueError(f"reversal: expected a finite number of at least 0, got {reversal}")
        self.adversary = adversary
        check_sizes(channels=channels)
        self.channels, self.modalities = channels, check_modalities(modalities, at_least=2)
        size = len(self.modalities)
        self.importance = nn.Linear(channels, size, bias=False) if importance else None  # softmax(h W_i), as printed
        self.reversal = GradientReversal(reversal)
        self.hidden = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, size)
        self.activation = nn.GELU()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        if self.importance is not None:
            self.importance.reset_parameters()
        self.hidden.reset_parameters()
        self.out.reset_parameters()

    def discriminate(self, h: Tensor) -> Tensor:
        """Logits of the modality discriminator, (*, d_h) -> (*, M)."""
        return self.out(self.activation(self.hidden(h)))

    def _is_plain(self) -> bool:
        """Whether calling each part does what its weights say, so that both spaces may be one batch."""
        parts = ((self.hidden, nn.Linear), (self.activation, nn.GELU), (self.out, nn.Linear))
        return all(type(part) is kind and not is_watched(part) for part, kind in parts)

    def _confusion(self, h: Tensor) -> Tensor:
        """As `discriminate`, but the weights get no gradient."""
        return _held(self.out, self.activation(_held(self.hidden, h)))

    def forward(self, exclusive: Mapping[str, Tensor] | None, agnostic: Mapping[str, Tensor] | None) -> Discrimination:
        """Returns the logits of both discriminators."""
        stacked, dtype = [], weight_dtype(self, "hidden")
        for name, space in (("exclusive", exclusive), ("agnostic", agnostic)):
            if space is not None:
                check_keys(space, self.modalities, name)
                check_same_samples(space, name)
                for m in self.modalities:
                    check_dtype(space[m], dtype, f"{name}[{m!r}]")
                    if space[m].dim() != 2 or space[m].size(1) != self.channels:
                        raise ValueError(f"{name}[{m!r}]: expected (B, {self.channels}), got {tuple(space[m].shape)}")
            stacked.append(None if space is None else torch.stack([space[m] for m in self.modalities], 1))  # (B, M, d_h)
        h_e, h_a = stacked
        importance = omega = confusion = None
        if h_a is not None:
            if self.importance is None:
                omega = torch.ones_like(h_a[..., 0])
            else:
                importance = self.importance(h_a.detach())
                omega = 1 - importance.detach().softmax(-1).diagonal(dim1=1, dim2=2)
            if self.adversary == "confusion":
                confusion, h_a = self._confusion(h_a), h_a.detach()
            h_a = self.reversal(h_a)
        if h_e is not None and h_a is not None and saves_launches(h_e) and h_e.shape == h_a.shape and self._is_plain():
            of_e, of_a = self.discriminate(torch.stack([h_e, h_a])).unbind()
            return Discrimination(of_e, of_a, importance, omega, confusion)
        alone = [None if h is None else self.discriminate(h) for h in (h_e, h_a)]
        return Discrimination(alone[0], alone[1], importance, omega, confusion)


def _held(layer: nn.Module, x: Tensor) -> Tensor:
    """The result of a layer, whatever stands in its place, whose parameters get no gradient from it."""
    if getattr(layer, "_is_replica", False):
        raise RuntimeError("adversary='confusion': expected parameters, got a replica of DataParallel; use DistributedDataParallel")
    result: Tensor = torch.func.functional_call(layer, {name: p.detach() for name, p in layer.named_parameters()}, (x,))
    return result
