"""Several processes as torchrun starts them, but forked from this one, so that none of them imports torch again."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

from pyrovae.engine import ranks


def _child(work: Callable[[int], Any], number: int, size: int, port: int, pipe: Any) -> None:
    os.environ.update(RANK=str(number), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    torch.cuda.is_available = lambda: False  # nor does CUDA
    try:
        pipe.send_bytes(pickle.dumps(work(number)))  # by value: `send` would share the memory of tensors
    except BaseException as error:
        pipe.send_bytes(pickle.dumps((type(error).__name__, str(error), traceback.format_exc())))
    finally:
        pipe.close()
        os._exit(0)  # without what pytest would do at the end


def in_processes(work: Callable[[int], Any], size: int = 2) -> list[Any]:
    """What a function of the rank returns in each of several processes; of an error its name, message and traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ranks.unheard():
        ranks._mean_over_ranks([torch.zeros(1)])  # the first one imports much, now once for all processes
    fork = multiprocessing.get_context("fork")
    started, found = [], []
    for number in range(size):
        here, there = fork.Pipe(duplex=False)
        process = fork.Process(target=_child, args=(work, number, size, port, there))
        process.start()
        there.close()
        started.append((process, here))
    for process, here in started:
        try:
            found.append(pickle.loads(here.recv_bytes()) if here.poll(300) else "it did not answer")
        except EOFError:
            found.append("it ended without a word")
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
    return found
