"""What the tests of the cluster key share: keys, beacons as they go over the wire, and a stranger's gRPC client."""

from __future__ import annotations

import datetime
import uuid

import grpc
import grpc.aio

from exo.networking.cluster_key import ClusterKeyring, new_key_text
from exo.networking.grpc.peer_codec import hello_out
from exo.networking.grpc.stream import METHOD
from exo.networking.grpc.wire import envelope_bytes
from exo.networking.peer_messages import Hello
from exo.topology.device_capabilities import DeviceCapabilities
from test.support.workers import dummy_offers

KEY, OTHER_KEY = new_key_text(), new_key_text()


def keyring(*texts: str) -> ClusterKeyring:
  return ClusterKeyring(texts or (KEY, ))


def hello(node_id: str, port: int = 50000, incarnation: int = 7) -> Hello:
  return Hello(
      node_id, incarnation, port, DeviceCapabilities("Secret model", "Secret chip", 1000), dummy_offers(1000), "1"
  )


def self_signed(name: str = "exo node") -> tuple[bytes, bytes]:
  """(private key, certificate) as a stranger would make them: everything right but the signature."""
  from cryptography import x509
  from cryptography.hazmat.primitives.asymmetric import ec
  from cryptography.hazmat.primitives.hashes import SHA256
  from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
  secret = ec.generate_private_key(ec.SECP256R1())
  subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
  now = datetime.datetime.now(datetime.UTC)
  certificate = (
      x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(
          secret.public_key()
      ).serial_number(5).not_valid_before(now -
                                          datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1)).
      add_extension(x509.SubjectAlternativeName([x509.DNSName("node.exo")]), critical=False).sign(secret, SHA256())
  )
  private = secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
  return private, certificate.public_bytes(Encoding.PEM)


async def greet(channel: grpc.aio.Channel, said: Hello, timeout_s: float = 3.0) -> bytes | None:
  """What a node answers to a stranger's greeting: its own, or None when it refuses."""
  async with channel:
    call = channel.stream_stream(METHOD)(metadata=(("exo-link", uuid.uuid4().hex), ), timeout=timeout_s)
    try:
      await call.write(envelope_bytes([hello_out(said, "data")]))
      answer = await call.read()
    except (grpc.aio.AioRpcError, grpc.aio.UsageError):
      return None
    return None if answer is grpc.aio.EOF else bytes(answer)
