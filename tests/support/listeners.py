# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that are told something: a real SMTP server, an HTTP server that records, and one that never answers."""

from __future__ import annotations

import email
import email.policy
import http.server
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as one:
        one.bind((address, 0))
        port: int = one.getsockname()[1]
        return port


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    made, key = directory / "mail.crt", directory / "mail.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(made)],
        check=True, capture_output=True,
    )  # fmt: skip
    return made, key


class Mailbox:
    """What the SMTP server took: whole messages, and who logged in over what. `refusing` is an answer to every recipient."""

    def __init__(self) -> None:
        self.port = 0
        self.messages: list[EmailMessage] = []
        self.recipients: list[list[str]] = []
        self.logins: list[tuple[str, bool]] = []
        self.refusing = ""

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        if self.refusing:
            return self.refusing
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content if isinstance(envelope.content, bytes) else str(envelope.content).encode()
        message = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        self.messages.append(message)
        self.recipients.append(list(envelope.rcpt_tos))
        return "250 OK"

    @property
    def subjects(self) -> list[str]:
        """The subject of each message, in the order of arrival."""
        return [str(one["Subject"]) for one in self.messages]

    @property
    def bodies(self) -> list[str]:
        """The text of each message."""
        return [one.get_content().replace("\r\n", "\n") for one in self.messages]


@contextmanager
def mail_server(
    *,
    address: str = "127.0.0.1",
    login: tuple[str, str] | None = None,
    certificates: tuple[Path, Path] | None = None,
    from_the_first_byte: bool = False,
) -> Iterator[Mailbox]:
    """An SMTP server (aiosmtpd). `login` demands it; `certificates` demands STARTTLS, or TLS from the first byte."""
    box = Mailbox()
    box.port = free_port(address)
    context: ssl.SSLContext | None = None
    if certificates:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificates)

    def known(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        good = login == (data.login.decode(), data.password.decode())
        box.logins.append((data.login.decode(), session.ssl is not None or from_the_first_byte))
        return AuthResult(success=good, handled=good)  # handled: it says nothing more

    starttls = context is not None and not from_the_first_byte
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own of what it is given here; raised in its thread, they would end the talk
        controller = Controller(
            box, hostname=address, port=box.port, authenticator=known, auth_required=login is not None,
            auth_require_tls=starttls, tls_context=context if starttls else None, require_starttls=starttls,
            ssl_context=context if from_the_first_byte else None, ready_timeout=30,
            server_hostname="localhost",  # else it asks the name service at each connection
        )  # fmt: skip
        controller.start()
        try:
            yield box
        finally:
            controller.stop()


@dataclass
class Asked:
    """One request as it came in."""

    method: str
    path: str
    body: bytes

    @property
    def json(self) -> Any:
        """Its body, which must be JSON."""
        return json.loads(self.body)


class Recorder(http.server.ThreadingHTTPServer):
    """Records every request and answers with `status`."""

    daemon_threads = True

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self.requests: list[Asked] = []
        self.status, self.answer = 200, b"ok"
        recorder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _record(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                recorder.requests.append(Asked(str(self.command), self.path, self.rfile.read(length)))
                self.send_response(recorder.status)
                self.send_header("Content-Length", str(len(recorder.answer)))
                self.end_headers()
                self.wfile.write(recorder.answer)

            do_GET = do_POST = _record

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing on the terminal."""

        super().__init__((address, port), Handler)
        self.url = f"http://{address}:{self.server_address[1]}"

    @property
    def paths(self) -> list[str]:
        """The path of each request, in order."""
        return [one.path for one in self.requests]


@contextmanager
def recorder(address: str = "127.0.0.1") -> Iterator[Recorder]:
    """An HTTP server that records."""
    with Recorder(address) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()


@contextmanager
def silence() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen(16)
        yield one.getsockname()[1]


def serve(address: str, directory: Path) -> None:
    """SMTP on port 2525 and HTTP on 8025 of `address`, until SIGTERM; what arrives becomes files in `directory`."""

    class Box(Mailbox):
        async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
            answer = await super().handle_DATA(server, session, envelope)
            _keep(
                directory / f"{len(self.messages)}.mail",
                f"{self.subjects[-1]}\n\n{self.bodies[-1]}\nto: {self.recipients[-1]}\n".encode(),
            )
            return answer

    class Web(Recorder):
        def finish_request(self, request: Any, client_address: Any) -> None:
            super().finish_request(request, client_address)
            _keep(directory / f"{len(self.requests)}.http", self.requests[-1].path.encode() + b"\n" + self.requests[-1].body)

    controller = Controller(Box(), hostname=address, port=2525, ready_timeout=30, server_hostname="controller")
    controller.start()
    with Web(address, 8025) as web:
        signal.signal(signal.SIGTERM, lambda *__: sys.exit(0))
        _keep(directory / "ready", str(os.getpid()).encode())
        web.serve_forever()


def _keep(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.replace(path)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
