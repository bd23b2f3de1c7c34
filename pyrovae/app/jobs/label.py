"""Labelling: few labels in, for every row the most probable one out, how sure that is, and what to label next.

This is a face, as `runs` is for `pyrovae fit`: it reads rows and labels, fits a `SSVAE` to all rows, labelled or not, and asks
its classifier, several times with dropout on. A run folder keeps weights and decisions, so that a later call with more labels
goes on from there.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.distributions import Categorical

from pyrovae import families, plots, priors
from pyrovae.app.catalogue import LIKELIHOODS, choose
from pyrovae.app.decide import decide, refuse_missing
from pyrovae.app.options import Options
from pyrovae.batching.transforms import Binarize
from pyrovae.conditionals import Conditional, mlp
from pyrovae.criticism.acquisition import entropy, information_gain
from pyrovae.criticism.calibration import fit_temperature, log_score, reliability, with_temperature
from pyrovae.data import Dataset, Standardize, load
from pyrovae.data.images import load_folder
from pyrovae.data.labels import LABEL, Labels, as_labels, hold_out, match_labels, read_labels, refuse_labels
from pyrovae.errors import CheckpointError, DataError, OptionError
from pyrovae.fitted.fitted import Fit, seeded
from pyrovae.fitted.folder import claim_folder, read_run, write_fit
from pyrovae.fitted.folder import load as load_fit
from pyrovae.models import SSVAE
from pyrovae.nets import MLP, Behind, ConvEncoder, Log1p, OneHot, ReLUDropout, Rescaled
from pyrovae.nets.dropout import dropping
from pyrovae.training import schedules
from pyrovae.training.fit import fit

NETS = ("mlp", "conv")
CONV_FROM = 16  # pixels a side from which convolutions see more than a perceptron
ENOUGH, MISTAKES, FOLDS = (
    20,
    5,
    20,
)  # held-out rows, and wrong ones of them, from which a temperature is better than none
WORK = 5e12  # floating-point operations of a default fit: a minute or two on two cores
STEPS = (300, 2000)
PICTURES = ("reliability.png", "doubtful.png")


@dataclass(frozen=True, eq=False)
class Job:
    """Rows and what is known of their labels. x: (N, D), test rows of a source of its own last; ids: N names, or None."""

    dataset: Dataset
    x: Tensor
    labels: Labels
    ids: tuple[str, ...] | None

    @property
    def id_column(self) -> str:
        """What the rows' names are called in a table."""
        return "row" if self.ids is None else "file" if Path(self.dataset.source.get("path", "")).is_dir() else "id"

    def names(self) -> list[str]:
        return [str(row) for row in range(len(self.x))] if self.ids is None else list(self.ids)


@dataclass(frozen=True)
class Settings:
    """What a person may choose. None: decided from the data (`decide_settings`).

    net: "conv" puts convolutions before classifier and encoder, from 16 x 16 pixels on; "mlp" none. dropout: share of the
    classifier's hidden units left out, in training and in each of the `passes` that give its opinions. alpha: see `SSVAE`.
    holdout: share of each class's labelled rows kept for the report.
    """

    likelihood: str | None = None
    total_count: int | None = None
    net: str | None = None
    latent: int | None = None
    hidden: int = 200
    dropout: float = 0.5
    alpha: float | None = None
    steps: int | None = None
    batch_size: int = 128
    labelled_batch_size: int = 40
    learning_rate: float = 3e-3
    holdout: float = 0.2
    passes: int = 20
    seed: int = 0


SHAPE = ("likelihood", "total_count", "net", "latent", "hidden", "dropout")  # what weights are for


@dataclass(frozen=True, eq=False)
class Answer:
    """What came out. table: one line a row (see `tabulate`); report: numbers on the held-out rows; pictures: what was drawn."""

    fitted: Fit
    table: pd.DataFrame
    report: dict[str, Any]
    pictures: list[Path]
    folder: Path


