"""A run: a data set, a model for it, the fit, and the folder that keeps them; made, resumed, and opened again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pyrovae._files import write_file
from pyrovae.app import known
from pyrovae.app.catalogue import ORDERED, Model, own_files, own_paths
from pyrovae.app.decide import binarisation, decide, refuse_missing
from pyrovae.app.given import Given, GivenCaptions
from pyrovae.app.models import MODELS, build
from pyrovae.app.options import Options
from pyrovae.app.recorded import check_decided, reading, recorded_info, recorded_options
from pyrovae.app.rows import Rows, make_rows, split_rows
from pyrovae.app.track import LOGS, STAGE_1, trackers
from pyrovae.batching.splits import Split
from pyrovae.data import Dataset, Standardize
from pyrovae.engine import ranks
from pyrovae.engine.threads import as_threads
from pyrovae.errors import CheckpointError, counted
from pyrovae.fitted.files import read_run, take_over
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.folder import load, write_fit
from pyrovae.fitted.limits import Bounded
from pyrovae.fitted.lock import locked
from pyrovae.objectives.kl import free_bits
from pyrovae.objectives.losses import Trace_ELBO
from pyrovae.pair.batch import take_rows
from pyrovae.pair.graph import draw_graph, graph_text
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import PairLike, sample_sites
from pyrovae.pair.program import run as run_pair
from pyrovae.tables.scales import hint
from pyrovae.training import schedules
from pyrovae.training.fit import fit
from pyrovae.training.fit_options import Callback
from pyrovae.training.together import goes_on, is_of_this_job
from pyrovae.training.tracking import Tracker

COLUMNS = "columns.yaml"
GRAPHS = ("graph.png", "graph.gv", "graph-labelled.png", "graph-labelled.gv")
ARTEFACTS = (
    *GRAPHS,
    *("training.png", "reconstructions.png", "samples.png", "levels.png", "manifold.png", "latent.png"),
    *("generated.png", "generated.csv", "codes.csv", "check.html", "check.json", "report.html", "outliers.csv"),
    *("reliability.png", "doubtful.png"),  # of a run of `label` that was in the folder before
)


@dataclass(frozen=True, eq=False)
class Run:
    """A fitted model with its data and the folder that keeps it.

    Args:
        options: the options, with everything decided.
        dataset: the data as they were read.
        rows: the data as the model takes them.
        fitted: the fitted pair.
        folder: the run folder.
        trackers: what keeps its numbers elsewhere.
    """

    options: Options
    dataset: Dataset
    rows: Rows
    fitted: Fit
    folder: Path
    trackers: Sequence[Tracker] = ()

    @property
    def model(self) -> Model:
        return MODELS[self.options.model]

    @property
    def levels(self) -> tuple[str, ...]:
        """The latent sites of a model of several levels, from the data upwards; () for other models."""
        groups, levels = self.options.groups, self.options.levels or ()
        if groups is not None:
            return tuple(f"z{s}_{g}" for s, num in enumerate(groups, 1) for g in range(1, num + 1))[::-1]
        return tuple(f"z{level}" for level in range(1, len(levels) + 1))

    def likelihood(self) -> Any:
        """The distribution of x in the first two test rows."""
        with self.fitted.scope(), fork_rng():
            part = self.fitted.parts(take_rows(self.rows.batch("test"), slice(0, 2)))[0]
            sites = sample_sites(run_pair(self.fitted.pair, part.batch)[0])
        return next(sites[site.name]["fn"] for site in part.layout.sites if site.argument == "x")

    def record(self, results: Mapping[str, Any]) -> None:
        """Write the results into the run folder."""
        self.fitted.info["results"] = dict(results)
        write_fit(self.folder, self.fitted)
        for tracker in self.trackers:
            tracker.table(results)


def fit_run(
    dataset: Dataset,
    options: Options,
    folder: Path,
    *,
    force: bool = False,
    resume: bool = False,
    device: str = "auto",
    engine: str = "auto",
    threads: int | None = None,
    track: Sequence[str] = (),
    watch: Sequence[Callback] = (),
    progress: bool = True,
    say: Callable[[str], None] = lambda message: None,
) -> Run:
    """Fit the model of the options to a data set, in a run folder.

    Args:
        force: replace the run that is in the folder.
        resume: go on with the run that is in the folder.
        track: where its numbers are kept besides, see `pyrovae.app.track`.
        watch: further callbacks of `pv.fit`.
        say: called with messages: what was decided, and the graph of model and guide.

    Raises:
        OptionError, DataError, PairError: the options or the data do not fit; nothing has been written.
        CheckpointError: the folder is in use, or holds another run.
    """
    if goes_on(folder):
        resume = True
    refuse_missing(dataset)
    split = split_rows(dataset, options)
    options = decide(options, dataset, len(split.train))
    rows = make_rows(dataset, split, options)
    _say_what(dataset, options, rows, say)
    torch.manual_seed(options.seed)
    pair: Any = _built(options, rows)
    if rows.columns is not None and rows.train.shape[1:] == (len(rows.columns),):
        pair.column_names = {"x": list(rows.columns)}  # the fit keeps them
    with suppress(Exception):  # a pair that does not run is explained by the fit
        for which, batch in rows.examples().items():
            say("\n".join(filter(None, (which, graph_text(pair, batch)))))
    info: dict[str, Any] = {
        "folder": os.path.abspath(folder),
        "data": dataset.source,
        "split": split.to_json(),
        "scaler": rows.scaler.to_json() if rows.scaler is not None else None,
        "options": options.to_json("fit"),
        "own": own_files(options),
    }
    if ranks.rank() == 0:
        known.remember(dataset.source)
    how: dict[str, Any] = {"device": device, "engine": engine, "threads": threads, "progress": progress}
    how |= {"checkpoint": folder, "transform": binarisation(options, dataset), "info": info}
    watching = trackers(track, folder)
    how |= {
        "callbacks": (*watching, *watch),
        "of_first": trackers(track, folder, STAGE_1) if options.stages == 2 else (),
    }
    fitted = _fitted(pair, options, rows, say, resume=resume, force=force, **how)
    run = Run(options, dataset, rows, fitted, folder, watching)
    if ranks.rank() > 0:
        return run  # the first process writes
    _keep_columns(run)
    if force:  # files of the replaced run would pass for this one's; removed only now, since the fit may be refused
        written = [getattr(tracker, "path", None) for tracker in (*watching, *how["of_first"])]
        for path in [folder / name for name in (*ARTEFACTS, *LOGS)]:
            if path not in written:
                path.unlink(missing_ok=True)
    _draw_graphs(run, say)
    return run


def move_run(run: Run, folder: Path, track: Sequence[str]) -> Run:
    """Put a run that has just been fitted elsewhere, with no trackers, in the place of the run in a folder.

    Args:
        track: where its numbers are kept besides, see `pyrovae.app.track`.
    """
    info = run.fitted.info | {"folder": os.path.abspath(folder)}
    with locked(folder):
        take_over(run.folder, folder, info, (COLUMNS, *GRAPHS))
    run.fitted.info.update(info)
    watching = trackers(track, folder)
    for tracker in watching:  # as if they had looked on
        tracker(run.fitted)
        tracker.end(run.fitted)
    return replace(run, folder=folder, trackers=watching)


def _say_what(dataset: Dataset, options: Options, rows: Rows, say: Callable[[str], None]) -> None:
    """What is fitted to which rows: in a line, and for tables and captions what was made of them."""
    say(describe(dataset, options, rows))
    if options.likelihood in ("ordinal", "categorical") and dataset.schema is not None and bool((rows.train > 0).all()):
        told = f"--likelihood {options.likelihood} has a class 0, which no row has"
        say(f"{told}: --likelihood {ORDERED} takes answers as they are.")
    if rows.schema is not None:
        if isinstance(rows.given, Given):
            say("The model is given, and does not model:\n" + repr(rows.given.schema).partition("\n")[2])
        say(repr(rows.schema) + f"\n(kept in {COLUMNS} of the run folder; give it back, edited, by --columns)")
        if scales := hint(rows.schema):
            say(scales)
    if isinstance(rows.given, GivenCaptions):
        words = rows.given.words
        some = ", ".join(f"'{caption}'" for caption in dict.fromkeys(words.decode(rows.given.parts["train"][:3])))
        say(f"The model is given captions, such as {some}. Words: {', '.join(words.words)}.")


def _keep_columns(run: Run) -> None:
    """Write what each column of a table was taken for, those that the model is given included."""
    schema, given = run.rows.schema, run.rows.given
    if schema is not None:
        others = given.schema.columns if isinstance(given, Given) else ()
        every = replace(schema, columns=(*schema.columns, *others))
        write_file(run.folder / COLUMNS, every.to_yaml().encode())


def _draw_graphs(run: Run, say: Callable[[str], None]) -> None:
    """Draw the graph into the folder, and that of labelled rows, where there are some."""
    with suppress(Exception):  # a picture that cannot be drawn must not cost the results
        for which, batch in run.rows.examples().items():
            drawn = draw_graph(run.fitted.pair, batch, run.folder / f"graph{'-labelled' if which else ''}.png")
            if drawn.suffix == ".gv":
                say(f"No picture of the graph: Graphviz's dot is not installed. See {drawn.name}.")


def _fitted(
    pair: PairLike,
    options: Options,
    rows: Rows,
    say: Callable[[str], None],
    *,
    resume: bool,
    force: bool,
    checkpoint: Path,
    info: dict[str, Any],
    callbacks: Sequence[Callback],
    of_first: Sequence[Tracker],
    **how: Any,
) -> Fit:
    """The fit of a pair to the training rows: at once, or in two stages in one folder, the first of which is then frozen.

    Args:
        callbacks, of_first: what keeps the numbers of the fit, and what else looks at it, and what keeps those of the first of
            two stages.
    """

    def fit_rows(one: PairLike, *, labels: bool = True, **more: Any) -> Fit:
        return fit(
            one,
            rows.batch("train", labels=labels),
            epochs=int(options.epochs or 0),
            batch_size=int(options.batch_size or 0),
            learning_rate=float(options.learning_rate or 0),
            validation=None if rows.validation is None else rows.batch("validation"),
            patience=options.patience,
            keep_best=_keeps_best(options) and rows.validation is not None,
            schedule=_schedule(options),
            loss=_loss(options),
            check_also=rows.batch("test"),
            clip_norm=options.clip_norm,
            on_nan=options.on_nan,
            checkpoint=checkpoint,
            checkpoint_every=options.checkpoint_every,
            seed=options.seed,
            **how,
            **more,
        )

    if options.stages == 2:
        first = MODELS[options.model].first_stage(pair)
        if not resume or _in_first_stage(checkpoint):
            with suppress(Exception):
                say(f"Stage 1 of 2, without labels:\n{graph_text(first, rows.examples()[''])}")
            fit_rows(first, labels=False, resume=resume, force=force, info=info | {"stage": 1}, callbacks=of_first)
            resume, force = False, True  # its run gives way to that of the second
            say("Stage 2 of 2: the model of its codes and of the labels.")
        first.requires_grad_(False).eval()
    return fit_rows(pair, resume=resume, force=force, info=info, callbacks=callbacks)


def _in_first_stage(folder: Path) -> bool:
    """Whether the run in a folder is the first stage of a fit, under way or finished."""
    return bool(ranks.first(lambda: read_run(folder))["info"].get("stage") == 1)


def _built(options: Options, rows: Rows) -> PairLike:
    with Bounded.by_memory():
        sizes = tuple(len(column.classes) for column in rows.several)
        return build(options, rows.train, rows.num_classes, rows.schema, rows.gaps, rows.given, sizes)


def _keeps_best(options: Options) -> bool:
    """Whether to keep the best epoch: on digits with 100 labels, M2's last one had more right and a higher log p(x)."""
    return options.keep == "best" or (options.keep is None and not MODELS[options.model].infers_labels)


