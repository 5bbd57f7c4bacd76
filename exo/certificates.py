"""Whose certificates are trusted, the same for all that is fetched: the system's, certifi's, and those that the user names."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

from exo.config import certificate_settings
from exo.errors import CertificateError


def trusting_context(settings: Mapping[str, str] | None = None) -> ssl.SSLContext:
  """For connections to servers outside. `settings` are SSL_CERT_FILE, SSL_CERT_DIR, REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE
  as far as they are set. Reads files. Raises `CertificateError` for one that is named and cannot be used.
  """
  settings = certificate_settings() if settings is None else settings
  context = ssl.create_default_context()
  try:
    import certifi
    context.load_verify_locations(certifi.where())
  except (ImportError, OSError):  # some systems' Pythons have their own
    pass
  for variable, text in settings.items():
    path = Path(text).expanduser()
    try:
      if path.is_dir():
        context.load_verify_locations(capath=path)
      else:
        context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
      reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
      raise CertificateError(
          f"{variable} names {path}, which holds no certificates that can be read ({reason})"
      ) from error
  return context


def bundle() -> str:
  """All of them as PEM, for programs that take one file; "" where the user names none. Raises as `trusting_context`."""
  settings = certificate_settings()
  if not settings:
    return ""
  trusted = "".join(ssl.DER_cert_to_PEM_cert(der) for der in trusting_context(settings).get_ca_certs(binary_form=True))
  folders = [
      Path(text).expanduser() for text in settings.values()
  ]  # OpenSSL reads those only when it needs one of them
  return trusted + "".join(
      file.read_text(errors="replace") for folder in folders if folder.is_dir()
      for file in sorted(folder.iterdir()) if file.is_file()
  )
