"""The order of reads and writes in programs that TorchInductor compiles for a CPU.

Torch forgot part of it where it changed the loops of an operation to join them with those of another: before 2.14 noise that is
drawn in place could be read before it was drawn (pytorch/pytorch#185873), and in 2.11 what a product of matrices reads could be
overwritten first (#177816). Nor did 2.11 keep the order of random operations (#181245).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.torch_version import TorchVersion
from torch.utils._ordered_set import OrderedSet

from pyrovae._lazily import Lazily

scheduler = Lazily("torch._inductor.scheduler")
dependencies = Lazily("torch._inductor.dependencies")
MENDED = (2, 14)  # the first version of torch that keeps the order by itself


@contextmanager
def order_kept() -> Iterator[None]:
    """Let TorchInductor keep the order of reads and writes, and that of random numbers, while it compiles."""
    version: Any = TorchVersion(torch.__version__)
    if version >= MENDED:
        yield
        return
    # or a program would be found that was compiled without this
    config: Any = torch.compiler.config
    tag = f"{config.cache_key_tag} pyrovae: order kept"
    with (
        config.patch(cache_key_tag=tag),
        _around(scheduler.SchedulerNode, "recompute_size_and_body", _naming_again),
        _around(scheduler.Scheduler, "compute_dependencies", _one_draw_after_another),
    ):
        yield


@contextmanager
def _around(kind: Any, name: str, outer: Callable[..., None]) -> Iterator[None]:
    """Let `outer(inner, self, ...)` be run for `inner(self, ...)`, a method of this class."""
    inner = getattr(kind, name)

    def method(*args: Any, **options: Any) -> None:
        outer(inner, *args, **options)

    setattr(kind, name, method)
    try:
        yield
    finally:
        setattr(kind, name, inner)


def _naming_again(change_loops: Callable[..., None], node: Any, *args: Any, **options: Any) -> None:
    """An operation waits for those before it that write what it reads, under the names that these have after the writing, and
    for those that must have read what it writes. With its loops, the names are lost, and the latter are."""
    added = [d for d in node.read_writes.reads if isinstance(d, (dependencies.WeakDep, dependencies.StarDep))]
    change_loops(node, *args, **options)
    node.set_read_writes(node.read_writes.with_read(OrderedSet(added)).rename(node.mutation_renames))


def _one_draw_after_another(find: Callable[..., None], whole: Any) -> None:
    """What draws random numbers waits for all that drew before, or the draws would be others than those of other engines."""
    drawn: list[str] = []
    for node in whole.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(getattr(node.node, "op_overload", None), "tags", ()):
            names = list(node.get_buffer_names())
            for before in drawn:
                node.add_fake_dep(dependencies.WeakDep(before, mutating_buf=names[0], is_fake=True))
            drawn += names
    find(whole)
