"""fit: stochastic variational inference for any model/guide pair."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyro
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from pyrovae.errors import CheckpointError, DataError, NotFiniteError, OptionError
from pyrovae.infer import checkpoint as store
from pyrovae.infer.batches import Batches, fingerprint
from pyrovae.infer.engine import Program, Transform, make_engine
from pyrovae.infer.fitted import EVALUATION_SEED, Fit, chunks, transform_once
from pyrovae.infer.objectives import as_loss, log_weights
from pyrovae.infer.schedules import Schedule, Step, as_schedule, weights_at
from pyrovae.infer.spec import to_spec
from pyrovae.infer.splits import Split
from pyrovae.infer.terms import terms
from pyrovae.infer.validate import check_rows
from pyrovae.pair import (
    Batch,
    as_batch,
    check_fewer_rows,
    check_gradients,
    describe,
    named_tensors,
    num_rows,
    param_scope,
    take_rows,
    trainable,
)

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]
Callback = Callable[[Fit], bool | None]


def fit(
    pair: Any,
    data: Any,
    *,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    loss: Any = None,
    optimizer: OptimizerFactory | None = None,
    validation: Any = None,
    patience: int | None = None,
    schedule: Schedule | Sequence[Schedule] | None = None,
    transform: Transform | None = None,
    penalty: Callable[[Any], Tensor] | None = None,
    clip_norm: float | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    checkpoint_every: float = 30.0,
    seed: int | None = None,
    device: str | torch.device = "auto",
    engine: str = "auto",
    progress: bool | None = None,
    info: Mapping[str, Any] | None = None,
) -> Fit:
    """Maximise the ELBO of any model/guide pair over its parameters, in place, and return it as a `Fit`.

    The loss of a step with B of N rows is -(1/N) [global terms + (N/B) sum of the rows' local terms] + penalty/N, in nats
    per row. Parameters are found by running the pair once: `nn.Module`, `PyroModule`, AutoGuides and bare `pyro.param`s;
    the last live in a param store of this fit's own.

    data: an array or tensor of rows for the model's first argument, or a dict of them by argument; floating arrays become
        the default dtype. They are moved to the device whole.
    learning_rate, optimizer: fused Adam at that rate, or a function from a list of leaf tensors to a torch optimizer.
    loss: `pv.Trace_ELBO(...)`, or Pyro's `Trace_ELBO` or `TraceMeanField_ELBO`, which are translated.
    validation: a fraction of the rows to hold out, or data. Its ELBO, KL weight left out, is written to the history;
        with `patience` the fit stops after that many epochs without a better one and keeps the best epoch's weights.
    schedule: step -> {"lr": ..., "kl": ...}, or several; see `pv.schedules`.
    transform: batch -> batch, tensors only, inside the step; at evaluation applied once, from a fixed seed.
    penalty: pair -> 0-d tensor in nats for the whole data set, e.g. a negative log prior of weights.
    clip_norm: largest global norm of the gradient.
    callbacks: called with the `Fit` after each epoch; one that returns True stops the fit.
    checkpoint: a new folder for the run, written every `checkpoint_every` seconds and at the end, on Ctrl-C and when the
        loss turns NaN. `resume=True` goes on with the fit in it: 2N epochs stopped at N and resumed equal the
        uninterrupted ones bit for bit. `force=True` replaces the run in it.
    seed: of shuffling and noise; None draws one from torch's global state, which is otherwise left alone.
    engine: "eager", or "auto".
    progress: a bar with the ELBO; None shows it on a terminal.
    info: anything JSON to keep with the run.

    Raises DataError, PairError or OptionError before the first step; NotFiniteError when the loss turns NaN, with the
    weights put back to the last good epoch; CheckpointError for the folder; KeyboardInterrupt after Ctrl-C (a second
    one stops at once).
    """
    batch = as_batch(pair, data)
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    _check_options(epochs, batch_size, patience, validation, checkpoint, resume, clip_norm, learning_rate)
    held_out, split = None, None
    if isinstance(validation, float):
        split = Split(num_rows(batch), test_fraction=0.0, validation_fraction=validation, seed=seed)
        held_out, batch = take_rows(batch, split.validation), take_rows(batch, split.train)
    elif validation is not None:
        held_out = as_batch(pair, validation)
    rows = num_rows(batch)
    if batch_size > rows:
        raise DataError(f"batch_size={batch_size} is larger than the {rows} training rows: use at most {rows}.")
    where = _device(device)
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "num_rows": rows,
        "loss": repr(as_loss(loss)),
        "schedule": to_spec(schedule),
        "clip_norm": clip_norm,
        "patience": patience,
        "penalty": to_spec(penalty),
        "transform": to_spec(transform),
        "validation_split": split.to_json() if split else None,
    }
    fitted = Fit(pair=pair, layout=None, settings=settings, transform=transform, info=dict(info or {}))  # type: ignore[arg-type]
    with torch.random.fork_rng(), param_scope(fitted.store):
        torch.manual_seed(seed)
        store.place(pair, where)
        batch = {name: value.to(where) for name, value in batch.items()}
        first = take_rows(batch, slice(0, batch_size))
        with pyro.validation_enabled(False):  # check_rows has the better words for unfit data
            fitted.layout = describe(pair, transform_once(first, transform))
        store.place(pair, where)
        with torch.random.fork_rng(), pyro.validation_enabled(False):
            check_fewer_rows(pair, transform_once(first, transform))
        check_rows(pair, batch, transform=transform)
        if held_out is not None:
            held_out = {name: value.to(where) for name, value in held_out.items()}
            check_rows(pair, held_out, transform=transform)
        with torch.random.fork_rng():
            check_gradients(pair, transform_once(first, transform))
        leaves = trainable(pair)
        if not leaves:
            raise OptionError("The pair has no parameter to train.")
        scheduled = as_schedule(schedule)
        steps = Step(0, rows / batch_size, epochs * rows // batch_size)
        program = Program(
            pair=pair,
            loss=as_loss(loss),
            parameters=leaves,
            optimizer=_make_optimizer(optimizer, list(leaves.values()), learning_rate),
            rows=batch,
            num_rows=rows,
            layout=fitted.layout,
            weights={n: torch.tensor(v, device=where) for n, v in weights_at(scheduled, steps).items()},
            transform=transform,
            penalty=penalty,
            clip_norm=clip_norm,
        )
        trainer = _Trainer(fitted, program, scheduled, steps, held_out, engine)
        settings |= {
            "engine": trainer.engine.name,
            "device": where.type,
            "optimizer": {"class": type(program.optimizer).__name__, "lr": _initial_rate(program.optimizer)},
            "torch": str(torch.__version__),
        }
        folder = None
        if checkpoint is not None:
            identity = {**settings, "data": fingerprint(batch)}
            if schedule is None:
                del identity["epochs"]  # without a schedule, a longer fit begins as a shorter one does
            if resume:
                folder = trainer.resume(Path(checkpoint), identity)
            else:
                folder = store.claim_folder(checkpoint, force=force)
                trainer.begin(folder, identity)
        trainer.run(list(callbacks), folder, checkpoint_every, progress)
    if folder is not None:
        store.write_fit(folder, fitted)
    return fitted


class _Trainer:
    """The loop: epochs of steps, what is measured after each, and the whole state to stop and go on with."""

    def __init__(
        self, fitted: Fit, program: Program, schedule: Schedule, steps: Step, held_out: Batch | None, engine: str
    ) -> None:
        self.fitted, self.program, self.schedule, self.held_out = fitted, program, schedule, held_out
        self.engine = make_engine(engine, program)
        self.steps = steps
        settings = fitted.settings
        self.batches = Batches(program.num_rows, settings["batch_size"], settings["seed"])
        self.epochs, self.patience = settings["epochs"], settings["patience"]
        self.step = 0
        self.epoch_elbos: list[Tensor] = []  # of the epoch under way; read by the host once an epoch
        self.in_epoch = False
        self.seconds = 0.0
        self.best: dict[str, Tensor] | None = None
        self.best_elbo = -float("inf")
        self.best_epoch = 0
        self.identity: dict[str, Any] = {}
        self.last_good: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    # the loop

    def run(self, callbacks: list[Callback], folder: Path | None, every: float, progress: bool | None) -> None:
        history = self.fitted.history
        written = time.monotonic()
        self.last_good = self.state()
        with _stop_on_interrupt() as interrupted, _bar(progress, self.epochs) as bar, pyro.validation_enabled(False):
            bar(history)
            while not self._finished():
                began = time.monotonic()
                if not self.in_epoch:
                    self.batches.begin_epoch()
                    self.in_epoch = True
                while len(self.batches) and not interrupted.is_set():
                    self._step()
                self.seconds += time.monotonic() - began
                if interrupted.is_set():
                    self._interrupt(folder)
                self._end_epoch(folder)
                bar(history)
                answers = [callback(self.fitted) for callback in callbacks]
                if any(answer is True for answer in answers):
                    self.fitted.stopped = "a callback stopped it"
                self.last_good = self.state()
                if folder is not None and (time.monotonic() - written > every):
                    self.write(folder)
                    written = time.monotonic()
        if folder is not None:
            self.write(folder)
        if self.best is not None:
            with torch.no_grad():
                for name, tensor in named_tensors(self.fitted.pair, buffers=True).items():
                    tensor.copy_(self.best[name])
            self.fitted.settings["best_epoch"] = self.best_epoch

    def _finished(self) -> bool:
        done = len(self.fitted.history)
        if self.patience is not None and done - self.best_epoch >= self.patience and done < self.epochs:
            self.fitted.stopped = f"no better validation ELBO for {self.patience} epochs"
        return done >= self.epochs or bool(self.fitted.stopped)

    def _step(self) -> None:
        weights = weights_at(self.schedule, self.steps._replace(number=self.step))
        if weights.keys() != self.program.weights.keys():
            raise OptionError(f"A schedule must give the same weights at every step; at step {self.step}: {weights}.")
        index = self.batches.deal().to(next(iter(self.program.rows.values())).device, non_blocking=True)
        self.epoch_elbos.append(self.engine.step(index, weights))
        self.step += 1

    def _end_epoch(self, folder: Path | None) -> None:
        self.in_epoch = False
        history = self.fitted.history
        elbos = torch.stack(self.epoch_elbos).double().cpu()
        good = torch.isfinite(elbos)
        finite = torch.stack([torch.isfinite(p).all() for p in self.program.parameters.values()]).tolist()
        broken = [name for name, whole in zip(self.program.parameters, finite) if not whole]
        if not bool(good.all()) or broken:
            self._fail(folder, elbos, broken)
        row: dict[str, float] = {"epoch": len(history) + 1, "steps": self.step, "elbo": elbos.mean().item()}
        self.epoch_elbos = []
        began = time.monotonic()
        if self.held_out is not None:
            row["validation_elbo"] = self._validation_elbo()
        self.seconds += time.monotonic() - began
        last = weights_at(self.schedule, self.steps._replace(number=max(0, self.step - 1)))
        row["learning_rate"] = last.get("lr", _initial_rate(self.program.optimizer))
        row["kl_weight"] = last.get("kl", 1.0)
        row["seconds"] = round(self.seconds, 3)
        history.append(row)
        if self.patience is not None and row["validation_elbo"] > self.best_elbo:
            self.best_elbo, self.best_epoch = row["validation_elbo"], int(row["epoch"])
            self.best = {n: t.detach().clone() for n, t in named_tensors(self.fitted.pair, buffers=True).items()}

    def _validation_elbo(self) -> float:
        """Mean over the held-out rows of log w, one draw each, the same noise at every epoch; nats per row."""
        assert self.held_out is not None
        total = torch.zeros((), dtype=torch.float64, device=next(iter(self.held_out.values())).device)
        with self.fitted.evaluation_mode(), torch.random.fork_rng():
            torch.manual_seed(EVALUATION_SEED)
            seen = transform_once(self.held_out, self.fitted.transform)
            for rows in chunks(seen, 4096):
                total += log_weights(terms(self.fitted.pair, rows)).double().sum()
        return total.item() / num_rows(self.held_out)

    # stopping

    def _fail(self, folder: Path | None, elbos: Tensor, broken: list[str]) -> None:
        epoch = len(self.fitted.history) + 1
        bad = (~torch.isfinite(elbos)).nonzero()
        step = self.step - len(elbos) + (int(bad[0]) if len(bad) else len(elbos) - 1)
        assert self.last_good is not None
        self.restore(*self.last_good)
        kept = "the weights are those of the last good epoch"
        if folder is not None:
            self.write(folder)
            store.write_fit(folder, self.fitted, status="diverged")
            kept += f", saved in {folder}"
        what = f"the parameters {broken[:3]} are" if broken and not len(bad) else "the loss is"
        raise NotFiniteError(
            f"In epoch {epoch}, step {step}, {what} not finite; {kept}. "
            "Lower the learning rate, set clip_norm=10, or warm up the KL weight."
        )

    def _interrupt(self, folder: Path | None) -> None:
        where = ""
        if folder is not None:
            self.write(folder)
            where = f"; the run in {folder} can be resumed"
        raise KeyboardInterrupt(f"stopped in epoch {len(self.fitted.history) + 1}, after step {self.step}{where}")

    # state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the rest of the fit depends on, cloned: tensors by name, and notes as JSON."""
        tensors = {f"weights/{n}": t for n, t in named_tensors(self.fitted.pair, buffers=True).items()}
        tensors |= {f"best/{n}": t for n, t in (self.best or {}).items()}
        optimizer, optimizer_notes = store.flatten_optimizer(self.program.optimizer)
        tensors |= {f"optimizer/{n}": t for n, t in optimizer.items()}
        tensors |= {f"batches/{n}": t for n, t in self.batches.state_dict().items()}
        tensors["rng/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["rng/cuda"] = torch.cuda.get_rng_state()
        if self.epoch_elbos:
            tensors["epoch_elbos"] = torch.stack(self.epoch_elbos)
        notes = {
            "step": self.step,
            "in_epoch": self.in_epoch,
            "seconds": self.seconds,
            "history": [dict(row) for row in self.fitted.history],
            "best_elbo": store.finite_or_none(self.best_elbo),
            "best_epoch": self.best_epoch,
            "optimizer": optimizer_notes,
            "identity": self.identity,
        }
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}, notes

    def restore(self, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Put back what `state` took."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        store.copy_tensors(named_tensors(self.fitted.pair, buffers=True), part("weights/"))
        device = next(iter(self.program.rows.values())).device
        self.best = {n: t.to(device) for n, t in part("best/").items()} or None
        store.unflatten_optimizer(self.program.optimizer, part("optimizer/"), notes["optimizer"])
        self.batches.load_state_dict(part("batches/"))
        torch.set_rng_state(tensors["rng/cpu"])
        if torch.cuda.is_available() and "rng/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng/cuda"])
        self.epoch_elbos = list(tensors["epoch_elbos"].to(device)) if "epoch_elbos" in tensors else []
        self.step, self.in_epoch, self.seconds = notes["step"], notes["in_epoch"], notes["seconds"]
        self.fitted.history[:] = [dict(row) for row in notes["history"]]
        self.best_elbo = -float("inf") if notes["best_elbo"] is None else notes["best_elbo"]
        self.best_epoch = notes["best_epoch"]

    def begin(self, folder: Path, identity: dict[str, Any]) -> None:
        self.identity = identity
        self.write(folder)

    def write(self, folder: Path) -> None:
        store.write_state(folder, *self.state())
        store.write_history(folder, self.fitted.history)
        store.write_run(folder, self.fitted, status="running")

    def resume(self, folder: Path, identity: dict[str, Any]) -> Path:
        """Go on with the fit in a folder. CheckpointError when anything that shapes the fit is not as it was."""
        store.read_run(folder)
        tensors, notes = store.read_state(folder)
        differing = [k for k in identity if k not in ("device", "torch") and notes["identity"].get(k) != identity[k]]
        if differing:
            was, now = notes["identity"].get(differing[0]), identity[differing[0]]
            raise CheckpointError(
                f"{folder} holds a fit with other {', '.join(differing)} ({differing[0]}: {was} there, {now} here): "
                "resume with the same data and settings, or start in another folder."
            )
        self.identity = identity
        self.restore(tensors, notes)
        return folder


