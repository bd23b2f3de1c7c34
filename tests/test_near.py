"""What is suggested in place of a name that was mistyped."""

from pathlib import Path

import pytest

import pyrovae as pv
from pyrovae._near import expanded, near_names, near_paths
from pyrovae._sources import check_source
from pyrovae.data.labels import read_labels

TYPED = {  # and what else it is called with -> what is suggested
    "photo": (("fotos", ()), {"folders": True}, ["photos"]),
    "photo of a kind": (("fotos/", ()), {"folders": True}, ["photos"]),
    "no folder wanted": (("fotos", (".csv",)), {}, []),
    "a letter": (("pateints.csv", (".csv",)), {}, ["patients.csv"]),
    "capitals": (("Patients.CSV", (".csv",)), {}, ["patients.csv"]),
    "no ending": (("patients", (".csv", ".parquet")), {}, ["patients.csv", "patients.parquet"]),
    "another ending": (("patients.tsv", (".csv",)), {}, ["patients.csv"]),
    "any file": (("patients.cvs",), {}, ["patients.csv", "patients.parquet"]),
    "nothing in common but the ending": (("a.csv", (".csv",)), {}, []),
    "a folder on the way": (("run/digits",), {"folders": True}, ["runs/digits"]),
    "a folder on the way alone": (("run/sprites",), {"folders": True}, ["runs"]),
    "both": (("run/digit",), {"folders": True}, ["runs"]),
    "its end": (("runs/digit",), {"folders": True}, ["runs/digits"]),
    "a usual place": (("digits",), {"folders": True, "also": ["runs/digits", "runs/none"]}, ["runs/digits"]),
    "a hidden file": (("secret.csv",), {}, []),
    "nobody's home": (("~nobody-of-this-name/x.csv",), {}, []),
    "too long": (("x" * 5000 + "/x.csv",), {}, []),
}


@pytest.mark.parametrize("name", TYPED)
def test_what_is_there_and_of_the_right_kind_is_suggested(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "runs/digits"):
        Path(folder).mkdir(parents=True)
    for file in ("patients.csv", "patients.parquet", ".secret.csv", "words.txt"):
        Path(file).touch()
    args, how, wanted = TYPED[name]
    assert near_paths(*args, **how) == (f" (did you mean {' or '.join(wanted)}?)" if wanted else "")


def test_of_an_absolute_path_the_name_is_enough(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").mkdir()
    assert near_paths(tmp_path / "runs" / "digit", folders=True) == " (did you mean digits?)"
    assert near_paths(tmp_path / "run" / "digits", folders=True) == f" (did you mean {tmp_path / 'runs' / 'digits'}?)"


def test_three_names_at_most_are_suggested() -> None:
    assert near_names("thim", ["thin", "this", "thing", "them", "seven"]).count(" or ") == 2
    assert near_names("thim", ["seven"]) == ""


def test_a_home_that_is_not_there_is_no_traceback(tmp_path: Path) -> None:
    assert expanded("~nobody-of-this-name/x.csv") == Path("~nobody-of-this-name/x.csv")
    assert expanded("~/x.csv") == Path.home() / "x.csv"
    for ask in (check_source, pv.data.load, read_labels):
        with pytest.raises(pv.DataError, match="there is no file ~nobody-of-this-name/x.csv"):
            ask("~nobody-of-this-name/x.csv")
