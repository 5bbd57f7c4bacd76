"""Mutual TLS from the cluster key: whoever holds the key can sign a certificate that the others accept, nobody else.

The authority's private key is derived from the cluster key, so every node can issue its own certificate and no file has
to be handed round. Certificates say nothing about the node: a stranger who connects sees one before being refused.
"""

from __future__ import annotations

import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

import grpc

from exo.networking.cluster_key import ClusterKey, ClusterKeyring

if TYPE_CHECKING:
  from cryptography import x509

SERVER_NAME = "node.exo"
# a machine whose clock is wrong must still get in: what ends access is a new cluster key, not a date
_VALID_FROM = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_VALID_UNTIL = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)


class TlsCredentials:
  """Credentials for both sides of a link; follows the keyring, so that connections made later use the newer key."""
  def __init__(self, keyring: ClusterKeyring) -> None:
    self._keyring = keyring
    self._served: tuple[ClusterKey, ...] = ()

  def channel(self) -> grpc.ChannelCredentials:
    """For dialing: presents the key in use, accepts all that are valid."""
    keys = self._keyring.accepted
    private, certificate = _node_certificate(keys[0])
    return grpc.ssl_channel_credentials(_authorities(keys), private, certificate)

  def server(self) -> grpc.ServerCredentials:
    """For accepting; a client without a certificate of the cluster is refused in the handshake."""
    return grpc.dynamic_ssl_server_credentials(self._configuration(), self._changed, require_client_authentication=True)

  def _configuration(self) -> grpc.ServerCertificateConfiguration:
    keys = self._served = self._keyring.accepted
    return grpc.ssl_server_certificate_configuration([_node_certificate(keys[0])], _authorities(keys))

  def _changed(self) -> grpc.ServerCertificateConfiguration | None:
    """gRPC asks at every connection, on a thread of its own."""
    return None if self._keyring.accepted == self._served else self._configuration()


def explain_refusal(details: str, keyed: bool) -> str:
  """What a failed handshake means, in words; `keyed`: this side has a cluster key."""
  if "CERTIFICATE_VERIFY_FAILED" in details:
    return "it has another cluster key"
  if "WRONG_VERSION_NUMBER" in details:
    return "it has no cluster key, this node has one"
  if "Socket closed" in details:
    return "it does not accept this node's cluster key" if keyed else "it closed the connection; perhaps it has a cluster key"
  return details


def _authorities(keys: tuple[ClusterKey, ...]) -> bytes:
  return b"".join(_authority(key) for key in keys)


@lru_cache(maxsize=8)
def _authority(key: ClusterKey) -> bytes:
  """The self-signed certificate of the cluster's authority, as PEM."""
  from cryptography import x509
  from cryptography.hazmat.primitives.asymmetric import ec
  from cryptography.hazmat.primitives.hashes import SHA256
  from cryptography.hazmat.primitives.serialization import Encoding
  secret = ec.derive_private_key(key.authority_secret, ec.SECP256R1())
  public = secret.public_key()
  usage = x509.KeyUsage(False, False, False, False, False, True, False, False, False)
  certificate = (
      _builder(_authority_name(key), _authority_name(key)).public_key(public).serial_number(1).add_extension(
          x509.BasicConstraints(ca=True, path_length=0), critical=True
      ).add_extension(usage,
                      critical=True).add_extension(x509.SubjectKeyIdentifier.from_public_key(public),
                                                   critical=False).sign(secret, SHA256())
  )
  return certificate.public_bytes(Encoding.PEM)


@lru_cache(maxsize=8)
def _node_certificate(key: ClusterKey) -> tuple[bytes, bytes]:
  """(private key, certificate) as PEM. The private key is made here and now and never leaves the process."""
  from cryptography import x509
  from cryptography.hazmat.primitives.asymmetric import ec
  from cryptography.hazmat.primitives.hashes import SHA256
  from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
  from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
  authority = ec.derive_private_key(key.authority_secret, ec.SECP256R1())
  secret = ec.generate_private_key(ec.SECP256R1())
  subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "exo node")])
  uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
  identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
  certificate = (
      _builder(subject, _authority_name(key)).public_key(secret.public_key()).serial_number(
          x509.random_serial_number()
      ).add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True).add_extension(
          x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False
      ).add_extension(uses, critical=False).add_extension(identifier, critical=False).sign(authority, SHA256())
  )
  private = secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
  return private, certificate.public_bytes(Encoding.PEM)


def _authority_name(key: ClusterKey) -> x509.Name:
  """With the cluster's name, so that the right one of two authorities is found during a rotation."""
  from cryptography import x509
  from cryptography.x509.oid import NameOID
  return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"exo cluster {key.name}")])


def _builder(subject: x509.Name, issuer: x509.Name) -> x509.CertificateBuilder:
  from cryptography import x509
  return x509.CertificateBuilder(
  ).subject_name(subject).issuer_name(issuer).not_valid_before(_VALID_FROM).not_valid_after(_VALID_UNTIL)
