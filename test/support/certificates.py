"""An authority of our own, and certificates by it: good ones and such as nobody should trust."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


@dataclass
class Authority:
  """Its own certificate, as a file, and what it signs."""
  folder: Path

  def __post_init__(self) -> None:
    self._key = ec.generate_private_key(ec.SECP256R1())
    self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A company's own authority")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(self._name).issuer_name(self._name).public_key(
            self._key.public_key()
        ).serial_number(1).not_valid_before(now - 99 * DAY).not_valid_after(now + 99 * DAY).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        ).sign(self._key, SHA256())
    )
    self.path = self.folder / "authority.pem"
    self.path.write_bytes(certificate.public_bytes(Encoding.PEM))

  def secure(self, server: ThreadingHTTPServer, host: str = "127.0.0.1", after_days: int = -1, days: int = 9) -> None:
    """Let a server speak TLS under `host`, with a certificate that is valid from then for so long."""
    key, begin = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC) + after_days * DAY
    names: list[x509.GeneralName
                ] = [x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host)]
    certificate = (
        x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(self._name).public_key(
            key.public_key()
        ).serial_number(x509.random_serial_number()
                        ).not_valid_before(begin).not_valid_after(begin + days * DAY).add_extension(
                            x509.SubjectAlternativeName(names), critical=False
                        ).sign(self._key, SHA256())
    )
    path = self.folder / f"server-{server.server_address[1]}.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
