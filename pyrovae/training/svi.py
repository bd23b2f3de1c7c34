"""`SVI`: a drop-in for `pyro.infer.SVI` that runs on this package's engines."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro.infer
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyrovae.engine.compiled import choose_engine, make_engine
from pyrovae.engine.denormals import end_workers, flushed_here
from pyrovae.engine.freed_memory import keep_freed_memory
from pyrovae.engine.precision import as_precision, low_precision, warn_of_slow_products
from pyrovae.engine.program import Program
from pyrovae.engine.step import Eager, Engine, descend
from pyrovae.engine.tracing import ROUNDING, TracedFunction, undone
from pyrovae.engine.watch import change_detector
from pyrovae.errors import OptionError, PairError
from pyrovae.objectives.elbo import Bound
from pyrovae.objectives.iwelbo import IWELBO
from pyrovae.objectives.losses import Trace_ELBO, as_loss, modules_of
from pyrovae.objectives.wake_sleep import RWS, WakeSleep
from pyrovae.pair.batch import Batch
from pyrovae.pair.layout import Layout, Site
from pyrovae.pair.parameters import fork_rng, modules
from pyrovae.pair.program import Pair, is_marked, plate_nesting, run, sample_sites
from pyrovae.training.pyro_losses import PLAIN, Marks, evaluate, leaves_of, pyro_loss, take, validate
from pyrovae.training.pyro_optim import as_optimizers
from pyrovae.training.signatures import Rebuild, has_arrays, signature_of

Objective = Callable[[Batch, Mapping[str, Tensor]], tuple[Tensor, Tensor]]

# More signatures than this, and an argument is changing that should be a tensor.
MOST_SIGNATURES = 16
LOOK_EVERY = 1_000  # steps between two comparisons, in addition to one whenever an attribute has changed
# A program is given up as changing all the time once it was traced anew so often, and in more than one of so many steps.
MOST_RETRACED, MANY_STEPS = 4, 20


class SVI:
    """A drop-in for `pyro.infer.SVI`, for any Pyro program of static structure, run by this package's engines.

    `step` takes a gradient step and returns the loss, -ELBO in nats with all scales included. Parameters are those that the
    program has in Pyro's param store, found by running it; a program that has none there (no `pyro.module`, no `pyro.param`)
    trains the parameters of its modules. Arguments of the program may be anything; only the shapes and dtypes of tensors
    matter, and whatever else changes has the step traced anew.

    The first step with arguments of new shapes is Pyro's own, with all of its checks where its validation is on. The second is
    traced and compared with Pyro on both; where arguments come in many shapes, a later one is. What cannot be traced, and what
    changes at nearly every step, goes on by Pyro's own steps, with one warning. On a CPU, denormal numbers are flushed to zero
    within a traced step, as XLA does. A parameter that gets no gradient in a step stays as it is, where Pyro's optimizers would
    move it by the momentum of earlier steps.

    Args:
        model: a Pyro program.
        guide: its guide, such as an AutoGuide.
        optim: a `pyro.optim` optimizer, a torch optimizer, or a function from a list of tensors to one. SVIs that share a
            `pyro.optim` optimizer share its state. `step()` of a `pyro.optim` scheduler changes the rates of the next step.
        loss: Pyro's `Trace_ELBO`, `TraceMeanField_ELBO` or `TraceEnum_ELBO`, which are translated; `pv.Trace_ELBO` (the
            default), `pv.IWELBO`, or `pv.RWS` without a sleep phase; or a function `(model, guide, *args) -> loss`. Pyro's
            other losses, such as `TraceGraph_ELBO` and `RenyiELBO`, run as Pyro's own, eagerly.
        engine: "eager", "traced", "compiled" or "graphed"; "auto" is graphed on CUDA, else traced.
        precision: "bfloat16" computes products of matrices in bfloat16.

    Raises:
        OptionError: an argument that is not supported; the message says what to pass instead.
        ValueError: at a step; Pyro's validation found model or guide to be wrong, such as shapes that disagree.

    Example:
        >>> import pyro
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> svi = pv.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}))
        >>> x = torch.rand(32, 6).round()
        >>> svi.step(x) > 0
        True
    """

    runs_programs = True  # so what it holds is not watched for what a program may read

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: Any,
        loss: Any = None,
        *,
        engine: str = "auto",
        precision: str | None = None,
    ) -> None:
        for name, function in (("model", model), ("guide", guide)):
            if not callable(function):
                raise OptionError(f"{name} must be callable, got {type(function).__name__}.")
        if inspect.isclass(loss):
            raise OptionError(f"loss is the class {loss.__name__}: pass an instance, {loss.__name__}().")
        choose_engine(engine, torch.device("cuda" if engine == "graphed" else "cpu"), 0)  # the name, at once
        self.model, self.guide, self.engine = model, guide, engine
        self.precision = as_precision(precision, torch.float32)
        has_twin = not isinstance(loss, pyro.infer.ELBO) or type(loss) in PLAIN
        if not has_twin:
            warnings.warn(
                f"loss={type(loss).__name__} runs as Pyro's own, eagerly: it has no counterpart here. pv.Trace_ELBO and "
                "pv.IWELBO do what most programs need.",
                stacklevel=2,
            )
        self.loss: Any = None
        if has_twin:
            self.loss = loss if _is_function(loss) else as_loss(pyro.infer.Trace_ELBO() if loss is None else loss)
        if modules_of(self.loss):
            raise OptionError(f"{self.loss!r} trains modules besides the pair, which SVI does not know: use pv.fit.")
        if isinstance(loss, WakeSleep) or (isinstance(loss, RWS) and loss.sleep > 0):
            raise OptionError(f"{loss!r} draws rows from the model, and SVI does not know what are data: use pv.fit.")
        self.given_pyros = isinstance(loss, pyro.infer.ELBO)
        self.pyro_loss: Any = None if _is_function(loss) else pyro_loss(self.loss if loss is None else loss)
        # Pyro draws particles one after the other unless told that the program can carry them as one dimension.
        self._loops = loss.num_particles if isinstance(loss, pyro.infer.ELBO) and not loss.vectorize_particles else 1
        if isinstance(loss, pyro.infer.TraceEnum_ELBO):
            self.loss._dice = True
        if self._loops > 1 and has_twin:
            self.loss = copy.copy(self.loss)
            self.loss.num_particles = 1
        self._optimizers = as_optimizers(optim)
        self._steps: dict[Any, _Step] = {}
        self._evaluations: dict[Any, TracedFunction] = {}
        self._warned = self._told = False  # of steps, and of evaluations, that run eagerly
        self._stored: dict[str, Tensor] = {}  # the parameters in Pyro's store that steps were made with

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The torch optimizer, with its state up to date; None before the first step."""
        self._optimizers.sync()
        return self._optimizers.optimizer

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take a gradient step.

        Returns:
            The loss before the step, in nats; of a loss of Pyro's that returns several, a tuple. Reading it waits for the
            device; `update` does not.
        """
        return _as_floats(self.update(*args, **kwargs))

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Take a gradient step without waiting for the device, and return the loss as a 0-d tensor."""
        self._keep_to_the_store()
        inputs, key, rebuild = signature_of(args, kwargs)
        step = self._steps.get(key) or self._new_step(key, inputs, rebuild)
        loss = step(inputs)
        params = pyro.get_param_store()._params
        self._stored.update({name: leaf for name, leaf in step.leaves.items() if params.get(name) is leaf})
        return loss

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss, -ELBO in nats, without a step."""
        with torch.no_grad():
            self._keep_to_the_store()
            inputs, key, rebuild = signature_of(args, kwargs)
            if key in self._evaluations:
                evaluation = self._evaluations[key]
                with pyro.validation_enabled(False):
                    found = evaluation(inputs)[0].item()
                if evaluation.refused and not self._told:
                    self._told = True
                    warnings.warn(
                        f"SVI.evaluate_loss runs eagerly (correct, but slower): {evaluation.refused}.", stacklevel=2
                    )
                return found
            objective = self._objective(rebuild)
            # before any trace: parameters are made, with Pyro's validation where that is on
            loss, marks = None, Marks()
            if self.pyro_loss is not None:
                with self._lowered(inputs):
                    loss, marks = evaluate(self.pyro_loss, self.model, self.guide, args, kwargs)
            if self.loss is None or isinstance(loss, tuple):
                return _as_floats(loss)
            if loss is None or marks.own(self.pyro_loss):
                loss = -objective(inputs, {})[0]
            traceable = inputs and not has_arrays(rebuild(inputs)) and len(self._evaluations) < MOST_SIGNATURES
            if self.engine != "eager" and traceable:
                self._evaluations[key] = TracedFunction(
                    lambda batch: [-objective(batch, {})[0]], (self.model, self.guide)
                )
            return _as_floats(loss)

    def _keep_to_the_store(self) -> None:
        """Forget what was traced if the param store has been cleared, loaded or swapped, and so holds other parameters."""
        params = pyro.get_param_store()._params
        if any(params.get(name) is not leaf for name, leaf in self._stored.items()):
            self._steps, self._evaluations, self._stored = {}, {}, {}

    def _lowered(self, inputs: Batch) -> AbstractContextManager[Any]:
        """Products of matrices in bfloat16, if that is the precision."""
        if self.precision != "bfloat16":
            return nullcontext()
        return low_precision(next((t.device for t in inputs.values()), torch.device("cpu")))

    def _objective(self, rebuild: Rebuild) -> Objective:
        """(inputs, weights) -> (ELBO, loss), of one signature."""
        found: list[Layout] = []

        def objective(inputs: Batch, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            args, kwargs = rebuild(inputs)
            if _is_function(self.loss):
                loss = self.loss(self.model, self.guide, *args, **kwargs)
                return -loss, loss
            pair = Pair(functools.partial(self.model, *args, **kwargs), functools.partial(self.guide, *args, **kwargs))
            if not found:
                if isinstance(self.guide, AutoGuide) and self.guide.prototype_trace is None:
                    self.guide._setup_prototype(*args, **kwargs)  # outside of the fork: its draws are Pyro's first
                with fork_rng():
                    found.append(_layout(pair))
            bounds: list[Bound] = [self.loss(pair, {}, layout=found[0]) for _ in range(self._loops)]
            elbo, ascend = (torch.stack(part).mean() if len(part) > 1 else part[0] for part in zip(*bounds))
            return elbo, -ascend

        def lowered(inputs: Batch, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            with self._lowered(inputs):
                return objective(inputs, weights)

        return lowered

    def _new_step(self, key: Any, inputs: Batch, rebuild: Rebuild) -> _Step:
        arrays = has_arrays(rebuild(inputs))
        if arrays or len(self._steps) >= MOST_SIGNATURES:
            if not self._warned and self.loss is not None:
                self._warned = True
                what = (
                    "a NumPy array" if arrays else f"more than {MOST_SIGNATURES} different sets of shapes and numbers"
                )
                warnings.warn(
                    f"SVI.step was called with {what}: such steps run eagerly. Pass arrays, and numbers that change, "
                    "as tensors, and batches of one size.",
                    stacklevel=4,
                )
            return _Step(self, rebuild, "eager")  # not kept: an array's contents are no part of the key
        self._steps[key] = _Step(self, rebuild, self.engine if self.loss is not None else "eager")
        return self._steps[key]


class _Step:
    """Steps with arguments of one signature: the first as Pyro takes it, the second traced and compared on both."""

    def __init__(self, svi: SVI, rebuild: Rebuild, engine: str) -> None:
        self.svi, self.rebuild, self.name = svi, rebuild, engine
        self.objective = svi._objective(rebuild)
        self.own = svi.pyro_loss is None  # whether eager steps, too, are by the loss of this package
        self.given_up = False
        self.engine: Engine | None = None
        self.first: Batch | None = None
        self.leaves: dict[str, Tensor] = {}
        self.moves = False  # whether a parameter has a gradient
        self.count = self.retraced = 0
        self.unchanged: Callable[[], bool] = lambda: True

    def __call__(self, inputs: Batch) -> Any:
        self.count += 1
        for value in [*inputs.values()][: self.count == 1]:
            warn_of_slow_products(self.svi.precision, value.device, stacklevel=4)  # at the call of step
        if self.engine is None:
            # where arguments come in many signatures, each must be met more often before its trace can pay
            often = self.count >= max(2, len(self.svi._steps))
            if self.first is None or self.name == "eager" or not self.moves or not often:
                return self._eagerly(inputs)
            try:
                self.engine = self._make(self.first)
            except Exception as error:
                if self.own:
                    raise
                self._give_up(str(error))  # Pyro has run the program, and can go on
                return self._eagerly(inputs)
        elif self.count % LOOK_EVERY == 0 or not self.unchanged():
            return self._look(inputs)
        return self._run(inputs)

    def _run(self, inputs: Batch) -> Tensor:
        engine: Any = self.engine
        self.svi._optimizers.use(engine)
        with flushed_here():  # of no effect on a GPU
            loss: Tensor = -engine.step(inputs, {})
        if engine.refused:
            self._stop()
        return loss

    def _look(self, inputs: Batch) -> Tensor:
        """A step before which the traced program is checked for changes of what it was traced from."""
        engine: Any = self.engine
        self._validate(inputs)
        before = engine.traced
        engine.begin_epoch()
        loss = self._run(inputs)
        self.unchanged = change_detector(self.svi.model, self.svi.guide)
        self.retraced += engine.traced is not before
        if self.retraced > MOST_RETRACED and self.count < MANY_STEPS * self.retraced:
            self._give_up("attributes that it reads change at nearly every step, and it was traced anew each time")
        return loss

    def _validate(self, inputs: Batch) -> None:
        """Pyro's checks, where it is not Pyro that takes the step. A loss function of the user's own has none."""
        svi = self.svi
        if not _is_function(svi.loss):
            args, kwargs = self.rebuild(inputs)
            with undone(_buffers(Pair(svi.model, svi.guide))):
                validate(None if self.own else svi.pyro_loss, svi.model, svi.guide, args, kwargs)

    def _stop(self) -> None:
        self.svi._optimizers.use(None)
        self.name, self.engine = "eager", None

    def _give_up(self, reason: str) -> None:
        self._stop()
        self.given_up = True
        text = reason.strip().split("\n")[0].rstrip(".")
        warnings.warn(f"SVI.step goes on eagerly (correct, but slower): {text}.", stacklevel=5)

    def _eagerly(self, inputs: Batch) -> Any:
        """A step that finds the parameters, and shows errors of the program as they are: Pyro's own where it has the loss."""
        loss = self._by_own_loss(inputs) if self.own else self._as_pyro(inputs)
        self.first = inputs
        return loss

    def _as_pyro(self, inputs: Batch) -> Any:
        """Pyro's own step; where the program turns out to ask for what only the loss of this package does, a step by that."""
        svi = self.svi
        args, kwargs = self.rebuild(inputs)
        with svi._lowered(inputs):
            taken = take(svi.pyro_loss, svi.model, svi.guide, args, kwargs)
        used = [leaf for leaf in taken.leaves.values() if leaf.grad is not None]
        grads = [leaf.grad for leaf in used if leaf.grad is not None]
        for leaf in used:
            leaf.grad = None
        if svi.loss is not None and not self.given_up and (taken.marks.own(svi.pyro_loss) or not taken.leaves):
            self.own = True
            try:
                return self._by_own_loss(inputs)
            except Exception as error:
                if not svi.given_pyros or taken.marks.objective_only:
                    raise
                # Pyro has run the program, which may ask for shapes that only Pyro's runs have, or for sums that only Pyro
                # draws; without a parameter there is nothing that could go on more slowly
                self.own = False
                if taken.leaves:
                    self._give_up(str(error) or type(error).__name__)
        self.leaves, self.moves = {n: leaf for n, leaf in taken.leaves.items() if leaf.requires_grad}, bool(used)
        if self.leaves:
            svi._optimizers.use(None)
            svi._optimizers.add(self.leaves)
            descend(self._program(), used, grads)
        if isinstance(taken.loss, tuple):
            return taken.loss
        return torch.as_tensor(taken.loss, dtype=torch.float64).detach()

    def _by_own_loss(self, inputs: Batch) -> Tensor:
        svi = self.svi
        if self.first is None and svi.pyro_loss is None:
            self._validate(inputs)
        with poutine.trace(param_only=True) as captured:
            elbo, loss = self.objective(inputs, {})
        found = leaves_of(captured.trace) or _of_modules(Pair(svi.model, svi.guide))
        self.leaves = {name: leaf for name, leaf in found.items() if leaf.requires_grad}
        self.moves = loss.requires_grad and bool(self.leaves)
        if self.moves:
            svi._optimizers.use(None)
            svi._optimizers.add(self.leaves)
            Eager(self._program()).descend(loss)
        return -elbo.detach()

    def _make(self, other: Batch) -> Engine:
        device = next(iter(self.leaves.values())).device
        as_precision(self.svi.precision, next(iter(self.leaves.values())).dtype)
        if not self.own:
            self._agree(other)
        if device.type == "cpu":
            end_workers()  # so that they start within a step, which flushes denormals
            keep_freed_memory()
        engine: Any = make_engine(choose_engine(self.name, device, 0), self._program())
        engine.other = other  # both are compared on
        engine.eager = _Eagerly(self)
        self.unchanged = change_detector(self.svi.model, self.svi.guide)
        made: Engine = engine
        return made

    def _agree(self, inputs: Batch) -> None:
        """PairError unless Pyro's loss and ours have the same value on this batch, at the same draws."""
        svi, program = self.svi, self._program()
        args, kwargs = self.rebuild(inputs)
        with torch.no_grad(), pyro.validation_enabled(False), svi._lowered(inputs):
            with undone(program.buffers):
                true = svi.pyro_loss.loss(svi.model, svi.guide, *args, **kwargs)
            with undone(program.buffers):
                found = -float(self.objective(inputs, {})[0])
        if not math.isclose(found, true, rel_tol=ROUNDING[svi.precision], abs_tol=1e-6) and true == true:
            raise PairError(f"under {type(svi.pyro_loss).__name__} its loss is {true:.6g}, and here {found:.6g}")

    def _program(self) -> Program:
        return Program(
            pair=Pair(self.svi.model, self.svi.guide),
            objective=self.objective,
            parameters=self.leaves,
            optimizer=self.svi._optimizers.whole(),
            clip=self.svi._optimizers.clip,
            reads=(self.svi.loss,),
            precision=self.svi.precision,
        )


