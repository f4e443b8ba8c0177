"""What is no output of a model is told by every figure of one."""

import pytest
import torch

from mea_graph.nn import MEA
from mea_graph.viz import attention_map, embedding_scatter, fusion_graph, modality_weights

FIGURES = {
    "attention_map": lambda output: attention_map(output, "a"),
    "embedding_scatter": embedding_scatter,
    "fusion_graph": fusion_graph,
    "modality_weights": modality_weights,
}


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
@pytest.mark.parametrize("wrong", [None, torch.zeros(2), "list"], ids=["None", "tensor", "list"])
def test_what_is_no_output_is_told(figure, wrong):
    """It was an AttributeError of a list, or a TypeError about None."""
    if isinstance(wrong, str):
        output = MEA({"a": 3, "b": 2}, 1, 8, 8, 2)({"a": torch.randn(1, 4, 3), "b": torch.randn(1, 3, 2)}, return_attention_weights=True)
        if figure is embedding_scatter:  # which takes several
            assert embedding_scatter([output, output]).axes
            return
        wrong = [output]
    with pytest.raises(TypeError, match=r"output: expected a MEAOutput, got .*; a model returns it, and `attention` of Predictor"):
        figure(wrong)
