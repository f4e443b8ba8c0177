"""The baselines' own arithmetic, written out by hand."""

import pytest
import torch
from torch import nn

from mea_graph.baselines import (
    ConcatenationTransformer,
    EarlyFusionGRU,
    LateFusionGRU,
    PairwiseTransformer,
    SharedPrivateEncodersModule,
    SharedPrivateOutput,
)
from mea_graph.baselines.early_fusion_gru import side_by_side
from mea_graph.baselines.parts import Projection, by_modality, window_means
from mea_graph.baselines.shared_private_encoders import auxiliary_losses


def test_modalities_are_stretched_to_the_longest():
    x = {"slow": torch.tensor([[1.0], [2.0], [7.0]]), "fast": torch.arange(10.0, 17.0)[:, None]}
    batch = {"slow": torch.tensor([0, 0, 2]), "fast": torch.tensor([0, 0, 0, 0, 0, 1, 1])}
    rows, sample = side_by_side(x, batch, 3)
    assert sample.tolist() == [0, 0, 0, 0, 0, 1, 1, 2]
    assert rows[:, 0].tolist() == [1, 1, 2, 2, 2, 0, 0, 7]
    assert rows[:, 1].tolist() == [10, 11, 12, 13, 14, 15, 16, 0]


def test_early_fusion_reads_the_stretched_steps_with_one_gru():
    model = EarlyFusionGRU({"a": 2, "b": 1}, 1, hidden_channels=3)
    model.head = nn.Identity()
    a, b = torch.randn(4, 2), torch.randn(2, 1)
    states, _ = model.gru(torch.cat([a, b.repeat_interleave(2, 0)], 1)[None])
    where = {"a": torch.zeros(4, dtype=torch.long), "b": torch.zeros(2, dtype=torch.long)}
    torch.testing.assert_close(model({"a": a, "b": b}, where, batch_size=1), states.mean(1))


def test_windows_end_with_their_sample():
    x = torch.tensor([[1.0], [2.0], [6.0], [4.0], [9.0], [5.0], [7.0]])
    batch = torch.tensor([0, 0, 0, 0, 2, 3, 3])
    means, sample = window_means(x, batch, 5, 3)
    assert means.flatten().tolist() == [3, 4, 9, 6]
    assert sample.tolist() == [0, 0, 2, 3]


def test_a_gru_with_a_stride_reads_means_as_steps():
    model = LateFusionGRU({"a": 2}, 1, hidden_channels=3, stride=2)
    model.head = nn.Identity()
    a = torch.randn(5, 2)
    states, _ = model.grus["a"](torch.stack([(a[0] + a[1]) / 2, (a[2] + a[3]) / 2, a[4]])[None])
    torch.testing.assert_close(model({"a": a}, {"a": torch.zeros(5, dtype=torch.long)}, batch_size=1), states.mean(1))


def test_the_projection_strides_and_leaves_the_padding_zero():
    projection = Projection(3, 4, kernel_size=3, stride=2, dropout=0.0)
    x = torch.randn(7, 3)
    z, mask = projection(x, torch.tensor([0] * 5 + [1] * 2), 2)
    assert mask.tolist() == [[True] * 3, [True, False, False]]
    assert not z[1, 1:].any()
    padded = torch.cat([torch.zeros(1, 3), x[:5], torch.zeros(1, 3)])
    weight, bias = projection.conv.weight, projection.conv.bias
    third = torch.einsum("oik,ki->o", weight, padded[4:7]) + bias
    angle = 2 * torch.tensor([1.0, 0.01])
    torch.testing.assert_close(z[0, 2], third + torch.stack([angle.sin(), angle.cos()], 1).flatten())


def test_the_transformers_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="at least two modalities, got a"):
        PairwiseTransformer({"a": 3}, 1)
    with pytest.raises(ValueError, match="stride: expected a number of at least 1 for each of a, b"):
        ConcatenationTransformer({"a": 3, "b": 2}, 1, stride={"a": 2})
    assert by_modality({"a": 1, "b": 2}, "ab", "stride") == {"a": 1, "b": 2}


