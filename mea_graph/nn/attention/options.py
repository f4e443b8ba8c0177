"""Options of the attention layers beyond the paper's form."""

from typing import TypedDict

from torch import nn

from mea_graph.nn._sequences import check_heads, check_sizes

MOST_LAYERS = 1000


class AttentionOptions(TypedDict, total=False):
    """For every attention layer inside an encoder; see `PredictiveSelfAttention` and `ModalityReinforcementUnit`."""

    head_channels: int | None
    feed_forward_channels: int | None
    attention_dropout: float


def inner_channels(channels: int, heads: int, head_channels: int | None, feed_forward_channels: int | None) -> int:
    """Returns the width of all heads, `channels` unless that of one is given; checks both widths."""
    if feed_forward_channels is not None:
        check_sizes(feed_forward_channels=feed_forward_channels)
    if head_channels is None:
        check_heads(channels, heads)
        return channels
    check_sizes(channels=channels, heads=heads, head_channels=head_channels)
    return heads * head_channels


def check_layers(num_layers: int) -> None:
    """Refuses numbers of layers that nobody means: a million of them take minutes to be made, and all memory."""
    if num_layers < 1:
        raise ValueError(f"num_layers: expected at least 1, got {num_layers}")
    if num_layers > MOST_LAYERS:
        raise ValueError(f"num_layers: expected at most {MOST_LAYERS}, got {num_layers}")


def probability(dropout: nn.Module) -> float:
    """The current probability: 0 in evaluation mode. The op drops weights by it, so that another module cannot do it in its place."""
    if type(dropout) is nn.Dropout:
        return dropout.p if dropout.training else 0.0
    if type(dropout) is nn.Identity:
        return 0.0
    raise TypeError(f"attention_dropout: expected nn.Dropout, whose probability attention reads, or nn.Identity, got {dropout}")