def _schedule(options: Options) -> list[Any]:
    schedule: list[Any] = [schedules.one_cycle(float(options.learning_rate or 0))]
    if options.kl_warmup:
        schedule.append(schedules.kl_warmup(options.kl_warmup))
    if options.kl_cycles:
        schedule.append(schedules.kl_cycles(options.kl_cycles))
    if options.lagging > 0:
        schedule.append(schedules.lagging(epochs=options.lagging))
    if options.estimator == "relaxed":
        schedule.append(schedules.cooling(1.0, 0.5, epochs=float(options.epochs or 2) / 2))
    return schedule


def _loss(options: Options) -> Any:
    if options.estimator == "score":
        return Trace_ELBO(num_particles=5)
    if not options.free_bits:
        return None if options.kl == "draws" or options.estimator is not None else Trace_ELBO(kl="auto")
    floors: Any = options.free_bits
    if options.model == "hierarchical":  # not z1, which is inferred first: see `free_bits`
        floors = {f"z{level}": options.free_bits for level in range(2, len(options.levels or ()) + 1)}
    return Trace_ELBO(kl=free_bits(floors))


def resume_run(
    folder: Path,
    *,
    data: Path | None = None,
    data_root: Path | None = None,
    device: str = "auto",
    track: Sequence[str] = (),
    progress: bool = True,
    trust: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> Run:
    """Go on with the fit in a folder: the same data, split, options and random numbers.

    Args:
        data: the file of the data, needed where the run is not where it was made, and its data were not read before.
        track: where its numbers are kept besides, see `pyrovae.app.track`.
        trust: run the files that the folder names for parts of the user's own.
        say: called with messages.

    Raises:
        CheckpointError: there is no run of `fit` in the folder, it is damaged, or it names files that are not trusted.
        DataError: the data have changed since the fit, or are not found.
    """
    with reading(folder):
        info = recorded_info(folder)
        options = recorded_options(folder, info, trust)
        dataset = known.data_of(folder, info, data, data_root, say)
        check_decided(options, decide(options, dataset, len(dataset.x)))
    return fit_run(dataset, options, folder, resume=True, device=device, track=track, progress=progress, say=say)


def open_run(
    folder: Path,
    *,
    data: Path | None = None,
    data_root: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    trust: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> Run:
    """A finished run with its data, split and scaled as they were for the fit.

    Args:
        data: the file of the data, needed where the run is not where it was made, and its data were not read before.
        threads: CPU threads that questions compute with; None for as many as the rule gives.
        trust: run the files that the folder names for parts of the user's own.
        say: called with messages: which file is read.

    Raises:
        OptionError: fewer than one thread.
        CheckpointError: there is no finished run of `fit` in the folder, it is damaged, or it names files that are not
            trusted.
        DataError: the data have changed since the fit, or are not found.
    """
    threads = as_threads(threads)
    with reading(folder):
        info = recorded_info(folder)
        if _in_first_stage(folder):
            raise CheckpointError(
                f"The fit in {folder} is still in the first of its two stages: continue it first with --resume."
            )
        options = recorded_options(folder, info, trust)
    fitted = None if own_paths(options) else load(folder, device=device)  # its weights are checked before data are read
    with reading(folder):
        dataset = known.data_of(folder, info, data, data_root, say)
        options = decide(options, dataset, len(dataset.x))
        split = Split.from_json(info["split"], num_rows=len(dataset.x))
        scaler = Standardize.from_json(info["scaler"]) if info["scaler"] else None
        rows = make_rows(dataset, split, options, scaler)
    if fitted is None:  # a part that the user wrote cannot be rebuilt from run.json alone
        fitted = load(folder, device=device, pair=_built(options, rows))
    fitted.threads = threads
    return Run(options, dataset, rows, fitted, folder)


def describe(dataset: Dataset, options: Options, rows: Rows) -> str:
    """What was decided, in one line."""
    counts = f"{len(rows.train)} training, {0 if rows.validation is None else len(rows.validation)} validation, "
    binarised = "" if binarisation(options, dataset) is None else " on rows binarised anew at every step"
    model = MODELS[options.model]
    which = f"model {options.model}"
    if model.clusters:
        which += f" of {options.clusters} clusters"
    elif rows.given is not None:
        which += f" given {rows.given.what}"
    elif rows.several:
        known = [
            f"{one.name} ({one.argument}, {len(one.classes)} classes, {int((one.codes['train'] >= 0).sum())} known)"
            for one in rows.several
        ]
        which += f" of {', '.join(known)} in training rows"
    elif rows.argument is not None:
        labels = rows.batch("train")[rows.argument]
        which += f" of {rows.num_classes} classes, {counted(int((labels >= 0).sum()), 'training row')} labelled"
    latent = ", ".join(map(str, options.levels or (options.latent,)))
    prior = "normal for each class" if (model.labels or model.clusters) and rows.given is None else "normal"
    if isinstance(rows.given, GivenCaptions) and int(options.latent or 0) > 1:
        prior = "coupling"
    kind, num = (dataset.kind, dataset.x.shape[1]) if rows.schema is None else ("table", len(rows.schema.modelled))
    nets = options.net
    if options.stages == 2:
        which += ", in two stages"
    if options.groups is not None:
        latent, nets = f"groups of {','.join(map(str, options.groups))} maps of {latent}", "residual cells"
    guide, dims = options.guide, f"{latent} latent dimension{'s' * (latent != '1')}"
    if model.quantised:
        prior, guide, dims = "autoregressive", "a point", f"codes of {options.codebook}"
    elif options.estimator is not None:
        prior, guide, dims = "uniform", f"one-hot ({options.estimator})", f"{latent} codes of {options.categories}"
    return (
        f"{dataset.name}: {counts}{counted(len(rows.test), 'test row')} of {num} ({kind}); {which}, likelihood "
        f"{options.likelihood}{binarised}, prior {options.prior if 'prior' in model.takes else prior}, guide "
        f"{guide}, {dims}, {nets}"
    )


def default_folder(name: str, root: Path = Path("runs")) -> Path:
    """A folder for a run that was given none: runs/NAME, or runs/NAME-2 and so on where that is taken by another job."""
    number, folder = 1, root / name
    while folder.exists() and any(folder.iterdir()) and not is_of_this_job(folder):
        number += 1
        folder = root / f"{name}-{number}"
    return folder
