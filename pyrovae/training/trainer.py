"""The loop of a fit: epochs of steps, and the whole state from which it can be resumed."""

from __future__ import annotations

import math
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.batching.incoming import Counted, Incoming
from pyrovae.engine import ranks
from pyrovae.engine.adam import MODEL_RATE, rate_of
from pyrovae.engine.compiled import make_engine
from pyrovae.engine.denormals import flushed_denormals
from pyrovae.errors import CheckpointError, NotFiniteError, OptionError, PyrovaeError
from pyrovae.fitted import folder as store
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.optimizers import check_optimizer, finite_or_none, flatten_optimizer, unflatten_optimizer
from pyrovae.fitted.spec import renamed
from pyrovae.pair.parameters import every_module, fork_rng, lent, modules_remembered, named_tensors, seed_torch
from pyrovae.training.bind import FitData
from pyrovae.training.console import progress_bar, say, stop_on_interrupt
from pyrovae.training.course import Course
from pyrovae.training.fit_options import Callback, Every, only_looks
from pyrovae.training.monitor import NOTHING, Monitor
from pyrovae.training.not_finite import MOST_REPEATED, explain, step_or_back
from pyrovae.training.notes import as_numbers, check_notes, is_true, noted_by, with_baseline
from pyrovae.training.plan import Plan
from pyrovae.training.schedules import weights_at
from pyrovae.training.together import LOCAL, changing, resumable, state_of_all, state_of_rank

# After so many epochs, unless patience is short, what is done between epochs is done between every so many steps at most.
MANY_EPOCHS, PATIENT, STEPS_BETWEEN = 100, 50, 25
MOST_ROLLBACKS = 5  # returns to an earlier epoch; with a thirty-second of the learning rate, the cause is another


