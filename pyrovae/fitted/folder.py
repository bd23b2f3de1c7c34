"""Run folders: a fitted pair on disk, with tensors in safetensors and everything else in JSON and CSV.

Loading never runs pickled code, and looks at checksums first: run.json holds its own and those of the other files. The files
are::

    weights.safetensors      the fitted weights, a shared tensor once
    run.json                 how to rebuild the pair, its layout, the settings of the fit, and what the caller wanted to keep
    history.csv              one line per epoch
    checkpoint.safetensors   the whole state of a fit, finished or not, from which it can be resumed

They change together, see `pyrovae.fitted.files`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pyrovae._files import beside
from pyrovae._json import of_json
from pyrovae.batching import transforms
from pyrovae.batching.transforms import Transform
from pyrovae.errors import CheckpointError, MissingPackageError, PyrovaeError, shortened
from pyrovae.fitted import hub
from pyrovae.fitted.files import (
    HISTORY,
    STATE,
    WEIGHTS,
    claim_folder,
    content_of,
    key_of,
    read_run,
    replace_files,
)
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.limits import Bounded
from pyrovae.fitted.spec import externals, from_spec, to_spec
from pyrovae.pair.asked import refuse_unfitted
from pyrovae.pair.layout import Layout, Site, describe
from pyrovae.pair.parameters import default_dtype, find_device, fork_rng, modules, named_tensors, param_scope, place
from pyrovae.pair.program import PairLike

Arguments = dict[str, tuple[tuple[int, ...], torch.dtype]]  # the shape of one row and the dtype of each argument

ENTRIES: dict[str, type] = {
    "status": str,
    "pair": dict,
    "layout": dict,
    "untransformed": dict,
    "settings": dict,
    "info": dict,
}
ENTRIES |= {"columns": dict, "more_layouts": list, "stopped": str, "frozen": list, "evaluating": list}
SETTINGS = ("chunk_product", "best_epoch", "num_rows")  # numbers that questions use
WITHOUT_PAIR = "finished, without a pair"  # the status of a run that has recorded something else


def _replace(
    folder: Path, fitted: Fit, contents: Mapping[str, bytes], *, anew: bool, before: Mapping[str, Any], **more: Any
) -> None:
    """Replace files of a run and its run.json together.

    Args:
        contents: the new content of files, by name.
        anew: whether it is another run, so that files which it lacks are removed.
        before: the checksums of files that stay, by key.
    """
    run = {
        "pair": to_spec(fitted.pair, own=True),
        **_write_frozen(fitted.pair),
        "transform": to_spec(fitted.transform, own=True),
        "layout": _write_layout(fitted.layout),
        **({"more_layouts": [_write_layout(layout) for layout in fitted.more_layouts]} if fitted.more_layouts else {}),
        **({"untransformed": _write_arguments(fitted.untransformed)} if fitted.untransformed else {}),
        **({"columns": fitted.columns} if fitted.columns else {}),
        "settings": fitted.settings,
        "info": fitted.info,
        **more,
        **before,
    }
    replace_files(folder, run, contents, anew=anew)


def _write_frozen(pair: PairLike) -> dict[str, list[str]]:
    """The parameters that do not learn, and of the modules that hold no others those in evaluation mode, by name.

    Other modules are all in evaluation mode where a run is saved inside of `Fit.scope`, which is nothing to remember.
    """
    parameters, parts = [], []
    for prefix, owner in modules(pair).items():
        parameters += [f"{prefix}{name}" for name, p in owner.named_parameters() if not p.requires_grad]
        still = [m for m in owner.modules() if any(True for _ in m.parameters()) and not _learns(m)]
        inside = {id(part) for module in still for part in module.modules()}
        parts += [name for name, part in _parts(prefix, owner) if id(part) in inside and not part.training]
    return {name: found for name, found in (("frozen", parameters), ("evaluating", parts)) if found}


def _learns(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _freeze(pair: PairLike, run: Mapping[str, Any]) -> None:
    """Let the parameters and modules be as `_write_frozen` found them."""
    parameters, parts = set(run.get("frozen", ())), set(run.get("evaluating", ()))
    for prefix, owner in modules(pair).items():
        for name, parameter in owner.named_parameters():
            parameter.requires_grad_(f"{prefix}{name}" not in parameters and parameter.requires_grad)
        for name, part in _parts(prefix, owner):
            part.training = name not in parts and part.training


def _parts(prefix: str, owner: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A module and those in it by name; the module itself has the name of its prefix."""
    return ((f"{prefix}{name}", part) for name, part in owner.named_modules())


