"""How many operators MEA asks PyTorch for, how often it moves rows, and which backends attend: exact, so that a change is seen."""

import pytest
import torch

from benchmarks import calls
from mea_graph.nn import MEA, PredictiveSelfAttention
from mea_graph.ops import Pointers, record_calls


@pytest.fixture(scope="module")
def found():
    return calls.of_mea()


def test_operators_of_one_pass_of_the_default_model(found):
    assert 500 < found.forward.total() <= 857
    assert 500 < found.backward.total() <= 1249


def test_each_modality_is_padded_once_and_comes_back_once(found):
    conversions = found.conversions
    assert conversions.total() <= 3 * 3  # three for each of three modalities
    # The convolution and the Bi-LSTM of an extractor read a padded batch. Each of two layers of cross-modal attention reads its sources'
    # rows sample by sample.
    assert conversions == {"pad": 3, "unpad": 3, "take_rows": 2}


def test_every_attention_goes_through_the_dispatcher(found):
    batch = calls.mosi_batch()
    network = MEA.published({"text": 300, "audio": 5, "vision": 20}, 1)
    with record_calls() as seen:
        network(batch)
    attentions = {(op, backend): times for (op, backend), times in seen.items() if op.endswith("attention")}
    # The first predictive layer has no prior: one plain attention for all modalities. The two others attend modality by modality. Each of
    # two cross-modal layers has three stages.
    assert attentions == {("interval_attention", "cpu"): 1 + 2 * 3, ("predictive_attention", "cpu"): 2 * 3}
    # As many as the operators that PyTorch saw, both ways; and nothing attends beside them: no product of batches, and softmaxes only over
    # modalities (three of weighted attention, one of the importance discriminator).
    for op, backend in attentions:
        name = f"mea_graph.{op}_{backend}"
        assert found.forward[name] == found.backward[f"{name}_backward"] == attentions[op, backend]
    assert found.forward["aten.bmm"] == 0
    assert found.forward["aten._softmax"] == 3 + 1
    assert not any("scaled_dot_product" in name for name in found.forward)


def test_an_operator_counts_once_and_by_its_direction():
    x = torch.ones(3, requires_grad=True)
    seen = calls.count(lambda: (x * 2).sum().backward())
    assert seen.forward["aten.mul"] == seen.forward["aten.sum"] == 1
    assert seen.backward["aten.mul"] == 1
    assert seen.backward["aten.sum"] == 0


def test_only_what_moves_rows_is_a_conversion():
    ragged, even = (Pointers.from_ptr(torch.tensor(ptr)) for ptr in ([0, 1, 4], [0, 2, 4]))
    x, mask = torch.randn(4, 2), torch.tensor([[True, True], [True, False]])
    assert calls.count(lambda: ragged.unpad(ragged.pad(x))).conversions == {"pad": 1, "unpad": 1}
    assert calls.count(lambda: even.unpad(even.pad(x))).conversions == {}  # views: the batch has no padding
    layer = PredictiveSelfAttention(2, heads=1)
    seen = calls.count(lambda: layer(x.view(2, 2, 2), mask)[0].sum().backward())
    assert seen.conversions == {"take_rows": 1, "put_rows": 1}  # at the door of a layer, in and out; the way back does not count
    assert str(seen).endswith("/2")
    assert str(seen._replace(conversions=None)).endswith("/-")