def read_job(
    source: str, labels: str | Path | None = None, *, size: int | None = None, data_root: Path | None = None
) -> Job:
    """Rows and labels. source: a folder of images (`load_folder`), or what `load` takes, whose column `id` names the rows.

    labels: a table as `read_labels` takes it; None, or the source itself, for the column `label` of a .csv, or y of a .npz.

    Raises:
        DataError, OptionError: the rows or labels cannot be read, do not belong together, or teach nothing.
    """
    path = Path(source).expanduser()
    if labels is not None and Path(labels).expanduser().is_dir():
        raise DataError(
            f"--labels {labels} is a folder: give a table of labels, a CSV file with the columns file,label."
        )
    if source.endswith(("/", "\\")) and not path.exists():
        raise DataError(f"there is no folder {path}: check its name, and where you are.")
    own = labels is None or (path.is_file() and Path(labels).expanduser().absolute() == path.absolute())
    if path.is_dir():
        if labels is None:
            raise OptionError("a folder of images needs --labels: a table with the columns file,label.")
        dataset = load_folder(path, size=size)
    elif size is not None:
        raise OptionError(f"--size is for a folder of images, and {source} is none. Leave it out.")
    else:
        dataset = _load_table(source, own, data_root)
    refuse_missing(dataset)
    x = dataset.x if dataset.x_test is None else torch.cat([dataset.x, dataset.x_test])
    if labels is None or own:
        found = _own_labels(dataset, len(x))
    else:
        found = match_labels(read_labels(labels), dataset.ids, len(x), labels)
        if dataset.source.get("label") is not None:
            found = _merged(found, _own_labels(dataset, len(x)), dataset.ids, labels, source)
    refuse_labels(found)
    return Job(dataset, x, found, dataset.ids)


def _load_table(source: str, own: bool, data_root: Path | None) -> Dataset:
    """Rows, with the column `label` as their labels if they are to have their own."""
    table = source.lower().endswith((".csv", ".data"))
    cells = _header(Path(source).expanduser()) if table else []
    called = [cell for cell in cells if cell.lower() == LABEL]
    if table and (own or called):
        try:
            return load(source, label=called[0] if called else LABEL, ids="id")
        except OptionError as error:
            raise OptionError(f"{source} has no column {LABEL!r}: name one so, or give --labels TABLE.") from error
    dataset = load(source, data_root=data_root, ids="id")
    if own and dataset.y is None:
        raise OptionError(f"{source} has no labels (an array y): give --labels TABLE, with the columns row,label.")
    return dataset