def test_a_source_changes_only_through_its_pair():
    """With one source's stack as the identity, its features do not reach the target."""
    torch.manual_seed(0)
    model = PairwiseTransformer({"a": 3, "b": 2}, 1, channels=4, heads=2, num_layers=1).eval()
    for weight in (model.cross["a"]["b"][0].out.weight, model.cross["b"]["a"][0].out.weight):
        nn.init.zeros_(weight)
    where = {"a": torch.zeros(4, dtype=torch.long), "b": torch.zeros(2, dtype=torch.long)}
    a, seen = torch.randn(4, 3), []
    model.head = nn.Identity()
    for b in (torch.zeros(2, 2), torch.ones(2, 2)):
        seen.append(model({"a": a, "b": b}, where, batch_size=1))
    half = seen[0].size(1) // 2
    torch.testing.assert_close(seen[0][:, :half], seen[1][:, :half])
    assert not torch.allclose(seen[0][:, half:], seen[1][:, half:])


def output_of(private, shared, present):
    whole = torch.rand(private.shape, dtype=torch.float64)
    return SharedPrivateOutput(torch.zeros(len(present), 1), present, whole, private, shared, whole + 2 * present[..., None])


def test_losses_of_shared_and_private_vectors_by_hand():
    torch.manual_seed(0)
    private, shared = torch.rand(2, 6, 2, 4)
    present = torch.tensor([[True, True]] * 4 + [[True, False], [False, True]])
    losses = auxiliary_losses(output_of(private, shared, present))

    def normalised(v):
        v = v - v.mean(0)
        return v / v.norm(dim=1, keepdim=True)

    a, b, both = [0, 1, 2, 3, 4], [0, 1, 2, 3, 5], [0, 1, 2, 3]
    pairs = [(private[a, 0], shared[a, 0]), (private[b, 1], shared[b, 1]), (private[both, 0], private[both, 1])]
    difference = sum((normalised(x).T @ normalised(y)).square().mean() for x, y in pairs)
    torch.testing.assert_close(losses["difference"], difference)
    x, y = shared[a, 0], shared[b, 1]
    similarity = (x.mean(0) - y.mean(0)).norm()
    for k in range(2, 6):
        similarity = similarity + ((x - x.mean(0)) ** k).mean(0).sub(((y - y.mean(0)) ** k).mean(0)).norm()
    torch.testing.assert_close(losses["similarity"], similarity)
    assert losses["reconstruction"].item() == pytest.approx(4)  # 2 squared, missing vectors left out


def test_what_stands_in_missing_vectors_does_not_matter():
    torch.manual_seed(0)
    private, shared = torch.rand(2, 3, 2, 4)
    present = torch.tensor([[True, True], [True, False], [True, True]])
    first = auxiliary_losses(output_of(private, shared, present))
    private, shared = private.clone(), shared.clone()
    private[1, 1], shared[1, 1] = torch.nan, torch.nan
    second = auxiliary_losses(output_of(private, shared, present))
    assert {name: value.item() for name, value in first.items() if name != "reconstruction"} == {
        name: value.item() for name, value in second.items() if name != "reconstruction"
    }


def test_the_objective_weighs_each_loss():
    module = SharedPrivateEncodersModule(
        {"a": 3, "b": 2}, "regression", 1, difference_weight=2.0, similarity_weight=3.0, reconstruction_weight=5.0, hidden_channels=4
    )
    where = {"a": torch.tensor([0, 1, 2]), "b": torch.tensor([0, 1, 2])}
    output = module({"a": torch.randn(3, 3), "b": torch.randn(3, 2)}, where, batch_size=3)
    terms = module.loss_terms(output, torch.zeros(3))
    expected = terms["task"] + 2 * terms["difference"] + 3 * terms["similarity"] + 5 * terms["reconstruction"]
    torch.testing.assert_close(terms["loss"], expected)
    assert all(value.item() > 0 for value in terms.values())
