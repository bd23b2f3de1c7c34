"""More time for an answer: ensembles that are added, what they gain, how it ends, and how it goes on."""

import itertools
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.command import Command
from torch import Tensor

import pyrovae as pv
from pyrovae.app import budget
from pyrovae.app.jobs import label as labelling
from pyrovae.app.jobs.label import Job, label_rows, writing
from pyrovae.app.jobs.label import job as home
from pyrovae.app.jobs.label.ensemble import MOVED_FROM, SHIFT, TURN, ZOOM, Ensemble, moved
from pyrovae.app.jobs.label.rounds import Rounds, rounds_before
from pyrovae.app.options import Options
from pyrovae.data import Dataset
from pyrovae.data.labels import as_labels
from pyrovae.errors import CheckpointError, OptionError
from pyrovae.fitted.files import STATE, replace_files
from pyrovae.fitted.lock import locked
from pyrovae.training.console import interruptible

# --- sums of answers


def some_answers() -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Three answers for five rows and for three judged ones, and the labels of these."""
    p = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    return list(p[:3]), list(p[3:, :3]), torch.tensor([0, 2, 1])


def test_rounds_answer_by_the_geometric_mean_unless_it_is_clearly_worse() -> None:
    each, judged, y = some_answers()
    rounds = Rounds.begin(each[0], judged[0], 1.0)
    assert rounds.answer(y) == (each[0], judged[0]) and rounds.gain(y) == (0.0, 0.0)
    for p, q, seconds in zip(each[1:], judged[1:], (3.0, 2.0)):
        rounds = rounds.plus(p, q, seconds)
    assert (rounds.number, rounds.seconds) == (3, 3.0) and rounds.plus(each[0], judged[0], 9.0).seconds == 9.0
    mean = torch.stack(judged).prod(0) ** (1 / 3)
    mean = mean / mean.sum(-1, keepdim=True)
    differences = np.array([float((mean[i, c] / judged[0][i, c]).log()) for i, c in enumerate(y.tolist())])
    assert rounds.gain(y) == pytest.approx((differences.mean(), differences.std(ddof=1) / math.sqrt(3)))
    good, bad = (
        (mean / judged[0]).argmax(-1),
        (judged[0] / mean).argmax(-1),
    )  # labels of which the mean is surer, or less
    torch.testing.assert_close(rounds.answer(good)[1], mean)
    torch.testing.assert_close(
        rounds.answer(good)[0].log().diff(), (sum(p.log() for p in each) / 3).log_softmax(-1).diff()
    )
    gain, error = rounds.gain(bad)
    assert gain < -error and rounds.answer(bad) == (each[0], judged[0])
    none = Rounds.begin(each[0], judged[0][:0], 1.0).plus(each[1], judged[1][:0], 1.0)
    assert none.gain(y[:0]) == (0.0, 0.0)


def test_rounds_come_back_from_their_file_bit_for_bit_or_not_at_all(tmp_path: Path) -> None:
    each, judged, _ = some_answers()
    rounds = Rounds.begin(each[0], judged[0], 0.5).plus(each[1], judged[1], 0.25)
    assert rounds_before(tmp_path, 5, 3, 3) is None
    replace_files(tmp_path, {"status": "finished"}, {STATE: rounds.content()}, anew=True)
    again = rounds_before(tmp_path, 5, 3, 3)
    assert again is not None and (again.number, again.seconds) == (2, 0.25)
    for name in ("first", "total", "judged_first", "judged_total"):
        assert torch.equal(getattr(again, name), getattr(rounds, name))
    assert rounds_before(tmp_path, 6, 3, 3) is None and rounds_before(tmp_path, 5, 3, 2) is None
    (tmp_path / STATE).write_bytes(rounds.content()[:-8])
    assert rounds_before(tmp_path, 5, 3, 3) is None


# --- other ensembles


def a_job(x: Tensor, labels: list[str], shape: tuple[int, ...] | None = None) -> Job:
    dataset = Dataset(name="t", x=x, kind="real", source={"checksum": "0"}, image_shape=shape)  # type: ignore[arg-type]
    return Job(dataset, x, as_labels(labels), None)


@pytest.fixture(scope="module")
def table() -> Job:
    """Two clouds of points that overlap, every fifth of which has its name."""
    kind = torch.arange(90) % 2
    x = torch.randn(90, 2, generator=torch.Generator().manual_seed(1)) + 1.5 * kind[:, None]
    return a_job(x, ["ab"[k] if row % 5 == 0 else "" for row, k in enumerate(kind.tolist())])


def test_an_image_is_turned_scaled_and_moved_about_its_centre() -> None:
    """Brightness that is linear in the coordinates is sampled exactly, where no border comes in."""
    height, width = 20, 30
    down, across = torch.meshgrid(torch.arange(height) - 9.5, torch.arange(width) - 14.5, indexing="ij")
    images = torch.stack([across, down, torch.ones_like(down)]).flatten(1)
    found = moved(images, (height, width), torch.Generator().manual_seed(3)).view(3, height, width)
    turn, zoom, right, below = (2 * torch.rand(4, generator=torch.Generator().manual_seed(3)) - 1).tolist()
    angle, scale = math.radians(TURN * turn), 1 / (1 + ZOOM * zoom)
    x = scale * (math.cos(angle) * across - math.sin(angle) * down) + SHIFT * right * width
    y = scale * (math.sin(angle) * across + math.cos(angle) * down) + SHIFT * below * height
    inside = (x.abs() < width / 2 - 0.5) & (y.abs() < height / 2 - 0.5)
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(found[0][inside], x[inside], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1][inside], y[inside], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[2], torch.ones(height, width))
    coloured = moved(images.flatten()[None], (3, height, width), torch.Generator().manual_seed(3))
    torch.testing.assert_close(coloured.view(3, height, width), found)


def test_another_ensemble_holds_out_other_parts_and_sees_images_that_are_large_enough_moved() -> None:
    side, labels = MOVED_FROM, ["a", "b"] * 4 + [""] * 4
    x = torch.rand(12, side * side, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(12, generator=generator)
    images = moved(x, (side, side), generator)
    for rows, seen, shape in ((x, images, (side, side)), (x[:, :64], x[:, :64], (8, 8))):
        job = a_job(rows, labels, shape)
        ensemble = Ensemble(job, 3, 1)
        found, wanted = ensemble(job.labels.y), pv.LabelEnsemble(seen[order], job.labels.y[order], 2, 3, shape)
        assert found is not None and torch.equal(found[order], wanted.probabilities)
    first = Ensemble(job, 3)(job.labels.y)
    assert first is not None and not torch.equal(found, first)
    fewer = torch.where(torch.arange(12) < 2, -1, job.labels.y)
    again = ensemble(fewer)
    assert again is not None and torch.equal(again[order], wanted.relabelled(fewer[order]).probabilities)


# --- the job, with ensembles that cost nothing


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the ensembles that are made: each says of row i and number k what a generator of both draws."""
    made: list[int] = []

    class Told(Ensemble):
        def __call__(self, y: Tensor | None) -> Tensor | None:
            assert y is not None
            made.append(self.number)
            generator = torch.Generator().manual_seed(1000 * self.number + int((y >= 0).sum()))
            truth = torch.nn.functional.one_hot(torch.arange(len(y)) % 2, 2)
            return (2 * truth + torch.randn(len(y), 2, generator=generator, dtype=torch.float64)).softmax(-1)

    monkeypatch.setattr(home, "Ensemble", Told)
    return made


