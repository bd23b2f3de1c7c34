"""Checks of all rows against the supports of a model's likelihoods, before any work is done that could be lost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.batching.chunks import chunks
from pyrovae.batching.extremes import edge, far_away, gap_under_mask, is_far, named_place, on_the_edge
from pyrovae.batching.transformed import transformed
from pyrovae.errors import DataError, PairError, PyrovaeError, counted
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.devices import Indexing, indices_in_range
from pyrovae.pair.dtypes import cure_of_dtypes
from pyrovae.pair.handlers import same_memory
from pyrovae.pair.mistakes import cure_of_gaps, cure_of_scale
from pyrovae.pair.parameters import dtype_of, every_module, fork_rng, trainable
from pyrovae.pair.program import PairLike, distribution_name, run, sample_sites


def check_rows(
    pair: PairLike,
    batch: Batch,
    chunk: int,
    *,
    transform: Any = None,
    strict: bool = True,
    numbers: Tensor | None = None,
) -> None:
    """Run the pair on all rows, and check the values at its observed sites.

    Args:
        pair: Model and guide.
        batch: The rows.
        chunk: The number of rows per run.
        transform: A transform of each chunk. If it has a method `check`, that is called with the whole batch first.
        strict: Whether a log-density that is not finite although the data are is an error.
        numbers: The indices of the rows in the data, `(N,)`, for error messages; 0 to N-1 by default.

    Raises:
        DataError: Values are outside the support of a likelihood, or they are missing or infinite and the log-density is
            therefore not finite.
        PairError: With `strict`, a log-density is not finite although the data are.
    """
    if numbers is None:
        numbers = torch.arange(num_rows(batch))
    check = getattr(transform, "check", None)
    if check is not None:
        _check_missing_before(batch, transform, numbers)
        check(batch)
    start, masks_checked = 0, False
    with torch.no_grad(), pyro.validation_enabled(False):
        for rows in chunks(batch, chunk):
            seen = transformed(pair, rows, transform)
            gaps = strict and not masks_checked and any(map(_has_nan, seen.values()))
            those = numbers[start : start + chunk]
            with noting_classes(pair, seen, those) as noted, torch.set_grad_enabled(gaps), explained(pair, seen, those):
                model, guide = map(sample_sites, run(pair, seen))
            for name, node in model.items():
                if node["is_observed"] and isinstance(node["value"], Tensor):
                    with _dtypes_explained(name, node["value"], pair):
                        _check_site(name, node, rows, those, strict)
                    if gaps and _has_nan(node["value"]):
                        _check_mask(pair, name, node, those)
                        masks_checked = True
            if any(_has_nan(node["value"]) for node in guide.values()):
                for argument, given in seen.items():
                    _check_missing(argument, given, those)
            check_classes(noted, seen, those)
            start += chunk


def check_doubtful_rows(pair: PairLike, batch: Batch, chunk: int, numbers: Tensor) -> None:
    """`check_rows` of those rows about which there can be doubt before any question is asked, with all that it raises.

    These are rows with values that are not finite, which a pair may or may not take, and of each argument of whole numbers, as
    are classes, the rows with the least and the largest.
    """
    found = []
    for value in batch.values():
        if value.is_floating_point():
            bad = value.new_zeros(0) if is_finite(value) else ~torch.isfinite(value)
            found.append((bad.flatten(1).any(1) if bad.dim() > 1 else bad).nonzero().flatten())
        elif value.dtype != torch.bool and value.numel():
            flat = value.flatten(1) if value.dim() > 1 else value.unsqueeze(1)
            found += [flat.amin(1).argmin().reshape(1), flat.amax(1).argmax().reshape(1)]
    index = torch.cat(found).unique() if found else torch.zeros(0, dtype=torch.long)
    if not len(index):
        return
    try:
        check_rows(pair, take_rows(batch, index), chunk, strict=False, numbers=numbers.to(index.device)[index])
    except DataError:  # which counts the rows that are wrong, and is to count all of them
        check_rows(pair, batch, chunk, strict=False, numbers=numbers)
        raise


@contextmanager
def explained(pair: PairLike, batch: Batch, numbers: Tensor) -> Iterator[None]:
    """Turn an error of a run on a batch into DataError, if it is only there for values that are not finite."""
    try:
        yield
    except PyrovaeError:
        raise
    except (RuntimeError, ValueError, IndexError):
        doubtful = [n for n, value in batch.items() if value.is_floating_point() and not is_finite(value)]
        filled = {n: value.nan_to_num(0.0, 0.0, 0.0) if n in doubtful else value for n, value in batch.items()}
        if not doubtful or not _runs(pair, filled):
            raise
        # several may be doubtful, and the pair take some of them
        guilty = [name for name in doubtful if not _runs(pair, filled | {name: batch[name]})] or doubtful
        _check_missing(guilty[0], batch[guilty[0]], numbers)


def _runs(pair: PairLike, batch: Batch) -> bool:
    try:
        with fork_rng():
            run(pair, batch)
    except (RuntimeError, ValueError, IndexError):
        return False
    return True


LARGEST = 1e24  # nats of a row; the squares that a gradient multiplies them by are to fit into float32, too
NotedClasses = list[tuple[nn.Module, Tensor, Tensor]]


@contextmanager
def noting_classes(
    pair: PairLike, batch: Mapping[str, Tensor], numbers: Tensor | None = None
) -> Iterator[NotedClasses]:
    """During a run on a batch, note what the pair's codes of classes are given and is no class: the module, its input, which.

    Such a code, as `nets.OneHot`, has a method `outside`, and where its values are no classes, as those of `nets.Words`, says
    what they are (`values`), and what to do (`cure`). It does not complain by itself, since looking at values in every
    step would make a GPU wait. `numbers` are those of the rows in the data, 0 to N-1 by default.

    Raises:
        DataError: The run looks something up at an index that is not there, and an argument is integers; or at a negative one
            of an argument, which Python counts from the end.
    """
    numbers = torch.arange(max(map(len, batch.values()), default=0)) if numbers is None else numbers
    noted: NotedClasses = []

    def note(module: Any, inputs: tuple[Any, ...]) -> None:
        outside = module.outside(inputs[0])
        if bool(outside.any()):
            noted.append((module, inputs[0], outside))

    codes = {m for owner in every_module(pair).values() for m in owner.modules() if hasattr(m, "outside")}
    hooks = [code.register_forward_pre_hook(note) for code in codes]
    try:
        device = next(iter(batch.values())).device if batch else torch.device("cpu")
        with indices_in_range(device), _no_index_from_the_end(batch, numbers):
            yield noted
    except (IndexError, RuntimeError) as error:
        what = (str(error).splitlines() or [""])[0]
        integers = [name for name, value in batch.items() if not value.is_floating_point()]
        check_classes(noted, batch, numbers)
        if not integers or not (isinstance(error, IndexError) or what.startswith("Class values must be")):
            raise
        raise DataError(
            f"The pair failed ({what}): a value of {' or '.join(map(repr, integers))} is perhaps no class that it knows. "
            "Correct the values, or build the pair for more classes."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def _no_index_from_the_end(batch: Mapping[str, Tensor], numbers: Tensor) -> AbstractContextManager[Any]:
    """Inside, DataError where an argument with negative values is an index: -1, a missing group, would be the last one."""
    negative = {
        name: value
        for name, value in batch.items()
        if not value.is_floating_point() and value.dtype != torch.bool and value.numel() and bool((value < 0).any())
    }

    def look(index: Tensor) -> None:
        for name, value in negative.items():
            if same_memory(index, value):
                place = (value < 0).nonzero()[0].tolist()
                raise DataError(
                    f"{name!r}: {int((value < 0).sum())} of {value.numel()} values are negative, the first is "
                    f"{value[tuple(place)].item()} in row {int(numbers[place[0]])}, and the pair takes them for an index, as "
                    "which -1 is the last one. Number groups from 0; give rows without one a group of their own, or drop them."
                )

    return Indexing(look) if negative else nullcontext()


def check_classes(noted: NotedClasses, batch: Mapping[str, Tensor], numbers: Tensor) -> None:
    """DataError if a code of classes was given something else."""
    for module, value, outside in noted:
        argument = next((name for name, given in batch.items() if same_memory(value, given)), None)
        if argument is None and bool(torch.isnan(value).any()):
            continue  # it stands for an argument that is to be drawn, about which there is another error
        row = outside.nonzero()[0].tolist()
        of, where = (f"{argument!r}: ", f" in row {int(numbers[row[0]])}") if argument else ("", "")
        kind, cure = getattr(module, "values", "class"), getattr(module, "cure", None) or suggest_classes(value)
        code = f"{type(module).__name__}({module.extra_repr()})"  # without the modules inside
        raise DataError(
            f"{of}{int(outside.sum())} of {outside.numel()} values are no {kind} of {code}, the first is "
            f"{value[tuple(row)].item():g}{where}. {cure}"
        )


def check_given(
    nodes: Mapping[str, Any], known: Mapping[str, Tensor], latent: Collection[str], noted: NotedClasses
) -> None:
    """DataError if values that were given, of arguments or of latent sites, are outside the supports of their sites.

    Args:
        nodes: The sites of a run of the model.
        known: The arguments that were given.
        latent: The names of the latent sites that were given.
        noted: What `noting_classes` has noted in the run.
    """
    for name, node in nodes.items():
        value = node["value"]
        observes = node["is_observed"] and any(same_memory(value, given) for given in known.values())
        if isinstance(value, Tensor) and (observes or name in latent):
            check_support(name, node["fn"], value, torch.arange(len(value) if value.dim() else 1))
    check_classes(noted, known, torch.arange(max(map(len, known.values()), default=0)))


@contextmanager
def _dtypes_explained(name: str, value: Tensor, pair: PairLike) -> Iterator[None]:
    """DataError in place of torch's where a likelihood does not compute with rows of this dtype."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        cure = "" if isinstance(error, PyrovaeError) else cure_of_dtypes(error, {name: value}, dtype_of(pair))
        if not cure:
            raise
        raise DataError(f"Site {name!r} has no density at such rows: {error}{cure}") from error


