# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways by which somebody is told: e-mail, a Slack webhook, any service that apprise knows, and a dead man's switch.

None of them can fail a run or hold it up: each has a thread of its own, and `notify.timeout_s` for everything.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import BackupError, one_line
from .libraries import require
from .settings import MASK, Settings, words_of_address

if TYPE_CHECKING:
    import smtplib


@dataclass(frozen=True)
class Message:
    """What is told: a line, and the facts below it. Neither holds a secret."""

    title: str
    body: str


@dataclass(frozen=True)
class Channel:
    """One way. `key` names it in metrics and in what is remembered; `send` raises where the message did not arrive."""

    key: str
    label: str
    send: Callable[[Message], None]


def channels(settings: Settings) -> list[Channel]:
    """Every way that the settings name."""
    found = []
    if settings.notify_email:
        found.append(Channel("email", f"e-mail to {settings.notify_email}", lambda message: _send_mail(settings, message)))
    if settings.notify_slack_webhook:
        found.append(Channel("slack", "the Slack webhook", lambda message: _send_webhook(settings, message)))
    for number, address in enumerate(settings.notify.urls, start=1):
        service = address.partition("://")[0]
        found.append(Channel(f"url{number}", f"{service} (number {number} of notify.urls)", _service(address)))
    return found


def ping(settings: Settings, moment: str) -> Channel | None:
    """The dead man's switch as a way of telling that a run has come to `moment`: start, success or fail."""
    address: str = getattr(settings.notify, f"ping_{moment}")
    if not address:
        return None

    def send(message: Message) -> None:
        _request(settings, "GET", address)

    return Channel("ping", f"the dead man's switch (ping_{moment})", send)


class Delivery:
    """A message on its way by several channels at once."""

    def __init__(self, settings: Settings, ways: Iterable[Channel], message: Message):
        """Begins at once; `outcome` waits."""
        self._deadline = time.monotonic() + settings.notify.timeout_s
        self._settings = settings
        self._said: dict[str, str] = {}
        self._threads = {
            one: threading.Thread(target=self._send, args=(one, message), name=f"notify-{one.key}", daemon=True) for one in ways
        }
        for thread in self._threads.values():
            thread.start()

    def _send(self, channel: Channel, message: Message) -> None:
        try:
            channel.send(message)
            said = ""
        except BackupError as error:
            said = str(error)
        except Exception as error:  # a library's own: the run goes on, whatever it is
            said = f"{type(error).__name__}: {one_line(error, 200)}"
        self._said[channel.key] = said

    def outcome(self) -> list[tuple[Channel, str]]:
        """Each channel with nothing, or with the sentence why the message did not arrive; no secret is in it."""
        found = []
        for channel, thread in self._threads.items():
            thread.join(max(0.0, self._deadline - time.monotonic()))
            late = f"no answer within {self._settings.notify.timeout_s:g} s"
            found.append((channel, masked(self._settings, self._said.get(channel.key, late))))
        return found


def masked(settings: Settings, text: str) -> str:
    """`text` without any secret, and without the telling parts of a secret address."""
    words = {word for secret in settings.secrets() for word in (secret, *words_of_address(secret)) if len(word) > 3}
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, MASK)
    return text


# --- e-mail ---------------------------------------------------------------------------------------------------------


def _send_mail(settings: Settings, message: Message) -> None:
    import smtplib
    from email.utils import getaddresses

    notify = settings.notify
    server = f"{notify.smtp_host}:{notify.smtp_port}"
    recipients = [address for __, address in getaddresses([settings.notify_email]) if address]
    try:
        mail = _mail(settings, message)
        with _connected(settings) as client:
            _log_in(client, notify.smtp_user, notify.smtp_password)
            refused = client.send_message(mail, to_addrs=recipients)
    except (smtplib.SMTPException, OSError) as error:
        raise BackupError(_mail_trouble(server, error)) from None
    except ValueError as error:
        raise BackupError(f"notify_email or notify.smtp_from is no address: {one_line(error, 200)}") from None
    if refused:
        raise BackupError(f"{server} takes no mail for {_refusals(refused)}")


def _mail_trouble(server: str, error: smtplib.SMTPException | OSError) -> str:
    """The sentence that says why the server has not taken the mail."""
    import smtplib

    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return f"{server} takes no mail for {_refusals(error.recipients)}"
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return f"{server}: {one_line(error, 200)} (look at notify.smtp_tls and notify.smtp_user)"
    if not isinstance(error, smtplib.SMTPResponseException):
        return f"{server}: {_trouble(error)}"
    answer = _answer(error.smtp_code, error.smtp_error)
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return f"{server} refuses the login (notify.smtp_user): {answer}"
    if isinstance(error, smtplib.SMTPSenderRefused):
        return f"{server} takes no mail from {error.sender} (notify.smtp_from): {answer}"
    return f"{server} answers {answer}"