def _header(path: Path) -> list[str]:
    """The cells of a table's first line; `load` has the words for what is no table."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return [cell.strip(' "\n\r') for cell in re.split("[,;\t]", file.readline())]


def _own_labels(dataset: Dataset, num_rows: int) -> Labels:
    parts = [(dataset.y, len(dataset.x)), (dataset.y_test, num_rows - len(dataset.x))]
    codes = torch.cat([torch.full((rows,), -1) if y is None else y for y, rows in parts])
    classes = dataset.classes or ()
    return as_labels([str(classes[code]) if code >= 0 else "" for code in codes.tolist()])


def _merged(table: Labels, own: Labels, ids: tuple[str, ...] | None, labels: str | Path, source: str) -> Labels:
    """The labels of both: a table written for rows that have some of their own. DataError where they contradict each other."""
    merged = []
    for row, (told, had) in enumerate(zip(table.text(table.y), own.text(own.y))):
        if told and had and told != had:
            name = row if ids is None else ids[row]
            raise DataError(f"Row {name} is {had!r} in {source} and {told!r} in {labels}. Make them agree.")
        merged.append(told or had)
    return as_labels(merged)


def decide_settings(settings: Settings, job: Job) -> Settings:
    """Fill in what was left open: the likelihood as `recipes.decide` does, convolutions from 16 x 16 pixels on, then with 50
    latent dimensions, else 10.

    alpha: 0.6 D for rows of D numbers, at least 50: log p(x | y) of two classes lie the further apart the more numbers a
    row has, and the labels must weigh beside that. Steps: as many as make 5e12 floating-point operations, at least 300 and
    at most 2,000. Raises OptionError.
    """
    if settings.likelihood is not None:
        choose("likelihood", settings.likelihood, LIKELIHOODS)
    for name in ("hidden", "steps", "batch_size", "labelled_batch_size", "passes"):
        value = getattr(settings, name)
        if value is not None and value < (least := 2 if name == "passes" else 1):
            raise OptionError(f"--{name.replace('_', '-')} must be at least {least}, got {value}.")
    chosen = decide(
        Options(
            likelihood=settings.likelihood,
            total_count=settings.total_count,
            latent=10 if settings.latent is None else settings.latent,
            hidden=(settings.hidden,),
            learning_rate=settings.learning_rate,
        ),
        job.dataset,
        len(job.x),
    )
    shape = job.dataset.image_shape
    net = settings.net or ("conv" if shape is not None and min(shape[-2:]) >= CONV_FROM else "mlp")
    choose("net", net, NETS)
    if net == "conv" and shape is None:
        raise OptionError("--net conv needs images, and these rows have no image shape; use --net mlp.")
    filled = replace(
        settings,
        likelihood=chosen.likelihood,
        total_count=chosen.total_count,
        net=net,
        latent=(50 if net == "conv" else 10) if settings.latent is None else settings.latent,
        alpha=max(50.0, 0.6 * job.x.shape[1]) if settings.alpha is None else settings.alpha,
    )
    if filled.steps is None:
        filled = replace(filled, steps=min(STEPS[1], max(STEPS[0], round(WORK / _work(filled, job)))))
    return filled


def _work(settings: Settings, job: Job) -> float:
    """Floating-point operations of a step, about: three times those of a forward pass, two a weight."""
    shape, classes = job.dataset.image_shape, len(job.labels.classes)
    dense = settings.hidden * job.x.shape[1]
    seen = dense
    if settings.net == "conv" and shape is not None:
        pixels, channels = shape[-1] * shape[-2], 1 if len(shape) == 2 else shape[0]
        seen = 9 * 32 * channels * pixels // 4 + 9 * 32 * 64 * pixels // 16 + 64 * pixels // 16 * settings.hidden
    rows = settings.batch_size + settings.labelled_batch_size
    return 6.0 * (rows * 2 * seen + (settings.batch_size * classes + settings.labelled_batch_size) * dense)


def build_pair(job: Job, settings: Settings) -> SSVAE:
    """The `SSVAE` of these settings for such rows: all classes alike beforehand, p(y) = 1 / C, one hidden layer a network.

    Counts enter classifier and encoder divided by their bound, or as log(1 + x).
    """
    classes, n, hidden = len(job.labels.classes), int(settings.latent or 1), settings.hidden
    chosen = LIKELIHOODS[str(settings.likelihood)]
    event: Any = job.dataset.image_shape if settings.net == "conv" else job.x.shape[1]
    guide, labels = families.Normal(n), families.Categorical((), num_classes=classes)
    dropout = ReLUDropout(settings.dropout)
    encoder: Any
    classifier: Any
    if settings.net == "conv":
        encoder = Behind(ConvEncoder(event, hidden), MLP((hidden, classes), guide.param_shape, (hidden,)))
        classifier = Behind(ConvEncoder(event, hidden), MLP(hidden, labels.param_shape, (hidden,), dropout))
    else:
        encoder = MLP((event, classes), guide.param_shape, (hidden,))
        classifier = MLP(event, labels.param_shape, (hidden,), dropout)
    if chosen.needs_total and (settings.total_count or 1) > 1:
        encoder, classifier = (Rescaled(net, 1 / int(settings.total_count or 1)) for net in (encoder, classifier))
    elif chosen.takes in ("count", "positive"):
        encoder, classifier = Log1p(encoder), Log1p(classifier)
    return SSVAE(
        label_prior=Categorical(logits=torch.zeros(classes)),
        prior=priors.StandardNormal(n),
        likelihood=mlp((n, classes), chosen.build(event, settings.total_count or 1), (hidden,)),
        encoder=Conditional(encoder, guide),
        classifier=Conditional(classifier, labels),
        code=OneHot(classes),
        alpha=float(settings.alpha or 0),
    )


def model_rows(job: Job, settings: Settings) -> Tensor:
    """The rows as the model takes them: standardised where its likelihood is for reals, in the shape of images for conv."""
    x = Standardize.fit(job.x).apply(job.x) if LIKELIHOODS[str(settings.likelihood)].takes == "real" else job.x
    return x.reshape(len(x), *(job.dataset.image_shape or ())) if settings.net == "conv" else x


def label_rows(
    job: Job,
    settings: Settings,
    folder: str | Path,
    *,
    to: str | Path | None = None,
    fresh: bool = False,
    force: bool = False,
    device: str = "auto",
    engine: str = "auto",
    progress: bool | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Answer:
    """Fit, or go on with the run in the folder; judge every row; leave a table, a report and pictures.

    The labels held out for the report are those of the first run in the folder, its rows being seen without labels, as all
    unlabelled rows are; labels that come later all teach. If the first ones were of rows drawn at random, the report
    holds for all rows. A run of the same rows, classes and networks is gone on with from its weights, with half the steps
    at a third of the learning rate; with other classes or networks training starts anew, the same rows held out.

    to: the table, by default labels.csv in the folder. fresh: start anew, held-out rows drawn anew, too, and replace the run
    in the folder, of whatever rows. force: replace the file `to` even if it is not as this job left it.

    Raises:
        OptionError: a file that is in the way, an impossible setting. CheckpointError: the folder holds another run.
        DataError: the rows are not what the likelihood takes.
    """
    folder = Path(folder)
    to = folder / "labels.csv" if to is None else Path(to)
    settings = decide_settings(settings, job)
    before = _earlier(folder, job, fresh)
    _refuse_file(to, {} if before is None else before["written"], force)
    held, again = hold_out(job.labels, settings.holdout, settings.seed), False
    if before is not None and not before.get("fresh"):
        stays = torch.tensor([row for row in before["held_out"] if job.labels.y[row] >= 0], dtype=torch.int64)
        if _teaches(job.labels, stays):
            held, again = stays, _goes_on(before, settings, job, say)
            if settings.holdout != before["settings"].get("holdout"):
                say(f"The {len(held)} rows held out before stay so, whatever --holdout says; --fresh draws them anew.")
        else:
            say(
                "Training starts anew, other rows held out: too few labels of some class are left beside those of before."
            )
    taught = job.labels.y.clone()
    taught[held] = -1
    say(_describe(job, settings, held, again))
    x = model_rows(job, settings)
    if before is not None and again and _same(before, settings, taught):
        say(f"The labels are those of the run in {folder}: its weights are asked again.")
        fitted = load_fit(folder, device=device)
    else:
        fitted = _train(x, taught, settings, job, folder if again else None, device, engine, progress)
    opinions = committee(fitted, x, settings.passes, seed=settings.seed)
    report, temperature = judge(opinions, job.labels, held, seed=settings.seed)
    table = tabulate(job, opinions, temperature)
    sums = dict(before["written"]) if before is not None else {}
    fitted.info = {
        "job": "label",
        "data": job.dataset.source,
        "rows": _digest_rows(job),
        "settings": asdict(settings),
        "classes": list(job.labels.classes),
        "held_out": held.tolist(),
        "taught": _digest(taught),
        "results": report,
    }
    content = table.to_csv(index=False, float_format="%.6g").encode()
    fitted.info["written"] = sums | {str(to.absolute()): hashlib.sha256(content).hexdigest()}
    write_fit(claim_folder(folder, force=True), fitted)
    temporary = to.with_name(to.name + ".part")
    temporary.write_bytes(content)
    os.replace(temporary, to)
    return Answer(fitted, table, report, _draw(job, report, table, folder), folder)


def _train(
    x: Tensor,
    y: Tensor,
    settings: Settings,
    job: Job,
    earlier: Path | None,
    device: str,
    engine: str,
    progress: bool | None,
) -> Fit:
    torch.manual_seed(settings.seed)
    pair = build_pair(job, settings) if earlier is None else load_fit(earlier).pair
    steps, rate = int(settings.steps or 1), settings.learning_rate
    if earlier is not None:
        steps, rate = math.ceil(steps / 2), rate / 3
    known = int((y >= 0).sum())
    sizes = {"y": min(known, settings.labelled_batch_size), "": min(len(y) - known, settings.batch_size)}
    rows, size = max((known, sizes["y"]), (len(y) - known, sizes[""]))  # of the largest group, whose passes are epochs
    return fit(
        pair,
        {"x": x, "y": y},
        epochs=math.ceil(steps * size / rows),
        batch_size=min(len(y), settings.batch_size),
        group_size=sizes,
        schedule=schedules.one_cycle(rate),
        transform=Binarize() if job.dataset.kind == "unit" and settings.likelihood == "bernoulli" else None,
        seed=settings.seed,
        device=device,
        engine=engine,
        progress=progress,
    )


def committee(fitted: Fit, x: Tensor, num: int, seed: int | None = 0) -> Tensor:
    """Opinions of a pair's `classifier` with its dropout on: (num, N, C) probabilities, float64.

    Each is a draw of q(y | x, w) under an approximate posterior of the classifier's weights w; their mean approximates
    p(y | x, labels), their disagreement says what labels could still teach. Rows enter as they are: the fit's transform is
    not applied, so that a pixel that was binarised anew at each step is seen at its mean. Gal & Ghahramani 2016,
    arXiv:1506.02142; Gal, Islam & Ghahramani 2017, arXiv:1703.02910. Raises OptionError for less than one pass.
    """
    if num < 1:
        raise OptionError(f"a committee needs one pass or more, got {num}.")
    classifier = fitted.pair.classifier
    with fitted.scope(), seeded(seed), dropping(classifier):
        parts = [
            torch.stack([classifier(rows).probs.double().cpu() for _ in range(num)])
            for rows in x.to(fitted.device).split(1000)
        ]
    return torch.cat(parts, 1)


def judge(opinions: Tensor, labels: Labels, held: Tensor, seed: int = 0) -> tuple[dict[str, Any], float]:
    """How good the mean opinion is on held-out rows, and the temperature that its probabilities want: (report, temperature).

    From 20 held-out rows on, 5 of which are mistaken, the temperature has the best log score on them, and the report is of
    probabilities tempered crosswise: each of 20 folds of these rows by the temperature of the others. Else it is 1: where
    nearly all rows are right, the best temperature of so few is far too cold.

    report: held_out, the number of rows; accuracy with its standard error; calibration_error (ECE over bins of equal
    mass, at most 10, of 5 rows or more), beside calibration_error_of_chance, what probabilities that are exactly right
    would show on as few rows (mean of 200 draws of labels; Broecker & Smith 2007, doi:10.1175/WAF993.1); log_score, nats
    per row; temperature, None where it was not fitted; curve, that of `Reliability`. Without held-out rows only their number.
    """
    mean, y = opinions.mean(0)[held], labels.y[held]
    report: dict[str, Any] = {"held_out": len(held)}
    if not len(held):
        return report, 1.0
    temperature, tempered = 1.0, mean
    generator = torch.Generator().manual_seed(seed)
    enough = len(held) >= ENOUGH and int((mean.argmax(-1) != y).sum()) >= MISTAKES
    if enough:
        temperature, tempered = fit_temperature(mean, y), mean.clone()
        for fold in torch.randperm(len(held), generator=generator).tensor_split(min(FOLDS, len(held))):
            others = torch.ones(len(held), dtype=torch.bool)
            others[fold] = False
            tempered[fold] = with_temperature(mean[fold], fit_temperature(mean[others], y[others]))
    right = (tempered.argmax(-1) == y).double()
    draws = torch.multinomial(tempered, 200, replacement=True, generator=generator).T
    binned = partial(reliability, tempered, num_bins=max(1, min(10, len(held) // 5)), bins="mass")
    curve = binned(y)
    report |= {
        "accuracy": right.mean().item(),
        "accuracy_se": math.sqrt(right.mean().item() * (1 - right.mean().item()) / len(held)),
        "calibration_error": curve.error,
        "calibration_error_of_chance": torch.tensor([binned(drawn).error for drawn in draws]).mean().item(),
        "log_score": log_score(tempered, y),
        "temperature": temperature if enough else None,
        "curve": {name: getattr(curve, name).tolist() for name in ("confidence", "accuracy", "counts")},
    }
    return report, temperature


def tabulate(job: Job, opinions: Tensor, temperature: float = 1.0) -> pd.DataFrame:
    """One line a row: its id; `label` as given, "" where unknown; `predicted`, the most probable label; its `probability`;
    the `entropy` of all, nats; `information_gain`, what its label would say of the classifier's weights, nats; `rank` by
    that among the unlabelled, 1 first.

    opinions: (S, N, C) as of `committee`. Probabilities and entropy are of their mean, tempered; the gain is of the opinions
    as they are (Houlsby et al. 2011, arXiv:1112.5745).
    """
    p = with_temperature(opinions.mean(0), temperature)
    probability, predicted = p.max(-1)
    gain = information_gain(opinions) + 0.0  # no -0.0
    unknown = (job.labels.y < 0).nonzero().squeeze(1)
    rank = pd.array([pd.NA] * len(p), dtype="Int64")
    order = unknown[gain[unknown].argsort(descending=True, stable=True)]
    rank[order.numpy()] = range(1, len(order) + 1)
    return pd.DataFrame(
        {
            job.id_column: job.names(),
            LABEL: job.labels.text(job.labels.y),
            "predicted": job.labels.text(predicted),
            "probability": probability.numpy(),
            "entropy": entropy(p).numpy(),
            "information_gain": gain.numpy(),
            "rank": rank,
        }
    )


def _earlier(folder: Path, job: Job, fresh: bool) -> Mapping[str, Any] | None:
    """What the run in a folder noted, None where there is none. CheckpointError unless it is one of these rows."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    info = read_run(folder).get("info", {})
    if not isinstance(info, dict) or info.get("job") != "label":
        raise CheckpointError(f"{folder} holds another kind of run: choose a folder of its own by --run.")
    wanted = {
        "settings": dict,
        "classes": list,
        "held_out": list,
        "taught": str,
        "written": dict,
        "data": dict,
        "rows": str,
    }
    if not all(isinstance(info.get(name), kind) for name, kind in wanted.items()) or any(
        not isinstance(row, int) for row in info["held_out"]
    ):
        raise CheckpointError(f"The run.json in {folder} is damaged: restore it, or remove the folder.")
    if fresh:
        return {**info, "fresh": True}
    if info["rows"] != _digest_rows(job):
        sized = " (or --size is another)" if Path(job.dataset.source.get("path", "")).is_dir() else ""
        raise CheckpointError(
            f"{folder} holds a run of other rows ({info['data'].get('path') or info['data'].get('name')}), or they have "
            f"changed since{sized}: give another folder by --run, or --fresh to start anew in this one."
        )
    return info


