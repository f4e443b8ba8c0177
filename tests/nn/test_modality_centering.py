"""Means of modalities: what they are, when they move, and what becomes of a linear classifier."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mea_graph.nn import MEA, ModalityCentering

D_H = 5
NAMES = ["text", "audio"]


@pytest.fixture
def batches() -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Three batches of different sizes; the audio of some samples, and of a whole batch, is missing."""
    found = []
    for size, there in ((4, [1, 0, 1, 1]), (3, [0, 0, 0]), (6, [1, 1, 0, 1, 0, 1])):
        h = {m: torch.randn(size, D_H, dtype=torch.float64) + 3 * i for i, m in enumerate(NAMES)}
        present = {"text": torch.ones(size, dtype=torch.bool), "audio": torch.tensor(there, dtype=torch.bool)}
        found.append(({m: v * present[m][:, None] for m, v in h.items()}, present))
    return found


@pytest.mark.parametrize("training", [False, True])
def test_it_measures_the_mean_of_all_samples_that_are_there(batches, training: bool) -> None:
    layer = ModalityCentering(D_H, NAMES).double()
    layer(*batches[0])
    layer.train(training)
    with layer.measuring():
        for h, present in batches:
            layer(h, present)
    assert layer.training == training
    for i, m in enumerate(NAMES):
        there = torch.cat([h[m][present[m]] for h, present in batches])
        torch.testing.assert_close(layer.mean[i], there.mean(0), rtol=1e-12, atol=1e-14)
        assert layer.seen[i] == len(there)


def test_the_first_batch_is_the_mean_and_later_ones_move_it(batches) -> None:
    layer = ModalityCentering(D_H, NAMES, momentum=0.25).double()
    expected: dict[str, Tensor] = {}
    for h, present in batches:
        layer(h, present)
        for m in NAMES:
            if present[m].any():  # a batch without the modality moves nothing
                mean = h[m][present[m]].mean(0)
                expected[m] = mean if m not in expected else 0.75 * expected[m] + 0.25 * mean
    torch.testing.assert_close(layer.mean, torch.stack([expected[m] for m in NAMES]), rtol=1e-12, atol=1e-14)


def test_it_subtracts_the_mean_from_what_is_there_and_leaves_zeros_where_nothing_is(batches) -> None:
    layer = ModalityCentering(D_H, NAMES).double()
    for h, present in batches:
        found = layer(h, present)
        for i, m in enumerate(NAMES):
            torch.testing.assert_close(found[m], (h[m] - layer.mean[i]) * present[m][:, None], rtol=1e-12, atol=1e-14)


def test_all_are_present_where_nobody_says_otherwise(batches) -> None:
    h, _ = batches[0]
    one, other = (ModalityCentering(D_H, NAMES).double() for _ in range(2))
    torch.testing.assert_close(one(h), other(h, {m: torch.ones(4, dtype=torch.bool) for m in NAMES}), rtol=0, atol=0)


def test_means_hold_still_in_evaluation_and_a_reset_forgets_them(batches) -> None:
    layer = ModalityCentering(D_H, NAMES).double()
    layer(*batches[0])
    mean, seen = layer.mean.clone(), layer.seen.clone()
    layer.eval()(*batches[2])
    assert torch.equal(layer.mean, mean)
    assert torch.equal(layer.seen, seen)
    layer.reset_parameters()
    assert not layer.mean.any()
    assert not layer.seen.any()


def test_means_are_not_differentiated(batches) -> None:
    h = {m: v.clone().requires_grad_() for m, v in batches[0][0].items()}
    found = ModalityCentering(D_H, NAMES).double()(h)
    torch.stack(list(found.values())).sum().backward()
    assert all(torch.equal(v.grad, torch.ones_like(v)) for v in h.values())


def test_half_precision_moves_a_float32_mean() -> None:
    layer = ModalityCentering(D_H, NAMES)
    h = {m: torch.full((2, D_H), 2.0, dtype=torch.bfloat16) for m in NAMES}
    found = layer(h)
    assert layer.mean.dtype == torch.float32
    assert all(v.dtype == torch.bfloat16 and not v.any() for v in found.values())


