"""BatchNorm over the batch of all processes.

torch's SyncBatchNorm runs on GPUs only ("expected input tensor to be on GPU"). On the CPU, where it serves to try and
to test what will run on many GPUs, this one takes its place; torch.distributed.nn's all_reduce is deprecated.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


class _SumOverProcesses(torch.autograd.Function):
    """A sum that every process gets; so each one's gradient is the sum of all theirs."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        total = grad.clone()
        distributed.all_reduce(total)
        return total


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d whose statistics in training are those of all processes together; in eval mode it is BatchNorm2d."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] to the same; every process has the same N, H and W, as the training loop sees to."""
        if not self.training:
            return super().forward(input)
        count = input.numel() // input.shape[1] * distributed.get_world_size()
        mean = _SumOverProcesses.apply(input.sum((0, 2, 3))) / count
        centered = input - mean.view(1, -1, 1, 1)
        variance = _SumOverProcesses.apply(centered.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centered * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def synchronize_batch_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with norms over the batch of all processes; parameters and names stay."""
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = CPUSyncBatchNorm
    return model
