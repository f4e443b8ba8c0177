import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, HeteroData

from mea_graph.nn import MEA
from mea_graph.train import MEAModule, TaskModule
from mea_graph.train.missing_modalities import draw_missing, without_modalities

MODALITIES = ("text", "audio", "vision")


def batch_of(lengths):
    """Sample numbers of each step, from lengths (B, M)."""
    return {m: torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)[:, i]) for i, m in enumerate(MODALITIES)}


def test_each_modality_goes_with_the_probability_asked_for():
    torch.manual_seed(0)
    batch = batch_of([[2, 1, 3]] * 100000)
    missing = draw_missing(batch, 100000, 0.25)
    # three draws below 1/4 would leave none: one of the three then stays
    expected = 0.25 - 0.25**3 / 3
    assert [gone.float().mean().item() for gone in missing.values()] == pytest.approx([expected] * 3, abs=0.005)


def test_every_sample_keeps_one_of_the_modalities_it_has():
    torch.manual_seed(0)
    lengths = torch.randint(0, 2, (500, 3))
    missing = torch.stack(list(draw_missing(batch_of(lengths.tolist()), 500, 1.0).values()), 1)
    left = (lengths > 0) & ~missing
    assert left.sum(1).tolist() == lengths.any(1).int().tolist()
    assert left.any(0).all()  # not always the same one


def test_a_missing_modality_has_no_step_left():
    x = {"a": torch.arange(5.0)[:, None], "b": torch.arange(3.0)[:, None]}
    batch = {"a": torch.tensor([0, 0, 1, 1, 2]), "b": torch.tensor([0, 1, 2])}
    x_left, batch_left = without_modalities(x, batch, {"a": torch.tensor([False, True, False])})
    assert (x_left["a"].flatten().tolist(), batch_left["a"].tolist()) == ([0.0, 1.0, 4.0], [0, 0, 2])
    assert (x_left["b"] is x["b"], len(x["a"])) == (True, 5)


def test_the_model_treats_it_as_a_node_that_is_not_there():
    torch.manual_seed(0)
    model = MEA(dict.fromkeys(MODALITIES, 4), out_channels=2, channels=8, heads=2).double().eval()
    batch = batch_of([[3, 5, 2], [4, 1, 6]])
    x = {m: torch.randn(len(where), 4, dtype=torch.float64) for m, where in batch.items()}
    x_left, batch_left = without_modalities(x, batch, {"audio": torch.tensor([True, False])})
    output = model(x_left, batch_left, batch_size=2)
    assert output.graph["audio_exclusive"].num_nodes == 1
    native = batch_of([[3, 0, 2], [4, 1, 6]])
    expected = model({**x, "audio": x["audio"][5:]}, native, batch_size=2).prediction
    torch.testing.assert_close(output.prediction, expected)
    assert not torch.allclose(output.prediction[0], model(x, batch, batch_size=2).prediction[0])


class Lengths(nn.Module):
    """Remembers how many steps of each modality it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, x_dict, batch_dict, batch_size):
        self.seen.append({m: len(x) for m, x in x_dict.items()})
        return self.weight.expand(batch_size, 1)


def samples(count):
    made = []
    for _ in range(count):
        sample = HeteroData()
        for m in MODALITIES:
            sample[m].x = torch.randn(3, 2)
        sample.y, sample.id = torch.zeros(1), "x"
        made.append(sample)
    return Batch.from_data_list(made)


def test_modalities_are_dropped_in_training_alone_and_the_same_again_for_the_same_batch():
    module = TaskModule(Lengths(), "regression", 1, augmentation={"modality_dropout": 0.5})
    module.setup("fit")
    batch = samples(40)
    whole = dict.fromkeys(MODALITIES, 120)
    module.train()
    for number in (0, 0, 1):
        torch.manual_seed(number)
        module.run(batch)
    module.eval()
    module.run(batch)
    first, again, other, evaluated = module.network.seen
    assert first == again != other
    assert evaluated == whole
    assert all(40 < steps < 90 for steps in first.values())


def test_it_is_an_option_of_every_module():
    options = {"augmentation": {"modality_dropout": 0.25}, "label_smoothing": 0.1, "channels": 8, "heads": 2}
    module = MEAModule(dict.fromkeys(MODALITIES, 4), "classification", 2, **options)
    assert (module.modality_dropout, module.loss.label_smoothing) == (0.25, 0.1)
    with pytest.raises(ValueError, match=r"augmentation.modality_dropout: expected a number in \[0, 1\), got 1"):
        TaskModule(nn.Identity(), "regression", 1, augmentation={"modality_dropout": 1.0})