def ask(job: Job, folder: Path, **how: Any) -> tuple[labelling.Answer, list[str], list[str]]:
    """An answer, what was said, and the lines that were shown."""
    said, shown = list[str](), list[str]()
    show: Callable[[str], None] = how.pop("show", shown.append)
    answer = label_rows(job, Options.of("label"), folder, progress=False, say=said.append, show=show, **how)
    return answer, said, shown


def kept(folder: Path) -> tuple[Any, ...]:
    """What two calls must agree in: the table, and what is recorded but for times and places."""
    info = json.loads((folder / "run.json").read_text())["info"]
    info.pop("written")
    return (folder / "labels.csv").read_bytes(), info


def test_as_many_ensembles_answer_as_are_asked_for(table: Job, told: list[int], tmp_path: Path) -> None:
    answer, said, shown = ask(table, tmp_path / "run", rounds=3)
    assert (
        answer.rounds == 3 and told == [0] * 4 + [1] * 4 + [2] * 4
    )  # one for the answer, and three for cross-validation
    assert [line.split(":")[0].split(", ")[1] for line in shown] == ["2 ensembles", "3 ensembles"]
    assert all("log-loss" in line and "accuracy" in line and "(cross-validated)" in line for line in shown)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["info"]["rounds"] == 3
    first, *others = (ask(table, tmp_path / f"{n}", rounds=n)[0].probabilities for n in (1, 3))
    assert torch.equal(others[0], answer.probabilities) and not torch.equal(first, answer.probabilities)
    assert torch.equal(first, ask(table, tmp_path / "plain")[0].probabilities)
    assert not any("ensembles have answered" in line for line in said)


