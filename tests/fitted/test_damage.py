"""A run folder that was damaged, changed, cut or filled with anything is refused by one clear error, or does no harm."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.programs import binary, vae

import pyrovae as pv
from pyrovae._json import of_json
from pyrovae.fitted.files import digest, sealed
from pyrovae.fitted.folder import read_state, state_of

FILES = ("weights.safetensors", "run.json", "history.csv", "checkpoint.safetensors")
NOT_CHECKED = ("sha256", "history_sha256", "checkpoint_sha256")  # what runs of version 0.1 lack
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 20, "seed": 0, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fit with its state."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    pv.fit(vae(), binary(), checkpoint=folder, **OPTIONS)
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def resume(folder: Path) -> pv.Fit:
    torch.manual_seed(0)
    return pv.fit(vae(), binary(), checkpoint=folder, resume=True, **OPTIONS | {"epochs": 3})


def places(content: bytes, number: int, seed: int) -> list[tuple[int, int]]:
    """Seeded random places of bits, among them some in each end of a file, where headers and checksums are."""
    draw = random.Random(seed)
    size = len(content)
    ends = [*range(12), *range(size - 12, size)]
    return [(draw.randrange(size), draw.randrange(8)) for _ in range(number)] + [(at, draw.randrange(8)) for at in ends]


def flipped(content: bytes, place: tuple[int, int]) -> bytes:
    changed = bytearray(content)
    changed[place[0]] ^= 1 << place[1]
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES[:3])
def test_a_flipped_bit_is_noticed_when_a_run_is_opened(run: Path, name: str) -> None:
    content = (run / name).read_bytes()
    for place in places(content, 150, seed=1):
        (run / name).write_bytes(flipped(content, place))
        with pytest.raises(pv.CheckpointError, match="damaged|newer|not a run folder"):
            pv.load(run)
    (run / name).write_bytes(content)
    assert len(pv.load(run).history) == 2


@pytest.mark.parametrize("name", ["run.json", "checkpoint.safetensors"])
def test_a_flipped_bit_is_noticed_when_a_fit_is_resumed(run: Path, name: str) -> None:
    content = (run / name).read_bytes()
    for place in places(content, 10, seed=2)[::3]:
        (run / name).write_bytes(flipped(content, place))
        with pytest.raises(pv.CheckpointError, match="damaged|newer"):
            resume(run)
    (run / name).write_bytes(content)
    assert len(resume(run).history) == 3


def contents() -> Iterator[bytes]:
    yield from (b"", b"\0" * 8, b"\xff" * 100, b"{", b"[]", b"null", b"\x08" + b"\0" * 7 + b'{"a": 1}', b"[" * 100_000)
    yield b"epoch,elbo\n1,2,3,4\n" + b"x" * 200_000


@pytest.mark.parametrize("checked", [True, False], ids=["with checksums", "as of version 0.1"])
@pytest.mark.parametrize("name", FILES)
def test_other_contents_are_refused(run: Path, name: str, checked: bool) -> None:
    if not checked:
        without_checksums(run)
    opens = resume if name == "checkpoint.safetensors" else pv.load
    for content in contents():
        (run / name).write_bytes(content)
        try:
            found = opens(run)
        except pv.CheckpointError:
            continue
        assert name == "history.csv" and not checked and not found.history  # a table without lines


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_or_a_folder_is_no_file_of_a_run(run: Path, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    opens = resume if name == "checkpoint.safetensors" else pv.load
    with pytest.raises(pv.CheckpointError):
        opens(run)
    (run / name).unlink()
    (run / name).mkdir()
    with pytest.raises(pv.CheckpointError):
        opens(run)


def without_checksums(run: Path) -> None:
    recorded = json.loads((run / "run.json").read_text())
    text = json.dumps({key: value for key, value in recorded.items() if key not in NOT_CHECKED})
    (run / "run.json").write_text(text)


def every_change(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from every_change(inner, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


STRANGE = (None, True, -1, 0.5, 10**30, 10**14, 1e300, "x", "", [], {}, [1, "x"], {"x": 1}, {"class": 3, "args": 4})


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", ["format", "pair", "layout", "transform", "status", "stopped", "weights_sha256", "info"]
)
def test_any_value_of_any_entry_is_refused_or_does_no_harm(run: Path, key: str) -> None:
    """With the checksum of a whole file: what is read is checked, too."""
    recorded = json.loads((run / "run.json").read_text())
    x = binary()
    elbo = pv.importance(pv.load(run), x, 4, seed=0, proposal="guide").elbo
    draw = random.Random(3)
    paths = list(every_change(recorded[key]))
    for path in draw.sample(paths, min(12, len(paths))):
        for new in draw.sample(STRANGE, 7):
            (run / "run.json").write_bytes(sealed(put(recorded, (key, *path), new)))
            try:
                found = pv.load(run)
            except pv.CheckpointError:
                continue
            assert isinstance(found, pv.Fit)
            if key not in ("pair", "layout"):
                assert torch.equal(pv.importance(found, x, 4, seed=0, proposal="guide").elbo, elbo)


def test_a_device_that_is_none_is_not_damage(run: Path) -> None:
    with pytest.raises(pv.OptionError, match="known: auto, cpu, cuda"):
        pv.load(run, device="abacus")


@pytest.mark.parametrize("name", ("info", "pair", "settings", "layouts", "of the state"))
def test_entries_that_are_too_deep_to_be_walked_through_are_refused(run: Path, name: str) -> None:
    deep: Any = "dtype"
    for _ in range(600):
        deep = [deep]
    if name == "of the state":
        tensors, notes = read_state(run)
        (run / "checkpoint.safetensors").write_bytes(state_of(tensors, notes | {"loss": deep}))
    recorded = json.loads((run / "run.json").read_text())
    state = {"checkpoint_sha256": digest((run / "checkpoint.safetensors").read_bytes())}
    entry = {} if name == "of the state" else {name: {"of a column": deep}}
    (run / "run.json").write_bytes(sealed(recorded | state | entry))
    with pytest.raises(pv.CheckpointError, match="inside of one another"):
        resume(run) if name == "of the state" else pv.load(run)


@pytest.mark.parametrize("parts", ("{}", "[]"))
def test_a_few_bytes_that_become_much_memory_are_refused(run: Path, parts: str) -> None:
    """20 million empty objects, 60 MB, took 1.9 GB."""
    recorded = (run / "run.json").read_text()
    many = f'{{"more": [{",".join([parts] * 1_000_001)}],{recorded[1:]}'
    (run / "run.json").write_text(many)
    with pytest.raises(pv.CheckpointError, match="objects and lists in 3 MiB"):
        pv.load(run)


def test_many_objects_that_are_written_out_are_read() -> None:
    large = json.dumps([{"text": "x" * 40}] * 1_000_001)
    assert len(of_json(large)) == len(of_json(large.encode())) == 1_000_001
