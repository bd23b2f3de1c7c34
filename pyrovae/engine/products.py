"""Products of matrices in traced programs, by the library that is the faster one on this processor.

On a CPU, PyTorch computes products in float32 by MKL. On AMD's processors with AVX-512, MKL uses half of the width of their
registers, and oneDNN, which PyTorch has for bfloat16 and convolutions, all of it: on two cores of an EPYC 226 and 491
billion operations a second for 256 x 784 x 400 (`benchmarks/speed.py --cases a --only ceiling`). Results differ by rounding.
"""

from __future__ import annotations

import functools
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
# The smallest number of rows, columns and summands, and of operations, from which oneDNN was the faster one: it takes some
# 10 microseconds to start, is slow for few summands, and copies a first matrix that is turned, slowly.
SIDE, OPERATIONS = 64, 1e7
IN_COMPILED = 16, 4e6  # the same of compiled programs, which copy in a fraction of that time
library = torch.library.Library("pyrovae", "FRAGMENT")


def use_the_faster_library(module: fx.GraphModule, least: tuple[int, float] | None = None) -> bool:
    """Let oneDNN compute the large products of a program on a CPU, in place, if it is the faster one here.

    Args:
        least: the smallest number of rows, columns and summands, and of operations; by default `SIDE` and `OPERATIONS`.

    Returns:
        Whether there is such a product.
    """
    least = least or (SIDE, OPERATIONS)
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if linear is None or not (torch._C._get_mkldnn_enabled() and onednn_is_faster()):  # a user may switch it off
        return False
    found = False
    for node in list(module.graph.nodes):
        if node.target is aten.mm.default:
            (a, b), bias = node.args, None
        elif node.target is aten.addmm.default and not node.kwargs:
            bias, a, b = node.args
        else:
            continue
        if not _gains(a.meta["val"], b.meta["val"], None if bias is None else bias.meta["val"], least):
            continue
        with module.graph.inserting_before(node):
            turned = module.graph.call_function(aten.t.default, (b,))
            turned.meta["val"] = b.meta["val"].t()
            made = module.graph.call_function(linear.default, (a, turned, bias, "none", [], ""))
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        module.graph.erase_node(node)
        found = True
    module.recompile()
    return found


def for_the_compiler(module: fx.GraphModule) -> None:
    """Let TorchInductor call oneDNN as it is: what it makes of these products itself is for weights that never change.

    Copies of matrices that are turned are operations of the program, which the compiler joins to what makes the matrix.
    """
    if all(node.meta["val"].device.type == "cpu" for node in module.graph.nodes if node.op == "placeholder"):
        use_the_faster_library(module, IN_COMPILED)
    linear = getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)
    for node in list(module.graph.nodes):
        if linear is None or node.target is not linear:
            continue
        node.target, node.args = _operation(), node.args[:3]
        given = node.args[0]
        if not given.meta["val"].is_contiguous():
            with module.graph.inserting_before(node):
                copied = module.graph.call_function(
                    aten.clone.default, (given,), {"memory_format": torch.contiguous_format}
                )
            copied.meta["val"] = given.meta["val"].contiguous()
            node.replace_input_with(given, copied)
    module.recompile()


@functools.cache
def _operation() -> Any:
    """`x weight^T + bias` by oneDNN, as an operation of its own."""
    library.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
    library.impl("linear", lambda x, w, b: torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], ""), "CPU")
    torch.library.register_fake("pyrovae::linear", lambda x, w, b: x.new_empty(x.shape[0], w.shape[0]), lib=library)
    return torch.ops.pyrovae.linear.default


def _gains(a: Tensor, b: Tensor, bias: Tensor | None, least: tuple[int, float]) -> bool:
    """Whether `a b + bias` is a product that oneDNN computes, and large enough to gain by it."""
    (rows, summands), columns = a.shape, b.shape[1]
    return (
        a.dtype == b.dtype == torch.float32
        and (bias is None or (bias.dtype == torch.float32 and bias.shape == (columns,)))
        and min(rows, summands, columns) >= least[0]
        and 2 * rows * summands * columns >= least[1]
    )


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies matrices in float32 faster than MKL here, by the processor's maker: nothing is measured."""
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AuthenticAMD" in _processor()
    )


def _processor() -> str:
    """What the system says of the processor."""
    found: Any = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found += next((line for line in lines if line.startswith("vendor_id")), "")
    return str(found)
