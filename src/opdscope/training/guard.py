"""What keeps a watched run a run: nothing is raised into the trainer, and its random numbers and training flags stay as they were."""

import logging
import random
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

logger = logging.getLogger("opdscope.training")


@dataclass
class Part:
    """A part of the watching that may fail: it then says so once, and switches itself off."""

    name: str
    """For the log."""
    num_failures: int = 0
    """How often it has failed; it is off from the first one on."""

    @property
    def is_on(self) -> bool:
        """False once it has failed."""
        return self.num_failures == 0

    @contextmanager
    def trying(self) -> Generator[None]:
        """Run a block; what it raises ends the block and this part, and nothing else."""
        try:
            yield
        except Exception as error:
            self.num_failures += 1
            logger.warning("opdscope: the %s has failed and is off from now on; training goes on. %r", self.name, error, exc_info=error)


@contextmanager
def undisturbed(model: Any) -> Generator[None]:
    """Leave every random number generator and every module's training flag as they were, whatever happens inside."""
    python, tensors = random.getstate(), torch.get_rng_state()
    arrays = np.random.get_state()  # noqa: NPY002 - the trainer's code may draw from numpy's global generator; ours does not
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002 - the same global generator, put back
        torch.set_rng_state(tensors)
        if devices:
            torch.cuda.set_rng_state_all(devices)
        for module, flag in flags:
            module.training = flag
