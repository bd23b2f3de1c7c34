"""The bound of M2 as a sum over classes written out, to be compared with ours: shared with benchmarks/exactness.py."""

import math
from typing import Any

import pyro
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.pair.batch import group_rows
from pyrovae.pair.layout import describe
from pyrovae.training.minibatch import GroupTerms, MinibatchLoss
from support.programs import CLASSES, binary, labels, ssvae


def minibatch(pair: Any, data: dict[str, Tensor], loss: Any = None) -> tuple[MinibatchLoss, dict[str, Tensor]]:
    """The loss of a step that takes all rows, and its inputs."""
    parts, inputs = {}, {}
    for number, group in enumerate(group_rows(pair, data)):
        rows = {name: data[name][group.rows] for name in group.names}
        parts[str(number)] = GroupTerms(group.names, len(group.rows), describe(pair, rows))
        inputs[str(number)] = group.rows
    made = MinibatchLoss(pair, loss or pv.Trace_ELBO(), len(data["x"]), parts, data)
    return made, inputs


def by_hand(pair: pv.SSVAE, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """-(1/N) of the sum over rows of M2's bounds, with z = m + s * noise: Kingma et al. 2014, equations 6 to 9."""
    eye = torch.eye(CLASSES, dtype=x.dtype)

    def joint(code: Tensor, y: Tensor, x: Tensor, noise: Tensor) -> Tensor:  # the bound on log p(x, y), (n,)
        q = pair.encoder(x, code)
        z = q.base_dist.loc + q.base_dist.scale * noise
        log_p = pair.prior().log_prob(z) + pair.likelihood(z, code).log_prob(x) + math.log(1 / CLASSES)
        return log_p - q.log_prob(z)

    total = x.new_zeros(())
    known = y >= 0
    if known.any():
        code = eye[y[known]]
        total = total + joint(code, y[known], x[known], noise[0, known]).sum()
        total = total + pair.alpha * pair.classifier(x[known]).log_prob(y[known]).sum()
    if (~known).any():
        u = x[~known]
        q = pair.classifier(u).probs
        for c in range(CLASSES):
            bound = joint(eye[c].expand(len(u), -1), torch.full((len(u),), c), u, noise[c, ~known])
            total = total + (q[:, c] * (bound - q[:, c].log())).sum()
    return -total / len(x)


class Noise(pyro.poutine.messenger.Messenger):  # type: ignore[misc]
    """Draw z = m + s * noise from given noise: (..., C, N, L), of which rows take the first where a label is known."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "z" and not msg["done"]:
            q = msg["fn"].base_dist
            noise = self.noise
            while noise.dim() > q.loc.dim():
                noise = noise[0]
            msg["value"], msg["done"] = q.loc + q.scale * noise, True


def against_by_hand(known: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """(ours, by hand) of the loss of 40 rows, `known` of them labelled, and of its gradient in each parameter."""
    torch.set_default_dtype(dtype)
    try:
        pair = ssvae(alpha=3.0)
        data = {"x": binary(), "y": labels(known=known)}
        noise = torch.randn(CLASSES, 40, 2)

        class Fixed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.pair = pair

            def model(self, x: Tensor, y: Tensor | None = None) -> Any:
                return pair.model(x, y)

            def guide(self, x: Tensor, y: Tensor | None = None) -> Any:
                mine = noise[:, data["y"] >= 0] if y is not None else noise[:, data["y"] < 0]
                return Noise(mine)(pair.guide)(x, y)

        loss, inputs = minibatch(Fixed(), data)
        losses = loss(inputs, {})[1], by_hand(pair, data["x"], data["y"], noise)
        grads = [torch.autograd.grad(value, list(pair.parameters()), allow_unused=True) for value in losses]
        compared = [losses]
        for ours, theirs in zip(*grads):
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                compared.append((ours, theirs))
        return compared
    finally:
        torch.set_default_dtype(torch.float32)
