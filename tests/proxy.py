"""A TCP proxy in front of the tests' PostgreSQL, for what networks do: cut connections, lost replies, silence."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Self

from sqlalchemy import URL, make_url


class Link:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.reply_lost = False
        """Set: the server's next words close the link instead of getting through."""

    def close_client(self) -> None:
        _close(self.client)

    def close(self) -> None:
        """Both ends see the other one gone; the server then rolls back."""
        _close(self.client)
        _close(self.server)


Rule = Callable[[Link, bytes], bytes]


def in_front(url: URL) -> URL:
    """Where clients of the server connect: to itself (and through a pooler in tests/faults/through_pooler.py)."""
    return url


class Proxy:
    """Listens on 127.0.0.1 and passes everything on, until it is told otherwise.

    `sending` is called with whatever a client sends, and returns what the server gets of it: it may close the link or
    wait. `freeze` is the half-open connection: nothing passes, and nobody is told. Whoever is behind it `listens`: that
    needs the server itself, where a pooler is in front of it.
    """

    def __init__(
        self, url: str | URL, sending: Rule = lambda _link, data: data, *, listens: bool = False
    ) -> None:
        self._target = make_url(url) if listens else in_front(make_url(url))
        self.sending = sending
        self._links: list[Link] = []
        self._lock = Lock()
        self._open = Event()
        self._open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = _through(make_url(url), self._listener.getsockname()[1])
        """The server's URL, through here."""

    def __enter__(self) -> Self:
        Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._listener)
        self._open.set()
        self.cut()

    @property
    def links(self) -> list[Link]:
        with self._lock:
            return list(self._links)

    def cut(self) -> None:
        """Close every connection; new ones are taken."""
        for link in self.links:
            link.close()

    def freeze(self) -> None:
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    def _listen(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                client, _ = self._listener.accept()
                try:
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    link = Link(client, _connect(self._target))
                except OSError:  # one of the two isn't there: the next client may have more luck
                    _close(client)
                    continue
                with self._lock:
                    self._links.append(link)
                Thread(target=self._pump, args=(link, client, link.server), daemon=True).start()
                Thread(target=self._pump, args=(link, link.server, client), daemon=True).start()

    def _pump(self, link: Link, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                if source is link.client:
                    data = self.sending(link, data)
                elif link.reply_lost:
                    break
                target.sendall(data)
        link.close()


def _through(url: URL, port: int) -> URL:
    query = {name: value for name, value in url.query.items() if name not in ("host", "port")}
    return url.set(host="127.0.0.1", port=port, query=query)


def _connect(url: URL) -> socket.socket:
    host, port = url.query.get("host") or url.host, int(url.query.get("port") or url.port or 5432)
    if not str(host).startswith("/"):
        return socket.create_connection((str(host), port))
    server = socket.socket(socket.AF_UNIX)
    server.connect(str(Path(str(host), f".s.PGSQL.{port}")))
    return server


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # close alone wakes no thread that reads
    end.close()