def _goes_on(before: Mapping[str, Any], settings: Settings, job: Job, say: Callable[[str], None]) -> bool:
    """Whether its weights are of use; if not, why not."""
    now = asdict(settings)
    other = [name for name in SHAPE if before["settings"].get(name) != now[name]]
    if before["classes"] != list(job.labels.classes):
        other.append("classes")
    if other:
        plural = len(other) > 1 or other == ["classes"]
        say(f"Training starts anew: {', '.join(other)} {'are' if plural else 'is'} not as before.")
    return not other


def _teaches(labels: Labels, held: Tensor) -> bool:
    """Whether two labels or more of every class are left beside the rows held out."""
    left = labels.y.clone()
    left[held] = -1
    return int(torch.bincount(left[left >= 0], minlength=len(labels.classes)).min()) >= 2


def _same(before: Mapping[str, Any], settings: Settings, taught: Tensor) -> bool:
    """Whether the run was trained as it would be now."""
    asked = ("passes", "holdout")  # of its weights, or decided before
    was = {name: value for name, value in before["settings"].items() if name not in asked}
    return was == {n: v for n, v in asdict(settings).items() if n not in asked} and before["taught"] == _digest(taught)


def _refuse_file(to: Path, written: Mapping[str, str], force: bool) -> None:
    """OptionError where writing the table would lose something."""
    if to.suffix.lower() != ".csv":
        raise OptionError(f"--out {to}: the table is written as .csv.")
    if to.exists() and not force:
        found = written.get(str(to.absolute()))
        if found is None:
            raise OptionError(f"{to} exists: choose another name, or --force.")
        if hashlib.sha256(to.read_bytes()).hexdigest() != found:
            raise OptionError(
                f"{to} has changed since it was written: if labels were filled in, give it as --labels and another name as "
                "--out; --force replaces it."
            )


