"""`fit`: stochastic variational inference for any model/guide pair."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import with_known_keywords
from pyrovae.batching.batches import digest_of
from pyrovae.batching.transforms import Transform
from pyrovae.engine import ranks
from pyrovae.engine.freed_memory import keep_freed_memory
from pyrovae.engine.threads import computing_with
from pyrovae.errors import PairError, short_of_memory, shortened
from pyrovae.fitted.files import claim_folder
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.folder import write_fit
from pyrovae.fitted.lock import locked
from pyrovae.objectives.iwelbo import IWELBO
from pyrovae.objectives.losses import as_loss
from pyrovae.objectives.wake_sleep import RWS, WakeSleep
from pyrovae.pair.batch import named_by
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import default_dtype, fork_rng, param_scope, seed_torch, trainable
from pyrovae.pair.program import PairLike
from pyrovae.pair.turns import turn
from pyrovae.training.bind import FitData, bind
from pyrovae.training.checks import check, start
from pyrovae.training.fit_options import MEANT, Callback, FitOptions, OptimizerFactory, only_looks
from pyrovae.training.groups import TrainingGroup, group
from pyrovae.training.memory import too_large
from pyrovae.training.plan import Plan, plan
from pyrovae.training.schedules import Schedule
from pyrovae.training.together import begin_together, begun, check_options, goes_on, is_of_this_job
from pyrovae.training.trainer import Trainer


@with_known_keywords("pv.fit", MEANT)
def fit(
    pair: PairLike,
    data: Any,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    loss: Any = None,
    optimizer: OptimizerFactory | None = None,
    validation: Any = None,
    patience: int | None = None,
    keep_best: bool | None = None,
    schedule: Schedule | Sequence[Schedule] | None = None,
    transform: Transform | None = None,
    penalty: Callable[[Any], Tensor] | None = None,
    clip_norm: float | None = None,
    on_nan: str = "stop",
    group_size: Mapping[str, int] | None = None,
    group_weight: Mapping[str, float] | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    checkpoint_every: float | str = 30.0,
    seed: int | None = None,
    device: str | torch.device = "auto",
    engine: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    progress: bool | None = None,
    info: Mapping[str, Any] | None = None,
    check_also: Any = None,
    steps: int | None = None,
    num_rows: int | None = None,
) -> Fit:
    """Fit a model/guide pair: maximise its ELBO by stochastic gradients, in place, and return it as a `Fit`.

    A step takes a minibatch of B of the N rows and descends

        loss = -(1/N) [global terms + (N/B) sum over the minibatch of local terms] + penalty/N,

    in nats per row, where the local terms are the log-densities (model minus guide) of sites in the plate "data". Parameters
    are found by running the pair: those of `nn.Module`, `PyroModule` and AutoGuides, and bare `pyro.param` statements, which
    get a param store of this fit's own. Modules stay in the mode, training or evaluation, that they are in. The weights
    are those of the modules, so that a second fit of the same modules takes them from the first, which then refuses to answer.
    Fits and questions in several threads wait for each other, and two fits of the same modules at once are refused.
    Several processes that torchrun has started take the steps together, each with its share of the rows of every minibatch, and
    all end with the same weights (see "Operations").

    An argument that may be None (`y=None`) may be unknown in some rows, which hold -1 (integers) or NaN there. Rows are then
    grouped by what is known of them: a step takes B_g of the N_g rows of each group g, runs the pair on them without what
    they lack, and adds their terms up, each group's scaled by N_g/B_g.

    Main arguments:
        pair: an object with the callables `model` and `guide`, which take the same arguments.
        data: rows for the model's first argument, an array or tensor `(N, *event)`, or a dict of them by argument. Numbers
            of another dtype than that of the weights (bools, integers, float64) are cast where the pair does not take them.
            All rows are moved to the device, except those of a map-style
            `torch.utils.data.Dataset`, or a `DataLoader` of one, which are loaded batch by batch while the device works;
            then only the first rows are checked beforehand. Questions take them, too, and load all rows. Data are never
            changed. Or batches, one after the other: an iterator, perhaps without end, an iterable, a function that makes
            one, or files that are larger than memory (`pyrovae.data.open`). See `steps` and `num_rows`.
        epochs: passes over the rows. 0 takes the weights as they are, as of a pair that is joined from fitted parts: everything
            is checked, and the `Fit` answers all questions.
        steps: in place of `epochs`, for rows that come batch by batch: how many batches the fit takes. An epoch is then 100
            steps: so often the pair is measured and the history written, in which the ELBO is that of rows that the fit had not
            seen before.
        batch_size: B, rows a step. By default 128, or all rows where there are fewer; of batches that come, as many as the
            first has. What is left of a batch goes into the next.
        learning_rate: of Adam, the default optimizer.
        loss: `pv.Trace_ELBO(...)` (the default), `pv.IWELBO(...)`, `pv.RWS(...)`, `pv.WakeSleep(...)`, Pyro's `Trace_ELBO`,
            `TraceEnum_ELBO` or `TraceMeanField_ELBO`, which are translated, or any function
            `(pair, batch, *, num_rows, kl_weight, layout) -> pv.Bound`.
        validation: validation rows: a fraction of `data` to hold out, or data of their own. Their ELBO, without the KL
            weight, is written to the history after each epoch; where the loss is `pv.IWELBO` or `pv.RWS`, their
            importance-weighted bound of as many draws takes its place everywhere (not where rows share a latent variable).
            After 100 epochs, where one is shorter than 25 steps, that is done about every 25 steps, unless there are
            `callbacks` or `patience` is below 50.
        patience: stop after so many epochs without a better validation ELBO, and keep the best epoch's weights.
        keep_best: whether to keep the weights of the epoch with the best validation ELBO, and not those of the last. By
            default only with `patience`.
        schedule: a function of the step, or a list of them, that gives the learning rate ("lr"), the KL weight ("kl"), a factor
            for the learning rate of parameters that only the model uses ("model"), or the temperature of relaxed families
            ("temperature"). See `pv.schedules`.
        seed: of shuffling and noise. By default drawn from torch's global state, or that of the run that is resumed.
        device: "auto" (CUDA where there is one), "cpu", "cuda", or a `torch.device`.

    Other arguments:
        optimizer: a function from a list of tensors to a torch optimizer; by default fused Adam.
        transform: a function from batch to batch, of tensors only, applied inside every step (`pv.transforms.Binarize()`).
            It may change shapes and dtypes, and add arguments of the model that the data lack. At evaluation it is applied
            once, from a fixed seed. What is given to `pv.generate` or `pv.decode` by the model's names is not transformed.
        penalty: a function from the pair to a 0-d tensor, in nats for the whole data set, such as a negative log prior of
            weights. It is added to the loss.
        clip_norm: the largest global norm of the gradient; what the loss trains besides the pair has a norm of its own.
        on_nan: what becomes of a fit whose loss becomes NaN or infinite. "stop": it ends with an error, which names the site
            and the operation. "skip": where a gradient of a step is not finite, all of that step count as zero, so that Adam
            only goes on as before; the history counts steps without a finite loss (`skipped`). "rollback": it goes back to the
            last good epoch, and on from there with half the learning rate, at most five times.
        group_size: rows a step of each group, named by the optional arguments that it knows: `{"y": 50, "": 100}` takes 50
            rows whose y is known and 100 of which nothing optional is. By default `min(N_g, max(B/4, B N_g/N))`. An epoch is
            one pass over the largest group.
        group_weight: how many times each row of a group counts in what the fit maximises, by default once: with N_u unlabelled
            and N_l labelled rows, `{"y": N_u / N_l}` lets both kinds count alike, as in the code of Maaløe et al. 2016
            (arXiv:1602.05473). This is biased on purpose: other weights than 1 maximise no bound on log p(data), and favour the
            rows that were weighted up, which a model of few labelled rows can overfit. The ELBO in the history counts each row
            once. The weight multiplies `objective_only` terms, such as alpha log q(y|x), too.
        callbacks: functions called with the `Fit` after each epoch; one that returns True stops the fit. One with an attribute
            `only_looks = True`, as those of `pv.tracking`, changes nothing, and the fit is the same, bit for bit, as without
            it; a method `end` of it is called with the `Fit`, and the error if there was one, when the fit ends.
        checkpoint: a new folder for the run. It is written every `checkpoint_every`, at the end, on Ctrl-C, and when the loss
            becomes NaN.
        resume: go on with the run in `checkpoint`. A fit that was stopped and resumed equals an uninterrupted one bit for
            bit. Batches must come from something that can be started again, which is then wound forward to where the fit was.
        force: replace the run in `checkpoint`.
        checkpoint_every: seconds between two writes of the checkpoint, or a text: "10min", "2h", "500 steps". 0 writes it after
            each epoch.
        engine: how a step is run: "eager", "traced", "compiled", or "graphed" (CUDA). By default ("auto") graphed on CUDA,
            on a CPU compiled for long fits where there is a C++ compiler, else traced. On a CPU all engines draw the same
            noise.
            Except with "eager", the Python code of pair, loss, transform and penalty runs once an epoch and not at every
            step, so its side effects do not repeat.
        precision: "bfloat16" computes products of matrices in bfloat16; parameters and log-densities stay float32. "auto" does
            so where the processor has instructions for it and products are large.
        threads: of the CPU that steps, and afterwards questions, are computed with. By default 1 where products of matrices
            are small, more where they are larger, and all of torch's threads where they take long (see "Speed and engines"
            in the documentation); a run that is resumed keeps its number.
        progress: show a progress bar with the ELBO on a terminal or in a notebook, and a line on stderr every half a minute
            elsewhere. True adds a last line there; False shows nothing.
        info: anything that is JSON, to be kept with the run.
        check_also: more rows, such as test rows, that are checked like the training rows before the first step, and not
            used otherwise.
        num_rows: N, of rows that come batch by batch, where they do not say themselves how many they are: how many rows the
            data stand for. It is needed where a site belongs to no row, or with a `penalty`; elsewhere the objective does
            not depend on it.

    Returns:
        A `Fit`: the pair with its fitted parameters, the history (a dict an epoch), and the settings. All questions, such as
        `pv.importance`, `pv.encode` and `pv.generate`, take it.

    Raises:
        DataError: the data are not what the model takes; before the first step.
        PairError: model and guide do not fit each other, or the data; before the first step. See `pv.check_pair`.
        OptionError: an argument has a value that cannot be; before the first step.
        CheckpointError: the run folder is in use, damaged, or holds another fit.
        RankError: of several processes that fit together, another was lost.
        OutOfMemoryError: memory does not suffice for a step; the message names a `batch_size` that fits.
        NotFiniteError: the loss became NaN or infinite, see `on_nan`. The weights are those of the last good epoch. A fit whose
            numbers stay finite and that ends far below its start, or below what it had reached, warns that it diverged.
        KeyboardInterrupt: Ctrl-C was pressed; the checkpoint has been written. A second Ctrl-C stops at once.

    References:
        Kingma & Welling 2014, arXiv:1312.6114; Hoffman et al. 2013, arXiv:1206.7055.

    Example:
        >>> x = torch.rand(200, 6).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=3, validation=0.2, seed=0, progress=False)
        >>> [row["epoch"] for row in fitted.history]
        [1, 2, 3]
        >>> pv.encode(fitted, x).shape
        torch.Size([200, 2])
    """
    arguments = {name: value for name, value in locals().items() if name not in ("pair", "data")}
    options = FitOptions(**arguments)
    ranks.join()
    keep_freed_memory()
    check_options(options)
    if options.checkpoint is not None:
        options.resume = options.resume or goes_on(Path(options.checkpoint))
    fitted = Fit(
        pair, layout=Layout((), 0, {}), transform=transform, info=dict(options.info or {}), threads=options.threads
    )
    with turn():
        rows = bind(pair, data, options)
        fitted.columns = {**named_by(pair), **rows.columns}
        groups = group(pair, rows, options)
        try:
            _fit(fitted, rows, groups, options)
            return fitted
        except Exception as error:
            if not short_of_memory(error):
                raise
            said = shortened(error, 200)
        raise too_large(pair, rows, groups, options, said)  # here, where what the fit held is free


_under_way: dict[int, int] = {}  # the parameters that are fitted now, by identity, and in which thread


@contextmanager
def alone(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Fit parameters that no other thread is fitting; a fit lends its turn between epochs. PairError otherwise."""
    here, wanted = threading.get_ident(), [id(parameter) for parameter in parameters]
    if any(_under_way.get(one, here) != here for one in wanted):
        raise PairError(
            "Another thread is fitting the same modules, and each fit would go on with the other's weights: fit a copy in each "
            "thread, copy.deepcopy(pair), or one after the other."
        )
    own = [one for one in wanted if one not in _under_way]  # of a fit that a callback starts, the outer one has them
    _under_way.update(dict.fromkeys(own, here))
    try:
        yield
    finally:
        for one in own:
            del _under_way[one]