def _check_site(name: str, node: Any, rows: Batch, numbers: Tensor, strict: bool) -> None:
    value, fn = node["value"], node["fn"]
    check_support(name, fn, value, numbers)
    log_prob = fn.log_prob(value)
    rounded = (
        log_prob.is_floating_point() and not value.is_floating_point() and value.to(log_prob.dtype).long() != value
    )
    if isinstance(rounded, Tensor) and bool(rounded.any()):
        place = rounded.nonzero()[0].tolist()
        raise DataError(
            f"Site {name!r}: {counted(int(rounded.sum()), 'integer is', 'integers are')} rounded to "
            f"{str(log_prob.dtype)[6:]} where their density is "
            f"computed, the first is {value[tuple(place)].item()} in {named_place(place, numbers)}. Subtract an offset, change "
            "their unit, or fit the pair in float64 (pair.double())."
        )
    if is_finite(log_prob):
        if strict and bool((log_prob.abs() > LARGEST).any()):
            _check_extremes(name, fn, value, log_prob, rows, numbers)
        return
    for argument, given in rows.items():
        _check_missing(argument, given, numbers)
    if not strict:
        return
    _check_extremes(name, fn, value, log_prob, rows, numbers)
    usual = f"check the scale of the data, and of the network's output, which gives the parameters of {distribution_name(fn)}."
    raise PairError(
        f"Site {name!r} has a log-density that is not finite in the first run, although the data are finite: "
        f"{cure_of_scale([value]) or usual}"
    )


