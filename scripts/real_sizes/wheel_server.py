"""The server that comes in the wheel of `xllamacpp`, in a process of its own: `python -m scripts.real_sizes.wheel_server '{"model": …}'`.

It ends with its standard input.
"""

from __future__ import annotations

import json
import sys

import xllamacpp


def main() -> None:
  wanted = json.loads(sys.argv[1])
  params = xllamacpp.CommonParams()
  params.model.path = wanted["model"]
  params.hostnames, params.port, params.warmup, params.n_gpu_layers = ["127.0.0.1"], wanted["port"], False, 0
  params.n_ctx, params.n_parallel, params.cache_ram_mib = wanted["context"], wanted["streams"], 0
  params.cpuparams.n_threads = params.cpuparams_batch.n_threads = wanted["threads"]
  if wanted["kv"] is not None:
    params.cache_type_k, params.cache_type_v = (
        getattr(xllamacpp.ggml_type, f"GGML_TYPE_{t.upper()}") for t in wanted["kv"]
    )
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
  server = xllamacpp.Server(params)
  sys.stdin.read()
  del server


if __name__ == "__main__":
  main()
