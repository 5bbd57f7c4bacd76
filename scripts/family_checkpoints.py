"""Tiny checkpoints of families, with references, from transformers' own classes: `python scripts/family_checkpoints.py FOLDER [NAME …]`.

It wants torch and transformers, which exo itself does not: `pip install torch transformers`. Of each family (`families/tiny_configs.json`)
it writes a folder: `config.json` as on the hub, `config.v5.json` as this transformers writes it, weights in float32, a tokenizer of one
word an id, and `ref.json` with ids and the log probabilities of all but the first. `test/test_families.py` compares engines with them:
`EXO_TEST_FAMILIES=FOLDER python -m pytest -m "" test/test_families.py`.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import zlib
from pathlib import Path
from typing import Any

Config = dict[str, Any]

_FILE = Path(__file__).parent / "families" / "tiny_configs.json"
_LENGTH, _TEXTS, _FIRST, _LAST, _WORDS = 40, 2, 3, 300, 320
_LOUD = 0.12  # standard deviation of a matrix: quieter ones would hide what is left out


def configs() -> dict[str, Config]:
  """Configurations as they stand on the hub, with sizes so small that a checkpoint takes a megabyte. In the file most have what is
  common to them but for what they are `without`."""
  said = json.loads(_FILE.read_text())
  found: dict[str, Config] = {}
  for name, own in said["families"].items():
    common = said["common"] if own.pop("common", False) else {}
    without = own.pop("without", ())
    found[name] = {key: value for key, value in {**common, **own}.items() if key not in without}
  return found


def _tokenizer(words: int) -> Config:
  special = ["<pad>", "<s>", "</s>"]
  vocabulary = {word: i for i, word in enumerate([*special, *(f"t{i}" for i in range(len(special), words))])}
  added = [{
      "id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
      "special": True
  } for i, word in enumerate(special)]  # yapf: disable
  return {
      "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
      "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
      "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<pad>"}
  }  # yapf: disable


def _fill(model: Any, torch: Any) -> None:
  """Numbers that are none of a fresh model's: no norm of ones, no bias of zeros, so that whatever is left out is seen."""
  with torch.no_grad():
    for name, value in model.named_parameters():
      _draw(name, value, torch)
    for name, value in model.named_buffers():
      if name.endswith("e_score_correction_bias") or "expert_bias" in name or "correction" in name:
        value.copy_(torch.randn_like(value) * 0.3)


def _draw(name: str, value: Any, torch: Any) -> None:
  if name.endswith(("A_log", "dt_bias", "inv_freq")):
    return  # a state would run away
  if value.ndim >= 2:
    value.copy_(torch.randn_like(value) * _LOUD)
  elif "norm" in name or name.endswith((".D", "weight")):
    value.add_(torch.randn_like(value) * 0.1)
  else:
    value.copy_(torch.randn_like(value) * 0.1)


def make(name: str, config: Config, folder: Path) -> None:
  """Raises whatever transformers does, for a family that this one has not."""
  import torch
  import transformers as hf

  folder.mkdir(parents=True, exist_ok=True)
  plain = copy.deepcopy({key: value for key, value in config.items() if key != "auto_map"})
  if isinstance(text := plain.get("text_config"), dict):
    text.setdefault("vocab_size", _WORDS)  # the published form may leave out what is 262,208
  kind = str(plain.pop("model_type"))
  kind = {"kimi_k2": "deepseek_v3"}.get(kind, kind)
  made = hf.AutoConfig.for_model(kind, **plain)
  made.dtype = torch.float32
  torch.manual_seed(zlib.crc32(name.encode()))
  several = "text_config" in config or "vision_config" in config
  model = (hf.AutoModelForImageTextToText if several else hf.AutoModelForCausalLM).from_config(made).float().eval()
  if hasattr(model, "set_experts_implementation"):
    model.set_experts_implementation("eager")
  _fill(model, torch)
  generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
  tokens, found = [], []
  for _ in range(_TEXTS):
    ids = torch.randint(_FIRST, _LAST, (1, _LENGTH), generator=generator)
    with torch.no_grad():
      logits = model(input_ids=ids, use_cache=False).logits.double()
    chances = torch.log_softmax(logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0]
    tokens.append(ids[0].tolist())
    found.append([round(float(one), 6) for one in chances])
  model.save_pretrained(folder)
  (folder / "generation_config.json").unlink(missing_ok=True)
  (folder / "config.json").rename(folder / "config.v5.json")
  (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
  (folder / "ref.json").write_text(json.dumps({"tokens": tokens, "logprobs": found}))
  (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(_WORDS)))
  (folder / "tokenizer_config.json").write_text(
      json.dumps({
          "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
          "chat_template": "{% for m in messages %}{{ m['content'] }} {% endfor %}"
      })
  )


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  known = configs()
  parser.add_argument("folder", type=Path)
  parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all without one")
  found = parser.parse_args(arguments)
  failed = 0
  for name in found.names or known:
    try:
      make(name, known[name], found.folder / name)
      print(f"{name}: made", flush=True)
    except Exception as error:  # noqa: BLE001 - the next family may be one that this transformers has
      failed += 1
      print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", flush=True)
  return int(failed == len(found.names or known))


if __name__ == "__main__":
  sys.exit(main())
