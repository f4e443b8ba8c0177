"""Whether tensors are under a transform of `torch.func`, which goes through plain operations only."""

import torch


def is_transformed() -> bool:
    """Whether `torch.func` (grad, vmap, jvp) or forward-mode differentiation is active; operators and written-out gradients know none."""
    return torch._C._functorch.maybe_current_level() is not None or torch.autograd.forward_ad._current_level >= 0
