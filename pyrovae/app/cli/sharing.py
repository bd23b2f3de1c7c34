"""The commands that share a run by the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrovae._files import refuse_no_run
from pyrovae._lazily import Lazily
from pyrovae.app.cli import parameters as take
from pyrovae.app.cli import tables
from pyrovae.errors import shortened

if TYPE_CHECKING:
    from pyrovae.app import run as runs
    from pyrovae.app.jobs import hub as sharing
    from pyrovae.fitted import hub
else:  # so that help and mistakes need not wait for torch
    runs = Lazily("pyrovae.app.run")
    sharing = Lazily("pyrovae.app.jobs.hub")
    hub = Lazily("pyrovae.fitted.hub")
from pyrovae.app.cli.entry import app


@app.command()
def push(
    run: take.RunFolder,
    repo: take.Repo,
    license: take.License = None,
    public: take.Public = False,
    describe_data: take.DescribeData = False,
    include: take.Include = None,
    dry_run: take.DryRun = False,
) -> None:
    """Push a run to the Hugging Face Hub, with a model card: weights and how the model is built, and no data.

    Column names, categories, codes and pictures of rows, and places of files stay here; --dry-run lists what would be pushed.
    """
    refuse_no_run(run)
    (hub.check_name if dry_run else hub.check_repo)(repo)
    parcel = sharing.pack(run, repo, license=license, describe_data=describe_data, include=include or ())
    for name in parcel.files:
        tables.answer_line(f"{'would push' if dry_run else 'push'}  {name}, {parcel.size(name)} bytes")
    for name, why in parcel.left_out.items():
        tables.answer_line(f"left here   {name}: {why}")
    if dry_run:
        tables.answer_line(f"\n{parcel.text(sharing.CARD)}")
        return
    pushed = sharing.push(parcel, repo, public=public)
    tables.answer_line(f"Model: {pushed.address} ({'private' if pushed.private else 'everybody can see it'})")
    if pushed.others:
        tables.inform_line(f"It also holds files that are not of this push: {shortened(', '.join(pushed.others))}.")


@app.command()
def pull(repo: take.Repo, folder: take.PullTo = None, revision: take.Revision = None) -> None:
    """Copy a run from the Hugging Face Hub into a new folder. Nothing in it is run, and it is opened as any run of others."""
    hub.check_repo(repo)
    where = folder or runs.default_folder(repo.rpartition("/")[2])
    sharing.pull(repo, where, revision=revision, say=tables.inform_line)
    tables.answer_line(f"Run folder: {where}")
    if not sharing.describes_data(where):
        tables.answer("It does not say to what data it was fitted: open it in Python, by pv.load.")
