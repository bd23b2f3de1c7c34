"""A mode in which torch's operations are looked at one by one."""

from __future__ import annotations

import sys

from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack


class DispatchMode(TorchDispatchMode):
    """torch's own, without what it imports to let compilers pass it by, which takes more than a second: none runs inside."""

    records = False  # whether it makes a program of the operations, in which no value can be read

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def recorded() -> bool:
    """Whether operations are being recorded, by us or by torch's own tracer."""
    if any(getattr(mode, "records", False) for mode in _get_current_dispatch_mode_stack()):
        return True
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")  # which takes a second to import
    return tracer is not None and tracer.get_proxy_mode() is not None
