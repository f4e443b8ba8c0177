"""The batches that whole models are timed on: as long as the data set's padding, or of realistic lengths."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import mosi_lengths, prefix_mask

Kind = Literal["full padding", "true lengths", "one long clip"]

# Every model reads the same features: those of MMSA's MOSI files, whose text is 768 wide.
CHANNELS = {"text": 768, "audio": 5, "vision": 20}


class Shape(NamedTuple):
    """The longest sequence of each modality, and the mean length where it is known."""

    longest: dict[str, int]
    mean: dict[str, int] | None = None

    def at_most(self, steps: int) -> Shape:
        """The same with no sequence above a number of steps."""
        return self._replace(longest={m: min(n, steps) for m, n in self.longest.items()})


SHAPES = {
    "MOSI": Shape({"text": 50, "audio": 375, "vision": 500}, {"text": 12, "audio": 50, "vision": 60}),
    "MOSEI": Shape({"text": 50, "audio": 500, "vision": 500}),
    "long": Shape({"text": 200, "audio": 1500, "vision": 2000}),
}


class Samples(NamedTuple):
    """One batch, ragged as a PyG loader gives it and padded to the data set's longest, as the field's files are."""

    x_dict: dict[str, Tensor]  # (sum T, d)
    batch_dict: dict[str, Tensor]  # (sum T,)
    padded: dict[str, Tensor]  # (B, longest, d), zeros in the padding
    mask: dict[str, Tensor]  # (B, longest)
    lengths: dict[str, list[int]]
    y: Tensor  # (B,)

    @property
    def size(self) -> int:
        return len(self.y)

    @property
    def ptr_dict(self) -> dict[str, Tensor]:
        """(B + 1,): where each sample's rows begin and the last one's end."""
        return {m: F.pad(mask.sum(1).cumsum(0), (1, 0)) for m, mask in self.mask.items()}

    @property
    def padding_share(self) -> float:
        """Share of the steps of `padded` that are no real ones."""
        steps = sum(m.numel() for m in self.mask.values())
        return 1 - sum(int(m.sum()) for m in self.mask.values()) / steps

    def trimmed(self) -> Samples:
        """The same samples, padded to the longest of this batch only."""
        longest = {m: max(n) for m, n in self.lengths.items()}
        return self._replace(
            padded={m: x[:, : longest[m]] for m, x in self.padded.items()}, mask={m: x[:, : longest[m]] for m, x in self.mask.items()}
        )


def draw(shape: Shape, size: int, kind: Kind, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Samples:
    """`size` samples of `shape`, the same ones in every process.

    Args:
        kind: "full padding": every sample as long as the longest of the data set; "true lengths": drawn about the shape's means, as a
            batch of the data set mostly is; "one long clip": the same means, but one sample as long as the longest of the data set.
    """
    lengths = {}
    for m, longest in shape.longest.items():
        if kind == "full padding":
            lengths[m] = [longest] * size
        elif shape.mean is None:
            raise ValueError(f"kind: expected 'full padding' for a shape whose mean lengths are not known, got {kind!r}")
        elif size == 1:
            lengths[m] = [shape.mean[m]]
        elif kind == "one long clip":
            lengths[m] = mosi_lengths(size, longest, shape.mean[m])
        else:
            lengths[m] = mosi_lengths(size + 1, longest, shape.mean[m])[1:]
            scale = shape.mean[m] * size / sum(lengths[m])
            lengths[m] = [min(longest, max(3, round(n * scale))) for n in lengths[m]]
    return of_lengths(lengths, shape.longest, dtype, device)


def of_lengths(lengths: dict[str, list[int]], longest: dict[str, int], dtype: torch.dtype = torch.float32, device: str = "cpu") -> Samples:
    generator = torch.Generator().manual_seed(5)
    x_dict, batch_dict, padded, mask = {}, {}, {}, {}
    for m, each in lengths.items():
        mask[m] = prefix_mask(each, longest[m], device)
        x = torch.randn(len(each), longest[m], CHANNELS[m], generator=generator).to(device, dtype)
        padded[m] = x * mask[m].unsqueeze(-1)
        x_dict[m] = x[mask[m]]
        batch_dict[m] = torch.repeat_interleave(torch.arange(len(each), device=device), torch.tensor(each, device=device))
    y = torch.randn(len(next(iter(lengths.values()))), generator=generator).to(device, dtype)
    return Samples(x_dict, batch_dict, padded, mask, lengths, y)
