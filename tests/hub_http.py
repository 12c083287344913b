"""An HTTP server on this machine that keeps a log of its requests and fails on demand."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit


class HttpError(Exception):
    """An answer other than success, with the code by which the client tells one from another."""

    def __init__(
        self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        told = {"X-Error-Message": message, "X-Error-Code": code}
        self.answer = Answer({"error": message}, told | (headers or {}), status)


@dataclass(frozen=True)
class Request:
    """A request that the server took; status 0 where the connection was cut."""

    method: str
    path: str
    status: int


@dataclass
class Answer:
    """What a request gets: bytes, or what is to be written as JSON."""

    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Call:
    """A request to be answered; its path is as it was sent, quoted."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: bytes
    headers: Any

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    @property
    def token(self) -> str:
        return str(self.headers.get("Authorization", "")).removeprefix("Bearer ")

    def asks(self, name: str) -> bool:
        """Whether the query says yes to something."""
        return self.query.get(name, [""])[0].lower() in ("1", "true")


@dataclass
class _Fault:
    method: str
    pattern: str
    times: int
    skip: int = 0
    status: int | None = None
    body: Any = None
    cut: str = ""
    action: Callable[[], object] | None = None


class HttpServer(ABC):
    """A server of its own thread, to be used in a ``with`` statement.

    Attributes:
        endpoint: Its address.
        requests: What it was asked, in order.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self.connections: set[socket.socket] = set()
        self._faults: list[_Fault] = []
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    @abstractmethod
    def answer(self, call: Call) -> Answer:
        """Do what is asked; one call at a time."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Be gone, for connections that are open too."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.connections):
            connection.shutdown(socket.SHUT_RDWR)

    # What happens to requests on purpose: to those of a method ("*": all of them) whose path
    # matches, after as many as are to be skipped.

    def fail(
        self, method: str, pattern: str, *, status: int, times: int = 1, skip: int = 0
    ) -> None:
        """Answer the next requests with an error, and do nothing else."""
        self._faults.append(_Fault(method, pattern, times, skip, status=status))

    def say(self, method: str, pattern: str, body: Any, *, skip: int = 0) -> None:
        """Answer the next request with something else, as if all were well, and do nothing."""
        self._faults.append(_Fault(method, pattern, 1, skip, status=200, body=body))

    def cut(
        self,
        method: str,
        pattern: str,
        *,
        at: Literal["request", "response"],
        times: int = 1,
        skip: int = 0,
    ) -> None:
        """Cut the connection half-way: in the request, undone, or in the answer to one done."""
        self._faults.append(_Fault(method, pattern, times, skip, cut=at))

    def before(
        self, method: str, pattern: str, action: Callable[[], object], *, skip: int = 0
    ) -> None:
        """Do something, once, before the next request is answered."""
        self._faults.append(_Fault(method, pattern, 1, skip, action=action))

    def forget_faults(self) -> None:
        """Let nothing happen any more on purpose."""
        self._faults.clear()

    def asked(self, method: str, pattern: str) -> list[Request]:
        """The requests so far of a method whose path matches."""
        return [r for r in self.requests if r.method == method and re.search(pattern, r.path)]

    def fault(self, method: str, path: str) -> _Fault | None:
        """Take the fault that is meant for a request."""
        with self.lock:
            for fault in self._faults:
                if not fault.times or fault.method not in (method, "*"):
                    continue
                if not re.search(fault.pattern, path):
                    continue
                if fault.skip:
                    fault.skip -= 1
                else:
                    fault.times -= 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    """Says nothing of clients that are gone."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Reads requests, writes answers, and cuts connections."""

    owner: HttpServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits for an acknowledgement

    def setup(self) -> None:
        super().setup()
        self.owner.connections.add(self.connection)

    def finish(self) -> None:
        self.owner.connections.discard(self.connection)
        super().finish()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # every method is served in the same way
            return self._serve
        raise AttributeError(name)

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        fault = self.owner.fault(self.command, path) or _Fault("", "", 0)
        if fault.cut == "request":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self._hang_up(path)
            return
        body = b"".join(self._body())
        if fault.action:
            fault.action()
        try:
            if fault.status == 200:
                answer = Answer(fault.body)
            elif fault.status:
                raise HttpError(fault.status, "failed on purpose")
            else:
                with self.owner.lock:
                    call = Call(self.command, url.path, parse_qs(url.query), body, self.headers)
                    answer = self.owner.answer(call)
        except HttpError as error:
            answer = error.answer
        self._send(path, answer, cut=bool(fault.cut))

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") != "chunked":
            yield self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, path: str, answer: Answer, cut: bool) -> None:
        content = answer.content
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if cut:
            self.wfile.write(content[: len(content) // 2])
            self._hang_up(path)
            return
        self.owner.requests.append(Request(self.command, path, answer.status))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _hang_up(self, path: str) -> None:
        self.owner.requests.append(Request(self.command, path, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
