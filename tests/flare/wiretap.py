"""Loaded into every process of a run as `sitecustomize`: appends all bytes written to sockets to a file a process,
`<client or server>-<pid>`."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

if os.environ.get("WIRETAP"):
    _words = sys.orig_argv
    _who = _words[_words.index("--client") + 1] if "--client" in _words else "server"
    _file = (Path(os.environ["WIRETAP"]) / f"{_who}-{os.getpid()}").open("ab", buffering=0)

    def _recorded(name: str) -> Any:
        original = getattr(socket.socket, name)

        def send(self: socket.socket, data: Any, *rest: Any) -> Any:
            _file.write(bytes(data))
            return original(self, data, *rest)

        return send

    for _name in ("send", "sendall"):
        setattr(socket.socket, _name, _recorded(_name))
