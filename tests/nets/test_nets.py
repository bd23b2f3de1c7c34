"""Networks: shapes, what their formulas say, gradients, and messages."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pyrovae.engine.tracing import graph_of
from pyrovae.errors import OptionError, ShapeError
from pyrovae.nets import (
    MLP,
    Behind,
    ConvDecoder,
    ConvEncoder,
    GridDecoder,
    GridEncoder,
    Log1p,
    ReLUDropout,
    Rescaled,
    ResidualMLP,
    ResNetDecoder,
    ResNetEncoder,
    one_hot,
)
from pyrovae.nets.dropout import dropping

# name: (network, shapes of one row of each parent, shape of one row of the result)
ROWS: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(5, (2, 3)), [(5,)], (2, 3)),
    "mlp-to-a-number": (lambda: MLP(5, ()), [(5,)], ()),
    "mlp-linear": (lambda: MLP(5, 7, hidden=()), [(5,)], (7,)),
    "mlp-deep": (lambda: MLP(5, 7, hidden=(16, 16, 16), activation=nn.Tanh), [(5,)], (7,)),
    "mlp-parents": (lambda: MLP((5, 1, 4), (2, 3), hidden=[16]), [(5,), (1,), (4,)], (2, 3)),
    "residual-mlp": (lambda: ResidualMLP((5, 2), (2, 3), hidden=(16, 8), blocks=2), [(5,), (2,)], (2, 3)),
    "resnet-encoder": (lambda: ResNetEncoder((1, 12, 12), (2, 3), channels=(4, 8), blocks=2), [(1, 12, 12)], (2, 3)),
    "resnet-decoder": (lambda: ResNetDecoder(5, (2, 3, 12, 8), channels=(8, 4)), [(5,)], (2, 3, 12, 8)),
    "encoder": (lambda: ConvEncoder((1, 28, 28), (2, 3), channels=(4, 8)), [(1, 28, 28)], (2, 3)),
    "encoder-gray": (lambda: ConvEncoder((9, 7), 3, channels=[4], hidden=(16,)), [(9, 7)], (3,)),
    "encoder-dot": (lambda: ConvEncoder((2, 1, 1), 3, channels=(4, 4), activation=nn.Tanh), [(2, 1, 1)], (3,)),
    "decoder": (lambda: ConvDecoder(5, (2, 3, 28, 20), channels=(8, 4)), [(5,)], (2, 3, 28, 20)),
    "decoder-small": (lambda: ConvDecoder(5, (3, 8, 8), channels=(8,), hidden=(16,)), [(5,)], (3, 8, 8)),
    "decoder-odd": (lambda: ConvDecoder(5, (1, 9, 7), channels=(8, 8, 4)), [(5,)], (1, 9, 7)),
    "decoder-gray": (lambda: ConvDecoder(5, (13, 1), channels=[8, 4]), [(5,)], (13, 1)),
    "grid-encoder": (lambda: GridEncoder((2, 9, 7), 3, channels=(4, 8), cells=1), [(2, 9, 7)], (3, 3, 2)),
    "grid-decoder": (lambda: GridDecoder(3, (2, 9, 7), channels=(4, 8), cells=1), [(3, 3, 2)], (2, 9, 7)),
    "decoder-parents": (lambda: ConvDecoder((5, 2), (1, 8, 8), channels=(8, 4)), [(5,), (2,)], (1, 8, 8)),
}
every_net = pytest.mark.parametrize(("build", "in_shapes", "out_shape"), ROWS.values(), ids=ROWS)


@every_net
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)], ids=str)
def test_left_hand_dims_are_rows(build: Any, in_shapes: Any, out_shape: Any, batch: tuple[int, ...]) -> None:
    net = build()
    parents = [torch.randn(*batch, *shape) for shape in in_shapes]
    out = net(*parents)
    assert out.shape == (*batch, *out_shape) and net.out_shape == out_shape
    for i in np.ndindex(*batch):
        torch.testing.assert_close(out[i], net(*(p[i] for p in parents)), rtol=1e-4, atol=1e-5)


@every_net
def test_every_parameter_and_input_matters(build: Any, in_shapes: Any, out_shape: Any) -> None:
    net = build()
    parents = [torch.randn(64, *shape, requires_grad=True) for shape in in_shapes]
    (net(*parents) * torch.randn(64, *out_shape)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), f"{name} gets no gradient"
    for parent in parents:
        assert parent.grad is not None and parent.grad.abs().sum(0).all(), "a part of the input is not seen"


@every_net
def test_every_output_depends_on_the_input(build: Any, in_shapes: Any, out_shape: Any) -> None:
    out = build()(*(10 * torch.randn(64, *shape) for shape in in_shapes))
    assert (out.std(0) > 0).all()


@every_net
def test_float64(build: Any, in_shapes: Any, out_shape: Any) -> None:
    assert build().double()(*(torch.randn(3, *s, dtype=torch.float64) for s in in_shapes)).dtype == torch.float64


@every_net
def test_is_rebuilt_from_its_attributes_and_state(build: Any, in_shapes: Any, out_shape: Any) -> None:
    net = build()
    names = list(inspect.signature(type(net).__init__).parameters)[1:]
    again = type(net)(**{name: getattr(net, name) for name in names})
    parents = [torch.randn(3, *shape) for shape in in_shapes]
    assert not torch.equal(again(*parents), net(*parents))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(*parents), net(*parents))


@every_net
def test_is_traced(build: Any, in_shapes: Any, out_shape: Any) -> None:
    net, parents = build(), [torch.randn(3, *shape) for shape in in_shapes]
    graph = graph_of(lambda *parents: net(*parents), *parents)
    torch.testing.assert_close(graph(*(p + 1 for p in parents)), net(*(p + 1 for p in parents)))


@every_net
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p[..., :0], "needs rows of shape"),
        (lambda p: p.unsqueeze(-1), "needs rows of shape"),
        (lambda p: torch.zeros(()), r"got \(\)"),
        (
            lambda p: p.long(),
            r"got torch.int64 .* Cast them: `.float\(\)`, or `.astype\('float32'\)` for a NumPy array",
        ),
        (lambda p: p.double(), r"got torch.float64 .* Cast them: `.float\(\)`"),
        (lambda p: p.numpy(), "got ndarray"),
        (lambda p: None, "got NoneType"),
    ],
    ids=["narrow", "deep", "scalar", "int64", "float64", "numpy", "None"],
)
def test_a_wrong_parent_is_named(build: Any, in_shapes: Any, out_shape: Any, spoil: Any, message: str) -> None:
    net, parents = build(), [torch.randn(3, *shape) for shape in in_shapes]
    with pytest.raises(ShapeError, match=f"^{type(net).__name__} .*{message}"):
        net(*parents[:-1], spoil(parents[-1]))


@every_net
def test_a_wrong_number_of_parents_is_named(build: Any, in_shapes: Any, out_shape: Any) -> None:
    net, parents = build(), [torch.randn(3, *shape) for shape in in_shapes]
    for wrong in (parents[1:], [*parents, parents[0]]):
        with pytest.raises(ShapeError, match=rf"needs {len(parents)} parent\(s\).*got {len(wrong)}"):
            net(*wrong)


def test_weights_in_float64_ask_for_double() -> None:
    with pytest.raises(ShapeError, match=r"`.double\(\)`"):
        MLP(5, 7).double()(torch.zeros(3, 5))


def test_autocast_casts_by_itself() -> None:
    net, x = MLP(5, 7), torch.randn(3, 5)
    with pytest.raises(ShapeError, match="bfloat16"):
        net(x.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(x.bfloat16()).dtype == torch.bfloat16
        with pytest.raises(ShapeError, match="int64"):
            net(x.long())


def test_mlp_without_hidden_layers_is_affine() -> None:
    net, x = MLP((5, 2), 7, hidden=()), [torch.randn(3, 5), torch.randn(3, 2)]
    weight, bias = torch.cat([layer.weight for layer in net.first], 1), net.first[0].bias
    torch.testing.assert_close(net(*x), torch.cat(x, 1) @ weight.T + bias)


def test_mlp_of_several_parents_is_that_of_the_concatenated_ones() -> None:
    several, one = MLP((5, 2), 7, hidden=(16,)), MLP(7, 7, hidden=(16,))
    with torch.no_grad():
        one.first[0].weight.copy_(torch.cat([layer.weight for layer in several.first], 1))
        one.first[0].bias.copy_(several.first[0].bias)
    one.rest.load_state_dict(several.rest.state_dict())
    x, y = torch.randn(3, 5), torch.randn(4, 1, 2)
    concatenated = torch.cat([x.expand(4, 3, 5), y.expand(4, 3, 2)], -1)
    torch.testing.assert_close(several(x, y), one(concatenated))


@pytest.mark.parametrize(
    ("build", "row", "num_layers"),
    [
        (lambda a: MLP(5, 3, hidden=(), activation=a), (5,), 1),
        (lambda a: MLP(5, 3, hidden=(16, 8), activation=a), (5,), 3),
        (lambda a: ConvEncoder((9, 7), 3, channels=(4, 8), hidden=(16,), activation=a), (9, 7), 4),
        (lambda a: ConvDecoder(5, (9, 7), channels=(8, 4), hidden=(16,), activation=a), (5,), 4),
    ],
)
def test_one_activation_stands_between_two_layers(build: Any, row: tuple[int, ...], num_layers: int) -> None:
    calls = []

    class Recorded(nn.Tanh):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append("activation")
            return super().forward(x)

    net = build(Recorded)
    for layer in net.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.register_forward_hook(lambda *_: calls.append("layer"))
    net(torch.randn(3, *row))
    assert calls == (["layer", "activation"] * num_layers)[:-1]


def test_decoder_leaves_no_checkerboard() -> None:
    net = ConvDecoder(1, (1, 29, 22), channels=(2, 2), activation=nn.Identity)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.fill_(float(not name.endswith("bias")))
    inside = net(torch.ones(1))[0, 8:-8, 8:-8]
    assert inside.numel() > 50 and inside.max() == inside.min() > 0


@pytest.mark.parametrize("shape", [(784,), (), (2, 3, 4, 5)], ids=str)
def test_encoder_wants_an_image(shape: Any) -> None:
    with pytest.raises(ShapeError, match="in_shape"):
        ConvEncoder(shape, 3)


def test_decoder_wants_an_image_and_a_channel() -> None:
    with pytest.raises(ShapeError, match="ends in"):
        ConvDecoder(5, (784,))
    with pytest.raises(ShapeError, match="at least one"):
        ConvDecoder(5, (1, 8, 8), channels=())


@pytest.mark.parametrize("wrong", [0, -1, 2.5, (5, 0), "5"], ids=str)
def test_in_features_are_positive_ints(wrong: Any) -> None:
    with pytest.raises(ShapeError, match="positive int"):
        MLP(wrong, 3)


@pytest.mark.parametrize("batch", [(), (6,), (2, 3)], ids=str)
def test_one_hot_is_torchs(batch: tuple[int, ...]) -> None:
    y = torch.randint(0, 4, batch)
    assert torch.equal(one_hot(y, 4), nn.functional.one_hot(y, 4).float())
    assert torch.equal(one_hot(y.double(), 4, torch.float64), nn.functional.one_hot(y, 4).double())


def test_one_hot_of_an_unknown_label_is_a_row_of_zeros() -> None:
    assert not one_hot(torch.tensor([-1, 4]), 4).any()
    assert not one_hot(torch.tensor([float("nan")]), 4).any()


def test_one_hot_is_traced() -> None:
    graph = graph_of(lambda y: one_hot(y, 4), torch.tensor([0, 3]))
    assert torch.equal(graph(torch.tensor([1, 2])), torch.eye(4)[1:3])
    assert not [n for n in graph.graph.nodes if "_local_scalar_dense" in str(n.target)]


def test_what_stands_before_a_net_takes_the_first_parent_alone() -> None:
    net, front = MLP((3, 2), (4,)), MLP(5, 3)
    x, code = torch.rand(6, 5), torch.rand(7, 1, 2)
    torch.testing.assert_close(Behind(front, net)(x, code), net(front(x), code))
    y = torch.rand(6, 3)
    torch.testing.assert_close(Rescaled(net, 0.5)(y, code), net(0.5 * y, code))
    torch.testing.assert_close(Log1p(net)(y, code), net(torch.log1p(y), code))
    assert Behind(front, net).out_shape == Rescaled(net, 0.5).out_shape == Log1p(net).out_shape == (4,)


@pytest.mark.slow
def test_dropout_is_of_training_and_of_where_it_is_asked_for() -> None:
    net = MLP(5, 3, (200,), ReLUDropout(0.5))
    x = torch.rand(4, 5)
    assert not torch.equal(net(x), net(x))
    net.eval()
    plain = net(x)
    assert torch.equal(plain, net(x))
    with dropping(net):
        several = torch.stack([net(x) for _ in range(2000)])
        assert not net.training
    torch.testing.assert_close(several.mean(0), plain, atol=0.03, rtol=0)  # dropout keeps the mean of a linear layer
    assert torch.equal(plain, net(x))
    for p in (1, -0.1):
        with pytest.raises(OptionError, match="must be a number of at least 0 and below 1"):
            ReLUDropout(p)
