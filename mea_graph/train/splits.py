"""Which samples train, validate and test: the file's own splits, values of a field, or folds over a field."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mea_graph.data import DataError
from mea_graph.data.doubts import warn_of_alike
from mea_graph.data.labels import misspelt_split, split_begun, split_meant
from mea_graph.option_types import check_types, plain_value
from mea_graph.suggestions import did_you_mean

Value = int | str
PARTS = ("train", "valid", "test")
_NAMED = 5  # further splits that a warning names
_OTHER_NAMES = "split.by='split' with split.train and split.test takes other names"


@dataclass(frozen=True)
class SplitPolicy:
    """Divides samples into training, validation and test parts that share no sample.

    There are three policies: the file's own splits (without `by`); explicit values of a field (`by` with `train` and `test`);
    k folds over the values of a field (`by` with `folds` and `fold`), which keep all samples of one value together.
    Validation samples come from the file's own split, from explicit values, or from the training samples (`valid_fraction`).

    The first policy leaves out samples of further splits, such as `extra`, or `test2` beside `test`, with a warning. It refuses a name
    that looks like a misspelt one, and one that begins like a part that the file lacks, such as `test2` without `test`.

    Args:
        by: Field to split by, such as `speaker`; without it, the file's own splits `train`, `valid` and `test`. The field `split` is the
            file's splits under any names, if the file has no field of that name.
        train: Values of the field for training.
        valid: Values of the field for validation.
        test: Values of the field for the test.
        folds: Number of folds, at least 2. The values are spread over folds of even size, always in the same way.
        fold: Number of the test fold, from 0.
        valid_fraction: Share of the training samples that is used for validation instead, in (0, 1); stratified by the target without
            `valid_by`.
        valid_by: Field whose values stay together when `valid_fraction` takes validation samples.
        seed: Seed of the choice of validation samples.

    Raises:
        DataError: If the options contradict each other.

    >>> policy = SplitPolicy(by="speaker", folds=2, fold=0)
    >>> indices = policy.apply(4, fields={"speaker": np.array(["a", "a", "b", "b"])})
    >>> indices["train"].tolist(), indices["test"].tolist()
    ([2, 3], [0, 1])
    """

    by: str | None = None
    train: list[Value] | None = None
    valid: list[Value] | None = None
    test: list[Value] | None = None
    folds: int | None = None
    fold: int = 0
    valid_fraction: float | None = None
    valid_by: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).copy().items():
            object.__setattr__(self, name, plain_value(value))
        for name in ("train", "valid", "test"):
            if not isinstance(value := getattr(self, name), list | tuple | set | None):
                raise DataError(f"split.{name}: expected a list of values of the field, got {value!r}"[:300])
        numbers = {name: getattr(self, name) for name in ("folds", "fold", "valid_fraction", "seed")}
        check_types(numbers, SplitPolicy, prefix="split.", error=DataError)
        explicit = [name for name in ("train", "valid", "test") if getattr(self, name) is not None]
        if self.by is None and (explicit or self.folds is not None):
            raise DataError(f"split.by: expected a field name, because split.{(explicit or ['folds'])[0]} is given; got none")
        if explicit and self.folds is not None:
            raise DataError(f"split: expected folds or explicit values, got both (split.folds and split.{explicit[0]})")
        if self.by is not None and self.folds is None and (self.train is None or self.test is None):
            raise DataError(f"split: expected split.train and split.test (or split.folds) together with split.by={self.by!r}")
        if self.folds is None and self.fold:
            raise DataError(f"split.fold: expected split.folds with it, got {self.fold} without")
        if self.seed < 0:
            raise DataError(f"split.seed: expected an integer >= 0, got {self.seed}")
        if self.folds is not None and (self.folds < 2 or not 0 <= self.fold < self.folds):
            raise DataError(f"split.fold: expected 0 <= fold < folds and folds >= 2, got fold={self.fold}, folds={self.folds}")
        if self.valid_fraction is not None and not 0 < self.valid_fraction < 1:
            raise DataError(f"split.valid_fraction: expected a share in (0, 1), got {self.valid_fraction}")
        if self.valid_fraction is not None and self.valid is not None:
            raise DataError("split: expected split.valid or split.valid_fraction, got both")
        if self.valid_by is not None and self.valid_fraction is None:
            raise DataError("split.valid_by: expected split.valid_fraction with it, got none")

    def apply(
        self,
        num_samples: int,
        split: Sequence[str] | np.ndarray | None = None,
        fields: Mapping[str, np.ndarray] | None = None,
        y: np.ndarray | None = None,
        ids: Sequence[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns the sample numbers of each part; a part without samples is left out.

        Args:
            num_samples: Number of samples.
            split: The file's own split name per sample; an empty text leaves a sample out.
            fields: Per-sample values of each field.
            y: Targets, for stratified validation samples.
            ids: Names of the samples, for errors; their numbers if None.

        Shape:
            - `split`, each field and `y` have `num_samples` rows; the result is sorted int64 arrays that share no sample.

        Raises:
            DataError: If a field or value does not exist, a part contradicts another, or the name of a split looks misspelt.
        """
        fields = ({} if split is None else {"split": np.asarray(split)}) | dict(fields or {})
        if self.by is None:
            parts = _own_splits(num_samples, split, ids, fields)
        else:
            values = _field(fields, self.by, "split.by")
            parts = _folds(values, self.folds, self.fold) if self.folds is not None else self._by_values(values)
        if self.valid_fraction is not None:
            if "valid" in parts:
                raise DataError("split.valid_fraction: the data has a valid split of its own; leave the option out to use it")
            groups = None if self.valid_by is None else _field(fields, self.valid_by, "split.valid_by")
            parts |= _carve(parts.get("train", np.arange(0)), self.valid_fraction, groups, y, self.seed)
        return {name: np.sort(part).astype(np.int64) for name, part in parts.items() if len(part)}

    def _by_values(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Compares as text, since YAML turns `1` into a number whatever the type of the field is."""
        known = values.astype(str)
        owner: dict[str, str] = {}
        parts = {}
        for name in ("train", "valid", "test"):
            wanted = [str(value) for value in getattr(self, name) or []]
            for value in wanted:
                if value not in known:
                    raise DataError(f"split.{name}: {self.by} has no value {value!r}; it has {_some(known)}")
                if owner.setdefault(value, name) != name:
                    raise DataError(f"split: {self.by} = {value!r} is given for {owner[value]} and for {name}")
            parts[name] = np.flatnonzero(np.isin(known, wanted))
        return {name: part for name, part in parts.items() if len(part)}


def _own_splits(
    num_samples: int, split: Sequence[str] | np.ndarray | None, ids: Sequence[str] | None, fields: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    if split is None:
        own = ""
        if "split" in fields:  # as of an .npz, whose reader was not told
            own = f"; its field 'split' ({_some(fields['split'].astype(str))}) becomes them by the reader's option split='split'"
        raise DataError(
            f"split: the data has no splits of its own; give split.by with split.train and split.test, or with split.folds{own}"
        )
    names = np.asarray(split).astype(str)
    if len(names) != num_samples:
        raise DataError(f"split: expected one name per sample ({num_samples}), got {len(names)}")
    parts = {name: np.flatnonzero(names == name) for name in PARTS if name in names}
    strange = names[~np.isin(names, [*PARTS, ""])]
    if wrong := [name for name in dict.fromkeys(strange.tolist()) if not parts or _stands_for_a_part(name, parts)]:
        first = int(np.argmax(names == wrong[0]))
        which = f"sample {first if ids is None else repr(ids[first])}"
        more = f" (one of {len(strange)} samples in no part)" if len(strange) > 1 else ""
        meant = did_you_mean(wrong[0], PARTS)
        raise DataError(f"split: {which}: expected train, valid or test, got {wrong[0]!r}{meant}{more}; {_OTHER_NAMES}")
    if len(strange):
        found, counts = np.unique(strange, return_counts=True)
        others = [f"{name!r} ({count})" for name, count in zip(found.tolist(), counts.tolist(), strict=True)]
        listed = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED} more" if len(others) > _NAMED else "")
        left_out = f"{len(strange)} samples are left out, whose splits are neither train, valid nor test"
        warnings.warn(f"split: {left_out}: {listed}; {_OTHER_NAMES}", stacklevel=3)
    return parts


def _stands_for_a_part(name: str, parts: Mapping[str, np.ndarray]) -> bool:
    """Whether a name is one of `PARTS` in other letters or misspelt, or begins like one that the data lacks, as "test2" does."""
    begun = split_begun(name)
    return split_meant(name) in PARTS or bool(misspelt_split(name)) or (begun is not None and begun not in parts)


def _field(fields: Mapping[str, np.ndarray], name: str, option: str) -> np.ndarray:
    if name not in fields:
        raise DataError(f"{option}: expected a field of the data ({', '.join(sorted(fields)) or 'it has none'}), got {name!r}")
    values = np.asarray(fields[name])
    warn_of_alike(option, name, values)
    return values


def _some(values: np.ndarray) -> str:
    unique = np.unique(values)
    return ", ".join(unique[:12]) + (f", ... ({len(unique)} in all)" if len(unique) > 12 else "")


def _folds(values: np.ndarray, folds: int, fold: int) -> dict[str, np.ndarray]:
    groups, sizes = np.unique(values, return_counts=True)
    if len(groups) < folds:
        raise DataError(f"split.folds: expected at most {len(groups)} folds (one per group), got {folds}")
    tested = np.isin(values, groups[even_folds(sizes, folds, np.arange(len(groups))) == fold])
    return {"train": np.flatnonzero(~tested), "test": np.flatnonzero(tested)}


def even_folds(sizes: np.ndarray, folds: int, order: np.ndarray) -> np.ndarray:
    """The fold of each group of samples: the largest goes first (of one size: as in `order`), always into the fold that has least."""
    fold_of, filled = np.zeros(len(sizes), dtype=np.int64), np.zeros(folds, dtype=np.int64)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        fold_of[group] = filled.argmin()
        filled[fold_of[group]] += sizes[group]
    return fold_of


def _carve(train: np.ndarray, fraction: float, groups: np.ndarray | None, y: np.ndarray | None, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    chosen = _stratified(train, fraction, y, rng) if groups is None else _whole_groups(train, fraction, groups, rng)
    if not 0 < len(chosen) < len(train):
        raise DataError(f"split.valid_fraction: {fraction} of {len(train)} training samples leaves one of the two parts empty")
    return {"train": np.setdiff1d(train, chosen), "valid": chosen}


def _stratified(train: np.ndarray, fraction: float, y: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Shuffled, ordered by target, then evenly spaced samples: each class or score range gives its share."""
    order = rng.permutation(train)
    if y is not None:
        target = y[order] if y.ndim == 1 else y[order] @ (2.0 ** np.arange(y.shape[1]))
        order = order[np.argsort(target, kind="stable")]
    count = round(fraction * len(order))
    return order[np.floor((np.arange(count) + rng.random()) * (len(order) / max(count, 1))).astype(int)]


def _whole_groups(train: np.ndarray, fraction: float, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Groups in random order, each taken where that brings the number of samples closer to the share requested."""
    names, sizes = np.unique(groups[train], return_counts=True)
    wanted, taken, chosen = fraction * len(train), 0, []
    for group in rng.permutation(len(names)):
        if abs(taken + sizes[group] - wanted) < abs(taken - wanted):
            taken += sizes[group]
            chosen.append(names[group])
    return train[np.isin(groups[train], chosen)]
