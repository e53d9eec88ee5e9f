"""Every process of a run keeps a connection to rank 0, which its machine closes when the process ends, however it ends.

So a death is seen at once, on any number of machines and with any backend (NCCL's collective operations would wait for
minutes). Rank 0 says which process it was. Then everybody ends, also one whose main thread waits in a collective
operation for ever. Nobody but rank 0 says anything; an error of another rank is told to it.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import click

from captioner.errors import CaptionerError
from captioner.processes import Store

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 5.0  # for the main thread to end with the error by itself
_LAST_WORDS_SECONDS = 3.0  # for rank 0 to end first
_JOIN_SECONDS = 900.0  # to import, read and check everything on a slow machine
_LONGEST_GREETING = 100
_KEEP_ALIVE = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
}  # a machine without power is dead after 20 seconds


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _end_process(message: str) -> None:
    """End this process from any thread; an empty message: somebody else has said why."""
    if message:
        click.echo(f"Error: {message}", err=True)
    os._exit(1)


class Leader:
    """Rank 0's end of all connections.

    Args:
        world: processes, this one included.
        store: where the others find the address.
    """

    def __init__(self, world: int, store: Store) -> None:
        self._world, self._token = world, secrets.token_hex(8)
        self._server = socket.create_server(
            ("127.0.0.1" if store.host in ("127.0.0.1", "localhost") else "", 0), backlog=world
        )
        self._names: dict[socket.socket, int] = {}  # connection -> rank
        self._said: dict[str, set[int]] = {"ready": set(), "bye": set()}
        self._fault = ""
        self._faulty_since = 0.0
        self._taken = self._closed = False
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._thread.start()
        store.tell("lifeline", f"{self._server.getsockname()[1]} {self._token}")

    def check(self) -> None:
        """Raise CaptionerError if another process has ended or failed."""
        if self._fault:
            self._taken = True
            raise CaptionerError(self._fault)

    def wait_ready(self, between: Callable[[], None]) -> None:
        """Return once all others have read and checked everything; ``between`` is called while waiting and may
        raise."""
        self._wait("ready", between)

    def bye(self) -> None:
        """All is done; return once the others have said so too."""
        self._wait("bye", lambda: None)

    def _wait(self, word: str, between: Callable[[], None]) -> None:
        limit = time.monotonic() + _JOIN_SECONDS
        while len(self._said[word]) < self._world - 1:
            self.check()
            between()
            if time.monotonic() > limit:
                missing = sorted({*range(1, self._world)} - self._said[word])
                raise CaptionerError(
                    f"training processes {missing} of {self._world} (from 0) have said nothing for {_JOIN_SECONDS:.0f} s; see their logs"
                )
            time.sleep(_POLL_SECONDS)

    def explain(self, error: Exception) -> CaptionerError:
        """Why a collective operation failed."""
        limit = time.monotonic() + _LAST_WORDS_SECONDS + _GRACE_SECONDS / 2
        while not self._fault and time.monotonic() < limit:
            time.sleep(_POLL_SECONDS)
        self._taken = True
        return CaptionerError(
            self._fault
            or f"training: the processes have lost touch with one another ({error}); run the same command again"
        )

    def close(self) -> None:
        """The others end now, unless they have said bye."""
        self._closed = True
        self._thread.join()
        for connection in self._names:
            with suppress(OSError):
                connection.sendall(b"end\n")
            connection.close()
        self._server.close()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            while not self._closed:
                for key, _ in selector.select(_POLL_SECONDS):
                    if key.fileobj is self._server:
                        with suppress(OSError):  # it may be gone again
                            connection, _ = self._server.accept()
                            _keep_alive(connection)
                            selector.register(connection, selectors.EVENT_READ, bytearray())
                    elif not self._read(key.fileobj, key.data):
                        selector.unregister(key.fileobj)
                if self._fault and not self._taken and time.monotonic() > self._faulty_since + _GRACE_SECONDS:
                    _end_process(self._fault)  # the main thread waits for a process that is gone

    def _read(self, connection: socket.socket, line: bytearray) -> bool:
        """Take in what a connection brings; False at its end."""
        try:
            received = connection.recv(1 << 16)
        except OSError:
            received = b""
        line += received
        while (end := line.find(b"\n")) >= 0:
            word, _, rest = line[:end].decode(errors="replace").partition(" ")
            del line[: end + 1]
            if word == self._token and rest.isdigit():
                self._names[connection] = int(rest)
            elif connection in self._names:
                self._take(self._names[connection], word, rest)
        rank = self._names.get(connection)
        if not received and rank is not None and rank not in self._said["bye"]:
            self._fail(
                rank,
                "ended without a word (it was killed, or its machine is gone); run the same command again, "
                "it goes on from the last saved state",
            )
        if received and rank is None and len(line) > _LONGEST_GREETING:
            connection.close()  # a stranger
            return False
        return bool(received)

    def _take(self, rank: int, word: str, rest: str) -> None:
        if word in self._said:
            self._said[word].add(rank)
        elif word == "error":
            self._fail(rank, f"failed: {rest}")

    def _fail(self, rank: int, what: str) -> None:
        if not self._fault:
            self._faulty_since = time.monotonic()
            self._fault = f"training process {rank} of {self._world} (from 0) {what}"


class Follower:
    """Another rank's end of its connection."""

    def __init__(self, rank: int, world: int, store: Store, between: Callable[[], None]) -> None:
        self._rank, self._world = rank, world
        port, token = store.hear("lifeline", between).split()
        try:
            self._connection = socket.create_connection((store.host, int(port)), timeout=60)
        except OSError as error:
            raise CaptionerError(
                f"training: process 0 cannot be reached at {store.host}:{port} ({error}); open the network between the machines"
            ) from error
        self._connection.settimeout(None)
        _keep_alive(self._connection)
        self._leaving = False
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._say(f"{token} {rank}")
        self._thread.start()

    def ready(self) -> None:
        """Everything is read and checked."""
        self._say("ready")

    def bye(self) -> None:
        """All is done: this process may end, and so may rank 0."""
        self._leaving = True
        self._say("bye")
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def check(self) -> None:
        """Nothing: where rank 0 ends, the thread ends this process."""

    def explain(self, error: Exception) -> CaptionerError:
        """Why a collective operation failed; rank 0 finds out and ends this process, unless it is reached no more."""
        time.sleep(_LAST_WORDS_SECONDS + _GRACE_SECONDS)
        return CaptionerError(f"the processes have lost touch with one another ({error}); run the same command again")

    def fail(self, message: str) -> None:
        """Tell rank 0 why this process ends, and give it the time to end first."""
        self._leaving = True
        self._say(f"error {message}")
        self._thread.join(_LAST_WORDS_SECONDS)

    def _say(self, line: str) -> None:
        with suppress(OSError):  # rank 0 is gone; the thread sees it too
            self._connection.sendall(" ".join(line.split()).encode() + b"\n")

    def _watch(self) -> None:
        try:
            received = self._connection.recv(16)
        except OSError:
            received = b""
        if not self._leaving:
            _end_process(
                ""
                if received
                else (
                    f"training process 0 of {self._world} ended without a word, so process {self._rank} ends too; run the same command again, "
                    "it goes on from the last saved state"
                )
            )