def _digest(y: Tensor) -> str:
    return hashlib.sha256(y.numpy().astype("<i8").tobytes()).hexdigest()


def _digest_rows(job: Job) -> str:
    """Of rows and their names, not of the file: labels may have been filled in beside them."""
    digest = hashlib.sha256(job.x.numpy().astype("<f4").tobytes())
    digest.update("\n".join(job.names()).encode())
    return digest.hexdigest()


def _describe(job: Job, settings: Settings, held: Tensor, again: bool) -> str:
    shape = job.dataset.image_shape
    what = f"images of {shape[-1]} x {shape[-2]}, " + ("gray" if len(shape) == 2 else "colour") if shape else "rows"
    if job.ids is None:
        what += ", numbered from 0"
    steps = (
        f"{math.ceil(int(settings.steps or 1) / 2)} steps from the weights of before"
        if again
        else f"{settings.steps} steps"
    )
    return (
        f"{job.dataset.name}: {len(job.x)} {what}; {len(job.labels.known)} labels of {len(job.labels.classes)} classes, "
        f"{len(held)} of them held out; likelihood {settings.likelihood}, {settings.net}, {settings.latent} latent dimensions, "
        f"{steps}"
    )


def _draw(job: Job, report: Mapping[str, Any], table: pd.DataFrame, folder: Path) -> list[Path]:
    """The reliability diagram of the held-out rows, and the images to label next."""
    for name in PICTURES:
        (folder / name).unlink(missing_ok=True)
    made = {}
    if "curve" in report:
        made["reliability.png"] = plots.reliability(**report["curve"])
    if job.dataset.image_shape is not None:
        first = table.sort_values("rank").head(min(40, int(table["rank"].notna().sum())))
        captions = [f"{_short(label)} {p:.2f}" for label, p in zip(first["predicted"], first["probability"])]
        made["doubtful.png"] = plots.captioned(job.x[first.index.tolist()], job.dataset.image_shape, captions)
    return [plots.save(axes, folder / name) for name, axes in made.items()]


def _short(label: str) -> str:
    return label if len(label) <= 10 else label[:9] + "…"