class Trainer:
    """The loop: epochs of steps, what is measured after each, and the whole state to stop and go on with."""

    def __init__(self, fitted: Fit, plan: Plan, rows: FitData) -> None:
        self.fitted, self.program, self.schedule, self.steps = fitted, plan.program, plan.schedule, plan.steps
        self.source, self.batches, self.device = rows.training, plan.batches, rows.device
        self.engine = make_engine(plan.engine, plan.program)
        self.monitor = Monitor(fitted, rows.training, rows.validation, plan.engine, plan.weighed)
        self.validates = rows.validation is not None
        self.weights = weights_at(plan.schedule, plan.steps).keys()
        self.epochs, self.patience = fitted.settings["epochs"], fitted.settings["patience"]
        self.every_epoch = (self.patience or PATIENT) < PATIENT
        self.keeps_best = fitted.settings["keep_best"]
        self.loss_tensors, self.families = plan.loss_tensors, plan.relaxed
        # where draws are relaxed, what steps ascend is no ELBO, and that of training rows is measured by itself
        self.relaxes = any(getattr(family, "relaxes", False) for family in plan.relaxed)
        self.on_training = Monitor(fitted, rows.training, None, plan.engine) if self.validates else self.monitor
        self.every_epoch |= self.relaxes
        self.course = Course(relaxed=self.relaxes)
        # modules that have something to note after each epoch, as chains their acceptance
        parts = [part for root in every_module(fitted.pair).values() for part in root.modules()]
        self.noted: list[Any] = [part for part in parts if hasattr(part, "in_history")]
        self.step = 0
        self.epoch_elbos: list[Tensor] = []  # of the epoch under way; read by the host once an epoch
        self.in_epoch = False
        self.seconds = 0.0
        self.best: dict[str, Tensor] | None = None
        self.best_elbo = -float("inf")
        self.best_epoch = 0
        self.identity: dict[str, Any] = {}
        self.on_nan = plan.on_nan
        self.rollbacks, self.damping = 0, 1.0  # returns to an earlier epoch, and what they left of the learning rate
        self.last_good: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._written = (time.monotonic(), 0)  # when the state was written, and at which step

    # the loop

    def run(self, callbacks: list[Callback], folder: Path | None, every: Every, progress: bool | None) -> None:
        history = self.fitted.history
        looking = [one for one in callbacks if only_looks(one)]
        callbacks = [one for one in callbacks if not only_looks(one)]
        called = any(ranks.everywhere(bool(callbacks)))  # they look at the history, and may change the pair
        self.every_epoch |= called
        self._written = (time.monotonic(), self.step)
        self.last_good = self.state()
        due, alone = True, ranks.world_size() == 1  # several write together, between epochs
        with (
            resumable(folder),
            nullcontext() if callbacks else modules_remembered(self.fitted.pair),  # callbacks may change them
            stop_on_interrupt(terminate=folder is not None) as interrupted,
            progress_bar(False if ranks.rank() else progress, self._epochs_in_all()) as bar,
            pyro.validation_enabled(False),
            flushed_denormals(self.device),
        ):
            stop = ranks.Stop(interrupted.is_set)
            bar(history)
            while not self._finished():
                began = time.monotonic()
                if not self.in_epoch:
                    self._begin_epoch(due)
                while len(self.batches) and not stop.before_step():
                    self._step()
                    if folder is not None and alone and self._is_time(every) and self._read_elbos()[1] is None:
                        self.seconds, began = self.seconds + time.monotonic() - began, time.monotonic()
                        self._write_on_the_way(folder)
                self.seconds += time.monotonic() - began
                if stop.now():
                    self._interrupt(folder)
                due = self._is_due()
                if not self._end_epoch(folder, due):
                    continue
                bar(history)
                if called and self._asked_to_stop(callbacks):
                    self.fitted.stopped = "a callback stopped it"
                with fork_rng(), lent():
                    for callback in looking:
                        callback(self.fitted)
                if due:
                    self.last_good = self.state()
                if folder is not None and ranks.agree(self._is_time(every) or every.seconds == 0):
                    self._write_on_the_way(folder)
        if self.engine.notes:
            self.fitted.settings["engine_notes"] = list(self.engine.notes)
        if origin := getattr(self.engine, "origin", ""):
            self.fitted.settings["compiled_step"] = origin
        if folder is not None:
            self.write(folder)
        if stop.now():  # in the last epoch: all is done and written, and the caller still wanted to stop
            self._interrupt(folder)
        if self.best is not None:
            with torch.no_grad():
                for name, tensor in named_tensors(self.fitted.pair, buffers=True).items():
                    tensor.copy_(self.best[name])
            self.fitted.settings["best_epoch"] = self.best_epoch

    def _is_time(self, every: Every) -> bool:
        """Whether a checkpoint is to be written, also within an epoch, which may take hours."""
        seconds, steps = time.monotonic() - self._written[0], self.step - self._written[1]
        return (0 < every.seconds < seconds) or steps >= every.steps

    def _is_due(self) -> bool:
        """Whether the pair is looked at after this epoch: not after each of many short ones, whatever their number in all."""
        first, epoch = self.step - len(self.epoch_elbos), len(self.fitted.history) + 1
        return self.every_epoch or epoch <= MANY_EPOCHS or first // STEPS_BETWEEN != self.step // STEPS_BETWEEN

    def _asked_to_stop(self, callbacks: list[Callback]) -> bool:
        """Whether one of the callbacks, all of which are called, returns True."""
        with changing(self.fitted.pair), fork_rng(), lent():  # what a callback draws must not change the fit
            answers = [callback(self.fitted) for callback in callbacks]
        as_numbers(self.fitted.history[-1])
        return any(ranks.everywhere(any(map(is_true, answers))))

    def _finished(self) -> bool:
        done = len(self.fitted.history)
        waited = self.patience is not None and done - self.best_epoch >= self.patience
        if waited and not self._has_all() and "validation_elbo" in self.fitted.history[-1]:
            self.fitted.stopped = f"no better validation ELBO for {self.patience} epochs"
        return self._has_all() or bool(self.fitted.stopped)

    def _has_all(self) -> bool:
        """Whether the fit has its length."""
        if isinstance(self.batches, Counted):
            return self.batches.ended and not self.in_epoch
        return len(self.fitted.history) >= self.epochs

    def _epochs_in_all(self) -> int:
        """How many lines the history will have: one more than epochs where a fit of fewer steps had ended within one."""
        return len(self.fitted.history) + self.batches.to_come if isinstance(self.batches, Counted) else self.epochs

    def _begin_epoch(self, due: bool) -> None:
        self.batches.begin_epoch()
        if due:
            self.engine.begin_epoch()
        self._read_ahead()
        self.in_epoch = True

    def _read_ahead(self) -> None:
        self.source.begin([ranks.shard(rows) for rows in self.batches.coming()])

    def _deal(self) -> dict[str, Tensor]:
        """This rank's rows of the next minibatch."""
        return self.source.inputs({name: ranks.shard(rows) for name, rows in self.batches.deal().items()})

    def _weights(self) -> dict[str, float]:
        weights = weights_at(self.schedule, self.steps._replace(number=self.step))
        if weights.keys() != self.weights:
            raise OptionError(f"A schedule must give the same weights at every step; at step {self.step}: {weights}.")
        if self.damping < 1 and "lr" in weights:
            weights = weights | {"lr": weights["lr"] * self.damping}
        with torch.no_grad():
            for family in self.families if "temperature" in weights else ():
                family.current_temperature.fill_(weights["temperature"])
        return weights

    def _step(self) -> None:
        weights = self._weights()
        kept = self.program.buffers if self.on_nan == "skip" else []
        self.epoch_elbos.append(step_or_back(self.engine, self._deal(), weights, kept))
        self.step += 1

    def _end_epoch(self, folder: Path | None, due: bool) -> bool:
        """Measure the pair and note it in the history; False where the fit went back to an earlier epoch instead."""
        self.in_epoch = False
        history = self.fitted.history
        ranks.copy_means(self.program.buffers)
        elbos, why = self._read_elbos()
        if why is not None:
            self._fail(folder, *why)
            return False
        taken = elbos[torch.isfinite(elbos)]
        self.course.note(taken)
        row: dict[str, float] = {"epoch": len(history) + 1, "steps": self.step, "elbo": taken.mean().item()}
        if self.on_nan == "skip":
            row["skipped"] = len(elbos) - len(taken)
        self.epoch_elbos = []
        began = time.monotonic()
        ends = self.batches.ended if isinstance(self.batches, Counted) else len(history) + 1 >= self.epochs
        found = self.monitor.measure() if due or ends else NOTHING
        self.course.bound = found.bound
        if self.relaxes:
            row["relaxed_elbo"] = row["elbo"]
            row["elbo"] = self.on_training.measure().bound if self.validates else found.bound
        if self.validates and (due or ends):
            row["validation_elbo"] = found.bound
            if not math.isfinite(found.bound):
                self._fail(folder, self.step, "the ELBO of the validation rows is")
                return False
        elif isinstance(self.source, Incoming) and math.isfinite(found.bound) and not self.relaxes:
            row["first_rows_elbo"] = found.bound  # beside that of the rows that come, it shows whether these drift
        self.seconds += time.monotonic() - began
        last = weights_at(self.schedule, self.steps._replace(number=max(0, self.step - 1)))
        row["learning_rate"] = last["lr"] * self.damping if "lr" in last else rate_of(self.program.optimizer)
        row["kl_weight"] = last.get("kl", 1.0)
        row |= {name: last[name] for name in ("temperature",) if name in last}
        row["seconds"] = round(self.seconds, 3)
        row |= found.columns
        for part in self.noted:
            row |= noted_by(part, row)
        history.append(row)
        # a fit that goes on with more epochs would not have measured what is only the last one
        if due and (self.patience is not None or self.keeps_best) and row["validation_elbo"] > self.best_elbo:
            self.best_elbo, self.best_epoch = row["validation_elbo"], int(row["epoch"])
            if self.keeps_best:
                self.best = {n: t.detach().clone() for n, t in named_tensors(self.fitted.pair, buffers=True).items()}
        return True

    # stopping

    def _read_elbos(self) -> tuple[Tensor, tuple[int, str] | None]:
        """The epoch's ELBOs, on the host: the one place where values of steps are read; and which step failed, and how."""
        elbos = ranks.total(torch.stack(self.epoch_elbos).double().cpu()) / ranks.world_size()
        bad = (~torch.isfinite(elbos)).nonzero()
        if len(bad) and (self.on_nan != "skip" or len(bad) == len(elbos)):
            return elbos, (self.step - len(elbos) + int(bad[0]) + 1, "the loss is")
        finite = torch.stack([torch.isfinite(p).all() for p in self.program.parameters.values()]).tolist()
        broken = [name for name, whole in zip(self.program.parameters, finite) if not whole]
        return elbos, (self.step, f"the parameters {broken[:3]} are") if broken else None

    def _fail(self, folder: Path | None, step: int, what: str) -> None:
        """Go back to the last good epoch, and on from there with half the learning rate, or end the fit with an error."""
        epoch = len(self.fitted.history) + 1
        assert self.last_good is not None
        self.restore(*self.last_good)
        if self.on_nan == "rollback" and self.rollbacks < MOST_ROLLBACKS:
            self._go_back(epoch, step, what)
            return
        why = "" if "validation" in what else self._explain(step, what)
        self.restore(*self.last_good)
        self.fitted.stopped = f"in epoch {epoch}, step {step}, {what} not finite"
        good = len(self.fitted.history)
        kept = f"the weights are those of epoch {good}, the last good epoch that was kept"
        if not good:
            kept = "the weights are those of the start, as no epoch was good"
        if folder is not None:
            self.write(folder)
            ranks.first(lambda: store.write_fit(folder, self.fitted, status="diverged"))
            kept += f", saved in {folder}"
        after = f", after {self.rollbacks} returns to an earlier epoch" if self.rollbacks else ""
        raise NotFiniteError(
            f"In epoch {epoch}, step {step}, {what} not finite{after}{f' ({why})' if why else ''}; {kept}. "
            "Lower the learning rate, set clip_norm=10, or warm up the KL weight"
            + ("." if self.on_nan == "rollback" else "; on_nan='rollback' does the first by itself.")
        )

    def _explain(self, step: int, what: str) -> str:
        """Where it came from, on the first rank that finds out; "" if that would take too long."""
        return next((why for why in ranks.everywhere(self._explain_here(step, what)) if why), "")

    def _explain_here(self, step: int, what: str) -> str:
        """Where it came from, found by taking the steps from the last good epoch again."""
        if step - self.step > MOST_REPEATED or not self.source.repeats:
            return ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                while True:
                    if not (self.in_epoch and len(self.batches)):
                        self._begin_epoch(True)
                    if self.step >= step - 1:
                        return explain(self.program, self._deal(), self._weights(), what)
                    self._step()
        except Exception:  # of a pair that fails in another way, and must not hide how it failed first
            return ""

    def _go_back(self, epoch: int, step: int, what: str) -> None:
        """From the last good state, with half the learning rate and other random numbers."""
        self.rollbacks += 1
        self.damping /= 2
        for group in self.program.optimizer.param_groups:
            for name in {"lr", MODEL_RATE} & group.keys():
                group[name] = group[name] / 2
        self.engine.rebind()
        torch.rand((), device=self.device)
        warnings.warn(
            f"In epoch {epoch}, step {step}, {what} not finite: the fit goes on from epoch {len(self.fitted.history)}, with "
            f"{self.damping:g} of the learning rate.",
            stacklevel=2,
        )
        self.fitted.settings["rollbacks"] = self.rollbacks
        self.last_good = self.state()

    def _interrupt(self, folder: Path | None) -> None:
        where = ""
        if self.epoch_elbos and (why := self._read_elbos()[1]) is not None:
            self._fail(folder, *why)  # else NaN would take the place of the last good state
        if folder is not None:
            self.write(folder)
            where = f"; the run in {folder} can be resumed"
        raise KeyboardInterrupt(f"stopped in epoch {len(self.fitted.history) + 1}, after step {self.step}{where}")

    # state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the rest of the fit depends on, cloned: tensors by name, and notes as JSON."""
        self.engine.sync()
        tensors = {f"weights/{n}": t for n, t in named_tensors(self.fitted.pair, buffers=True).items()}
        tensors |= {f"loss/{n}": t for n, t in self.loss_tensors.items()}
        tensors |= {f"best/{n}": t for n, t in (self.best or {}).items()}
        optimizer, optimizer_notes = flatten_optimizer(self.program.optimizer)
        tensors |= {f"optimizer/{n}": t for n, t in optimizer.items()}
        tensors |= {f"batches/{n}": t for n, t in self.batches.state_dict().items()}
        tensors["rng/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        if self.epoch_elbos:
            tensors["epoch_elbos"] = torch.stack(self.epoch_elbos)
        notes = {
            "step": self.step,
            "course": self.course.state(),
            "in_epoch": self.in_epoch,
            "seconds": self.seconds,
            "history": [dict(row) for row in self.fitted.history],
            "best_elbo": finite_or_none(self.best_elbo),
            "best_epoch": self.best_epoch,
            "optimizer": optimizer_notes,
            "identity": self.identity,
            **({"rollbacks": self.rollbacks, "damping": self.damping} if self.rollbacks else {}),
            **({"taken": self.source.taken} if isinstance(self.source, Incoming) else {}),
        }
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}, notes

    def restore(self, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Put back what `state` took."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        store.copy_tensors(named_tensors(self.fitted.pair, buffers=True), part("weights/"))
        store.copy_tensors(self.loss_tensors, part("loss/"))
        self.best = {n: t.to(self.device) for n, t in part("best/").items()} or None
        unflatten_optimizer(self.program.optimizer, part("optimizer/"), notes["optimizer"])
        self.engine.rebind()
        self.engine.begin_epoch()
        self.batches.load_state_dict(part("batches/"))
        self._read_ahead()
        torch.set_rng_state(tensors["rng/cpu"])
        if self.device.type == "cuda" and "rng/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng/cuda"], self.device)
        self.epoch_elbos = list(tensors["epoch_elbos"].to(self.device)) if "epoch_elbos" in tensors else []
        self.step, self.in_epoch, self.seconds = notes["step"], notes["in_epoch"], notes["seconds"]
        self.fitted.history[:] = [dict(row) for row in notes["history"]]
        self.course.restore(notes.get("course", {}))
        self.best_elbo = -float("inf") if notes["best_elbo"] is None else notes["best_elbo"]
        self.best_epoch = notes["best_epoch"]
        self.rollbacks, self.damping = notes.get("rollbacks", self.rollbacks), notes.get("damping", self.damping)
        self.fitted.settings |= {"rollbacks": self.rollbacks} if self.rollbacks else {}

    def begin(self, folder: Path, identity: dict[str, Any]) -> None:
        self.identity = identity
        self.write(folder, anew=True)

    def write(self, folder: Path, *, anew: bool = False) -> None:
        tensors, notes = self.state()
        own = ["rng/cpu", "rng/cuda", "epoch_elbos"]
        if self.in_epoch:  # of which the running means are averaged at its end
            every, weights = (named_tensors(self.fitted.pair, buffers=buffers) for buffers in (True, False))
            own += [f"weights/{name}" for name in every if name not in weights]
        whole = state_of_all(tensors, own)
        ranks.first(lambda: store.write_state(folder, self.fitted, whole, notes, anew=anew))

    def _write_on_the_way(self, folder: Path) -> None:
        """Write the state, and go on where that fails, as on a full disk: what is written last decides."""
        self._written = (time.monotonic(), self.step)
        try:
            self.write(folder)
        except CheckpointError as error:
            warnings.warn(f"{error} The fit goes on, and is written again later.", stacklevel=2)
        self._written = (time.monotonic(), self.step)

    def resume(self, folder: Path, identity: dict[str, Any], progress: bool | None = False) -> Path:
        """Go on with the fit in a folder. CheckpointError when anything that shapes the fit is not as it was."""
        tensors, notes = ranks.first(lambda: store.read_state(folder))
        try:
            self._go_on(folder, identity, tensors, notes)
        except PyrovaeError:
            raise
        except Exception as error:  # of a state without a checksum, nothing is certain
            raise CheckpointError(f"The state in {folder} is damaged ({error!r}): restore it, or fit again.") from error
        if isinstance(self.source, Incoming):
            taken = int(notes.get("taken", 0))
            say(progress, f"The data are wound forward to batch {taken + 1}, where the fit was.")
            self.source.wind(taken)
        return folder

    def _go_on(self, folder: Path, identity: dict[str, Any], tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        free = set(LOCAL)
        if notes["identity"].get("device") != identity.get("device"):
            free.add("engine")  # each device has its own
        before = renamed(notes["identity"])  # another version may have written it
        before["loss"] = with_baseline(before.get("loss"), identity["loss"])
        differing = [k for k in identity if k not in free and before.get(k) != identity[k]]
        if differing:
            was, now = notes["identity"].get(differing[0]), identity[differing[0]]
            raise CheckpointError(
                f"{folder} holds a fit with other {', '.join(differing)} ({differing[0]}: {was} there, {now} here): "
                "resume with the same data and settings, or start in another folder."
            )
        self.identity = identity
        check_notes(notes)
        state = {n.removeprefix("optimizer/"): t for n, t in tensors.items() if n.startswith("optimizer/")}
        check_optimizer(self.program.optimizer, state, notes["optimizer"])
        tensors, own = state_of_rank(tensors)
        self.restore(tensors, notes)
        if ranks.rank() and not own:  # the noise of one rank must not be that of another
            seed_torch(ranks.own_seed(self.fitted.settings["seed"], self.step))
        if self.in_epoch and not len(self.batches) and not self.epoch_elbos:
            raise ValueError("an epoch is under way that has no steps")
