"""What others see of a lent device: a name by which it is shown and set, and a capture of its packets."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ginnel.device.capture import Capture
from ginnel.device.directory import Claim, claim_name
from ginnel.device.interface import Interface, Interfaces
from ginnel.device.service import Holder, Service

if TYPE_CHECKING:
    from typing import Self


class Seen:
    """Follows the interfaces of a lent program: of several the latest is seen. An asynchronous context manager."""

    def __init__(
        self, interfaces: Interfaces, program: str, name: str | None, capture: str | os.PathLike[str] | None
    ) -> None:
        """``name``: as which the device is found (None: it is not), ``capture``: a pcapng file.

        Raises DeviceError (EEXIST, EINVAL, EPERM) for the name, ConfigError for the file.
        """
        if capture is not None:
            # What is wrong with it is said before the program begins.
            Capture(capture, "tun", "").close()
        self.on_delete: Callable[[], object] = lambda: None
        """Called when somebody has deleted the device by its name."""
        self._interfaces = interfaces
        self._program = Holder(0, Path(program).name)
        self._path = capture
        self._capture: Capture | None = None
        self._claim: Claim | None = None if name is None else claim_name(name)
        self._service: Service | None = None
        self._ending: set[asyncio.Task[None]] = set()
        interfaces.on_create.append(self._show)
        interfaces.on_delete.append(self._hide)

    async def aclose(self) -> None:
        """Idempotent."""
        self._stop_serving()
        if self._ending:
            await asyncio.wait(self._ending)
        with contextlib.ExitStack() as stack:
            if self._claim is not None:
                stack.callback(self._claim.release)
            if self._capture is not None:
                stack.callback(self._capture.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _show(self, interface: Interface) -> None:
        if self._path is not None:
            if self._capture is None:
                self._capture = Capture(self._path, interface.kind, interface.name)
            self._capture.observe(interface.device, interface.name)
        if self._claim is not None:
            self._stop_serving()
            self._service = Service(
                interface, self._claim, guest=self._program, on_delete=lambda: self._delete(interface)
            )

    async def _delete(self, interface: Interface) -> None:
        await self._interfaces.delete(interface)
        self.on_delete()

    def _hide(self, interface: Interface) -> None:
        if self._service is not None and self._service.interface is interface:
            self._stop_serving()

    def _stop_serving(self) -> None:
        if self._service is not None:
            task = asyncio.get_running_loop().create_task(self._service.aclose())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            self._service = None
