"""Quantisers: what their codes and numbers are, that a value is a code to the last bit, and which gradient passes through."""

import importlib.util
import itertools
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.fitted.spec import from_spec, to_spec
from pyrovae.nets import FSQ, VQ, Quantiser, ResidualVQ, SimVQ

extra = pytest.mark.skipif(
    importlib.util.find_spec("vector_quantize_pytorch") is None, reason="needs vector-quantize-pytorch"
)
LEARNED: dict[str, Any] = {
    "VQ": lambda **options: VQ(6, 3, (2, 2), **options),
    "SimVQ": lambda **options: SimVQ(6, 3, (2, 2), **options),
    "ResidualVQ": lambda **options: ResidualVQ(6, 3, (2, 2), depth=3, **options),
}
ALL: list[Any] = [
    pytest.param(lambda: FSQ((5, 4, 3), (2, 2)), id="FSQ"),
    *(pytest.param(build, id=name, marks=extra) for name, build in LEARNED.items()),
]


def started(build: Any, **options: Any) -> Quantiser:
    """A quantiser whose codebook has seen vectors, in evaluation mode."""
    codes: Quantiser = build(**options)
    codes.train()(torch.randn(10, codes.width, *codes.grid, requires_grad=True))
    return codes.eval()


@pytest.mark.parametrize("build", ALL)
def test_numbers_and_codes_translate_into_each_other(build: Any) -> None:
    codes = started(build)
    k = torch.randint(codes.num_codes, (3, 5, *codes.index_shape))
    z = codes.lookup(k)
    assert z.shape == (3, 5, *codes.event_shape)
    assert torch.equal(codes.indices(z), k)
    e = torch.randn(3, 5, codes.width, *codes.grid)
    found = codes(e)
    assert found.shape == z.shape and torch.equal(codes.lookup(codes.indices(found)), found)
    assert torch.equal(codes(e[1, 2]), found[1, 2])  # any batch dimensions
    again = from_spec(to_spec(codes))
    again.load_state_dict(codes.state_dict())
    assert torch.equal(again.eval()(e), found)


@pytest.mark.parametrize("build", ALL)
def test_values_of_another_size_are_refused(build: Any) -> None:
    codes = started(build)
    other = torch.zeros(4, codes.width, 3, 2)
    with pytest.raises(pv.ShapeError, match=r"needs a tensor of shape \(\*batch, 3, 2, 2\), got \(4, 3, 3, 2\)"):
        codes(other)
    with pytest.raises(pv.ShapeError, match=r"got \(4, 3, 3, 2\).*codes of the size"):
        codes.indices(other)
    with pytest.raises(pv.ShapeError, match=r"got \(4, 7\)"):
        codes.lookup(torch.zeros(4, 7, dtype=torch.long))


@pytest.mark.parametrize("build", ALL)
@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (-1, pv.DataError, "numbered from 0 to .*, got -1"),
        (60, pv.DataError, "numbered from 0 to .*, got 60"),
        (1.5, pv.ShapeError, "needs whole numbers of codes, got torch.float32"),
        (True, pv.ShapeError, "needs whole numbers of codes, got torch.bool"),
    ],
)
def test_numbers_that_are_no_codes_are_refused(build: Any, number: Any, error: Any, message: str) -> None:
    codes = build()
    numbers = torch.zeros(4, *codes.index_shape, dtype=torch.tensor(number).dtype)
    numbers[1] = number
    with pytest.raises(error, match=message):
        codes.lookup(numbers)
    assert codes.lookup(torch.zeros(0, *codes.index_shape, dtype=torch.int32)).shape == (0, *codes.event_shape)


# --- finite scalar quantisation


def test_the_codes_of_fsq_are_all_combinations_of_levels() -> None:
    codes = FSQ((3, 4, 5), grid=1)
    every = codes.lookup(torch.arange(60).reshape(-1, 1)).squeeze(-1)
    wanted = itertools.product((-1, 0, 1), (-1, -0.5, 0, 0.5), (-1, -0.5, 0, 0.5, 1))
    assert {tuple(row) for row in every.tolist()} == set(wanted)
    assert to_spec(FSQ(tuple(np.array((3, 4, 5))), grid=1)) == to_spec(codes)
    assert not codes(torch.zeros(1, 3, 1)).any()  # 0 stays 0, for an even number of levels, too


