"""The workers' process group, opened once every worker has its device. Ray's part of it imports torch."""

from typing import Any

from ray.train.torch.config import TorchConfig, _TorchBackend

from prospect.cluster.runtime import reserved_device


class CheckedTorchConfig(TorchConfig):
    """Ray's process group of torch, once every worker has found the device that is reserved for it.

    Without the check NCCL raises where a GPU is missing, or torch computes on the CPU beside a reserved GPU.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _CheckedTorchBackend


class _CheckedTorchBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(reserved_device)
        super().on_start(worker_group, backend_config)