def _fit(fitted: Fit, rows: FitData, groups: list[TrainingGroup], options: FitOptions) -> None:
    """Check, plan, train."""
    with alone(trainable(fitted.pair).values()), fork_rng(), param_scope(fitted.store), default_dtype(fitted.pair):
        seed_torch(rows.seed)
        rows.place()
        runs = check(fitted, rows, groups, options)
        start(fitted.pair, rows, groups, options)
        chosen = plan(fitted, rows, groups, runs, options)
        del runs  # they hold the activations of the first minibatch, which the fit itself has no use for
        with computing_with(chosen.threads):
            train(fitted, chosen, rows, options)


def train(fitted: Fit, chosen: Plan, rows: FitData, options: FitOptions) -> None:
    """Run the plan of a fit, from the start or from a checkpoint, and write what it leaves."""
    trainer = Trainer(fitted, chosen, rows)
    identity: dict[str, Any] = {}
    if ranks.world_size() > 1:
        identity = identity_of(fitted.settings, rows, options)
        begin_together(fitted, chosen.loss_tensors, identity)
    if options.checkpoint is None:
        with looked_on(fitted, options.callbacks):
            trainer.run(list(options.callbacks), None, options.every, options.progress)
            _leave(fitted, chosen, trainer, options)
        return
    folder = Path(options.checkpoint)
    if not options.resume:
        ranks.first(lambda: claim_folder(folder, force=options.force or is_of_this_job(folder)))
    begun(folder)
    with ExitStack() as stack:
        ranks.first(lambda: stack.enter_context(locked(folder)))
        stack.enter_context(looked_on(fitted, options.callbacks))
        identity = identity or identity_of(fitted.settings, rows, options)
        if options.resume:
            trainer.resume(folder, identity, options.progress)
        else:
            trainer.begin(folder, identity)
        trainer.run(list(options.callbacks), folder, options.every, options.progress)
        _leave(fitted, chosen, trainer, options)
        ranks.first(lambda: write_fit(folder, fitted))


