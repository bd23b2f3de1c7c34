"""Ranks: processes that take the steps of one fit together, each on its own rows of every minibatch.

`torchrun` starts them. All have the same parameters, since all descend the same mean of their gradients. A process that was
started alone is the only rank, and for it every function here is the identity.
"""

from __future__ import annotations

import atexit
import os
import pickle
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pyrovae._launch import launched
from pyrovae._lazily import Lazily
from pyrovae.engine.program import Clip
from pyrovae.errors import OptionError, RankError, shortened

meeting = Lazily("torch.distributed.rendezvous")

# What torch's messages contain where another process does not answer.
LOST = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
ASK_EVERY = 0.5  # seconds between two questions whether a rank has been told to stop
_alone = False  # whether this rank tries out a step by itself
# A user's own group that sends no tensors on the host, and the group through which they are sent.
_host_group: tuple[Any, Any] = (None, None)


# --- who is there ----------------------------------------------------------------------------------------------------


def join() -> None:
    """Meet the other processes, if a launcher has started several; the first call waits for all of them."""
    if not launched() or dist.is_initialized():
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    if gpus and local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    try:
        store, number, size = next(meeting.rendezvous("env://"))
        # torchrun keeps its store, in which processes that it has started anew would find the addresses of those before them
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=size)
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"This process, number {os.environ['RANK']} of {os.environ['WORLD_SIZE']}, did not meet the others at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({shortened(error)})."
        ) from error
    atexit.register(_part)


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """The number of ranks, R."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this rank, from 0 to R - 1."""
    return dist.get_rank() if world_size() > 1 else 0


