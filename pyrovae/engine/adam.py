"""Adam and AdamW as tensor operations, so that they can be compiled together with the rest of a step.

torch's own optimizers read numbers on the host. Here they are written out with the names of torch's optimizer state, so that
the state is the same whichever engine took the steps. All other optimizers step outside the compiled program.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

from pyrovae.errors import OptionError

# Key in an optimizer's group of parameters that only the model uses: its learning rate before the weight "model".
MODEL_RATE = "model_rate"
CONSTANTS = ("eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay")

# Parameters that are updated together: the options of their group, and lists of them, their moments and counts.
_Together = tuple[dict[str, Any], list[list[Tensor]]]


class Adam(optim.Adam):
    """torch's fused Adam, which does not import the compiler that it is prepared for: that takes more than a second."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    state_dict = inspect.unwrap(Optimizer.state_dict)

    def __init__(self, leaves: Sequence[Any], lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self._lists: dict[tuple[int, ...], list[_Together]] = {}  # by the identity of parameters and groups
        super().__init__(leaves, lr=lr, betas=betas, fused=True)

    def load_state_dict(self, state_dict: Any) -> None:
        self._lists.clear()
        inspect.unwrap(Optimizer.load_state_dict)(self, state_dict)

    def __setstate__(self, state: Any) -> None:  # of a copy
        self._lists = {}
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        return inspect.unwrap(optim.Adam.step)(self, closure)

    @torch.no_grad()
    def descend(self, leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Take a step of these parameters as `step` does, without what torch does there for all its optimizers."""
        key = tuple(map(id, (*leaves, *self.param_groups, *(group["params"] for group in self.param_groups))))
        if key not in self._lists:
            if any(grad.layout is not torch.strided for grad in grads):
                raise OptionError(
                    "The default optimizer takes no sparse gradients, such as those of nn.Embedding(..., sparse=True): leave "
                    "sparse=True out, or pass optimizer=lambda leaves: torch.optim.SparseAdam(leaves, lr=1e-3)."
                )
            self._lists[key] = self._by_group(leaves)
        given = dict(zip(map(id, leaves), grads))
        for options, (parameters, means, squares, largest, counts) in self._lists[key]:
            torch._foreach_add_(counts, 1)
            beta1, beta2 = options["betas"]
            fused = torch._fused_adamw_ if options.get("decoupled_weight_decay") else torch._fused_adam_
            fused(
                parameters,
                [given[id(leaf)] for leaf in parameters],
                means,
                squares,
                largest,
                counts,
                amsgrad=options["amsgrad"],
                lr=options["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=options["weight_decay"],
                eps=options["eps"],
                maximize=options["maximize"],
            )

    def _by_group(self, leaves: Sequence[Tensor]) -> list[_Together]:
        """These parameters by group, device and dtype."""
        wanted, found = set(map(id, leaves)), []
        for group in self.param_groups:
            alike: dict[Any, list[Tensor]] = {}
            for leaf in group["params"]:
                if leaf.is_complex():
                    raise OptionError(
                        "The default optimizer takes no complex parameters: pass optimizer=lambda leaves: "
                        "torch.optim.Adam(leaves, lr=1e-3), or keep their real and imaginary parts apart."
                    )
                if id(leaf) in wanted:
                    alike.setdefault((leaf.device, leaf.dtype), []).append(leaf)
                    if not self.state[leaf]:
                        self.state[leaf].update(_initial(leaf, group))
            for own in alike.values():
                names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step")
                state = [[self.state[leaf][n] for leaf in own if n in self.state[leaf]] for n in names]
                found.append((group, [own, *state]))
        return found


class AdamUpdate:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980) and AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), as in torch.

    Parameters of one group and step count t share five scalars, which change from step to step: the step size
    lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), the decay 1 - lr * weight_decay, and, since schedulers change momentum, too,
    1 - beta1 and beta2. The host computes them in double precision, as torch does.
    """

    NUMBERS = 5  # scalars shared by the parameters of one group and step count

    def __init__(self, optimizer: Optimizer, leaves: Sequence[Tensor]) -> None:
        self.optimizer, self.leaves = optimizer, list(leaves)
        group_of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self.groups = [group_of[id(leaf)] for leaf in self.leaves]
        for leaf, index in zip(self.leaves, self.groups):
            if not optimizer.state[leaf]:
                optimizer.state[leaf].update(_initial(leaf, optimizer.param_groups[index]))
        counts = [int(optimizer.state[leaf]["step"]) for leaf in self.leaves]
        sharing = sorted(set(zip(self.groups, counts)))
        self.shares = [sharing.index(key) for key in zip(self.groups, counts)]  # by parameter: which scalars it uses
        self.steps = [count for _, count in sharing]
        self.share_groups = [group for group, _ in sharing]  # by set of scalars: the group whose options it follows
        names = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
        self.names = [[n for n in names if n in optimizer.state[leaf]] for leaf in self.leaves]

    @property
    def key(self) -> tuple[Any, ...]:
        """All that is constant in a compiled update."""
        constants = tuple(tuple(g.get(name) for name in CONSTANTS) for g in self.optimizer.param_groups)
        return constants, tuple(self.shares), tuple(map(id, self.leaves))

    @property
    def state(self) -> list[Tensor]:
        """The moments in the optimizer's state, in the order in which `apply` takes them."""
        return [self.optimizer.state[leaf][n] for leaf, names in zip(self.leaves, self.names) for n in names]

    def advance(self) -> list[float]:
        """Count one more step, and return its scalars."""
        numbers: list[float] = []
        for i, group in enumerate(self.share_groups):
            options = self.optimizer.param_groups[group]
            self.steps[i] += 1
            beta1, beta2 = options["betas"]
            rate = float(options["lr"])
            numbers += [
                rate / (1 - beta1 ** self.steps[i]),
                1 / math.sqrt(1 - beta2 ** self.steps[i]),
                1 - rate * options["weight_decay"],
                1 - beta1,
                beta2,
            ]
        return numbers

    def sync(self) -> None:
        """Write the step counts into the optimizer's state."""
        for leaf, share in zip(self.leaves, self.shares):
            self.optimizer.state[leaf]["step"].fill_(self.steps[share])

    def apply(
        self, leaves: Sequence[Tensor], grads: Sequence[Tensor], state: Sequence[Tensor], numbers: Tensor
    ) -> None:
        """Take one step in place, with tensor operations only. `numbers` are the scalars from `advance`, as one vector."""
        moments = iter(state)
        for i, (leaf, grad) in enumerate(zip(leaves, grads)):
            options = self.optimizer.param_groups[self.groups[i]]
            at = self.NUMBERS * self.shares[i]
            step_size, correction, decay, share, beta2 = (numbers[at + j] for j in range(self.NUMBERS))
            own = {name: next(moments) for name in self.names[i]}
            value = leaf
            if options["maximize"]:
                grad = -grad
            if options["weight_decay"]:
                if _decoupled(self.optimizer, options):
                    value = value * decay
                else:
                    grad = grad + options["weight_decay"] * value
            mean = own["exp_avg"] + share * (grad - own["exp_avg"])
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
    return bool(options.get("decoupled_weight_decay", isinstance(optimizer, optim.AdamW)))


def _initial(leaf: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    names = ["exp_avg", "exp_avg_sq"] + (["max_exp_avg_sq"] if options["amsgrad"] else [])
    # torch keeps the step counts of a fused optimizer on the device, and of others on the host
    where = leaf.device if options.get("fused") else torch.device("cpu")
    wide = not options.get("fused") and torch.get_default_dtype() == torch.float64  # as torch has it
    zeros: dict[str, Tensor] = {"step": torch.zeros((), dtype=torch.float64 if wide else torch.float32, device=where)}
    return zeros | {n: torch.zeros_like(leaf, memory_format=torch.preserve_format) for n in names}


def make_update(optimizer: Optimizer, leaves: Sequence[Tensor]) -> AdamUpdate | None:
    """The update of these parameters as tensor operations, or None if the optimizer must take its own steps."""
    if type(optimizer) not in (Adam, optim.Adam, optim.AdamW):
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
    """Move parameters that only the model uses to groups of their own, which keep their options and are marked by `MODEL_RATE`.

    Raises:
        OptionError: The optimizer has no learning rate, or does not train any of these parameters.
    """
    own = {id(leaf) for leaf in leaves}
    for group in list(optimizer.param_groups):
        apart = [id(p) in own for p in group["params"]]
        if not any(apart):
            continue
        if "lr" not in group:
            raise OptionError(
                f"The weight 'model' multiplies the learning rate, and {type(optimizer).__name__} has none: use another "
                "optimizer, or leave the weight 'model' out."
            )
        if not all(apart):
            split = dict(group)
            for name in ("params", "param_names"):
                if name in group:
                    split[name] = [value for value, is_own in zip(group[name], apart) if is_own]
                    group[name] = [value for value, is_own in zip(group[name], apart) if not is_own]
            optimizer.param_groups.append(split)  # its state is kept by parameter, so it stays valid
            group = split
        group[MODEL_RATE] = float(group["lr"])
    if not any(MODEL_RATE in group for group in optimizer.param_groups):
        raise OptionError(
            "The schedule scales the learning rate of the parameters that only the model uses, and the optimizer trains none "
            "of them: give it all parameters that it is called with, or leave the weight 'model' out."
        )


def rate_of(optimizer: Optimizer) -> float:
    """The learning rate of an optimizer's first group, before the weight "model"."""
    first = optimizer.param_groups[0]
    return float(first.get(MODEL_RATE, first["lr"]))
