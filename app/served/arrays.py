"""From the protocol's arrays to tensors and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def few_digits(array: NDArray[Any]) -> NDArray[Any]:
    """Numbers with as many digits as a person needs in an example; of the same dtype."""
    if not np.issubdtype(array.dtype, np.floating):
        return array
    return np.array([float(f"{value:.4g}") for value in array.ravel()], dtype=array.dtype).reshape(array.shape)


def to_tensor(array: NDArray[Any]) -> Tensor:
    """An array of the protocol as a tensor."""
    # Arrays that came as bytes are read-only and may be unaligned, which PyTorch must not be given.
    return torch.from_numpy(np.require(array, requirements=["A", "W", "C", "E"]))


def to_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor as an array of the protocol."""
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    array: NDArray[Any] = (tensor.float() if half else tensor).cpu().numpy()
    return array
