"""Batches of samples of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from mea_graph.option_types import mismatch, plain_value


class Padding(NamedTuple):
    """Share of steps that are padding, in the sampler's batches and in random ones of the same size.

    >>> Padding(left=0.07, random=0.3)._asdict()
    {'left': 0.07, 'random': 0.3}
    """

    left: float
    random: float


class LengthBucketBatchSampler(Sampler[list[int]]):
    """Yields batches (lists of indices) of samples of similar length, so that padding wastes little.

    Give it to a loader as `batch_sampler`. Each epoch shuffles the samples, cuts them into pools of `bucket_multiplier` batches, sorts each
    pool by length, cuts it into batches and shuffles the batches. Length is the number of steps over all modalities. Batches depend only on
    `(seed, epoch)`. Every rank gets the same number of batches, of similar length in each step, and two ranks together have the batches of
    one rank with twice the size. Every sample comes once: a last batch with a single sample, or with fewer samples than ranks, joins the
    batch before it.

    An epoch is one pass over all samples. With `batches` it is that number of batches, and the passes continue across epochs.

    Args:
        lengths: True lengths `(N,)` of every modality, as `MultimodalDataset.lengths`.
        batch_size: Samples per batch and rank, >= 1.
        shuffle: False sorts all samples, longest first, and keeps that order in every epoch: match results by sample id.
        seed: >= 0.
        drop_last: Whether to leave out a last batch that is not full on every rank.
        num_replicas: Number of ranks, >= 1.
        rank: In `[0, num_replicas)`.
        bucket_multiplier: Batches in a pool, >= 1. With 1 the batches are random; larger numbers leave less padding and less randomness.
        batches: Batches of an epoch, >= 1; those of one pass if None.
        classes: The class `(N,)` of each sample, to draw all classes equally often. A pass still has N samples: those of a small class come
            several times, about equally often; some of a large class are left out, others in each pass.

    Raises:
        ValueError: If an argument is out of range.

    >>> sampler = LengthBucketBatchSampler(
    ...     {"audio": np.array([9, 1, 8, 2])}, batch_size=2, shuffle=False
    ... )
    >>> list(sampler)
    [[0, 2], [3, 1]]
    >>> round(sampler.padding.left, 3)
    0.091
    """

    def __init__(
        self,
        lengths: Mapping[str, np.ndarray],
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        num_replicas: int = 1,
        rank: int = 0,
        bucket_multiplier: int = 10,
        batches: int | None = None,
        classes: np.ndarray | None = None,
    ) -> None:
        if not isinstance(lengths, Mapping) or not lengths:
            raise ValueError(f"lengths: expected a non-empty dict of arrays (N,), got {type(lengths).__name__}")
        self._lengths = {name: np.asarray(values, dtype=np.int64) for name, values in lengths.items()}
        shapes = {values.shape for values in self._lengths.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ValueError(f"lengths: expected arrays of one shape (N,), got { ({k: v.shape for k, v in self._lengths.items()}) }")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_replicas", num_replicas, 1),
            ("bucket_multiplier", bucket_multiplier, 1),
            ("batches", 1 if batches is None else batches, 1),
        ):
            if mismatch(plain_value(value), int) is not None or value < least:
                raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank: expected an integer in [0, {num_replicas}), got {rank}")
        # Private on purpose: Lightning rebuilds a batch sampler that shows `batch_size` and `drop_last`, with arguments not ours.
        self._batch_size, self._drop_last = batch_size, drop_last
        self._shuffle, self._seed, self._epoch = shuffle, seed, 0
        self._num_replicas, self._rank, self._bucket_multiplier = num_replicas, rank, bucket_multiplier
        self._steps = np.sum(list(self._lengths.values()), axis=0)
        self._batches = batches
        self._behind = 0  # batches that a resumed run has behind it, which the first reading leaves out
        if batches is not None and self._batches_of_a_pass == 0:
            raise ValueError(f"batches: expected at least one batch in a pass over the samples, got none of {len(self._steps)} samples")
        self._members = None if classes is None else _members(np.asarray(classes), len(self._steps), shuffle)

    @property
    def sampler(self) -> LengthBucketBatchSampler:
        """Itself, where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the shuffle; call it before each epoch (Lightning does)."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._batches_of_a_pass if self._batches is None else self._batches

    @property
    def _least(self) -> int:
        """Samples that make a batch of their own: one for every rank, and two, since statistics of a batch say nothing of one."""
        return max(2, self._num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        behind, self._behind = self._behind, 0
        for together in self._groups_of_epoch(self._bucket_multiplier, self._shuffle)[behind:]:
            yield together[self._rank :: self._num_replicas].tolist()

    @property
    def padding(self) -> Padding:
        """Share of padded steps in this epoch's batches of all ranks, and in random batches of the same size."""
        own = self._groups_of_epoch(self._bucket_multiplier, self._shuffle)
        return Padding(self._padded_share(own), self._padded_share(self._groups_of_epoch(1, shuffle=True)))

    @property
    def _batches_of_a_pass(self) -> int:
        together, total = self._batch_size * self._num_replicas, len(self._steps)
        whole, left_over = divmod(total, together)
        return whole if self._drop_last or (whole and left_over < self._least) else -(-total // together)

    def _groups_of_epoch(self, pool: int, shuffle: bool) -> list[np.ndarray]:
        """What all ranks take in one step, step by step: a pass, or a piece of all passes in a row."""
        if self._batches is None:
            return self._groups(self._epoch, pool, shuffle)
        number, first = divmod(self._epoch * self._batches, self._batches_of_a_pass)
        groups: list[np.ndarray] = []
        while len(groups) < first + self._batches:
            groups += self._groups(number, pool, shuffle)
            number += 1
        return groups[first : first + self._batches]

    def _groups(self, number: int, pool: int, shuffle: bool) -> list[np.ndarray]:
        """The steps of one pass."""
        together = self._batch_size * self._num_replicas
        if not shuffle:
            groups = _cut(np.argsort(-self._steps, kind="stable"), together)  # longest first: too little memory shows at once
        else:
            rng = np.random.default_rng([self._seed, number])
            groups = []
            for part in _cut(self._drawn(rng), together * pool):
                groups += _cut(part if pool == 1 else part[np.argsort(self._steps[part], kind="stable")], together)
        if groups and len(groups[-1]) < together:
            if self._drop_last:
                groups.pop()
            elif len(groups[-1]) < self._least and len(groups) > 1:
                left_over = groups.pop()
                groups[-1] = np.concatenate([groups[-1], left_over])
            elif len(groups[-1]) < self._num_replicas:  # fewer samples than ranks in all: some come twice
                groups[-1] = np.resize(groups[-1], self._num_replicas)
        if shuffle:
            rng.shuffle(order := np.arange(len(groups)))
            groups = [groups[i] for i in order]
        return groups

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        """The samples of one pass, in random order."""
        total = len(self._steps)
        if self._members is None:
            return rng.permutation(total)
        share = np.full(len(self._members), total // len(self._members))
        share[rng.permutation(len(share))[: total % len(share)]] += 1
        return rng.permutation(np.concatenate([np.resize(rng.permutation(m), n) for m, n in zip(self._members, share, strict=True)]))

    def _padded_share(self, groups: list[np.ndarray]) -> float:
        real = padded = 0
        for together in groups:
            for rank in range(self._num_replicas):
                batch = together[rank :: self._num_replicas]
                for lengths in self._lengths.values():
                    real += int(lengths[batch].sum())
                    padded += int(lengths[batch].max()) * len(batch)
        return 1 - real / padded if padded else 0.0


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def _members(classes: np.ndarray, count: int, shuffle: bool) -> list[np.ndarray]:
    if classes.shape != (count,):
        raise ValueError(f"classes: expected one for each of {count} samples, got {classes.shape}")
    if not shuffle:
        raise ValueError("classes: expected shuffle=True with them, got shuffle=False, which takes each sample once")
    return [np.flatnonzero(classes == name) for name in np.unique(classes)]