def check_device(device: torch.device) -> None:
    """OptionError where several processes would share a GPU, which NCCL refuses in words of its own."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if world_size() > 1 and device.type == "cuda" and here > torch.cuda.device_count():
        raise OptionError(
            f"Each process needs a GPU of its own, and this machine has {torch.cuda.device_count()} for {here} processes: "
            f"start {torch.cuda.device_count()} (--nproc-per-node), or choose the device cpu."
        )


# --- rows ------------------------------------------------------------------------------------------------------------


def shard(rows: Tensor) -> Tensor:
    """The rows of a minibatch that are this rank's: an equal share, to within one."""
    ranks, number = world_size(), rank()
    return rows[len(rows) * number // ranks : len(rows) * (number + 1) // ranks] if ranks > 1 else rows


def stands_for(num_rows: int, size: int) -> float:
    """How many rows this rank's share of a minibatch stands for, so that the mean over ranks is what all of it stands for.

    With B_r of the B rows of a minibatch, drawn from N, a row must count N/B times in the mean over R ranks, so R N/B times
    here: as often as if the B_r were drawn from R N B_r/B rows, which is N where shares are equal.
    """
    ranks = world_size()
    own = len(shard(torch.empty(size)))
    return num_rows if own * ranks == size else num_rows * ranks * own / size


def own_seed(seed: int, step: int = 0) -> int:
    """A seed for the noise of this rank; the first rank's own noise goes on from the seed itself."""
    generator = torch.Generator().manual_seed(seed)
    return int((torch.randint(2**62, (rank() + 1,), generator=generator)[-1] + step) % 2**62)


# --- gradients -------------------------------------------------------------------------------------------------------


def averaged(clip: Clip | None) -> Clip | None:
    """A `Clip` that takes the mean of each gradient over ranks, and then does what `clip` does. It is part of every step."""
    if world_size() == 1:
        return clip

    def clipped(leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> Sequence[Tensor]:
        means = average(grads)
        return means if clip is None else clip(leaves, means)

    return clipped


def average(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean of each tensor over ranks, by one message for each dtype. It can be traced and compiled."""
    ranks, means = world_size(), list(tensors)
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors) if ranks > 1 else ():
        alike = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
        parts = _mean_over_ranks([tensors[i] for i in alike]).split([tensors[i].numel() for i in alike])
        for i, part in zip(alike, parts):
            means[i] = part.reshape(tensors[i].shape)
    return means


def _mean(values: Sequence[Tensor]) -> Tensor:
    """The means over ranks, one after another in a vector of their own, so that nothing is copied but into it."""
    flat = torch.cat([value.reshape(-1) for value in values])
    if not _alone:
        dist.all_reduce(flat)
    return flat.div_(world_size())


# An operation of our own, since make_fx runs what it traces, and would have a rank wait that compiles a step by itself.
_mean_over_ranks = torch.library.custom_op(
    "pyrovae::mean_over_ranks", _mean, mutates_args=(), schema="(Tensor[] values) -> Tensor"
)
_mean_over_ranks.register_fake(lambda values: values[0].new_empty(sum(value.numel() for value in values)))


@contextmanager
def unheard() -> Iterator[None]:
    """Inside, a mean over ranks has this rank's numbers alone, so that a step can be tried out while the others take none."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


# --- what is said between ranks --------------------------------------------------------------------------------------


@contextmanager
def together() -> Iterator[None]:
    """RankError where another rank is lost for which this one waits."""
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or isinstance(error, RankError):
            raise
        if not isinstance(error, dist.DistError) and not any(word in str(error).lower() for word in LOST):
            raise
        what = re.sub(r"^\[[^]]*\] *", "", str(error))  # without the place in torch's source
        raise RankError(
            f"Another of the {world_size()} processes of this fit was lost, and this one cannot go on without it "
            f"({shortened(what, 100)})."
        ) from error


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over ranks, on the host."""
    if world_size() == 1:
        return values
    summed = values.detach().cpu().clone()
    with together():
        dist.all_reduce(summed, group=_host())
    return summed


def copy_means(tensors: Iterable[Tensor]) -> None:
    """Write the means over ranks into tensors, such as running means of what each rank has seen of the rows."""
    found = [tensor for tensor in tensors if tensor.is_floating_point()] if world_size() > 1 else []
    if not found:
        return
    # in float64, where the mean of equal numbers is the number itself
    sums = total(torch.cat([tensor.detach().reshape(-1).double().cpu() for tensor in found])) / world_size()
    with torch.no_grad():
        for tensor, mean in zip(found, sums.split([tensor.numel() for tensor in found])):
            tensor.copy_(mean.view(tensor.shape))


def first(function: Callable[[], Any]) -> Any:
    """What a function returns, or raises, on the first rank, which alone calls it; the others wait for it."""
    if world_size() == 1:
        return function()
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = function()
        except Exception as error:
            found[1] = error
    sent = [found[0], _portable(found[1])]
    with together():
        dist.broadcast_object_list(sent, src=0, group=_host(), device=torch.device("cpu"))
    if rank() > 0:
        found = sent
    if found[1] is not None:
        raise found[1]
    return found[0]


def _portable(error: Exception | None) -> Exception | None:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RankError(f"The first process of this fit failed: {shortened(repr(error))}")
    return error


def agree(value: Any) -> Any:
    """The first rank's value."""
    return first(lambda: value)


def first_and_then_others(function: Callable[[], Any]) -> Any:
    """What a function returns here, which the others call when the first rank has: what it leaves on the disk is there then."""
    found: list[Any] = []
    first(lambda: found.append(function()))
    return found[0] if found else function()


def everywhere(value: Any) -> list[Any]:
    """The values of all ranks, in their order."""
    found = [value] * world_size()
    if len(found) > 1:
        with together():
            dist.all_gather_object(found, value, group=_host())
    return found


def copy_from_first(tensors: Mapping[str, Tensor]) -> None:
    """Give every rank the first rank's tensors."""
    if world_size() == 1:
        return
    found = first(lambda: {name: tensor.detach().cpu() for name, tensor in tensors.items()})
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(found[name])
    # NCCL connects at its first message, which must not be while a CUDA graph is recorded
    average([torch.zeros(1, device=device) for device in {tensor.device for tensor in tensors.values()}])


def tells() -> bool:
    """Whether this rank is the first that has an error to tell; it alone tells one."""
    if world_size() == 1:
        return True
    try:
        return int(dist.distributed_c10d._get_default_store().add("pyrovae/told", 1)) == 1
    except RuntimeError:  # the process that held the list is gone
        return True


class Stop:
    """Whether any rank has been asked to stop, of which all learn before the same step.

    About twice a second they ask each other, before a step that the first rank has chosen by the time that steps take.
    """

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked, self.said = asked, False
        self.left, self.between, self.since = 1, 1, time.monotonic()

    def before_step(self) -> bool:
        if world_size() == 1:
            return self.asked()
        self.left -= 1
        return self.now() if self.left <= 0 else self.said

    def now(self) -> bool:
        """Ask at once; all ranks must."""
        if world_size() == 1:
            return self.asked()
        now = time.monotonic()
        coming = self.between * ASK_EVERY / max(now - self.since, 1e-3)
        coming = min(2 * self.between, max(1, int(coming)))
        asked, coming = total(torch.tensor([float(self.asked()), 0.0 if rank() else coming])).tolist()
        self.said = self.said or asked > 0
        self.left = self.between = int(coming)
        self.since = now
        return self.said


def _host() -> Any:
    """The group through which tensors on the host are sent."""
    global _host_group
    world: Any = dist.group.WORLD
    if torch.device("cpu") in world._device_types:
        return world
    if _host_group[0] is not world:  # the user's program may have ended one group and begun another
        _host_group = world, dist.new_group(backend="gloo")
    return _host_group[1]
