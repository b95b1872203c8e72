"""A GPU that fails in the middle of the work is a sentence; what is not its fault is not blamed on it."""

import socket

import numpy as np
import pytest
import torch

from prospect.devices import explain_device_failure
from prospect.errors import DeviceError
from prospect.vision.encoding import EncodeBatch
from prospect.vision.settings import VisionSettings
from prospect.vision.stages import PictureBatch, StageFailure, item_of, to_row


@pytest.mark.parametrize(
    "failure",
    [
        torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
)
def test_the_node_and_the_reason_are_named_in_one_line(failure: Exception) -> None:
    with pytest.raises(DeviceError) as told, explain_device_failure():
        raise failure
    [line] = str(told.value).splitlines()
    reason = str(failure).splitlines()[0]
    assert line.startswith(f"the GPU of node {socket.gethostname()} failed ({reason}): look at it with nvidia-smi")


@pytest.mark.parametrize("other", [RuntimeError("shapes differ"), torch.OutOfMemoryError("out of memory"), KeyError(1)])
def test_another_error_stays_what_it_is(other: Exception) -> None:
    with pytest.raises(type(other)) as raised, explain_device_failure():
        raise other
    assert raised.value is other


def test_embedding_ends_with_the_sentence_and_blames_no_video() -> None:
    def fails(pictures: np.ndarray) -> np.ndarray:
        raise torch.AcceleratorError("CUDA error: GPU is lost")

    stage = EncodeBatch(VisionSettings(image_size=8), "abc", threads=1)
    stage.__dict__["_encode"] = fails
    pictures = np.zeros((2, 8, 8, 3), np.uint8)
    item = item_of(stage(to_row(PictureBatch("tea", 0, 2), pictures)))
    assert isinstance(item, StageFailure)
    assert isinstance(item.error, DeviceError)