def _check_extremes(name: str, fn: Any, value: Tensor, log_prob: Tensor, rows: Batch, numbers: Tensor) -> None:
    """DataError if the values of a row explain why its log-density is not finite, or so large that its gradient is not."""
    bad = ~(log_prob.abs() <= LARGEST)
    if bad.dim() == 0 or len(bad) != len(value):
        return
    bad = bad.flatten(1).any(1) if bad.dim() > 1 else bad
    at = edge(_elementwise_support(fn), value) & bad.reshape(-1, *[1] * (value.dim() - 1))
    if bool(at.any()):
        raise DataError(on_the_edge(name, fn, value, at, numbers))
    for argument, given in {**rows, name: value}.items():
        place = far_away(given, bad) if len(given) == len(bad) else None
        if place is not None:
            raise DataError(is_far(argument, given, place, numbers))


def _check_mask(pair: PairLike, name: str, node: Any, numbers: Tensor) -> None:
    """DataError if missing values that a site leaves out of its density make the gradient of the pair's parameters NaN."""
    with torch.enable_grad():
        total = node["fn"].log_prob(node["value"]).sum()
    if not total.requires_grad:
        return
    gradients = torch.autograd.grad(total, list(trainable(pair).values()), allow_unused=True, retain_graph=True)
    if any(_has_nan(gradient) for gradient in gradients if gradient is not None):
        raise DataError(gap_under_mask(name, node["value"], numbers))


def _has_nan(value: Tensor) -> bool:
    return value.is_floating_point() and bool(torch.isnan(value).any())


