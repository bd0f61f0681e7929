"""Several processes that train as one: `torchrun` starts them, each takes its share of a batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from ..runtime.errors import InputError
from .models import Norm


@dataclass(frozen=True)
class Group:
    """This process among those of the training; a process alone is a group of one."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return self.rank == 0

    def share(self, batch: np.ndarray) -> np.ndarray:
        """Return this process's part of a batch [N]; the parts differ by one image at most.

        Raises InputError (E-GROUP-SIZE) if a process would have none.
        """
        if len(batch) < self.size:
            raise InputError(
                "E-GROUP-SIZE",
                f"{self.size} processes cannot share a batch of {len(batch)} images; start fewer "
                "or raise --batch",
            )
        return batch[self.rank :: self.size]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the processes."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def by_leader(self, action: Callable[[], None]) -> None:
        """Run an action that writes files in the leader; return in all processes once it is done.

        An error of the leader is raised in every process, so that none waits for it.
        """
        failure: list[Exception | None] = [None]
        if self.leads:
            try:
                action()
            except Exception as error:
                failure[0] = error
        if self.size > 1:
            distributed.broadcast_object_list(failure)
        if failure[0] is not None:
            raise failure[0]


def join_group(device: torch.device) -> Group:
    """Join the processes that `torchrun` started (it sets WORLD_SIZE), or be alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Group()
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Group(distributed.get_rank(), distributed.get_world_size())


def leave_group(group: Group) -> None:
    """Close the connections that `join_group` opened."""
    if group.size > 1:
        distributed.destroy_process_group()


def shared(network: nn.Module, group: Group) -> nn.Module:
    """Return the network so that a step over all shares equals one over the joined batch.

    Batch norm takes its statistics over all processes, and gradients are averaged by
    DistributedDataParallel. The parameters stay those of `network`.
    """
    if group.size == 1:
        return network
    for module in network.modules():
        if type(module) in (Norm, nn.BatchNorm2d):
            module.__class__ = _SharedBatchNorm
    return DistributedDataParallel(network, broadcast_buffers=False)


class _SharedBatchNorm(Norm):
    """Batch norm over all processes, as torch's SyncBatchNorm, which runs on GPUs only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        pixels = values.numel() // values.shape[1]
        sums = torch.cat([values.sum(dim=(0, 2, 3)), values.new_tensor([pixels])])
        sums = _sum(sums)
        mean = sums[:-1] / sums[-1]
        centred = values - mean[:, None, None]
        # Two passes: the difference of large squares would cost the precision that is promised.
        variance = _sum(centred.square().sum(dim=(0, 2, 3))) / sums[-1]
        with torch.no_grad():
            momentum = self.momentum or 0.0
            unbiased = variance * (sums[-1] / (sums[-1] - 1))
            self.get_buffer("running_mean").lerp_(mean, momentum)
            self.get_buffer("running_var").lerp_(unbiased, momentum)
            self.get_buffer("num_batches_tracked").add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        normalised = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised.to(x.dtype)


def _sum(values: torch.Tensor) -> torch.Tensor:
    """Sum over the processes, and so does the gradient."""
    total: torch.Tensor = all_reduce(values)  # type: ignore[no-untyped-call]
    return total
