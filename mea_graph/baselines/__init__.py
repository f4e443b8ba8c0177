"""Other models on the same data: a constant, a linear model, GRUs, Transformers, shared and private encoders (extra `train`)."""

from mea_graph.baselines.concatenation_transformer import ConcatenationTransformer, ConcatenationTransformerModule
from mea_graph.baselines.constant import constant_prediction
from mea_graph.baselines.early_fusion_gru import EarlyFusionGRU, EarlyFusionGRUModule
from mea_graph.baselines.late_fusion_gru import LateFusionGRU, LateFusionGRUModule
from mea_graph.baselines.pairwise_transformer import PairwiseTransformer, PairwiseTransformerModule
from mea_graph.baselines.pooled_linear import PooledLinear
from mea_graph.baselines.shared_private_encoders import SharedPrivateEncoders, SharedPrivateEncodersModule, SharedPrivateOutput

__all__ = [
    "ConcatenationTransformer",
    "ConcatenationTransformerModule",
    "EarlyFusionGRU",
    "EarlyFusionGRUModule",
    "LateFusionGRU",
    "LateFusionGRUModule",
    "PairwiseTransformer",
    "PairwiseTransformerModule",
    "PooledLinear",
    "SharedPrivateEncoders",
    "SharedPrivateEncodersModule",
    "SharedPrivateOutput",
    "constant_prediction",
]
