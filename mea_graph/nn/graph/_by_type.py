"""Where the explainers of PyG find the edges and the nodes of a layer by type."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import EdgeType, NodeType


class ByType(MessagePassing):
    """Makes a layer that passes the messages of all types at once look as PyG's explainers expect it.

    `set_hetero_masks` looks in every `ModuleDict` for what passes the messages of an edge type, and puts the type's mask there: `masks` is
    such a dict. `get_embeddings_hetero` reads nodes by type from what modules with a `ModuleDict` return: `forward` is called for that.
    `AttentionExplainer` hooks what passes messages, and reads the type of the edges from its name: `show_attention` calls the hooks.
    """

    _name: EdgeType

    def __init__(self) -> None:
        super().__init__()
        self.masks = _Masks()

    def forward(self, nodes: dict[NodeType, Tensor]) -> dict[NodeType, Tensor]:
        """Shows the nodes to hooks."""
        return nodes

    def asks_attention(self) -> bool:
        """Whether a hook wants to see the attention."""
        return bool(self._message_forward_hooks)

    def show_attention(self, weights: Mapping[EdgeType, Tensor]) -> None:
        """Shows the coefficients of each type to hooks."""
        for edge_type, alpha in weights.items():
            self._name = edge_type  # PyG asks for its parts by `index`, which finds them whole in a tuple, inside others in a string
            for hook in list(self._message_forward_hooks.values()):
                hook(self, ({"alpha": alpha},), alpha)

    @contextmanager
    def masked(
        self, conv: nn.Module, edge_index_dict: Mapping[EdgeType, Tensor], types: list[EdgeType], edge_index: Tensor
    ) -> Iterator[None]:
        """Sets the masks of the types on a convolution during a call, joined in the order of `edge_index`."""
        mask = self.masks.join({t: edge_index_dict[t].size(1) for t in types})
        if mask is None:
            yield
            return
        layers = [module for module in conv.modules() if isinstance(module, MessagePassing)]
        if not layers:
            raise ValueError(f"edge masks: expected a convolution of PyG to put them on, got {type(conv).__name__}")
        for layer in layers:
            layer._parameters.pop("_edge_mask", None)  # a parameter that PyG set before would cut off the gradient
        set_masks(conv, mask, edge_index, apply_sigmoid=False)
        try:
            yield
        finally:
            clear_masks(conv)


class _Place(MessagePassing):
    """Holds a mask. A class of its own: PyG writes what it compiles of a class into that class."""


class _Masks(nn.ModuleDict):
    """Has a place for every edge type that it is asked for. `clear_masks` empties it, and the next call removes it."""

    def __contains__(self, key: Any) -> bool:
        return isinstance(key, tuple) or super().__contains__(key)

    def __getitem__(self, key: Any) -> nn.Module:
        if not isinstance(key, tuple):
            return super().__getitem__(key)
        place = self._modules[str(key)] = _Place()  # always a new place: an old parameter would cut off the gradient
        return place

    def join(self, edges: Mapping[EdgeType, int]) -> Tensor | None:
        """Joins the masks of these types, given how many edges each has: ones for a type without a mask, None if none has one."""
        places: dict[str, Any] = {name: place for name, place in self.items() if place._edge_mask is not None}
        if not places:
            self.clear()
        masks: dict[EdgeType, Tensor] = {}
        for edge_type, place in ((t, places[str(t)]) for t in edges if str(t) in places):
            if place._edge_mask.shape != (edges[edge_type],):
                raise ValueError(f"edge masks: expected ({edges[edge_type]},) for {edge_type}, got {tuple(place._edge_mask.shape)}")
            masks[edge_type] = place._edge_mask.sigmoid() if place._apply_sigmoid else place._edge_mask
        if not masks:
            return None
        like = next(iter(masks.values()))
        return torch.cat([masks.get(t, like.new_ones(n)) for t, n in edges.items()])
