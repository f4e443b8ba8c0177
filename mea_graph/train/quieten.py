"""Less noise from Lightning in our programs."""

from __future__ import annotations

import logging
import warnings


def quieten() -> None:
    """Drops Lightning's remarks that are no use to a user of this program."""
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*LightningCLI's args parameter.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*callbacks used to create the checkpoint need to be provided.*",  # an evaluation has no checkpoint callbacks
        r"\s*Unable to serialize instance",  # `config.yaml` leaves out a default that is an object
        ".*could not find the monitored key.*",  # a wrong one is refused before training, and here no validation has come yet
        ".*recommended to use `self.log.*sync_dist=True.*",  # the terms of training are those of the joint batch already
        ".*checkpoint that ended before the epoch ended and your dataloader is not resumable.*",  # ours goes on where it was
        ".*custom batch sampler `LengthBucketBatchSampler` for prediction.*",  # ours leaves no sample out
    ):
        warnings.filterwarnings("ignore", message=message)