def test_no_linear_classifier_beats_chance_afterwards() -> None:
    """Told apart nearly always before. What is left of 300 samples' luck is some percent."""
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(0)
    layer = ModalityCentering(D_H, NAMES)
    train, test = ({m: torch.randn(300, D_H) * (1 + i) + 4 * i for i, m in enumerate(NAMES)} for _ in range(2))
    labels = torch.arange(2).repeat_interleave(300)

    def probe(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
        return LogisticRegression().fit(torch.cat(list(a.values())), labels).score(torch.cat(list(b.values())), labels)

    assert probe(train, test) > 0.95
    assert probe(layer(train), layer.eval()(test)) < 0.56


def test_the_model_centres_agnostic_representations_alone() -> None:
    torch.manual_seed(0)
    widths = {"text": 4, "audio": 3}
    plain = MEA.published(widths, 1, channels=8, heads=2, hidden_channels=6)
    model = MEA.published(widths, 1, channels=8, heads=2, hidden_channels=6, agnostic={"center": True})
    model.load_state_dict(plain.state_dict(), strict=False)
    x = {m: torch.randn(5, 7, d) for m, d in widths.items()}
    before, after = plain(x), model(x)
    for m in widths:
        assert torch.equal(after.exclusive[m], before.exclusive[m])
        torch.testing.assert_close(after.agnostic[m], before.agnostic[m] - before.agnostic[m].mean(0))
    torch.testing.assert_close(after.discrimination.agnostic, model.discriminator(after.exclusive, after.agnostic).agnostic)
    assert MEA(widths, 1, agnostic=None).agnostic is None

    model.agnostic.centering.reset_parameters()
    mask = {m: torch.ones(5, 7, dtype=torch.bool) for m in widths}
    mask["audio"][2] = False
    there = mask["audio"].any(1)
    before, after = plain(x, mask).agnostic["audio"], model(x, mask).agnostic["audio"]
    torch.testing.assert_close(after[there], before[there] - before[there].mean(0))
    assert not after[2].any()  # what is not there has no mean to lose


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.5, float("nan")])
def test_refuses_a_momentum_out_of_range(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"momentum: expected a number in \(0, 1\], got"):
        ModalityCentering(D_H, NAMES, momentum)


def test_refuses_wrong_shapes_and_modalities() -> None:
    layer = ModalityCentering(D_H, NAMES)
    with pytest.raises(ValueError, match=r"h\['audio'\]: expected \(B, 5\), got \(2, 4\)"):
        layer({"text": torch.zeros(2, D_H), "audio": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match="h: expected the same number of samples"):
        layer({"text": torch.zeros(2, D_H), "audio": torch.zeros(3, D_H)})
    with pytest.raises(ValueError, match="present"):
        layer({m: torch.zeros(2, D_H) for m in NAMES}, {"text": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"present\['text'\]: expected bool \(2,\), got torch.float32 \(2,\)"):
        layer({m: torch.zeros(2, D_H) for m in NAMES}, {m: torch.ones(2) for m in NAMES})
    with pytest.raises(ValueError, match="at least 2"):
        ModalityCentering(D_H, ["text"])


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_counts_a_batch_once_and_changes_no_gradient(batches, reentrant: bool) -> None:
    def trained(checkpointed: bool) -> tuple[Tensor, Tensor, Tensor]:
        layer = ModalityCentering(D_H, NAMES, momentum=0.5).double()
        layer(*batches[0])
        h, present = batches[2]
        given = [v.clone().requires_grad_() for v in h.values()]

        def loss(*vectors: Tensor) -> Tensor:
            return sum(v.square().sum() for v in layer(dict(zip(NAMES, vectors, strict=True)), present).values())

        (checkpoint(loss, *given, use_reentrant=reentrant) if checkpointed else loss(*given)).backward()
        return torch.stack([v.grad for v in given]), layer.mean, layer.seen

    for found, expected in zip(trained(True), trained(False), strict=True):
        assert torch.equal(found, expected)