def check_support(name: str, fn: Any, value: Tensor, numbers: Tensor) -> None:
    """DataError if values of a site, whose rows have these numbers in the data, are outside the support of its distribution."""
    support = _elementwise_support(fn)
    if support is None:
        return
    inside = support.check(value)
    while inside.dim() > value.dim():  # the distribution has several particles, and the value has none
        inside = inside.all(0)
    if not bool(inside.all()):
        finite = torch.isfinite(value)
        if inside.dim() < finite.dim():  # the support is a set of whole rows, such as the simplex
            finite = finite.flatten(inside.dim()).all(-1)
        inside = inside | ~finite
    if not bool(inside.all()):
        bad = (~inside).nonzero()[0].tolist()
        where = f"row {int(numbers[bad[0]])}" + (f", column {bad[1]}" if len(bad) > 1 else "")
        like = value[finite]
        if hasattr(support, "of_column"):  # each column has its own support
            support, like = support.of_column(bad[-1]), value[..., bad[-1]][finite[..., bad[-1]]]
        on_edge = edge(_elementwise_support(fn), value) & torch.isfinite(value)
        if inside.shape == value.shape and bool((on_edge | inside).all()):  # of an open support
            raise DataError(on_the_edge(name, fn, value, on_edge, numbers))
        raise DataError(
            f"Site {name!r}: {int((~inside).sum())} of {value.numel()} values are outside the support of "
            f"{distribution_name(fn)} ({describe_support(support)}); the first is "
            f"{value[tuple(bad)].tolist()} in {where}. "
            f"{suggest_classes(like) if distribution_name(fn) == 'Categorical' else suggest(like)}"
        )


def _check_missing(argument: str, given: Tensor, numbers: Tensor) -> None:
    if is_finite(given):
        return
    bad = ~torch.isfinite(given)
    number, is_gap = int(bad.sum()), bool(torch.isnan(given).any())
    bad_ones = f"{number} NaN" if is_gap else counted(number, "infinite value")
    rows = bad.flatten(1).any(1) if bad.dim() > 1 else bad
    cure = cure_of_gaps([argument]) if is_gap else "Replace or drop these rows."
    raise DataError(
        f"{argument!r} has {bad_ones} in {counted(int(rows.sum()), 'row')} (the first is row "
        f"{int(numbers[int(rows.nonzero()[0])])}), and this model does not take them. {cure}"
    )


def _check_missing_before(batch: Batch, transform: Any, numbers: Tensor) -> None:
    for argument, given in batch.items():
        if argument == getattr(transform, "argument", argument):
            _check_missing(argument, given, numbers)


def is_finite(values: Tensor) -> bool:
    """Whether all values are finite. A finite sum proves it in one pass; any other sum may just have overflowed."""
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def _elementwise_support(fn: Any) -> Any:
    """The support of one element, or of whole rows; None for a distribution that does not say."""
    try:
        support = fn.support
    except (NotImplementedError, AttributeError):
        return None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def describe_support(support: Any) -> str:
    """The set of values that a constraint allows, in words."""
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)

    def bound(value: Any) -> str:
        return f"{torch.as_tensor(value).max().item():g}"

    kind = "integers" if getattr(support, "is_discrete", False) else "reals"
    if isinstance(support, type(constraints.boolean)):
        return "0 or 1"
    if low is not None and high is not None:
        return f"{kind} from {bound(low)} to {bound(high)}"
    if low is not None:
        return f"{kind} from {bound(low)}"
    return str(support)


def suggest(values: Tensor) -> str:
    """A sentence that names likelihoods whose support contains these values."""
    if not values.numel():
        return ""
    low, high = values.min().item(), values.max().item()
    integral = bool((values == values.round()).all())
    found = f"The values are {'integers' if integral else 'reals'} from {low:g} to {high:g}: "
    if integral and low >= 0 and high <= 1:
        return found + "Bernoulli fits."
    if integral and low >= 0:
        return (
            found
            + f"Binomial or BetaBinomial with total_count={int(high)} (or a known larger bound) fits, or Poisson or "
            "NegativeBinomial, which have none."
        )
    if low >= 0 and high <= 1:
        return found + "Bernoulli with transform=pv.transforms.Binarize() fits, or ContinuousBernoulli."
    return found + ("LogNormal or Gamma fits, or Normal." if low > 0 else "Normal fits, or StudentT with outliers.")


def suggest_classes(values: Tensor) -> str:
    """A sentence that says how to number classes, for values that are not among those of a Categorical site."""
    if values.numel() and bool((values == values.round()).all()) and values.min() >= 0:
        if values.min() == 1:  # of which the highest is as a rule the number of classes
            return f"Classes are numbered from 0, and these go from 1 to {int(values.max())}: subtract 1."
        return f"Correct the values, or build the model for {int(values.max()) + 1} classes, 0 to {int(values.max())}."
    return "Number the classes 0, 1, 2, ..."
