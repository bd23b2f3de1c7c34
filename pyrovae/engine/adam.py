"""Updates: an optimizer's arithmetic as tensor operations, to stand in a graph with the rest of a step.

torch's own optimizers read numbers on the host. Adam and AdamW are written out here under torch's state names, so that the
optimizer holds the same state whichever way its steps were taken. Other optimizers step outside the graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from pyrovae.errors import OptionError

# The option of a group of parameters which only the model uses: its learning rate before the weight "model".
MODEL_RATE = "model_rate"


CONSTANTS = ("betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay")


class AdamUpdate:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980) and AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), as torch has them.

    What changes from step to step enters as three numbers a cohort (leaves of one group with one step count): the step
    size lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), and the decay 1 - lr * weight_decay. The host computes them in double
    precision, as torch does.
    """

    NUMBERS = 3

    def __init__(self, optimizer: Optimizer, leaves: Sequence[Tensor]) -> None:
        self.optimizer, self.leaves = optimizer, list(leaves)
        group_of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self.groups = [group_of[id(leaf)] for leaf in self.leaves]
        for leaf, index in zip(self.leaves, self.groups):
            if not optimizer.state[leaf]:
                optimizer.state[leaf].update(_initial(leaf, optimizer.param_groups[index]))
        counts = [int(optimizer.state[leaf]["step"]) for leaf in self.leaves]
        cohorts = sorted(set(zip(self.groups, counts)))
        self.cohort = [cohorts.index(key) for key in zip(self.groups, counts)]
        self.steps = [count for _, count in cohorts]
        self.members = [group for group, _ in cohorts]
        names = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
        self.names = [[n for n in names if n in optimizer.state[leaf]] for leaf in self.leaves]

    @property
    def key(self) -> tuple[Any, ...]:
        """All that a graph of this update bakes in."""
        constants = tuple(tuple(g.get(name) for name in CONSTANTS) for g in self.optimizer.param_groups)
        return constants, tuple(self.cohort), tuple(map(id, self.leaves))

    @property
    def state(self) -> list[Tensor]:
        """The optimizer's moments, in the order in which `apply` takes them."""
        return [self.optimizer.state[leaf][n] for leaf, names in zip(self.leaves, self.names) for n in names]

    def advance(self) -> list[float]:
        """The numbers of the next step, which is counted."""
        numbers: list[float] = []
        for i, group in enumerate(self.members):
            options = self.optimizer.param_groups[group]
            self.steps[i] += 1
            beta1, beta2 = options["betas"]
            rate = float(options["lr"])
            numbers += [
                rate / (1 - beta1 ** self.steps[i]),
                1 / math.sqrt(1 - beta2 ** self.steps[i]),
                1 - rate * options["weight_decay"],
            ]
        return numbers

    def sync(self) -> None:
        """Write the step counts into the optimizer's state."""
        for leaf, cohort in zip(self.leaves, self.cohort):
            self.optimizer.state[leaf]["step"].fill_(self.steps[cohort])

    def apply(
        self, leaves: Sequence[Tensor], grads: Sequence[Tensor], state: Sequence[Tensor], numbers: Tensor
    ) -> None:
        """One step in place, of tensors only. numbers: what `advance` gave, as one vector."""
        moments = iter(state)
        for i, (leaf, grad) in enumerate(zip(leaves, grads)):
            options = self.optimizer.param_groups[self.groups[i]]
            at = self.NUMBERS * self.cohort[i]
            step_size, correction, decay = numbers[at], numbers[at + 1], numbers[at + 2]
            beta1, beta2 = options["betas"]
            own = {name: next(moments) for name in self.names[i]}
            value = leaf
            if options["maximize"]:
                grad = -grad
            if options["weight_decay"]:
                if _decoupled(self.optimizer, options):
                    value = value * decay
                else:
                    grad = grad + options["weight_decay"] * value
            mean = own["exp_avg"] + (1 - beta1) * (grad - own["exp_avg"])
            square = beta2 * own["exp_avg_sq"] + (1 - beta2) * (grad * grad)
            root = square
            if "max_exp_avg_sq" in own:
                root = torch.maximum(own["max_exp_avg_sq"], square)
                own["max_exp_avg_sq"].copy_(root)
            value = value - step_size * (mean / (root.sqrt() * correction + options["eps"]))
            own["exp_avg"].copy_(mean)
            own["exp_avg_sq"].copy_(square)
            leaf.copy_(value)


def _decoupled(optimizer: Optimizer, options: dict[str, Any]) -> bool:
    return bool(options.get("decoupled_weight_decay", isinstance(optimizer, AdamW)))


def _initial(leaf: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    names = ["exp_avg", "exp_avg_sq"] + (["max_exp_avg_sq"] if options["amsgrad"] else [])
    # torch keeps a fused optimizer's step counts on the device, the others' on the host
    where = leaf.device if options.get("fused") else torch.device("cpu")
    zeros: dict[str, Tensor] = {"step": torch.zeros((), dtype=torch.float32, device=where)}
    return zeros | {n: torch.zeros_like(leaf, memory_format=torch.preserve_format) for n in names}


def make_update(optimizer: Optimizer, leaves: Sequence[Tensor]) -> AdamUpdate | None:
    """The optimizer's arithmetic for these leaves; None for one that must step by itself."""
    if type(optimizer) not in (Adam, AdamW):
        return None
    groups = optimizer.param_groups
    known = {id(p) for group in groups for p in group["params"]}
    if any(id(leaf) not in known for leaf in leaves):
        return None
    for group in groups:
        if group.get("differentiable") or any(isinstance(b, Tensor) for b in group["betas"]):
            return None
    return AdamUpdate(optimizer, leaves)


def set_model_apart(optimizer: Optimizer, leaves: Sequence[Tensor]) -> None:
    """Put these leaves into groups of their own, in place, with all options of the groups that they were in, marked by
    `MODEL_RATE`. OptionError for an optimizer without a learning rate, or with none of them."""
    own = {id(leaf) for leaf in leaves}
    for group in list(optimizer.param_groups):
        apart = [id(p) in own for p in group["params"]]
        if not any(apart):
            continue
        if "lr" not in group:
            raise OptionError(
                f"The weight 'model' multiplies a learning rate, and {type(optimizer).__name__} has none."
            )
        if not all(apart):
            split = dict(group)
            for name in ("params", "param_names"):
                if name in group:
                    split[name] = [value for value, is_own in zip(group[name], apart) if is_own]
                    group[name] = [value for value, is_own in zip(group[name], apart) if not is_own]
            optimizer.param_groups.append(split)  # what it remembers of a tensor is kept by tensor
            group = split
        group[MODEL_RATE] = float(group["lr"])
    if not any(MODEL_RATE in group for group in optimizer.param_groups):
        raise OptionError(
            "The schedule weighs the learning rate of the parameters which only the model uses, and the optimizer trains "
            "none of them: give it all the leaves it is called with, or leave the weight 'model' out."
        )
