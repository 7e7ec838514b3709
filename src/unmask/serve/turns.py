"""One at a time, and how many wait: for work that runs beside the engine."""

import asyncio
from typing import Any


class Turns:
    """A lock of a loop that knows how many wait for it."""

    def __init__(self) -> None:
        self.waiting = 0
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        self.waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self.waiting -= 1

    async def __aexit__(self, *error: Any) -> None:
        self._lock.release()
