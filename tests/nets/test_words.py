"""Words: a caption is the sum of the vectors of its words, whatever their order and however it is filled up."""

import pytest
import torch

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.engine.tracing import graph_of
from pyrovae.errors import DataError, OptionError, ShapeError
from pyrovae.fitted.spec import from_spec, to_spec
from pyrovae.nets import Words


def test_it_is_the_number_of_times_each_word_occurs_times_its_vector() -> None:
    net, c = Words(6, 4), torch.randint(0, 7, (3, 5, 8))
    counts = torch.stack([(c == word).sum(-1) for word in range(1, 7)], -1).float()
    torch.testing.assert_close(net(c), counts @ net.vectors.weight)
    order = torch.randperm(8)
    torch.testing.assert_close(net(c[..., order]), net(c))
    padded = torch.cat([torch.zeros(3, 5, 2, dtype=torch.int64), c], -1)
    torch.testing.assert_close(net(padded), net(c))


def test_captions_without_words_are_zeros_and_have_no_gradient() -> None:
    net = Words(6, 4)
    for c in (torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, 0, dtype=torch.int64), torch.full((3, 2), 7)):
        assert torch.equal(net(c), torch.zeros(3, 4))
        (gradient,) = torch.autograd.grad(net(c).sum(), net.vectors.weight)
        assert torch.equal(gradient, torch.zeros(6, 4))
    assert net(torch.zeros(0, 5, dtype=torch.int64)).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_any_integers_will_do_and_the_dtype_is_that_of_the_weights(dtype: torch.dtype) -> None:
    net, c = Words(6, 4), torch.tensor([[1, 6, 0]])
    assert torch.equal(net(c.to(dtype)), net(c))
    assert net.double()(c).dtype == torch.float64


@pytest.mark.parametrize("c", [torch.ones(3, 2), torch.ones(3, 2, dtype=torch.bool), torch.tensor(1)])
def test_other_inputs_are_refused(c: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match="the numbers of words"):
        Words(6, 4)(c)


def test_impossible_arguments_are_refused() -> None:
    for sizes in ((0, 4), (6, 0), (6.5, 4)):
        with pytest.raises(ShapeError):
            Words(*sizes)  # type: ignore[arg-type]
    for dropout in (1.0, -0.1, float("nan")):
        with pytest.raises(OptionError, match="dropout must be a number of at least 0 and below 1"):
            Words(6, 4, dropout)


def test_dropout_leaves_whole_words_out_in_training_only() -> None:
    """Of 20,000 words a share of 0.3 goes, to within 5 standard errors (a false alarm in 2 million), and the others stay."""
    net, c = Words(1, 2, dropout=0.3), torch.ones(20_000, 1, dtype=torch.int64)
    codes = net(c)
    kept, gone = (codes == net.vectors.weight).all(1), (codes == 0).all(1)
    assert (kept ^ gone).all()
    assert abs(gone.double().mean().item() - 0.3) < 5 * (0.21 / 20_000) ** 0.5
    assert torch.equal(net.eval()(c), net.vectors.weight.expand(20_000, 2))


def test_it_is_traced_without_a_look_at_values() -> None:
    net = Words(6, 4)
    graph = graph_of(lambda c: net(c), torch.tensor([[1, 2, 0]]))
    other = torch.tensor([[6, 0, 0]])
    torch.testing.assert_close(graph(other), net(other))


def test_a_specification_builds_it_again() -> None:
    again = from_spec(to_spec(Words(6, 4, dropout=0.25)))
    assert (again.num_words, again.width, again.dropout) == (6, 4, 0.25)


def test_numbers_that_are_no_word_are_refused_before_the_fit() -> None:
    pair = pv.CVAE(
        condition=Words(3, 2),
        prior=pv.mlp(2, fam.Normal(2), hidden=()),
        likelihood=pv.mlp((2, 2), fam.Bernoulli(4), hidden=()),
        encoder=pv.mlp((4, 2), fam.Normal(2), hidden=()),
    )
    x, c = torch.zeros(6, 4), torch.tensor([[1, 0], [2, 3], [3, 3], [0, 0], [4, 1], [1, 2]])
    with pytest.raises(
        DataError, match=r"'c': 1 of 12 values are no word of Words\(3, 2\), the first is 4 in row 4. Encode"
    ):
        pv.fit(pair, {"x": x, "c": c}, epochs=1, progress=False)
