import inspect

import pytest
import torch
from torch import nn

from mea_graph.train import TaskModule, augment
from mea_graph.train.augmentation import at_pace, hide_span

LENGTHS = {"audio": torch.tensor([8, 0, 3, 20]), "lips": torch.tensor([4, 5, 1, 0])}


def sequences():
    """Ramps, so that a wrong row or a wrong sample shows: sample + step / 100."""
    batch = {m: torch.repeat_interleave(torch.arange(4), lengths) for m, lengths in LENGTHS.items()}
    x = {m: torch.cat([s + torch.arange(int(t)) / 100 for s, t in enumerate(lengths)])[:, None] for m, lengths in LENGTHS.items()}
    return x, batch


def counts(batch):
    return torch.bincount(batch, minlength=4)


def test_nothing_asked_for_changes_nothing():
    x, batch = sequences()
    same, same_batch = augment(x, batch, 4)
    assert all(torch.equal(same[m], x[m]) and torch.equal(same_batch[m], batch[m]) for m in x)


def test_pace_one_is_the_identity_and_others_stay_inside_the_sample():
    x, batch = sequences()
    for m in x:
        same, same_batch = at_pace(x[m], batch[m], torch.ones(4))
        torch.testing.assert_close(same, x[m])
        assert torch.equal(same_batch, batch[m])
        for pace in ((1.5, 2.0, 0.1, 0.5), (1.45, 1.95, 0.1, 0.43)):
            slow, slow_batch = at_pace(x[m], batch[m], torch.tensor(pace))
            assert counts(slow_batch).tolist() == [round(t * p) or int(t > 0) for t, p in zip(LENGTHS[m].tolist(), pace, strict=True)]
            for s in slow_batch.unique().tolist():
                old, new = x[m][batch[m] == s, 0], slow[slow_batch == s, 0]
                assert old.min() <= new.min()
                assert new.max() <= old.max()
                assert bool((new.diff() >= 0).all())  # in order


def test_modalities_of_a_sample_share_the_pace():
    torch.manual_seed(0)
    x = {m: torch.randn(600, 2) for m in ("a", "b")}
    batch = {m: torch.arange(6).repeat_interleave(100) for m in x}
    _, found = augment(x, batch, 6, time_stretch=0.3)
    lengths = torch.bincount(found["a"])
    assert torch.equal(lengths, torch.bincount(found["b"]))
    assert len(lengths.unique()) > 3
    assert bool(((lengths >= 74) & (lengths <= 135)).all())


def test_a_hidden_span_is_one_piece_of_the_share_asked_for():
    x, batch = sequences()
    hidden = hide_span(x["audio"] + 1, batch["audio"], torch.full((4,), 0.5), torch.tensor([0.0, 0.3, 1.0, 0.5]))[:, 0] == 0
    assert hidden[batch["audio"] == 0].tolist() == [True] * 4 + [False] * 4
    assert hidden[batch["audio"] == 2].tolist() == [False, False, True]
    assert hidden[batch["audio"] == 3].tolist() == [False] * 5 + [True] * 10 + [False] * 5


def test_each_place_where_a_span_fits_is_as_likely():
    """The last one never came, so that the last step of a sequence was hardly ever hidden."""
    samples, steps = 6000, 5
    x, batch = torch.ones(samples * steps, 1), torch.arange(samples).repeat_interleave(steps)
    for wide in (1, 2, 4, 5):
        hidden = hide_span(x, batch, torch.full((samples,), wide / steps + 1e-4), torch.rand(samples)).view(samples, steps) == 0
        places = torch.bincount(hidden.float().argmax(1), minlength=steps - wide + 1)
        assert (hidden.sum(1) == wide).all()
        assert len(places) == steps - wide + 1
        assert torch.allclose(places / samples, torch.tensor(1 / len(places)), atol=0.03)


def test_where_a_span_lies_and_how_long_it_is_are_drawn_apart_for_each_modality():
    torch.manual_seed(0)
    steps, samples = 100, 800
    batch = {m: torch.arange(samples).repeat_interleave(steps) for m in ("a", "b")}
    x, _ = augment({m: torch.ones(samples * steps, 1) for m in batch}, batch, samples, time_mask=0.9)
    hidden = {m: (v == 0).view(samples, steps) for m, v in x.items()}
    share = {m: v.sum(1) / steps for m, v in hidden.items()}
    place = {m: v.float().argmax(1) / (steps * (1 - share[m])) for m, v in hidden.items()}
    drawn = torch.stack([share["a"], place["a"], share["b"], place["b"]])
    assert drawn.mean(1).tolist() == pytest.approx([0.45, 0.5, 0.45, 0.5], abs=0.05)
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.15


def test_noise_has_the_spread_asked_for():
    torch.manual_seed(0)
    x, _ = augment({"a": torch.zeros(5000, 4)}, {"a": torch.zeros(5000, dtype=torch.long)}, 1, feature_noise=0.3)
    assert x["a"].std().item() == pytest.approx(0.3, rel=0.02)


class Sum(nn.Module):
    def forward(self, x_dict, batch_dict, batch_size):
        self.steps = len(x_dict["audio"])
        return x_dict["audio"].sum().expand(batch_size, 1)


def test_only_training_samples_change():
    from torch_geometric.data import Batch, HeteroData

    sample = HeteroData()
    sample["audio"].x, sample.y, sample.id = torch.ones(40, 1), torch.zeros(1), "a"
    batch = Batch.from_data_list([sample] * 3)
    module = TaskModule(Sum(), "regression", 1, augmentation={"time_mask": 1.0})
    torch.manual_seed(0)
    assert module.train().run(batch)[0].item() < 120
    assert module.eval().run(batch)[0].item() == 120


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"time_stretch": -0.1}, r"augmentation.time_stretch: expected a number in \[0, 3\], got -0.1"),
        ({"time_stretch": 1e9}, r"augmentation.time_stretch: expected a number in \[0, 3\], got 1000000000.0"),
        ({"feature_noise": float("inf")}, r"augmentation.feature_noise: expected a number >= 0, got inf"),
        ({"time_mask": 1.5}, r"augmentation.time_mask: expected a number in \[0, 1\], got 1.5"),
        ({"feature_noise": -1.0}, r"augmentation.feature_noise: expected a number >= 0, got -1.0"),
        ({"feature_noise": float("nan")}, r"augmentation.feature_noise: expected a number >= 0, got nan"),
        ({"modality_dropout": 1}, r"augmentation.modality_dropout: expected a number in \[0, 1\), got 1"),
        ({"time_mask": None}, r"augmentation.time_mask: expected a number in \[0, 1\], got None"),
        (
            {"feature_nose": 0.1},
            r"augmentation: expected some of .*, got 'feature_nose' \(did you mean 'feature_noise'\?\)",
        ),
    ],
)
def test_ways_that_do_not_exist_and_numbers_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TaskModule(Sum(), "regression", 1, augmentation=given)


def test_no_function_of_a_module_has_more_than_a_dozen_options():
    assert len(inspect.signature(TaskModule).parameters) == 12