def _write_layout(layout: Layout) -> dict[str, Any]:
    return {
        "sites": [asdict(site) for site in layout.sites],
        "plate_nesting": layout.plate_nesting,
        "arguments": _write_arguments(layout.arguments),
    }


def _write_arguments(arguments: Arguments) -> dict[str, Any]:
    return {a: [list(s), str(d)[6:]] for a, (s, d) in arguments.items()}


def _read_arguments(spec: Mapping[str, Any]) -> Arguments:
    return {a: (tuple(s), getattr(torch, d)) for a, (s, d) in spec.items()}


def _write_tensors(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    return bytes(save_tensors({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata))


def _read_tensors(path: Path, content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        header = of_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return load_tensors(content), dict(header.get("__metadata__") or {})
    except (SafetensorError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): restore it, or fit again.") from error


def save(fitted: Fit, folder: str | Path, *, force: bool = False) -> Path:
    """Save a fitted pair to a new run folder, from which `load` reads it.

    The folder gets `weights.safetensors`, `run.json` and `history.csv`. `pv.fit(..., checkpoint=folder)` writes the same, so
    that it needs no `save`.

    Args:
        fitted: The fitted pair.
        folder: Path of the folder, which is created.
        force: Replace the run that is in the folder. Other files in it stay.

    Returns:
        The path of the folder.

    Raises:
        CheckpointError: The folder is not empty, unless `force` is set and it contains a run; or it cannot be created.

    Example:
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=1, batch_size=20, seed=0, progress=False)
        >>> folder = pv.save(fitted, "run")
        >>> sorted(file.name for file in folder.iterdir())
        ['history.csv', 'run.json', 'weights.safetensors']
        >>> pv.save(fitted, "run")
        Traceback (most recent call last):
        pyrovae.errors.CheckpointError: run exists and is not empty: choose another folder, ...
        >>> pv.save(fitted, "run", force=True) == folder
        True
    """
    refuse_unfitted(fitted)
    folder = claim_folder(folder, force=force)
    write_fit(folder, fitted, anew=True)
    return folder


def write_fit(folder: Path, fitted: Fit, status: str = "finished", *, anew: bool = False) -> None:
    """Write a fitted pair into its folder, next to the state that is there, or `anew`, in place of another run."""
    before: dict[str, Any] = {}
    if not anew:
        with suppress(CheckpointError):
            before = {key: value for key, value in read_run(folder).items() if key == key_of(STATE)}
    with param_scope(fitted.store):
        fitted.check_weights()
        weights = _write_tensors(named_tensors(fitted.pair, buffers=True))
    contents = {WEIGHTS: weights, HISTORY: _write_history(fitted.history)}
    _replace(folder, fitted, contents, anew=anew, before=before, status=status, stopped=fitted.stopped)


def _write_history(history: list[dict[str, float]]) -> bytes:
    columns = list(dict.fromkeys(name for row in history for name in row))
    with io.StringIO(newline="") as text:
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(history)
        return text.getvalue().encode()


def load(
    folder: str | Path,
    pair: PairLike | None = None,
    *,
    transform: Transform | None = None,
    trust: bool = False,
    device: str | torch.device = "cpu",
) -> Fit:
    """Load a fitted pair from a run folder.

    A pair that consists of classes of pyrovae, and of distributions and activations of torch and Pyro, is built again from
    `run.json`. If it has parts of your own, build it as you did for the fit and pass it as `pair`; likewise if it has a
    distribution that is made of others, such as `MixtureSameFamily` or a transformed one. No pickled code is run, and checksums
    are looked at first. (Runs of versions 0.1 and 0.2.0 have one of the weights only.)

    Args:
        folder: A folder that `save`, `pv.fit(..., checkpoint=folder)` or the command line has written; or "hub:user/name", a
            run on the Hugging Face Hub, which is downloaded (`pip install 'pyrovae[hub]'`).
        pair: The pair, newly built, whose weights are replaced by those of the run; None to build it from the run.
        transform: The transform of the fit, if it is a function of your own.
        trust: Import the classes and functions of your own that the run names, which runs their code, instead of asking for
            `pair` and `transform`. They must be importable, and keep their constructors' arguments as attributes of the same
            names. It also lifts the limits of what a run.json may describe, which follow from the size of its weights.
        device: Where the weights are put: "cpu", "cuda", "auto", or a `torch.device`.

    Returns:
        The fitted pair, as `pv.fit` returned it.

    Raises:
        CheckpointError: The folder contains no finished run, is damaged, or was written by a newer version; or the run needs
            `pair` or `transform`; or its weights do not fit the pair.
        DataError: The run is not on the Hub, or the Hub does not answer.
        OptionError: The device cannot be used.
        MissingPackageError: A part of the pair needs a package that is not installed.

    Example:
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=1, batch_size=20, seed=0, progress=False)
        >>> loaded = pv.load(pv.save(fitted, "vae-of-digits"), device=fitted.device)
        >>> loaded
        Fit(VAE of z, x: 1 epoch, ELBO ... nats per row)
        >>> torch.equal(pv.encode(loaded, x), pv.encode(fitted, x))
        True
    """
    device = find_device(device)
    of_hub = isinstance(folder, str) and folder.startswith(hub.PREFIX)
    folder = hub.download(str(folder).removeprefix(hub.PREFIX)) if of_hub else Path(folder)
    run = read_run(folder)
    if run.get("status") == "running":
        raise CheckpointError(
            f"The fit in {folder} has not finished: continue it first with resume=True (or --resume)."
        )
    if run.get("status") == WITHOUT_PAIR:
        raise CheckpointError(f"The run in {folder} has fitted no pair: `pyrovae label` does so with --steps.")
    tensors, _ = _read_tensors(folder / WEIGHTS, content_of(folder, WEIGHTS, run))
    if transform is None and not trust and externals(run.get("transform")):
        raise CheckpointError(
            f"This run's transform is a function of your own, {externals(run['transform'])[0]}: pass it with "
            "pv.load(folder, transform=...), or import it with trust=True, if you trust it."
        )
    try:
        _check_entries(run)
        layout, *more = (read_layout(spec) for spec in (run["layout"], *run.get("more_layouts", [])))
        bounded = nullcontext() if trust else Bounded.by_weights(tensors, _longest((layout, *more)))
        with bounded:
            built = from_spec(run["pair"], trust=trust) if pair is None else pair
            own = transform if transform is not None else from_spec(run["transform"], trust=trust)
        if transform is None and not trust and own is not None and type(own).__module__ != transforms.__name__:
            raise TypeError(f"its transform is {own!r}")
        fitted = Fit(
            pair=built,
            layout=layout,
            more_layouts=tuple(more),
            history=_read_history(folder, run),
            settings=run["settings"],
            transform=own,
            info=run["info"],
            stopped=run.get("stopped", ""),
            untransformed=_read_arguments(run.get("untransformed", {})),
            columns={argument: [str(name) for name in names] for argument, names in run.get("columns", {}).items()},
        )
        if pair is None and externals(run["pair"]) and to_spec(fitted.pair, own=True) != run["pair"]:
            raise CheckpointError(
                f"The parts of your own in {folder} have other attributes when they are built again: build the pair and pass "
                "it with pv.load(folder, pair=...)."
            )
        if pair is None:
            _take_dtype(fitted.pair, tensors)
        with param_scope(fitted.store), default_dtype(fitted.pair):
            for layout in fitted.layouts:
                with bounded if pair is None else nullcontext():
                    found = initialize(fitted.pair, layout, device)
                if pair is None and not trust:
                    _compare_layouts(layout, found)
            copy_tensors(named_tensors(fitted.pair, buffers=True), tensors)
        if pair is None:
            _freeze(fitted.pair, run)
        fitted.keep_weights()
    except Exception as error:  # whatever the parts raise that a damaged run.json describes
        if isinstance(error, (CheckpointError, MissingPackageError)) or (
            pair is not None and isinstance(error, PyrovaeError)
        ):
            raise
        raise CheckpointError(
            f"The run in {folder} is damaged ({shortened(repr(error))}): restore it, or fit again."
        ) from error
    return fitted


def _check_entries(run: Mapping[str, Any]) -> None:
    """TypeError or KeyError for what a run.json can't hold, before anything is made of it."""
    for name, kind in ENTRIES.items():
        if not isinstance(run.get(name, kind()), kind):
            raise TypeError(f"{name} is {shortened(repr(run[name]))}")
    for name in SETTINGS:
        number = run["settings"].get(name)
        if not (number is None or (isinstance(number, int | float) and math.isfinite(number))):
            raise TypeError(f"settings.{name} is {shortened(repr(run['settings'][name]))}")


def _longest(layouts: Sequence[Layout]) -> int:
    """The longest side of the rows of all arguments."""
    return max((side for one in layouts for shape, _ in one.arguments.values() for side in shape), default=0)


def _compare_layouts(recorded: Layout, found: Layout) -> None:
    """TypeError where a pair that was built again is another than the one of which the layout was recorded."""
    sites = {site.name: site for site in found.sites}
    for site in recorded.sites:
        same = sites.get(site.name)
        if same is None or replace(site, argument=same.argument, optional=same.optional) != same:
            raise TypeError(f"its layout says {shortened(repr(site))}, and the pair has {shortened(repr(same))}")
        if site.argument is not None and site.argument not in recorded.arguments:
            raise TypeError(f"site {site.name!r} observes {site.argument!r}, which is none of its arguments")
    if len(sites) != len(recorded.sites) or recorded.plate_nesting != found.plate_nesting:
        raise TypeError("its layout is not that of the pair")


def read_layout(spec: Mapping[str, Any]) -> Layout:
    """The layout that run.json describes."""
    return Layout(
        sites=tuple(_read_site(site) for site in spec["sites"]),
        plate_nesting=spec["plate_nesting"],
        arguments=_read_arguments(spec["arguments"]),
    )


def _read_site(spec: Mapping[str, Any]) -> Site:
    plates = tuple((name, size) for name, size in spec.get("plates", ()))
    return Site(**{**spec, "event_shape": tuple(spec["event_shape"]), "plates": plates})


def _read_history(folder: Path, run: Mapping[str, Any]) -> list[dict[str, float]]:
    path = folder / HISTORY
    if not path.exists() and not beside(path).exists():
        return []
    try:
        with io.StringIO(content_of(folder, HISTORY, run).decode(), newline="") as text:
            return [
                {k: int(v) if k in ("epoch", "steps") else float(v) for k, v in row.items() if v != ""}
                for row in csv.DictReader(text)
            ]
    except (ValueError, TypeError, csv.Error) as error:
        raise CheckpointError(f"{path} is damaged ({error}): restore it, or remove it.") from error


def initialize(pair: PairLike, layout: Layout, device: torch.device) -> Layout:
    """Create the parameters that a pair creates at its first run, by running it on two rows of zeros, and return its layout."""
    rows = {a: torch.zeros(2, *shape, dtype=dtype, device=device) for a, (shape, dtype) in layout.arguments.items()}
    place(pair, device)
    with fork_rng(), torch.no_grad():
        found = describe(pair, rows)
    place(pair, device)
    return found


def _take_dtype(pair: PairLike, tensors: Mapping[str, Tensor]) -> None:
    """Give a pair that was built with torch's default dtype that of the weights of the run, such as float64."""
    found = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(found) == 1:
        (dtype,) = found
        for module in modules(pair).values():
            module.to(dtype)


def copy_tensors(into: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors by name. CheckpointError names those that are missing, left over, or of another shape or dtype."""
    missing, left = sorted(set(into) - set(tensors)), sorted(set(tensors) - set(into))
    if missing or left:
        raise CheckpointError(
            f"The weights do not fit the pair: it has {missing[:5]}, which the run does not, and lacks {left[:5]}. Pass the "
            "pair that was fitted."
        )
    for name, tensor in into.items():
        if tensor.shape != tensors[name].shape or tensor.dtype != tensors[name].dtype:
            raise CheckpointError(
                f"Weight {name!r} is {tuple(tensor.shape)} {str(tensor.dtype)[6:]} in the pair and "
                f"{tuple(tensors[name].shape)} {str(tensors[name].dtype)[6:]} in the run: pass the pair that was fitted."
            )
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(tensors[name])


def write_state(
    folder: Path, fitted: Fit, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], *, anew: bool = False
) -> None:
    """Write all that is needed to resume a fit: tensors by name, and notes as JSON in the header of their file."""
    contents = {STATE: state_of(tensors, notes), HISTORY: _write_history(fitted.history)}
    _replace(folder, fitted, contents, anew=anew, before={}, status="running")


def state_of(tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> bytes:
    """The content of a file of tensors by name, with notes as JSON in its header, see `read_state`."""
    return _write_tensors(tensors, {"notes": json.dumps(notes)})


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_state` wrote. CheckpointError if there is no such file, or it is damaged."""
    tensors, metadata = _read_tensors(folder / STATE, content_of(folder, STATE, read_run(folder)))
    try:
        return tensors, of_json(metadata["notes"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / STATE} is damaged ({error}): restore it, or fit again.") from error