def bounded(e: Tensor, levels: int) -> Tensor:
    """b(u) of the paper, before rounding."""
    h, o = (levels - 1) / 2, 0.5 * (levels % 2 == 0)
    return h * torch.tanh(e + torch.atanh(torch.tensor(o / h, dtype=e.dtype))) - o


def test_fsq_rounds_to_the_nearest_level_and_passes_the_gradient_of_the_bound() -> None:
    levels = (3, 8, 5)
    codes = FSQ(levels, grid=()).double()
    e = (3 * torch.randn(200, 3, dtype=torch.float64)).requires_grad_()
    z, weights = codes(e), torch.randn(200, 3, dtype=torch.float64)
    (z * weights).sum().backward()
    for i, n in enumerate(levels):
        h, steps = (n - 1) / 2, n // 2
        u = e.detach()[:, i]
        all_levels = torch.arange(n, dtype=torch.float64) - steps
        nearest = all_levels[(bounded(u, n)[:, None] - all_levels).abs().argmin(1)]
        torch.testing.assert_close(z[:, i], nearest / steps)
        shift = torch.atanh(torch.tensor(0.5 * (n % 2 == 0) / h, dtype=torch.float64))
        by_hand = weights[:, i] * h * (1 - torch.tanh(u + shift) ** 2) / steps
        torch.testing.assert_close(e.grad[:, i], by_hand)  # type: ignore[index]


@extra
def test_fsq_is_that_of_vector_quantize_pytorch() -> None:
    theirs = importlib.import_module("vector_quantize_pytorch").FSQ([8, 5, 4])
    e = 2 * torch.randn(400, 1, 3)
    off = torch.stack([bounded(e[..., i], n) for i, n in enumerate((8, 5, 4))], -1).frac().abs() - 0.5
    e = e[(off.abs() > 0.02).all(-1).squeeze(-1)]  # they widen the bound by a thousandth, which matters near an edge
    z, k = theirs(e)
    ours = FSQ((8, 5, 4), grid=())
    assert len(e) > 300
    torch.testing.assert_close(ours(e.squeeze(1)), z.squeeze(1))
    assert torch.equal(ours.indices(z.squeeze(1)), k.squeeze(1).long())


# --- learned codebooks


def rotation(e: Tensor, q: Tensor) -> Tensor:
    """|q| / |e| R of two vectors, where R turns e into the direction of q; (D, D)."""
    u, v = e / e.norm(), q / q.norm()
    w = (u + v) / (u + v).norm()
    turn = torch.eye(len(e), dtype=e.dtype) - 2 * torch.outer(w, w) + 2 * torch.outer(v, u)
    return turn * q.norm() / e.norm()


@extra
@pytest.mark.parametrize("build", LEARNED.values(), ids=LEARNED)
@pytest.mark.parametrize("rotates", [False, True], ids=["straight through", "rotated"])
def test_the_gradient_passes_through_the_code(build: Any, rotates: bool) -> None:
    codes = started(build, rotation=rotates).double()
    e = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    q = codes.vectors(codes(e))
    weights = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    (q * weights).sum().backward()
    by_hand = weights.clone()
    if rotates:
        for n, i, j in itertools.product(range(4), range(2), range(2)):
            by_hand[n, :, i, j] = rotation(e.detach()[n, :, i, j], q.detach()[n, :, i, j]).T @ weights[n, :, i, j]
    torch.testing.assert_close(e.grad, by_hand, rtol=1e-5, atol=1e-6)


@extra
def test_a_code_is_the_nearest_one() -> None:
    codes = started(LEARNED["VQ"])
    e = torch.randn(5, 3, 2, 2)
    apart = torch.cdist(e.movedim(1, -1).reshape(-1, 3), codes.codebook)  # type: ignore[attr-defined]
    assert torch.equal(codes.indices(codes(e)).flatten(), apart.argmin(-1))


