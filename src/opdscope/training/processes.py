"""Several processes that train one model: what each of them saw is put together, and what the first one decides is done by all."""

import logging
from collections.abc import Callable
from typing import TypeVar, cast

import torch.distributed as dist

logger = logging.getLogger("opdscope.training")

T = TypeVar("T")


class Processes:
    """Exchange between the processes of a run; with one process nothing is exchanged.

    Every process calls the same methods in the same order, whatever has failed in it: a process that left one out would keep the others waiting.
    """

    def __init__(self) -> None:
        self._is_broken = False

    @property
    def count(self) -> int:
        """Processes that train together."""
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not self._is_broken else 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that decides and writes."""
        return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0

    def gather(self, own: T) -> list[T]:
        """What every process has, in their order; own alone if the exchange fails."""

        def exchange() -> list[T]:
            found: list[T | None] = [None] * self.count
            dist.all_gather_object(found, own)
            return cast(list[T], found)

        return [own] if self.count == 1 else self._tried(exchange, [own])

    def from_first(self, own: T) -> T:
        """What the first process has; own if the exchange fails."""

        def exchange() -> T:
            found = [own]
            dist.broadcast_object_list(found, src=0)
            return found[0]

        return own if self.count == 1 else self._tried(exchange, own)

    def _tried(self, exchange: Callable[[], T], otherwise: T) -> T:
        try:
            return exchange()
        except Exception as error:
            self._is_broken = True
            logger.warning(
                "opdscope: the processes cannot be heard from each other; each is on its own from now on. %r", error, exc_info=error
            )
            return otherwise
