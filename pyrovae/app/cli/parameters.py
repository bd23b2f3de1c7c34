"""The parameters of the commands: those of `Options`, made from their declarations, and those that are not of a run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from pyrovae.app.catalogue import CODEBOOKS, ESTIMATORS, NETS, NORMS, TABLES
from pyrovae.app.decide import models_taking
from pyrovae.app.declared import Option
from pyrovae.app.models import MODELS
from pyrovae.app.options import OPTIONS, offered

Given = dict[str, Any]


def help_of(option: Option, command: str) -> str:
    known = {"model": tuple(MODELS), "net": NETS, "norm": tuple(NORMS)}
    known |= {"codebook": tuple(CODEBOOKS), "estimator": tuple(ESTIMATORS)}
    known |= {kind: tuple(table) for kind, table in TABLES.items()}
    return option.help_of(command).format(
        known=", ".join(known.get(option.name, ())), models=", ".join(models_taking(option.name))
    )


def parameter(option: Option, command: str) -> inspect.Parameter:
    """An option as a parameter of a typer command."""
    default = option.shown(option.default_of(command))
    kind = str if option.is_widths else option.type
    if default is None and option.is_widths:
        kind = str | None
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, typer.Option(help=help_of(option, command))],
    )


def takes_options(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter `given` of a function by the options that a command offers, as typer reads parameters.

    The function gets them in a dict, by name, with their values parsed.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        options = offered(command)
        parameters = []
        for one in inspect.signature(function, eval_str=True).parameters.values():
            these = [parameter(option, command) for option in options] if one.name == "given" else [one]
            parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in these]

        @wraps(function)
        def run(**values: Any) -> None:
            given = {option.name: option.parse(values.pop(option.name)) for option in options}
            function(**values, given=given)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def checked(name: str) -> Callable[[Any], Any]:
    """A check of a parameter by the declaration of an option, before any work."""

    def check(value: Any) -> Any:
        OPTIONS[name].refuse(value)
        return value

    return check


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
RunFolders = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.", show_default=False)]
Source = Annotated[str, typer.Argument(help="Data, as for `fit`.", show_default=False)]
FitSource = Annotated[
    str | None,
    typer.Argument(
        help="digits, sprites, mnist, fashion-mnist, a table (.csv, .tsv, .parquet, .xlsx), an .npz or .npy file, or a folder "
        "of images.",
        show_default=False,
    ),
]
LabelSource = Annotated[
    str, typer.Argument(help="A folder of images, a .csv or .npz file, or a name as for `fit`.", show_default=False)
]
FitOut = Annotated[Path | None, typer.Option("--out", help="New folder for the run; by default runs/NAME.")]
SweepOut = Annotated[Path | None, typer.Option("--out", help="Folder for the runs; by default runs/NAME-sweep.")]
LabelOut = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Table to write, .csv, or tasks, .json; by default labels.csv, or tasks.json, in the run folder."
    ),
]
LabelFormat = Annotated[
    str,
    typer.Option(
        "--format", help="csv, or label-studio: tasks with predictions for Label Studio, and an interface beside them."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="File to write; its ending decides the format.")]
LabelRun = Annotated[
    Path | None,
    typer.Option("--run", help="Folder of the run, which goes on if there is one in it; by default runs/NAME-labels."),
]
Time = Annotated[
    str | None,
    typer.Option(
        "--time",
        metavar="SECONDS",
        help="How long the whole answer may take, in seconds, or such as 5m or 1h30m. The first answer, which comes as soon as "
        "without it, is improved until then by more ensembles, and Ctrl-C ends that sooner.",
    ),
]
Rounds = Annotated[
    int | None,
    typer.Option(
        "--rounds",
        metavar="NUMBER",
        help="How many ensembles answer at most, in place of --time or beside it: so many give the same answer again.",
    ),
]
LabelTable = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        help="CSV table with the columns file,label (id,label for tables), or a JSON export of Label Studio; by default the "
        "column label, or that of --label.",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        "--label",
        help="Column or array with class labels: its name, its number, or last. Several columns of a table, with commas "
        "between them, are for the model labels.",
    ),
]
OwnLabel = Annotated[
    str | None,
    typer.Option(
        "--label",
        help="Column or array of the data with the labels that are known: its name, its number, or last; by default the "
        "column label.",
    ),
]
Page = Annotated[
    bool,
    typer.Option(
        "--page",
        help="Label rows in the browser, on a page that only this machine can open; no label is needed to start. Needs "
        "pip install 'pyrovae[page]'.",
    ),
]
Port = Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.", min=0, max=65535)]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with the files of mnist or fashion-mnist.")]
RunData = Annotated[
    Path | None,
    typer.Option(
        "--data", help="File or folder of the run's data, if the run, or the data, are not where they were at the fit."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Engine = Annotated[str, typer.Option(help="How a step is run: auto, eager, traced, compiled, or graphed (CUDA).")]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads to compute with; by default as many as the size of the work keeps busy.")
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        metavar="tensorboard|mlflow|json[:PLACE]",
        help="Keep curves, pictures and the final table elsewhere, too: tensorboard[:FOLDER] or mlflow[:ADDRESS], by default "
        "in the run folder, and where MLflow is set to; json:FILE is another place for the run folder's log.jsonl, a line for "
        "each epoch. May be given several times.",
    ),
]
Samples = Annotated[int, typer.Option(help=OPTIONS["num_samples"].help, callback=checked("num_samples"))]
Proposal = Annotated[str, typer.Option(help=OPTIONS["proposal"].help, callback=checked("proposal"))]
ClassSamples = Annotated[
    int, typer.Option("--num-samples", help="Draws per row and class for Bayes' rule.", callback=checked("num_samples"))
]
ProposalOfRun = Annotated[
    str | None,
    typer.Option(
        "--proposal",
        help="As for `fit`; by default that with which the run was fitted.",
        callback=checked("proposal"),
    ),
]
NumRows = Annotated[
    int | None,
    typer.Option("--rows", help="Number of test rows for log p(x); by default as many as make a million draws."),
]
CheckRows = Annotated[
    int, typer.Option("--rows", help="Most test rows, and as many training rows, that are looked at, drawn at random.")
]
CheckOut = Annotated[
    Path | None,
    typer.Option("--out", help="Page to write, .html, and .json beside it; by default check.html in the run folder."),
]
ReportOut = Annotated[
    Path | None, typer.Option("--out", help="Page to write, .html; by default report.html in the run folder.")
]
Others = Annotated[
    list[Path] | None,
    typer.Option("--with", metavar="RUN", help="Folder of a run to compare it with; may be given several times."),
]
AllRows = Annotated[
    Path | None,
    typer.Argument(
        metavar="[TABLE]",
        help="A table of any size (.csv, .parquet, .arrow, .npy) with the columns of the run, which is read block by block, "
        "or, where the run is one of images, a folder of images.",
        show_default=False,
    ),
]
NewRows = Annotated[
    str,
    typer.Argument(
        metavar="TABLE",
        help="A file with the columns of the run, a name, or, where the run is one of images, a folder of images.",
        show_default=False,
    ),
]
HoledRows = Annotated[
    Path,
    typer.Argument(
        metavar="TABLE",
        help="A table of any size with the columns of the run, which is read block by block.",
        show_default=False,
    ),
]
OutliersOut = Annotated[
    Path | None,
    typer.Option("--out", help="Table to write, .csv or .parquet; by default outliers.csv in the run folder."),
]
FilledOut = Annotated[
    Path | None,
    typer.Option("--out", help="Table to write, .csv or .parquet; by default imputed.csv in the run folder."),
]
Draws = Annotated[
    int,
    typer.Option(
        help="Completed tables to draw, for multiple imputation; 0 writes one with the best guess of each cell."
    ),
]
CodeDraws = Annotated[
    int,
    typer.Option("--draws", help="Draws of p(z | x) for each row, one line each; 0 writes the one line of its mean."),
]
CodeSamples = Annotated[
    int,
    typer.Option(
        "--num-samples", help="With --draws: draws of the proposal to choose from.", callback=checked("num_samples")
    ),
]
Method = Annotated[
    str, typer.Option(help="How strange a row is: by log_likelihood, regret (what its guide loses), or typicality.")
]
Rate = Annotated[
    float, typer.Option(help="Share of ordinary rows that is tolerated among those that are called outliers.")
]
Dequantise = Annotated[
    bool,
    typer.Option("--dequantise", help="Turn a density of whole numbers into a lower bound of their probability mass."),
]
NumNew = Annotated[int, typer.Option("-n", "--num", help="Number of rows.")]
Mean = Annotated[bool, typer.Option("--mean", help="Write E[x | z] instead of draws of x.")]
ClassName = Annotated[
    str | None,
    typer.Option(
        "--class",
        help="The class of all rows, or of several columns of labels species=adelie,sex=male; by default each class in turn.",
    ),
]
GivenRows = Annotated[
    str | None,
    typer.Option(
        "--given",
        help="What the model of a run with --condition is given: a table with these columns, a row of which is drawn for each "
        'of its rows; or of captions c="a thin seven", for all rows.',
    ),
]
DrawSeed = Annotated[int, typer.Option("--seed", help="Seed of the draws.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file that is there.")]
ForceRun = Annotated[bool, typer.Option("--force", help="Replace the run in the folder of --out.")]
ForceTable = Annotated[bool, typer.Option("--force", help="Replace the file at --out, whatever it is.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start anew in the run folder, whatever is in it.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with the unfinished run in this folder.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the Python files that the run names for parts of your own: PART.py:NAME.")
]
Repo = Annotated[str, typer.Argument(metavar="USER/NAME", help="Name of the model on the Hub.", show_default=False)]
License = Annotated[
    str | None, typer.Option(help="License of the weights, such as apache-2.0 or cc-by-4.0, for the model card.")
]
Public = Annotated[bool, typer.Option("--public", help="Let everybody see a model that is new on the Hub.")]
DescribeData = Annotated[
    bool,
    typer.Option(
        "--describe-data",
        help="Push also what the run records of its data: names and categories of columns, the split, a checksum; so that all "
        "commands work for those who have the same file.",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE", help="Push this file of the run folder, too, as it is; may be given several times."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what would be pushed, and what stays, and show the model card.")
]
PullTo = Annotated[
    Path | None, typer.Argument(metavar="[FOLDER]", help="New folder; by default runs/NAME.", show_default=False)
]
Revision = Annotated[str | None, typer.Option(help="A branch, a tag or a commit; by default the newest.")]
Version = Annotated[bool, typer.Option("--version", help="Show the version.")]
