"""PDFs as small as they can be, made of texts."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence


def pdf(pages: Sequence[str], *, packed: bool = False) -> bytes:
  """A document with a page for each text, its lines below one another."""
  kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
  objects = [
      b"<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
      b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
  ]
  for i, text in enumerate(pages):
    lines = (line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)") for line in text.split("\n"))
    drawn = "BT /F1 12 Tf 14 TL 40 800 Td " + " ".join(f"({line}) Tj T*" for line in lines) + " ET"
    stream = zlib.compress(drawn.encode("latin-1")) if packed else drawn.encode("latin-1")
    kind = b" /Filter /FlateDecode" if packed else b""
    objects.append(
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >> /Contents %d 0 R >>"
        % (5 + 2 * i)
    )
    objects.append(b"<< /Length %d%s >>\nstream\n%s\nendstream" % (len(stream), kind, stream))
  out, places = io.BytesIO(b"%PDF-1.4\n"), []
  out.seek(0, io.SEEK_END)
  for number, body in enumerate(objects, 1):
    places.append(out.tell())
    out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
  table = out.tell()
  out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
  out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
  out.write(b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table))
  return out.getvalue()