def test_a_later_call_goes_on_to_the_same_bits(table: Job, told: list[int], tmp_path: Path) -> None:
    ask(table, tmp_path / "whole", rounds=4)
    ask(table, tmp_path / "parts", rounds=2)
    told.clear()
    _, said, _ = ask(table, tmp_path / "parts", rounds=4)
    assert sorted(set(told)) == [2, 3] and any("whose 2 ensembles answer again" in line for line in said)
    assert kept(tmp_path / "parts") == kept(tmp_path / "whole")
    told.clear()
    ask(table, tmp_path / "parts")  # without more time the answer stays
    assert not told and kept(tmp_path / "parts") == kept(tmp_path / "whole")


class Killed(BaseException):
    """In the place of a signal that ends the process."""


@pytest.mark.parametrize("moment", [1, 2, 3, 4])
def test_a_call_that_is_killed_while_it_writes_goes_on_to_the_same_bits(
    table: Job, told: list[int], tmp_path: Path, moment: int
) -> None:
    """It ends before each of the steps in which the second answer replaces the first."""
    run = tmp_path / "run"
    ask(table, tmp_path / "whole", rounds=3)
    steps = itertools.count(1)

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any, **how: Any) -> Any:
            if (run / "labels.csv").exists() and next(steps) == moment:
                raise Killed
            return real(*given, **how)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for name in ("claim_folder", "write_beside", "replace_files", "swap"):
            patch.setattr(writing, name, dying(getattr(writing, name)))
        with pytest.raises(Killed):
            ask(table, run, rounds=3)
    assert len(pd.read_csv(run / "labels.csv")) == 90  # whole
    told.clear()
    ask(table, run, rounds=3)
    assert kept(run) == kept(tmp_path / "whole")
    assert told[0] == (2 if moment == 4 else 0)  # before its run.json is there, nothing is known of the second answer


def test_other_labels_start_anew_and_so_does_a_state_that_is_lost(table: Job, told: list[int], tmp_path: Path) -> None:
    run = tmp_path / "run"
    ask(table, run, rounds=3)
    whole = kept(run)
    (run / STATE).unlink()
    told.clear()
    answer, _, _ = ask(table, run, rounds=3)
    assert told[:4] == [0] * 4 and kept(run) == whole and answer.rounds == 3
    more = Job(table.dataset, table.x, as_labels(["ab"[row % 2] if row % 3 == 0 else "" for row in range(90)]), None)
    answer, _, _ = ask(more, run, force=True)
    assert answer.rounds == 1 and not (run / STATE).exists()


