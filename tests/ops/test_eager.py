"""The short way that ops take for one short sample which is only evaluated."""

import pytest
import torch

from mea_graph.ops import predictive_attention
from mea_graph.ops.cross_modal_attention import packed
from mea_graph.ops.eager import only_evaluated
from mea_graph.ops.predictive_attention import cpu

DTYPES = pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])


def operators_called(function, *names):
    with torch.profiler.profile() as profile:
        result = function()
    called = {event.name for event in profile.events()}
    return result, [name in called for name in names]


@DTYPES
@pytest.mark.parametrize("scale", [1.0, 40.0])  # the second overflows without a shift
@pytest.mark.parametrize("lengths", [(7, 11), (1, 1), (5, 0)])
def test_one_sample_of_packed_steps(dtype, bound, scale, lengths):
    n, m = lengths
    query, key, value = (scale * torch.randn(4, d, steps, dtype=dtype) for d, steps in ((5, n), (5, m), (3, m)))
    short, called = operators_called(
        lambda: packed.packed_attention(query, key, value, [n], [m]), "mea_graph::cross_modal_attention_packed"
    )
    whole = packed.attend(query, key, value, [n], [m])[0]
    assert called == [False]
    torch.testing.assert_close(short, whole, rtol=bound, atol=bound * scale)


def test_packed_steps_that_learn_or_do_not_fit_take_the_operator(monkeypatch):
    name = "mea_graph::cross_modal_attention_packed"
    query, key, value = (torch.randn(2, 3, 4) for _ in range(3))
    assert operators_called(lambda: packed.packed_attention(query.requires_grad_(), key, value, [4], [4]), name)[1] == [True]
    with torch.no_grad():
        assert operators_called(lambda: packed.packed_attention(query, key, value, [4], [4]), name)[1] == [False]
        assert operators_called(lambda: packed.packed_attention(query, key, value, [1, 3], [2, 2]), name)[1] == [True]
        monkeypatch.setattr(packed, "_BLOCK", 2 * 4 * 4 - 1)
        assert operators_called(lambda: packed.packed_attention(query, key, value, [4], [4]), name)[1] == [True]


def predictive(length, dtype=torch.float32, batch=1):
    q, k, v, q_prior, k_prior = torch.randn(5, batch, 4, length, 5, dtype=dtype).unbind()
    weight, bias = torch.randn(4, 4, 3, 3, dtype=dtype), torch.randn(4, dtype=dtype)
    return {"query": q, "key": k, "value": v, "prior_query": q_prior, "prior_key": k_prior, "weight": weight, "bias": bias}


@DTYPES
def test_predictive_attention_of_short_samples(dtype, bound):
    name = "mea_graph::predictive_attention_cpu"
    for length in (1, 9, cpu.SHORT):
        tensors = predictive(length, dtype, batch=2)
        mask = torch.ones(2, length, dtype=torch.bool)
        short, called = operators_called(lambda t=tensors, m=mask: predictive_attention(**t, mask=m, backend="cpu"), name)
        assert called == [False]
        blocked = cpu._FORWARD(*tensors.values(), mask, 0.25)[0]
        torch.testing.assert_close(short, blocked, rtol=bound, atol=bound)


def test_predictive_attention_that_learns_has_padding_or_is_long_takes_the_operator():
    name = "mea_graph::predictive_attention_cpu"
    tensors = predictive(9)
    padded = torch.arange(9)[None] < 7
    assert operators_called(lambda: predictive_attention(**tensors, mask=padded, backend="cpu"), name)[1] == [True]
    long = predictive(cpu.SHORT + 1)
    assert operators_called(lambda: predictive_attention(**long, backend="cpu"), name)[1] == [True]
    tensors["weight"].requires_grad_()
    assert operators_called(lambda: predictive_attention(**tensors, backend="cpu"), name)[1] == [True]


def test_only_evaluated():
    x = torch.ones(2)
    learns = torch.ones(2, requires_grad=True)
    assert only_evaluated(x, None, x)
    assert not only_evaluated(x, learns)
    with torch.no_grad():
        assert only_evaluated(x, learns)
    with torch.autocast("cpu"):
        assert not only_evaluated(x)
    assert not only_evaluated(x, x.double())
    assert not only_evaluated(x.bfloat16())
    assert not only_evaluated(torch.ones(2, device="meta"))