@contextmanager
def looked_on(fitted: Fit, callbacks: Sequence[Callback]) -> Iterator[None]:
    """Say to callbacks that only look, when the fit inside ends, that it has ended, and by which error."""
    ended = [one.end for one in callbacks if only_looks(one) and hasattr(one, "end")]
    try:
        yield
    except BaseException as error:
        for end in ended:
            end(fitted, error)
        raise
    for end in ended:
        end(fitted, None)


def _leave(fitted: Fit, chosen: Plan, trainer: Trainer, options: FitOptions) -> None:
    for leaf in chosen.program.parameters.values():
        leaf.grad = None
    fitted.keep_weights()
    objective = as_loss(options.loss)
    plain = isinstance(objective, IWELBO | RWS | WakeSleep) or getattr(objective, "kl", "other") in (
        None,
        "analytic",
        "auto",
    )
    same = all(map(only_looks, options.callbacks))
    trainer.course.end(fitted, elbo=plain, same=same)


def identity_of(settings: Mapping[str, Any], rows: FitData, options: FitOptions) -> dict[str, Any]:
    """What a resumed fit must have in common with the one that it goes on with: the settings and the data."""
    validation = digest_of(rows.validation or {})
    identity = {**settings, "data": rows.training.digest(), "validation": validation}
    identity["group_weight"] = settings.get("group_weight")  # None as of runs before it could be chosen
    if identity["precision"] == "float32":
        del identity["precision"]  # of no run before it could be chosen
    if identity["keep_best"] == (options.patience is not None):
        del identity["keep_best"]
    if options.schedule is None:
        del identity["epochs"]  # without a schedule, a longer fit begins as a shorter one does
        identity.pop("steps", None)
    return identity
