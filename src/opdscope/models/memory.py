"""How much memory a model could still take on this machine."""

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class FreeMemory:
    """Memory that is free now."""

    num_bytes: float
    """How much."""
    where: str
    """Of what: `memory`, or the name of an accelerator."""


def free_memory(device: str) -> FreeMemory | None:
    """What is free where a model would lie; None if this system does not say.

    Args:
        device: As in `engine.device`: auto, cpu, cuda, cuda:1.
    """
    torch = None if device == "cpu" else _torch()
    if torch is not None and torch.cuda.is_available():
        index = 0 if device == "auto" else torch.device(device).index or 0
        free, _ = torch.cuda.mem_get_info(index)
        return FreeMemory(float(free), f"{torch.cuda.get_device_name(index)} memory")
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return FreeMemory(1024.0 * int(line.split()[1]), "memory")
    try:
        return FreeMemory(float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")), "memory")
    except (ValueError, OSError):
        return None


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None