class _Eagerly:
    """The eager steps of one signature, for an engine that finds that it cannot trace them."""

    def __init__(self, step: _Step) -> None:
        self.eagerly = step._eagerly

    def step(self, inputs: Batch, weights: Mapping[str, float]) -> Tensor:
        loss: Tensor = self.eagerly(inputs)
        return -loss


def _as_floats(loss: Any) -> Any:
    return tuple(map(float, loss)) if isinstance(loss, tuple) else float(loss)


def _is_function(loss: Any) -> bool:
    """Whether a loss is called as `loss(model, guide, *args)`, as functions are, and Pyro's losses that are no ELBO."""
    return callable(loss) and not isinstance(loss, (pyro.infer.ELBO, Trace_ELBO, IWELBO, RWS, WakeSleep))


def _buffers(pair: Pair) -> list[Tensor]:
    return [buffer for module in modules(pair).values() for buffer in module.buffers()]


def _of_modules(pair: Pair) -> dict[str, Tensor]:
    named = [(prefix + name, p) for prefix, m in modules(pair).items() for name, p in m.named_parameters()]
    return {name: p for name, p in named if p.requires_grad}


def _layout(pair: Pair) -> Layout:
    """How deep plates nest, and what is marked for enumeration, from one run."""
    sides = [sample_sites(trace) for trace in run(pair, {})]
    marked = [name for side in sides for name, node in side.items() if is_marked(node)]
    sites = tuple(Site(name, "latent", False, (), None, False, enumerated="guide") for name in dict.fromkeys(marked))
    return Layout(sites, plate_nesting(*sides), {})
