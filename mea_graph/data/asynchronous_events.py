"""`AsynchronousEvents`: embedded data whose truth is known, to try, test and compare fusion without any file."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.store import build_store
from mea_graph.data.views import Index
from mea_graph.option_types import check_types

if TYPE_CHECKING:
    from typing_extensions import Self

_NAMES = ("text", "audio", "vision", "motion", "pulse")
_RATES = (3.0, 6.0, 4.5, 5.0, 4.0)  # steps a second
_WIDTHS = (16, 14, 20, 15, 18)
_LAGS = (0.0, 0.1, 0.2, 0.15, 0.05)  # seconds behind the event
_SHARED, _PRIVATE, _CODE = 2, 2, 4
_MOST_SAMPLES, _LONGEST, _MOST_NOISE = 10**6, 3600, 1e6  # beyond them the data are too large for memory, or for float32
_DENSE = 3  # with match="time" there are so many times as many steps


class Latents(NamedTuple):
    """What produced a data set; row n belongs to sample n. E events, each with a code of width 4.

    >>> from mea_graph.data import AsynchronousEvents
    >>> latents = AsynchronousEvents(num_samples=10).latents
    >>> (
    ...     latents.shared.shape,
    ...     latents.private["audio"].shape,
    ...     latents.value["audio"].shape,
    ... )
    ((10, 2), (10, 2), (10, 4))
    """

    shared: np.ndarray  # (N, 2), seen by every modality
    private: dict[str, np.ndarray]  # (N, 2) each, seen by that modality only
    code: np.ndarray  # (N, E, 4), of unit length; every modality sees which event is which
    value: dict[str, np.ndarray]  # (N, E) each, -1 or 1, half of each: what the modality shows at the event
    focus: dict[str, np.ndarray]  # (N,) each, the event on which the modality dwells
    coincidence: np.ndarray  # (N,), mean over modalities of its value at the event on which the modality before it dwells
    times: np.ndarray  # (N, E), seconds; with match="time" (N, M, E), when each stretch of each modality ends
    score: np.ndarray  # (N,), what the label is made of


class AsynchronousEvents(MultimodalDataset):
    r"""Seeded samples of several modalities that record the same events, each at its own rate, with known truth.

    A sample lasts a few seconds and holds `num_events` events, each with a code of its own. Modality m samples at a rate of its own and
    records every event with its own lag and jitter, as a bump of the event's code and of a private value, -1 or 1. Throughout the sample
    it also shows the code of one event, its focus. Added to this are a shared latent s in every modality (which an agnostic
    representation can hold), a private latent p_m in one modality (exclusive), and noise. The label's score is

    .. math:: \sqrt{w_s} \, f(s) + \sqrt{w_p} \, g(p_1, \dots, p_M) + \sqrt{w_c} \, h(c), \qquad w_s + w_p + w_c = 1

    with f, g, h of unit variance. The *coincidence* c is the mean over modalities of the value that modality m gives to the event in the
    focus of modality m - 1. Within a sample half of each modality's values are -1 and half 1, in random order. So c is independent of any
    single modality and of every average over time (the values cancel, and a code does not predict a value): a model must match the focus
    of one modality with the events of another.

    With `match="time"` only the time shows which event is meant. Each modality shows its values one after the other, in stretches of its
    own, and marks one moment. This moment lies in the stretch of the next modality that is meant. Steps are irregular: each modality has
    many in some quarters of a sample, and few in others. So the number of a step hardly shows its
    time. The definition of c stays the same.

    Args:
        num_samples: N; split 60 / 15 / 25 into train, valid and test.
        task: "regression" gives the score itself; "classification" its quantile bin.
        num_classes: Bins of equal size, with `task="classification"`.
        num_modalities: M, 2 to 5: text, audio, vision, motion, pulse.
        num_events: E in each sample, even, 2 to 8.
        duration: Shortest and longest sample in seconds.
        coincidence: :math:`w_c`, the share of the score's variance; the rest is halved between shared and private.
        noise: Standard deviation of the noise on every feature.
        jitter: Standard deviation, in seconds, of the time at which a modality records an event.
        missing_rate: Probability that a sample lacks a modality; at least one always stays.
        match: What shows which event a focus means: its "code", or its "time"; choose the latter to test a model's use of time.
        seed: The same seed gives the same data.

    Shape:
        - sample[m].x: :math:`(T_m, d_m)`; sample[m].time: :math:`(T_m,)`, seconds; sample.y: :math:`(1,)`

    Raises:
        ValueError: If an argument is out of its range.

    >>> events = AsynchronousEvents(
    ...     num_samples=40, task="classification", num_classes=3
    ... )
    >>> events.channels, len(events.select(split="train"))
    ({'text': 16, 'audio': 14, 'vision': 20}, 24)
    """

    def __init__(
        self,
        num_samples: int = 2000,
        task: Literal["regression", "classification"] = "regression",
        num_classes: int = 3,
        num_modalities: int = 3,
        num_events: int = 4,
        duration: tuple[float, float] = (2.5, 4.0),
        coincidence: float = 0.7,
        noise: float = 0.1,
        jitter: float = 0.03,
        missing_rate: float = 0.0,
        match: Literal["code", "time"] = "code",
        seed: int = 0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        given = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
        check_types(given, AsynchronousEvents, error=ValueError)
        _check(num_samples, num_classes, num_modalities, num_events, duration, coincidence, noise, jitter, missing_rate, seed)
        rng = np.random.default_rng(seed)
        names = _NAMES[:num_modalities]
        latents, length = _draw_latents(rng, num_samples, names, num_events, duration, coincidence)
        if match == "time":
            share = rng.dirichlet(np.full(num_events, 8.0), (num_samples, num_modalities)).cumsum(-1)
            latents = latents._replace(times=share * length[:, None, None])
        show = _show if match == "code" else _show_in_time
        here = rng.random((num_samples, num_modalities)) >= missing_rate
        here[np.arange(num_samples), rng.integers(num_modalities, size=num_samples)] = True
        x: dict[str, list[np.ndarray | None]] = {}
        time: dict[str, list[np.ndarray | None]] = {}
        for i, name in enumerate(names):
            seen = [show(rng, i, name, n, latents, length[n], noise, jitter) for n in range(num_samples)]
            x[name] = [s[0] if here[n, i] else None for n, s in enumerate(seen)]
            time[name] = [s[1] if here[n, i] else None for n, s in enumerate(seen)]
        y: np.ndarray = latents.score.astype(np.float32)
        if task == "classification":
            y = np.searchsorted(np.quantile(latents.score, np.arange(1, num_classes) / num_classes), latents.score)
        split = np.repeat(["train", "valid", "test"], [round(0.6 * num_samples), round(0.15 * num_samples), num_samples])[:num_samples]
        super().__init__(build_store(x, y, None, time, split, {}, None, ()))
        self._latents = latents

    @cached_property
    def latents(self) -> Latents:
        """What produced these samples; row n belongs to sample n, also in a view."""
        rows = self._rows
        return Latents._make({m: v[rows] for m, v in part.items()} if isinstance(part, dict) else part[rows] for part in self._latents)

    def copy(self, idx: Index | None = None) -> Self:
        copied = super().copy(idx)
        copied._latents = (self if idx is None else self.index_select(idx)).latents
        return copied


def _draw_latents(
    rng: np.random.Generator, num_samples: int, names: tuple[str, ...], num_events: int, duration: tuple[float, float], weight: float
) -> tuple[Latents, np.ndarray]:
    length = rng.uniform(*duration, num_samples)
    shared = rng.normal(size=(num_samples, _SHARED))
    private = {m: rng.normal(size=(num_samples, _PRIVATE)) for m in names}
    # Equal slots with the event in the middle half of its slot: no two events run into each other.
    slot = (np.arange(num_events) + rng.uniform(0.25, 0.75, (num_samples, num_events))) / num_events
    code = rng.normal(size=(num_samples, num_events, _CODE))
    code /= np.linalg.norm(code, axis=-1, keepdims=True)
    half = np.where(np.arange(num_events) % 2, 1.0, -1.0)
    value = {m: rng.permuted(np.tile(half, (num_samples, 1)), axis=1) for m in names}
    focus = {m: rng.integers(num_events, size=num_samples) for m in names}
    every = np.arange(num_samples)
    coincidence = np.mean([value[m][every, focus[names[i - 1]]] for i, m in enumerate(names)], 0)
    parts = [
        shared.sum(1) / np.sqrt(_SHARED),
        np.sum([p.sum(1) for p in private.values()], 0) / np.sqrt(_PRIVATE * len(names)),
        coincidence * np.sqrt(len(names)),  # a mean of M independent signs
    ]
    weights = [(1 - weight) / 2, (1 - weight) / 2, weight]
    score = np.sum([np.sqrt(w) * part for w, part in zip(weights, parts, strict=True)], 0)
    return Latents(shared, private, code, value, focus, coincidence, slot * length[:, None], score), length


def _show(
    rng: np.random.Generator, i: int, name: str, n: int, latents: Latents, length: float, noise: float, jitter: float
) -> tuple[np.ndarray, np.ndarray]:
    """What modality i sees of sample n: features (T, d) and times (T,)."""
    view = np.random.default_rng(1000 + i)  # how a modality looks is the same in every data set, whatever its seed
    look = np.linalg.qr(view.normal(size=(_WIDTHS[i], _WIDTHS[i])))[0]  # orthogonal directions for what is shown
    codes, focus, value, shared, private = np.split(look, np.cumsum([_CODE, _CODE, 1, _SHARED, _PRIVATE]))[:5]
    steps = max(1, round(length * _RATES[i]))
    time = (np.arange(steps) + rng.uniform(0.3, 0.7, steps)) / _RATES[i]
    moment = latents.times[n] + _LAGS[i] + jitter * rng.normal(size=latents.times.shape[1])
    bump = np.exp(-0.5 * ((time[:, None] - moment) / (0.5 / _RATES[i] + 0.05)) ** 2)  # (T, E); no event falls between two steps
    x = 2 * bump @ (latents.code[n] @ codes + latents.value[name][n][:, None] * value)
    x += 2 * latents.code[n, latents.focus[name][n]] @ focus + latents.shared[n] @ shared + latents.private[name][n] @ private
    return (x + noise * rng.normal(size=x.shape)).astype(np.float32), time.astype(np.float32)


def _show_in_time(
    rng: np.random.Generator, i: int, name: str, n: int, latents: Latents, length: float, noise: float, jitter: float
) -> tuple[np.ndarray, np.ndarray]:
    """The same with `match="time"`: values in stretches, a mark at a moment of the next modality, and irregular steps."""
    view = np.random.default_rng(2000 + i)
    look = np.linalg.qr(view.normal(size=(_WIDTHS[i], _WIDTHS[i])))[0]
    mark, value, shared, private = np.split(look, np.cumsum([1, 1, _SHARED, _PRIVATE]))[:4]
    counts = 2 + rng.multinomial(max(0, round(length * _DENSE * _RATES[i]) - 8), rng.dirichlet(np.full(4, 0.6)))  # steps in each quarter
    time = np.concatenate([k + (np.arange(c) + rng.uniform(0.3, 0.7, c)) / c for k, c in enumerate(counts)]) * length / 4
    happened = time - _LAGS[i]
    events = latents.times.shape[2]
    stretch = np.minimum(np.searchsorted(latents.times[n, i], happened), events - 1)
    ends = np.append(0.0, latents.times[n, (i + 1) % latents.times.shape[1]])[latents.focus[name][n] :][:2]
    moment = ends[0] + (ends[1] - ends[0]) * rng.uniform(0.35, 0.65) + jitter * rng.normal()
    away = ((happened - moment) / 0.12) ** 2
    near = np.exp(0.5 * (away.min() - away))  # the nearest step shows the mark whole
    x = latents.value[name][n][stretch][:, None] * value + 2 * near[:, None] * mark
    x += latents.shared[n] @ shared + latents.private[name][n] @ private
    return (x + noise * rng.normal(size=x.shape)).astype(np.float32), time.astype(np.float32)


def _check(
    num_samples: int,
    num_classes: int,
    num_modalities: int,
    num_events: int,
    duration: tuple[float, float],
    coincidence: float,
    noise: float,
    jitter: float,
    missing_rate: float,
    seed: int,
) -> None:
    for name, value, good, expected in (
        ("num_samples", num_samples, 4 <= num_samples <= _MOST_SAMPLES, f"4 to {_MOST_SAMPLES}"),
        ("num_classes", num_classes, 2 <= num_classes <= num_samples, "2 to num_samples"),
        ("num_modalities", num_modalities, 2 <= num_modalities <= len(_NAMES), f"2 to {len(_NAMES)}"),
        ("num_events", num_events, 2 <= num_events <= 8 and num_events % 2 == 0, "an even number, 2 to 8"),
        ("duration", duration, 0 < duration[0] <= duration[1] <= _LONGEST, f"0 < shortest <= longest <= {_LONGEST}"),
        ("coincidence", coincidence, 0 <= coincidence <= 1, "0 to 1"),
        ("noise", noise, 0 <= noise <= _MOST_NOISE, f"0 to {_MOST_NOISE:g}"),
        ("jitter", jitter, jitter >= 0, "at least 0"),
        ("missing_rate", missing_rate, 0 <= missing_rate < 1, "0 to below 1"),
        ("seed", seed, seed >= 0, "at least 0"),
    ):
        if not good:
            raise ValueError(f"{name}: expected {expected}, got {value!r}")
