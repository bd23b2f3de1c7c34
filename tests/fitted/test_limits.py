"""What a run.json describes costs no more than the weights it comes with."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.programs import binary, vae
from torch import nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.errors import LONGEST, printable, shortened
from pyrovae.fitted import limits
from pyrovae.fitted.files import sealed
from pyrovae.fitted.limits import ELEMENTS, Bounded

HUGE: dict[str, Callable[[], Any]] = {
    "zeros": lambda: torch.zeros(10**12),
    "a range": lambda: torch.arange(10**11),
    "a layer": lambda: nn.Linear(10**5, 10**5),
    "noise": lambda: torch.randn(10**5, 10**5),
    "an outer product": lambda: torch.ones(10**5)[:, None] * torch.ones(10**5),
    "a copy of what was expanded": lambda: torch.ones(1).expand(10**10).clone(),
    "repeated": lambda: torch.ones(3).repeat(10**9),
    "one-hot": lambda: nn.functional.one_hot(torch.zeros(1000, dtype=torch.int64), 10**9),
    "joined": lambda: torch.cat([torch.ones(1).expand(10**9)] * 9),
    "many of them": lambda: [torch.empty(ELEMENTS) for _ in range(9)],
}


@pytest.mark.parametrize("make", list(HUGE.values()), ids=list(HUGE))
def test_what_is_too_large_is_refused_before_it_is_made(make: Callable[[], Any]) -> None:
    with pytest.raises(pv.CheckpointError, match="larger tensors than the weights"), Bounded.by_weights({}):
        make()


def test_more_layers_than_weights_are_refused() -> None:
    with pytest.raises(pv.CheckpointError, match="more layers or steps than the weights"), Bounded.by_weights({}):
        for _ in range(20_001):
            torch.empty(1)


def test_a_row_of_a_million_steps_is_no_way_to_take_hours() -> None:
    assert Bounded.by_weights({}, longest=10**6).operations == Bounded.by_weights({}, longest=10_000).operations < 2.1e6


def test_a_pair_of_long_sequences_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OPERATIONS", 0)
    monkeypatch.setattr(limits, "EACH", 0)
    pair = pv.DeepMarkovVAE.of_sequences(fam.Bernoulli(3), latent=2, hidden=4, width=4)
    x = torch.bernoulli(torch.full((4, 60, 3), 0.4))
    folder = pv.save(pv.fit(pair, x, epochs=1, engine="eager", progress=False), tmp_path / "run")
    assert pv.load(folder).layout.arguments["x"][0] == (60, 3)
    monkeypatch.setattr(limits, "MOST_PLACES", 10)
    with pytest.raises(pv.CheckpointError, match="more layers or steps"):
        pv.load(folder)


def test_large_weights_allow_large_pairs() -> None:
    wide = torch.empty(ELEMENTS // 4)
    with Bounded.by_weights({"w": wide}):
        torch.empty(4 * ELEMENTS)
    with Bounded.by_memory():
        pv.mlp(2, fam.Bernoulli(6), hidden=(8,))
    with pytest.raises(pv.OptionError, match="than this machine has memory for"), Bounded.by_memory():
        nn.Linear(10**7, 10**7)


def test_elements_of_products_are_counted_without_making_them() -> None:
    a, b, stacked = torch.randn(3, 4), torch.randn(4, 5), torch.randn(2, 4, 5)
    aten, bias = torch.ops.aten, torch.randn(5)
    for function, args in (
        (aten.mm.default, (a, b)),
        (aten.addmm.default, (bias, a, b)),
        (aten.bmm.default, (a.expand(2, 3, 4), stacked)),
        (aten.baddbmm.default, (bias, a.expand(2, 3, 4), stacked)),
    ):
        assert limits._elements(function, args, {}) == function(*args).numel()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("limits") / "run"
    fitted = pv.fit(vae(), binary(), epochs=1, batch_size=20, seed=0, device="cpu", progress=False)
    return pv.save(fitted, folder)


def written(run: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    recorded = json.loads((run / "run.json").read_text())
    change(recorded)
    (tmp_path / "run").mkdir()
    for name in ("weights.safetensors", "history.csv"):
        (tmp_path / "run" / name).write_bytes((run / name).read_bytes())
    (tmp_path / "run" / "run.json").write_bytes(sealed(recorded))
    return tmp_path / "run"


def hidden_of(recorded: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the decoder's network."""
    found: dict[str, Any] = recorded["pair"]["args"]["likelihood"]["args"]["net"]["args"]
    return found


def nest(recorded: dict[str, Any]) -> None:
    for _ in range(100):
        recorded["pair"] = {"tuple": [recorded["pair"]]}


def nested_plates(number: float) -> Callable[[dict[str, Any]], None]:
    return lambda recorded: recorded["layout"].update(plate_nesting=number)


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "a wide layer": lambda r: hidden_of(r).update(hidden={"tuple": [10**6, 10**6]}),
    "many layers": lambda r: hidden_of(r).update(hidden={"tuple": [1] * 20_000}),
    "a million million inputs": lambda r: hidden_of(r).update(in_features=10**12),
    "a parameter": lambda r: r["pair"].update(args={"prior": {"parameter": [10**6, 10**6], "dtype": "float32"}}),
    "plates": nested_plates(1e9),
    "more plates": nested_plates(10**9),
    "a deep specification": nest,
    "a long row": lambda r: r["layout"]["arguments"].update(x=[[10**12], "float32"]),
    "another site": lambda r: r["layout"]["sites"][0].update(name="w"),
    "a site of another shape": lambda r: r["layout"]["sites"][0].update(event_shape=[10**9]),
    "settings that are none": lambda r: r.update(settings=None),
    "a size that is a text": lambda r: r["settings"].update(chunk_product="x"),
    "a size that is no number": lambda r: r["settings"].update(chunk_product=math.nan),
    "a size without end": lambda r: r["settings"].update(chunk_product=math.inf),
    "a status that is none": lambda r: r.update(status=False),
    "a family as the transform": lambda r: r.update(transform=r["pair"]["args"]["likelihood"]["args"]["family"]),
}


@pytest.mark.parametrize("change", list(CHANGES.values()), ids=list(CHANGES))
def test_a_run_that_describes_another_pair_is_refused(
    run: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    with pytest.raises(pv.CheckpointError) as refused:
        pv.load(written(run, tmp_path, change))
    assert len(str(refused.value)) < 1000


def test_a_run_as_it_was_written_is_read(run: Path, tmp_path: Path) -> None:
    loaded = pv.load(written(run, tmp_path, lambda recorded: None))
    assert torch.equal(pv.encode(loaded, torch.zeros(2, 6)), pv.encode(pv.load(run), torch.zeros(2, 6)))


def test_messages_hold_no_codes_and_end() -> None:
    assert str(pv.DataError("a\x1b[31mb\u202e\udcff\x07")) == r"a\x1b[31mb\u202e\udcff\x07"
    assert printable("é\u00a0ü\n\tx — 中") == "é\u00a0ü\n\tx — 中"
    assert len(str(pv.DataError("x" * 10**6))) == LONGEST
    assert shortened("a\n b" * 1000, 20) == "a ba ba ba ba ba ..." and math.isclose(len(shortened("x" * 99, 20)), 20)
