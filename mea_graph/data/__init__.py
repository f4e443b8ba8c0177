"""Samples of several sequences, and how they come out of the field's files: data sets, readers, samplers, presets."""

from mea_graph.data.asynchronous_events import AsynchronousEvents, Latents
from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError
from mea_graph.data.length_bucket_sampler import LengthBucketBatchSampler, Padding
from mea_graph.data.missing_modalities import AddMissingModalities, check_batch
from mea_graph.data.open import open_dataset
from mea_graph.data.presets import IEMOCAP, MOSEI, MOSI, Preset
from mea_graph.readers.unpickle import load_pickle

__all__ = [
    "IEMOCAP",
    "MOSEI",
    "MOSI",
    "AddMissingModalities",
    "AsynchronousEvents",
    "DataError",
    "Latents",
    "LengthBucketBatchSampler",
    "MultimodalDataset",
    "Padding",
    "Preset",
    "check_batch",
    "load_pickle",
    "open_dataset",
]
