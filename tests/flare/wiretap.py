"""Loaded into every process of a run as `sitecustomize`: appends all bytes written to sockets to a file a process."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

if os.environ.get("WIRETAP"):
    _file = (Path(os.environ["WIRETAP"]) / str(os.getpid())).open("ab", buffering=0)

    def _recorded(name: str) -> Any:
        original = getattr(socket.socket, name)

        def send(self: socket.socket, data: Any, *rest: Any) -> Any:
            _file.write(bytes(data))
            return original(self, data, *rest)

        return send

    for _name in ("send", "sendall"):
        setattr(socket.socket, _name, _recorded(_name))