@extra
def test_codes_follow_their_vectors_by_moving_averages() -> None:
    """N_k <- d N_k + (1 - d) n_k and m_k <- d m_k + (1 - d) sum_k e, and a code is m_k / N_k."""
    codes = VQ(4, 2, 1, decay=0.9, restart_below=0.0)
    first = torch.randn(50, 2, 1, requires_grad=True)
    codes.train()(first)
    before = codes.codebook.clone()
    sizes, sums = codes.vq._codebook.cluster_size[0].clone(), codes.vq._codebook.embed_avg[0].clone()
    e = torch.randn(30, 2, 1, requires_grad=True)
    codes(e)
    chosen = torch.cdist(e.detach().squeeze(-1), before).argmin(-1)
    one_hot = torch.nn.functional.one_hot(chosen, 4).float()
    sizes = 0.9 * sizes + 0.1 * one_hot.sum(0)
    sums = 0.9 * sums + 0.1 * one_hot.T @ e.detach().squeeze(-1)
    torch.testing.assert_close(codes.codebook, sums / sizes[:, None], rtol=1e-4, atol=1e-5)


@extra
@pytest.mark.parametrize("build", [LEARNED["VQ"], LEARNED["ResidualVQ"]], ids=["VQ", "ResidualVQ"])
def test_codes_follow_their_vectors_as_those_of_vector_quantize_pytorch(build: Any) -> None:
    codes, theirs = build(decay=0.9, restart_below=0.0), build(decay=0.9, restart_below=0.0).vq
    for _ in range(20):
        e = torch.randn(20, 3, 2, 2, requires_grad=True)
        state = torch.get_rng_state()  # in the first step k-means starts at random vectors
        codes(e)
        torch.set_rng_state(state)
        theirs(e.detach().movedim(1, -1).reshape(1, -1, 3))
    theirs = theirs.codebooks if hasattr(theirs, "codebooks") else theirs.codebook
    torch.testing.assert_close(codes.codebook, theirs, rtol=1e-4, atol=1e-5)


@extra
@pytest.mark.parametrize("rows", [40, 20])
def test_no_two_codes_start_again_at_one_vector(rows: int) -> None:
    """Of two equal codes only one is ever chosen. Where there are fewer vectors than dead codes, some wait."""
    codes = VQ(30, 2, 1, restart_below=1.0)
    codes.train()(torch.randn(60, 2, 1, requires_grad=True))
    codes.vq._codebook.cluster_size.zero_()
    e = torch.randn(rows, 2, 1, requires_grad=True)
    codes(e)
    at = (codes.codebook.unsqueeze(1) == e.detach().squeeze(-1)).all(-1)  # (30, rows)
    assert at.any(1).sum() == min(rows, 30) and at.any(0).sum() == min(rows, 30)


@extra
def test_a_dead_code_starts_again_at_a_vector() -> None:
    codes = started(lambda: VQ(4, 2, 1, restart_below=1.0))
    codes.vq.codebook[2] = 1e6  # type: ignore[union-attr, operator]
    codes.vq._codebook.cluster_size[0, 2] = 0.0  # type: ignore[union-attr, operator, index]
    e = torch.randn(30, 2, 1, requires_grad=True)
    codes.train()(e)
    assert (e.detach().squeeze(-1) == codes.codebook[2]).all(-1).any()  # type: ignore[attr-defined, operator, index]


@extra
@pytest.mark.parametrize("build", [LEARNED["VQ"], LEARNED["ResidualVQ"]], ids=["VQ", "ResidualVQ"])
def test_codes_stay_in_evaluation_and_behind_a_frozen_encoder(build: Any) -> None:
    codes = started(build)
    before = {name: value.clone() for name, value in codes.state_dict().items()}
    codes(torch.randn(8, 3, 2, 2, requires_grad=True))
    codes.train()(torch.randn(8, 3, 2, 2))
    assert all(torch.equal(before[name], value) for name, value in codes.state_dict().items())
    codes(torch.randn(8, 3, 2, 2, requires_grad=True))
    assert not all(torch.equal(before[name], value) for name, value in codes.state_dict().items())


