"""Memory of a pass: a handful of buffers that the layers take in turn, so that a pass allocates nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Arena:
    """One buffer for each role of a tensor in a pass; tensors of one role never live at the same time.

    It is used twice by the same code: what is taken before :meth:`allocate` has no memory (device "meta") and tells how
    large each buffer must be, what is taken after it lies in the buffers.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sizes: dict[tuple[str, torch.dtype], int] = {}
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._zeroed: set[tuple[str, torch.dtype]] = set()

    def take(self, role: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The tensor of a role; a map [N, C, H, W] has strides (H*W*C, 1, W*C, C), anything else is dense.

        Raises:
            ValueError: if the buffer was allocated for less.
        """
        size, key = torch.Size(shape), (role, dtype)
        if not self.buffers:
            self.sizes[key] = max(self.sizes.get(key, 0), size.numel())
            buffer = torch.empty(size.numel(), dtype=dtype, device="meta")
        else:
            buffer = self.buffers[key]
            if size.numel() > buffer.numel():
                raise ValueError(f"arena: {role} must have at most {buffer.numel()} elements, got {list(size)}")
        if len(size) == 4:
            return buffer.as_strided(size, (size[1] * size[2] * size[3], 1, size[3] * size[1], size[1]))
        return buffer[: size.numel()].view(size)

    def take_zeroed(self, role: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As :meth:`take`, of a role whose buffer is zeroed once, when it is allocated.

        Whoever writes to it leaves zeros behind. A role is taken either always by this or never.
        """
        self._zeroed.add((role, dtype))
        return self.take(role, shape, dtype)

    def allocate(self) -> None:
        """Allocates each buffer as large as what has been taken of it."""
        for key, size in self.sizes.items():
            make = torch.zeros if key in self._zeroed else torch.empty
            self.buffers[key] = make(max(size, 1), dtype=key[1], device=self.device)

    def bytes(self) -> int:
        """Of all buffers."""
        return sum(size * dtype.itemsize for (_, dtype), size in self.sizes.items())
