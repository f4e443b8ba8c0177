"""Attention between the steps of sequences: within a modality (predictive) and across modalities (hierarchical)."""