def _mail(settings: Settings, message: Message) -> Any:
    from email.message import EmailMessage
    from email.utils import formatdate, make_msgid

    host = socket.gethostname()
    mail = EmailMessage()
    mail["Subject"] = message.title
    mail["From"] = settings.notify.smtp_from or f"agentmem-backup@{host}"
    mail["To"] = settings.notify_email
    mail["Date"] = formatdate(localtime=True)
    mail["Message-ID"] = make_msgid(domain=host)  # without a domain it asks the name service, which may be what is down
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    mail.set_content(f"{message.title}\n\n{message.body}\n")
    return mail


def _connected(settings: Settings) -> smtplib.SMTP:
    import smtplib
    import ssl

    notify = settings.notify
    host = socket.gethostname()
    known = host if "." in host else "[127.0.0.1]"  # as smtplib does, but without asking the name service
    patience = notify.timeout_s / 2
    if notify.smtp_tls == "none":
        return smtplib.SMTP(notify.smtp_host, notify.smtp_port, local_hostname=known, timeout=patience)
    context = ssl.create_default_context(cafile=notify.smtp_cacert or None)
    if notify.smtp_tls == "tls":
        return smtplib.SMTP_SSL(notify.smtp_host, notify.smtp_port, local_hostname=known, timeout=patience, context=context)
    client = smtplib.SMTP(notify.smtp_host, notify.smtp_port, local_hostname=known, timeout=patience)
    try:
        client.starttls(context=context)
    except BaseException:
        client.close()
        raise
    return client


def _log_in(client: smtplib.SMTP, user: str, password: str) -> None:
    import base64
    import smtplib

    if not user:
        return
    if (user + password).isascii():
        client.login(user, password)
        return
    # smtplib knows ASCII only; PLAIN is UTF-8 (RFC 4616).
    client.ehlo_or_helo_if_needed()
    code, answer = client.docmd("AUTH PLAIN", base64.b64encode(f"\0{user}\0{password}".encode()).decode())
    if code != 235:
        raise smtplib.SMTPAuthenticationError(code, answer)


def _answer(code: int, text: bytes | str) -> str:
    return f"{code} {one_line(text.decode(errors='replace') if isinstance(text, bytes) else text, 200)}"


def _refusals(refused: dict[str, tuple[int, bytes]]) -> str:
    return ", ".join(f"{address}: {_answer(code, text)}" for address, (code, text) in refused.items())


def _trouble(error: BaseException) -> str:
    """What a library or the system says of a connection that failed, in a few words."""
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, TimeoutError) or str(error).endswith("timed out"):  # smtplib wraps some
        return "it does not answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return re.sub(r"\[Errno -?\d+\] ", "", one_line(error, 200)).lower() or type(error).__name__


# --- addresses ------------------------------------------------------------------------------------------------------


def _send_webhook(settings: Settings, message: Message) -> None:
    # https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks: three signs are escaped.
    text = f"*{message.title}*\n{message.body}".replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    _request(settings, "POST", settings.notify_slack_webhook, {"text": text})


def _request(settings: Settings, method: str, address: str, content: dict[str, str] | None = None) -> None:
    require("httpx")
    import httpx

    if not address.startswith(("http://", "https://")):
        raise BackupError("its address must begin with https:// or http://")
    try:
        answer = httpx.request(method, address, json=content, timeout=settings.notify.timeout_s / 2)
    except httpx.TimeoutException:
        raise BackupError("it does not answer in time") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BackupError(_trouble(error)) from None
    if not answer.is_success:
        said = f": {one_line(answer.text, 100)}" if answer.text.strip() else ""
        raise BackupError(f"it answers {answer.status_code} {answer.reason_phrase}{said}")


class _Heard(logging.Handler):
    """What a library logs in this thread: apprise gives its reasons nowhere else."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.said.append(one_line(record.getMessage(), 200))


def _service(address: str) -> Callable[[Message], None]:
    def send(message: Message) -> None:
        require("apprise")
        import apprise

        heard, logger = _Heard(), logging.getLogger("apprise")
        logger.addHandler(heard)
        try:
            services = apprise.Apprise()
            arrived = services.add(address) and services.notify(body=message.body, title=message.title)
        finally:
            logger.removeHandler(heard)
        if not arrived:
            words = {word for word in words_of_address(address) if len(word) > 3}
            said = "; ".join(heard.said[:2]) or "apprise could not deliver the message"
            for word in sorted(words, key=len, reverse=True):
                said = said.replace(word, MASK)
            raise BackupError(said)

    return send
