"""What torch's fused optimizers take for granted, and do not check on a CPU: how tensors lie in memory.

They go through a parameter, its gradient and its state in the order of memory, from the first element on. Where these are not
laid out alike, numbers meet elements of other places, without an error. `backward` sees to the gradient; here gradients come
from `torch.autograd.grad` or a traced program, and state from files, which keep no order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrovae.errors import OptionError


def gradients_as_by_backward(leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    """The gradients as `backward` leaves them: each laid out as its parameter, and no two the same tensor.

    An optimizer may change gradients in place, as SGD with Nesterov's momentum does with `foreach=True`.
    """
    made, seen = [], set()
    for leaf, grad in zip(leaves, grads):
        if grad.layout is torch.strided:
            grad = laid_out_as(leaf, grad)
            if grad.data_ptr() in seen:
                grad = grad.clone()
            seen.add(grad.data_ptr())
        made.append(grad)
    return made


def laid_out_as(like: Tensor, value: Tensor) -> Tensor:
    """The value in the order of memory of another tensor of its shape; itself where it has it already."""
    if _same_order(like, value) and not (value.is_neg() or value.is_conj()):
        return value
    return torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)


def lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Lay out the state of each parameter, such as Adam's moments, as the parameter."""
    for leaf, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == leaf.shape and value.layout is torch.strided:
                state[name] = laid_out_as(leaf, value)


def check_fused(optimizer: torch.optim.Optimizer) -> None:
    """OptionError where a fused optimizer has a parameter with gaps in its memory, into which it would write."""
    for group in optimizer.param_groups:
        gaps = [leaf for leaf in group["params"] if not is_dense(leaf)] if group.get("fused") else []
        if gaps:
            raise OptionError(
                f"{type(optimizer).__name__}(fused=True) cannot train a parameter that is a part of a larger tensor, with gaps "
                f"in memory, of shape {tuple(gaps[0].shape)} and strides {gaps[0].stride()}: leave out fused=True, or make it "
                "a tensor of its own, nn.Parameter(value.clone(memory_format=torch.contiguous_format))."
            )


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements of a tensor fill a piece of memory without gaps, in whatever order."""
    if tensor.layout is not torch.strided or tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape) if size != 1):
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def _same_order(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape have the same strides, of a dimension with one element any."""
    if a.stride() == b.stride():
        return True
    return all(n == 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride()))
