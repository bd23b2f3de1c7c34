"""`pyrovae push` and `pull`: what leaves this machine, and what comes back. The Hub's own library talks to a hub of ours."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from support import hub as fake
from support.command import Command, invoke
from support.programs import binary, vae
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import _files, _start
from pyrovae import families as fam
from pyrovae.app.jobs.hub import PULLED, Parcel, pack
from pyrovae.fitted import hub as names_of_hub
from pyrovae.fitted.files import read_run, sealed

OLD = Path(__file__).parents[1] / "data" / "runs" / "digits-finished"  # of version 0.1
SECRETS = (
    "ward-seven",
    "Atlantis",
    "Lyonesse",
    "income",
    "diagnosis",
    "gout",
    "scurvy",
)  # of places, columns and cells


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fake.Hub]:
    with fake.serving(monkeypatch, tmp_path / "cache") as made:
        yield made


@pytest.fixture(scope="module")
def table_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a table of two columns and a label, in a folder whose name is nobody's business."""
    folder = tmp_path_factory.mktemp("ward-seven")
    table = folder / "income.csv"
    cells = [f"{20 + k % 37},{('Atlantis', 'Lyonesse')[k % 2]},{('gout', 'scurvy')[k % 3 % 2]}" for k in range(60)]
    table.write_text("\n".join(["income,town,diagnosis", *cells]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        quick = ("--epochs", 1, "--hidden", 8, "--engine", "eager", "--proposal", "guide", "--num-samples", 30)
        code, _, err = invoke("fit", table, "--label", "diagnosis", *quick)
    assert code == 0, err
    return folder / "runs" / "income"


def texts(parcel: Parcel) -> dict[str, str]:
    return {name: parcel.text(name) for name in parcel.files if name.endswith((".json", ".md", ".csv", ".gv", ".yaml"))}


def every_byte(parcel: Parcel) -> bytes:
    return b"".join(c if isinstance(c, bytes) else c.read_bytes() for c in parcel.files.values())


# --- what leaves ----------------------------------------------------------------------------------------------------


def test_nothing_of_the_data_or_of_places_is_pushed(table_run: Path) -> None:
    parcel = pack(table_run, "me/model", license="mit")
    content = every_byte(parcel)
    found = [word for word in (*SECRETS, str(table_run.parent)) if word.encode() in content]
    assert found == []
    whole = b"".join(path.read_bytes() for path in table_run.iterdir())
    assert all(
        word.encode() in whole for word in ("ward-seven", "Atlantis", "income", "diagnosis")
    )  # else it is no test
    left = {"checkpoint.safetensors", "columns.yaml", "latent.png", "reconstructions.png"}
    assert left <= set(parcel.left_out) and {*names_of_hub.RUN_FILES, "README.md", "training.png"} <= set(parcel.files)


def test_a_description_of_the_data_is_pushed_when_asked_for_and_still_no_place(table_run: Path) -> None:
    parcel = pack(table_run, "me/model", describe_data=True)
    said = texts(parcel)
    assert "Atlantis" in said["run.json"] and "Atlantis" in said["columns.yaml"] and "income" in said["README.md"]
    assert b"ward-seven" not in every_byte(parcel) and str(table_run.parent).encode() not in every_byte(parcel)
    info = json.loads(said["run.json"])["info"]
    assert info["data"]["path"] == "data.csv" and "folder" not in info


def test_a_run_of_a_table_knows_the_names_of_its_columns_and_pushes_them_only_with_a_description(
    table_run: Path,
) -> None:
    assert pv.load(table_run).columns == {"x": ["income", "town"]}
    assert json.loads(pack(table_run, "me/model", describe_data=True).text("run.json"))["columns"] == {
        "x": ["income", "town"]
    }
    assert "columns" not in json.loads(pack(table_run, "me/model").text("run.json"))


def test_of_a_public_data_set_all_but_places_is_pushed(finished_run: Path) -> None:
    parcel = pack(finished_run, "me/digits")
    info = json.loads(parcel.text("run.json"))["info"]
    assert info["data"]["name"] == "digits" and "split" in info and "samples.png" in parcel.files
    assert str(finished_run.parent).encode() not in every_byte(parcel)


def test_names_of_columns_in_the_results_are_pushed_only_with_a_description(table_run: Path, tmp_path: Path) -> None:
    shutil.copytree(table_run, tmp_path / "run")
    run = read_run(table_run)
    run["info"]["results"]["labels"] = [{"column": "diagnosis", "rows": 12, "guide": 0.5}]
    (tmp_path / "run" / "run.json").write_bytes(sealed(run))
    parcel = pack(tmp_path / "run", "me/model")
    assert b"diagnosis" not in every_byte(parcel) and "nats per row |" in parcel.text("README.md")
    assert "| right diagnosis by the guide" in pack(tmp_path / "run", "me/model", describe_data=True).text("README.md")


def test_the_machine_of_a_job_is_not_named(finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    run = read_run(folder)
    run["settings"]["job"] = "machine-of-mine, process 3"
    (folder / "run.json").write_bytes(sealed(run))
    assert b"machine-of-mine" not in every_byte(pack(folder, "me/digits"))


def test_files_are_included_by_name(table_run: Path) -> None:
    parcel = pack(table_run, "me/model", include=["latent.png"])
    assert "latent.png" in parcel.files and "Its author has added latent.png." in parcel.text("README.md")
    assert "no rows, codes of rows" in pack(table_run, "me/model").text("README.md")
    for name in ("nothing.png", "../income.csv", "checkpoint.safetensors", ".lock"):
        with pytest.raises(pv.OptionError, match="--include"):
            pack(table_run, "me/model", include=[name])


def test_a_link_in_a_run_folder_is_not_followed(table_run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of another folder")
    link = table_run / "samples.png"
    link.symlink_to(tmp_path / "secret")
    try:
        assert b"of another folder" not in every_byte(pack(table_run, "me/model"))
    finally:
        link.unlink()


def test_a_link_in_place_of_a_file_without_checksum_is_refused(tmp_path: Path) -> None:
    """Whoever made the folder chose where it leads to; runs of version 0.1 have a checksum of the weights alone."""
    shutil.copytree(OLD, tmp_path / "run")
    (tmp_path / "run" / "history.csv").unlink()
    (tmp_path / "key").write_text("of another folder")
    (tmp_path / "run" / "history.csv").symlink_to(tmp_path / "key")
    with pytest.raises(pv.CheckpointError, match="history.csv is a link"):
        pack(tmp_path / "run", "me/model")


class Own(nn.Module):
    def __init__(self, scale: float = 1.0, given: Any = None) -> None:
        super().__init__()
        self.scale, self.given = scale, given

    def forward(self) -> Any:
        return dist.Normal(torch.zeros(2), self.scale).to_event(1)


def test_a_run_of_a_program_is_pushed_without_what_it_noted(tmp_path: Path) -> None:
    pair = vae(prior=Own())
    folder = tmp_path / "run"
    fitted = pv.fit(
        pair, binary(), epochs=1, engine="eager", progress=False, info={"note": "gout", "options": "Lyonesse"}
    )
    pv.save(fitted, folder)
    parcel = pack(folder, "me/own")
    assert not any(word.encode() in every_byte(parcel) for word in ("gout", "Lyonesse"))
    card = parcel.text("README.md")
    assert "parts of its author's own" in card and "prior=Own(scale=1.0, given=None)" in card


def test_weights_that_began_as_rows_are_pushed_only_by_name(tmp_path: Path) -> None:
    x, encoder = binary(), pv.mlp(6, fam.Normal(2), hidden=(4,))
    pair = pv.VAE(pv.priors.VampPrior(encoder, x[:5]), pv.mlp(2, fam.Bernoulli(6), hidden=(4,)), encoder)
    fitted = pv.fit(pair, x, epochs=1, engine="eager", progress=False)
    assert torch.equal(pair.prior.pseudo_inputs.detach().round(), x[:5])  # so the rows can be read in the weights
    pv.save(fitted, tmp_path / "run")
    with pytest.raises(pv.CheckpointError, match="began as rows .* add --include weights.safetensors"):
        pack(tmp_path / "run", "me/own", describe_data=True)
    card = pack(tmp_path / "run", "me/own", include=["weights.safetensors"]).text("README.md")
    assert "Its author has added weights.safetensors." in card and "holds no rows" not in card


@pytest.fixture(scope="module")
def program_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that a program has saved, with a picture of its own beside it."""
    folder = tmp_path_factory.mktemp("program") / "run"
    pv.save(pv.fit(vae(), binary(), epochs=1, engine="eager", progress=False), folder)
    (folder / "samples.png").write_bytes(b"of a patient")
    return folder


def test_a_picture_that_a_program_has_drawn_stays_unless_it_is_included(program_run: Path) -> None:
    parcel = pack(program_run, "me/own")
    assert b"of a patient" not in every_byte(parcel) and "may hold rows" in parcel.left_out["samples.png"]
    parcel = pack(program_run, "me/own", include=["./samples.png"])
    assert b"of a patient" in every_byte(parcel) and "Its author has added samples.png." in parcel.text("README.md")


@pytest.mark.parametrize(
    "given", ["ward-seven/table.pt", ("gout", "scurvy"), {"gout": 1}, (61.5, 70.2), tuple(range(9))]
)
def test_what_a_part_of_the_users_own_was_given_is_pushed_only_if_it_is_few_numbers(given: Any, tmp_path: Path) -> None:
    fitted = pv.fit(vae(prior=Own(given=given)), binary(), epochs=1, engine="eager", progress=False)
    pv.save(fitted, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "run.json").read_text())["pair"]["args"]["prior"]
    assert told["args"]["given"] is not None  # else it is no test
    parcel = pack(tmp_path / "run", "me/own")
    assert json.loads(parcel.text("run.json"))["pair"]["args"]["prior"] == {**told, "args": None}
    assert "prior=Own(...)," in parcel.text("README.md")


@pytest.mark.parametrize(
    "change",
    [
        {"settings": [1]},
        {"layout": None},
        {"pair": ["pyrovae.VAE"], "layout": {}},
        {"info": {"data": {}, "options": {"model": ["vae"]}, "split": {}}},
        {"info": {"data": {"name": "digits", "columns": 3}, "options": {}, "split": {}}},
        {"info": {"data": {"path": []}, "options": {}, "split": {}, "results": [1]}},
    ],
)
def test_a_run_json_that_nothing_can_be_made_of_is_one_error(
    change: dict[str, Any], program_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(program_run, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_bytes(sealed({**read_run(program_run), **change}))
    with pytest.raises(pv.CheckpointError, match="is damaged"):
        pack(tmp_path / "run", "me/model")


def test_a_fit_that_has_not_finished_is_not_pushed(tmp_path: Path) -> None:
    def stop(fitted: pv.Fit) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pv.fit(vae(), binary(), epochs=2, engine="eager", progress=False, checkpoint=tmp_path / "run", callbacks=[stop])
    with pytest.raises(pv.CheckpointError, match="has not finished"):
        pack(tmp_path / "run", "me/model")
    run = read_run(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_bytes(sealed({**run, "status": "finished, without a pair"}))  # of `label`
    with pytest.raises(pv.CheckpointError, match="has fitted no pair"):
        pack(tmp_path / "run", "me/model")


# --- the model card -------------------------------------------------------------------------------------------------


def test_the_card_says_what_the_run_says(finished_run: Path) -> None:
    results = json.loads((finished_run / "run.json").read_text())["info"]["results"]
    card = pack(finished_run, "me/digits", license="cc-by-4.0").text("README.md")
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: pyrovae\n")
    assert "model  p(z) p(x | z)\nguide  q(z | x)" in card and 'pv.load("hub:me/digits")' in card
    value = f"{results['log_likelihood']:.2f} ± {results['log_likelihood_se']:.2f}"
    assert f"| log p(x), nats per row | {value} |" in card
    assert "prior=pv.priors.StandardNormal(event_shape=(10,))" in card
    assert "None was given" in pack(finished_run, "me/digits").text("README.md")


def test_the_card_has_what_was_checked_after_the_fit(table_run: Path) -> None:
    path = table_run / "check.json"
    path.write_text(json.dumps({"findings": [{"verdict": "bad", "name": "overfitting", "says": "a|b"}]}))
    try:
        assert "| bad | overfitting | a\\|b |" in pack(table_run, "me/model").text("README.md")
        path.write_text("[" * 100_000)
        assert "What was checked" not in pack(table_run, "me/model").text("README.md")
        path.write_text(json.dumps({"findings": [{"verdict": "bad", "name": "overfitting", "says": "a|b"}]}))
        os.utime(path, (0, 0))  # before the fit
        assert "overfitting" not in pack(table_run, "me/model").text("README.md")
    finally:
        path.unlink()


# --- to the Hub and back --------------------------------------------------------------------------------------------


def weights(fitted: pv.Fit) -> list[Tensor]:
    return [p.detach() for p in fitted.pair.parameters()]


def test_a_run_that_was_pushed_and_pulled_is_the_same(pyrovae: Command, hub: fake.Hub, finished_run: Path) -> None:
    code, out, err = pyrovae("push", finished_run, "me/digits", "--license", "mit")
    assert code == 0 and "(private)" in out and hub.private == {"me/digits": True}, err
    pushed = dict(hub.models["me/digits"])
    hub.models["me/digits"] |= {"evil.py": b"import os", "check.html": b"<script>", "checkpoint.safetensors": b"x"}
    code, out, err = pyrovae("pull", "me/digits")
    assert code == 0 and "Run folder: runs/digits" in out, err
    assert {path.name: path.read_bytes() for path in Path("runs/digits").iterdir()} == pushed
    assert [path.name for path in Path("runs").iterdir()] == ["digits"]
    for folder in ("runs/digits", "hub:me/digits"):
        assert all(torch.equal(a, b) for a, b in zip(weights(pv.load(folder)), weights(pv.load(finished_run))))
    assert not any("evil" in path or "html" in path for path in hub.asked)
    code, _, err = pyrovae("generate", "runs/digits")
    assert code == 0, err
    code, _, err = pyrovae("pull", "me/digits", "runs/digits")
    assert code == 2 and "runs/digits exists and is not empty" in err


def test_one_who_has_the_same_file_can_use_all_commands(pyrovae: Command, hub: fake.Hub, table_run: Path) -> None:
    code, _, err = pyrovae("push", table_run, "me/table", "--describe-data", "--public")
    assert code == 0 and hub.private == {"me/table": False}, err
    assert pyrovae("pull", "me/table", "here")[0] == 0
    code, _, err = pyrovae("evaluate", "here")
    assert code == 2 and "add --data data.csv" in err
    data = table_run.parents[1] / "income.csv"
    results = [pyrovae("evaluate", *words) for words in (("here", "--data", data), (table_run,))]
    assert results[0][:2] == results[1][:2] and results[0][0] == 0
    # without a description, Python alone
    assert pyrovae("push", table_run, "me/table")[0] == 0
    assert "columns.yaml" not in hub.models["me/table"]  # of the earlier push
    code, out, err = pyrovae("pull", "me/table", "there")
    assert code == 0 and "by pv.load" in out, err
    code, _, err = pyrovae("evaluate", "there", "--data", data)
    assert code == 2 and "pushed without --describe-data" in err
    assert len(pv.generate(pv.load("there"), 3)) == 3


def test_a_dry_run_asks_nobody(
    pyrovae: Command, hub: fake.Hub, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_of_hub.importlib.util, "find_spec", lambda name: None)
    code, out, err = pyrovae("push", finished_run, "me/digits", "--dry-run")
    assert code == 0 and "would push  weights.safetensors" in out and "left here   latent.png: codes of rows" in out, (
        err
    )
    assert "# digits" in out and hub.asked == [] and hub.models == {}
    code, _, err = pyrovae("push", finished_run, "me/digits")
    assert code == 2 and "pip install 'pyrovae[hub]'" in err


def test_what_is_no_whole_run_is_refused_and_leaves_nothing(
    pyrovae: Command, hub: fake.Hub, finished_run: Path
) -> None:
    assert pyrovae("push", finished_run, "me/digits")[0] == 0
    whole = dict(hub.models["me/digits"])
    hub.private["me/words"] = False
    cases: list[tuple[dict[str, bytes], str]] = [
        ({"pytorch_model.bin": b"x"}, "holds no run of pyrovae: it has no run.json"),
        ({**whole, "weights.safetensors": whole["weights.safetensors"][:-1] + b"?"}, "holds no whole run"),
        ({**whole, "run.json": whole["run.json"].replace(b"digits", b"digitz")}, "changed by hand"),
    ]
    for files, said in cases:
        hub.models["me/words"] = files
        code, _, err = pyrovae("pull", "me/words", "place/words")
        assert code == 2 and said in err and not (Path("place").exists() and list(Path("place").iterdir())), err


def test_a_model_that_is_no_run_is_not_replaced_and_files_that_stay_are_told(
    pyrovae: Command, hub: fake.Hub, program_run: Path
) -> None:
    hub.models["me/bert"], hub.private["me/bert"] = {"model.bin": b"x", "README.md": b"mine"}, False
    code, _, err = pyrovae("push", program_run, "me/bert")
    assert (
        code == 2 and "holds something else, such as model.bin" in err and hub.models["me/bert"]["README.md"] == b"mine"
    )
    hub.models["me/own"], hub.private["me/own"] = {".gitattributes": b""}, True
    (program_run / "table.csv").write_text("gout")
    try:
        assert pyrovae("push", program_run, "me/own", "--include", "table.csv")[0] == 0
    finally:
        (program_run / "table.csv").unlink()
    code, _, err = pyrovae("push", program_run, "me/own")
    assert code == 0 and "It also holds files that are not of this push: table.csv." in err
    assert "What was pushed with this page holds no rows" in hub.models["me/own"]["README.md"].decode()


def test_a_folder_that_is_there_and_empty_is_filled_also_by_a_link(
    pyrovae: Command, hub: fake.Hub, program_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parcel = pack(program_run, "me/own")
    hub.models["me/own"], hub.private["me/own"] = {n: c for n, c in parcel.files.items() if isinstance(c, bytes)}, False
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "broken").symlink_to(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "here")
    for folder in (".", "../link", "../broken"):
        code, _, err = pyrovae("pull", "me/own", folder)
        assert code == 0 and {path.name for path in Path(folder).iterdir()} == set(parcel.files), err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("info", [3, None, [], {"pushed": True, "data": 3}])
def test_a_pulled_run_whose_notes_are_no_notes_is_only_opened_in_python(
    info: Any, pyrovae: Command, hub: fake.Hub, program_run: Path
) -> None:
    files = {name: (program_run / name).read_bytes() for name in ("weights.safetensors", "history.csv")}
    hub.models["me/own"] = {**files, "run.json": sealed({**read_run(program_run), "info": info})}
    hub.private["me/own"] = False
    code, out, err = pyrovae("pull", "me/own")
    assert code == 0 and "open it in Python" in out, err


def test_folders_on_the_way_are_removed_also_where_a_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(_start.signal, "signal", lambda number, handler: None)
    with _files.temporary_folder() as place:
        (place / "weights").touch()
        with pytest.raises(SystemExit):
            _start.leave(2, None)
        assert not place.exists()


OF_LIBRARY = type("InvalidURL", (Exception,), {"__module__": "httpx"})


@pytest.mark.parametrize(
    "error", [RuntimeError("CAS at http://me:gout@host"), OF_LIBRARY("port of http://me:gout@host:y")]
)
def test_whatever_the_library_raises_is_one_error_without_a_password(error: Exception) -> None:
    with (
        pytest.raises(pv.DataError, match=r"The Hub did not do it for me/x: .*http://\*\*\*@host"),
        names_of_hub.talking("me/x"),
    ):
        raise error
    with pytest.raises(KeyError), names_of_hub.talking("me/x"):  # a mistake of ours
        raise KeyError


@pytest.mark.parametrize("name", ["digits", "a/b/c", "../x", "me/", "hub:me/x", "me/x y"])
def test_names_that_are_none_are_refused(pyrovae: Command, hub: fake.Hub, name: str) -> None:
    code, _, err = pyrovae("pull", name)
    assert code == 2 and "is named user/name" in err and hub.asked == []
    code, _, err = pyrovae("push", OLD, name, "--dry-run")
    assert code == 2 and "is named user/name" in err


def test_a_model_that_is_not_there_and_one_that_may_not_be_written(
    pyrovae: Command, hub: fake.Hub, finished_run: Path
) -> None:
    code, _, err = pyrovae("pull", "me/nothing")
    assert code == 2 and "me/nothing is not on the Hub, or you may not read or write it" in err
    hub.closed = True
    code, _, err = pyrovae("push", finished_run, "me/digits")
    assert code == 2 and "hf auth login" in err
    with pytest.raises(pv.DataError, match="is not on the Hub"):
        pv.load("hub:me/digits")


def test_only_pictures_and_numbers_are_pulled() -> None:
    assert {Path(name).suffix for name in PULLED} == {".json", ".safetensors", ".csv", ".md", ".yaml", ".png", ".gv"}