# --- pieces ----------------------------------------------------------------------------------------------------------


def _check_options(
    epochs: int,
    batch_size: int,
    patience: int | None,
    validation: Any,
    checkpoint: Any,
    resume: bool,
    clip_norm: float | None,
    learning_rate: float,
) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise OptionError(f"{name} must be a whole number of at least 1, got {value!r}.")
    for name, number in (("clip_norm", clip_norm), ("learning_rate", learning_rate)):
        if number is not None and not number > 0:
            raise OptionError(f"{name} must be positive, got {number!r}.")
    if patience is not None and validation is None:
        raise OptionError("patience needs rows to watch: give validation=0.1 (a fraction), or data.")
    if resume and checkpoint is None:
        raise OptionError("resume=True needs checkpoint=..., the folder of the run to go on with.")


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f"device={str(device)!r} cannot be used here ({reason}); known: auto, cpu, cuda.") from error
    return found


def _make_optimizer(
    factory: OptimizerFactory | None, leaves: list[Tensor], learning_rate: float
) -> torch.optim.Optimizer:
    if factory is None:
        return torch.optim.Adam(leaves, lr=learning_rate, fused=True)
    made = factory(leaves)
    if not isinstance(made, torch.optim.Optimizer):
        raise OptionError(
            "optimizer must be a function from a list of tensors to a torch optimizer, e.g. "
            f"lambda leaves: torch.optim.AdamW(leaves, lr=1e-3, fused=True); it returned {type(made).__name__}."
        )
    return made


def _initial_rate(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


@contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C asks the loop to stop between two steps, where the state is whole; a second one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may handle signals
        return

    def handle(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _bar(progress: bool | None, epochs: int) -> Iterator[Callable[[list[dict[str, float]]], None]]:
    """A progress bar on stderr with the ELBO; shown when asked for, or when stderr is a terminal."""
    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    columns = (
        TextColumn("epoch {task.completed}/{task.total}"),
        BarColumn(bar_width=16),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) if shown else nullcontext() as bar:
        if bar is None:
            yield lambda history: None
            return
        task = bar.add_task("ELBO ...", total=epochs)

        def update(history: list[dict[str, float]]) -> None:
            if history:
                last = history[-1]
                text = f"ELBO {last['elbo']:.2f}"
                if "validation_elbo" in last:
                    text += f" (validation {last['validation_elbo']:.2f})"
                bar.update(task, completed=len(history), description=text)

        yield update