def test_it_ends_in_time(table: Job, told: list[int], tmp_path: Path) -> None:
    """A clock that each ensemble moves by 2 s: four for the first answer and for each round, and 1.5 s for the end."""

    def clock() -> float:
        return 2.0 * len(told)

    answer, _, shown = ask(table, tmp_path / "a", time=26.0, clock=clock)
    assert answer.rounds == 3 and clock() == 24.0 and [line.split(" s")[0] for line in shown] == ["16", "24"]
    told.clear()
    answer, said, _ = ask(table, tmp_path / "b", time="25s", clock=clock)
    assert answer.rounds == 2  # 24 s, and 1.5 s to end
    told.clear()
    answer, said, _ = ask(table, tmp_path / "c", time=5, clock=clock)
    assert answer.rounds == 1 and any("took 8 s, which is more than --time allows" in line for line in said)
    told.clear()
    answer, _, _ = ask(table, tmp_path / "d", time="1m", rounds=2, clock=clock, began=-20.0)
    assert answer.rounds == 2
    told.clear()
    assert ask(table, tmp_path / "e", time=26, clock=clock, began=-20.0)[0].rounds == 1


def test_it_ends_where_more_would_change_nothing(
    table: Job, told: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (budget, home):
        monkeypatch.setattr(place, "MOST", 3)
    answer, said, _ = ask(table, tmp_path, time="1h")
    assert answer.rounds == 3 and said[-1] == "3 ensembles have answered; another would change next to nothing."


def test_ctrl_c_gives_the_answer_so_far(table: Job, told: list[int], tmp_path: Path) -> None:
    shown = list[str]()

    def show(line: str) -> None:
        shown.append(line)
        if len(shown) == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, lambda number, frame: pytest.fail("the command line's handler was asked"))
    try:
        answer, said, _ = ask(table, tmp_path / "run", time="1h", show=show)
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler  # it is put back
    finally:
        signal.signal(signal.SIGINT, before)
    assert answer.rounds == 3 and said[-1] == "Stopped: the answer is that of 3 ensembles."
    ask(table, tmp_path / "whole", rounds=3)
    assert kept(tmp_path / "run") == kept(tmp_path / "whole")


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_two_calls_do_not_add_to_one_answer(table: Job, told: list[int], tmp_path: Path) -> None:
    ask(table, tmp_path / "run")
    with locked(tmp_path / "run"), pytest.raises(CheckpointError, match="Another labelling job is at work"):
        ask(table, tmp_path / "run", rounds=2)


def test_where_no_label_is_held_out_the_line_says_so(table: Job, told: list[int], tmp_path: Path) -> None:
    shown = list[str]()
    options = Options.of("label", holdout=0.0)
    answer = label_rows(table, options, tmp_path, progress=False, rounds=2, show=shown.append)
    assert answer.rounds == 2 and "no label is held out" in shown[0]


def test_time_needs_an_ensemble(table: Job, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--neighbors 0 leaves them out.*Leave them out; --steps is for the model"):
        label_rows(table, Options.of("label", neighbors=0), tmp_path / "run", time=5)
    many = a_job(torch.zeros(1, 1).expand(200_000, 2), ["a", "a", "b", *[""] * 199_997])
    with pytest.raises(OptionError, match="there are too many rows for one"):
        label_rows(many, Options.of("label"), tmp_path / "run", rounds=2)
    assert not (tmp_path / "run").exists()


def test_the_command_tells_what_more_time_has_gained(pyrovae: Command, told: list[int]) -> None:
    rng = np.random.default_rng(0)
    kind = np.arange(60) % 2
    frame = pd.DataFrame(rng.normal(size=(60, 2)) + 1.5 * kind[:, None], columns=["a", "b"])
    frame["label"] = np.where(np.arange(60) < 14, np.where(kind == 1, "oak", "elm"), "")
    frame.to_csv("t.csv", index=False)
    code, out, err = pyrovae("label", "t.csv", "--out", "o.csv", "--rounds", 2)
    assert code == 0 and "2 ensembles: log-loss" in err and "Table: o.csv" in out, err
    assert "2 ensembles have answered; --rounds 2 asks for as many again." in out
    assert len(pd.read_csv("o.csv")) == 60
    code, _, err = pyrovae("label", "t.csv", "--out", "o.csv", "--time", "1")
    assert code == 0 and "whose 2 ensembles answer again" in " ".join(err.split())
    code, _, err = pyrovae("fit", "--resume", "runs/t-labels")
    assert code == 2 and "Error:" in err
