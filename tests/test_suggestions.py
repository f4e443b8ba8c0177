"""What an unknown name may have been."""

import pytest

from mea_graph.suggestions import did_you_mean

OPTIONS = ["channels", "hidden_channels", "heads", "head_norm", "pooling", "num_predictive_layers", "max_epochs"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("chanels", "channels"),
        ("hidden-channels", "hidden_channels"),
        ("Pooling", "pooling"),
        ("num_predictive_layer", "num_predictive_layers"),
        ("max_epoch", "max_epochs"),
        ("headnorm", "head_norm"),
        ("head", "heads"),
        ("chan", "channels"),
    ],
)
def test_the_nearest_name_is_meant(name: str, meant: str) -> None:
    assert did_you_mean(name, OPTIONS) == f" (did you mean {meant!r}?)"


@pytest.mark.parametrize("name", ["", "x", "temperature", "kernel"])
def test_nothing_is_guessed_where_no_name_is_near(name: str) -> None:
    assert did_you_mean(name, OPTIONS) == ""
    assert did_you_mean(name, []) == ""