@extra
def test_each_level_codes_what_the_levels_before_it_left() -> None:
    codes = started(LEARNED["ResidualVQ"])
    e = torch.randn(5, 3, 2, 2)
    z, left = codes(e), e
    residuals = codes.residuals(e, z)
    for level, codebook in enumerate(codes.codebook):  # type: ignore[arg-type]
        torch.testing.assert_close(residuals[:, level], left)
        chosen = torch.cdist(left.movedim(1, -1).reshape(-1, 3), codebook).argmin(-1)
        assert torch.equal(codes.indices(z)[:, level].flatten(), chosen)
        left = left - z[:, level]
    torch.testing.assert_close(e - codes.vectors(z), left)


@extra
@pytest.mark.parametrize("build", [LEARNED["VQ"], LEARNED["ResidualVQ"]], ids=["VQ", "ResidualVQ"])
def test_codes_start_behind_a_frozen_encoder_too(build: Any) -> None:
    codes, e = build(), torch.randn(20, 3, 2, 2)
    assert not codes.started
    z = codes.train()(e)
    assert codes.started and len(torch.unique(codes.indices(z))) > 3
    assert torch.equal(codes(e), z)  # and stay


# --- a user's mistakes


@extra
@pytest.mark.parametrize("build", [LEARNED["VQ"], LEARNED["ResidualVQ"]], ids=["VQ", "ResidualVQ"])
def test_more_codes_than_vectors_to_start_them_are_refused(build: Any) -> None:
    codes = build()
    with pytest.raises(pv.DataError, match="starts its 6 codes as centres .* got 4 of them .*fewer codes"):
        codes.train()(torch.randn(1, 3, 2, 2, requires_grad=True))
    codes(torch.randn(2, 3, 2, 2, requires_grad=True))
    codes(torch.randn(1, 3, 2, 2, requires_grad=True))  # once they have started, any number will do


@pytest.mark.parametrize("build", LEARNED.values(), ids=LEARNED)
def test_a_missing_extra_is_named(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(pv.MissingPackageError, match=r"not installed: pip install 'pyrovae\[vq\]'"):
        build()
    FSQ((3, 3), 2)(torch.zeros(1, 2, 2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FSQ((), 2), r"levels of FSQ must be .*one for each element"),
        (lambda: FSQ("8", 2), r"levels of FSQ must be .*one for each element.*got '8'"),  # type: ignore[arg-type]
        (lambda: FSQ((8, 2), 2), "levels of FSQ must be a whole number from 3 .*got \\(8, 2\\)"),
        (lambda: VQ(1, 3, 2), "num_codes of VQ must be at least 2 .*got 1"),
        (lambda: VQ(6, 0, 2), "width of VQ must be at least 1 .*got 0"),
        (lambda: VQ(6, 3, 2, decay=1.0), "decay of VQ must be a number between 0 and 1, got 1.0"),
        (lambda: VQ(6, 3, 2, decay="a"), "decay of VQ must be a number between 0 and 1, got 'a'"),  # type: ignore[arg-type]
        (lambda: VQ(6, 3, 2, restart_below="a"), "restart_below of VQ must be a number"),  # type: ignore[arg-type]
        (lambda: SimVQ(6, 3, 2, commitment="a"), "commitment of SimVQ must be a positive number"),  # type: ignore[arg-type]
        (
            lambda: VQ(6, 3, 2, restart_below=-1),
            "restart_below of VQ must be a number of at least 0, 0 for never, got -1",
        ),
        (lambda: SimVQ(6, 3, 2, commitment=0.0), "commitment of SimVQ must be a positive number, got 0.0"),
        (lambda: ResidualVQ(6, 3, 2, depth=0), "depth of ResidualVQ must be at least 1 .*got 0"),
    ],
)
def test_impossible_numbers_are_refused(build: Any, message: str) -> None:
    with pytest.raises(pv.OptionError, match=message):
        build()
