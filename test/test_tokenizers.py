"""Tokenizers against llama.cpp's and Hugging Face's; runs directly (`python test/test_tokenizers.py`) or under pytest."""

import asyncio
import json
import os
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from exo.download.model_store import ModelStore  # noqa: E402
from exo.inference.hf_tokenizer import hf_tokenizer  # noqa: E402
from exo.inference.tokenizer import Tokenizer  # noqa: E402
from exo.inference.weights.checkpoint import open_checkpoint  # noqa: E402

REFERENCE = ROOT / "test" / "data" / "smollm2_135m_q4_1_llama_cpp.json"


def smollm2_tokenizer() -> Tokenizer:
  store = ModelStore(Path(os.environ.get("EXO_TEST_HOME", ROOT / ".test-home")))
  return open_checkpoint(asyncio.run(store.fetch(store.find("smollm2-135m")))).tokenizer()


class TestSmolLM2(unittest.TestCase):
  @classmethod
  def setUpClass(cls) -> None:
    cls.tokenizer = smollm2_tokenizer()
    cls.reference = json.loads(REFERENCE.read_text())

  def test_token_ids_are_llama_cpps(self) -> None:
    for text in self.reference["texts"]:
      self.assertEqual(self.tokenizer.encode(text["text"]), text["token_ids"])

  def test_the_rendered_chat_has_llama_cpps_number_of_tokens(self) -> None:
    for chat in self.reference["chat"]:
      ids = self.tokenizer.encode_chat([{"role": "user", "content": chat["prompt"]}])
      self.assertEqual(len(ids), chat["usage"]["prompt_tokens"])

  def test_digits_stand_alone(self) -> None:
    self.assertEqual([self.tokenizer.token_text(t) for t in self.tokenizer.encode("2024")], ["2", "0", "2", "4"])

  def test_round_trip(self) -> None:
    for text in ("plain", "  two  spaces", "héllo wörld", "日本語のテスト", "😀👍🏽 family 👨‍👩‍👧", "a\n\n\tb", "mixed عربى text"):
      self.assertEqual(self.tokenizer.decode(self.tokenizer.encode(text)), text)

  def test_a_stream_never_splits_a_character(self) -> None:
    text = "日本語 😀👍🏽 naïve — done"
    detokenizer = self.tokenizer.detokenizer()
    pieces = [detokenizer.push([token]) for token in self.tokenizer.encode(text)] + [detokenizer.finish()]
    self.assertEqual("".join(pieces), text)
    self.assertFalse(any("\ufffd" in piece for piece in pieces))

  def test_a_cut_character_is_shown_at_the_end_only(self) -> None:
    detokenizer = self.tokenizer.detokenizer()
    emoji = self.tokenizer.encode("😀")
    self.assertGreater(len(emoji), 1)
    self.assertEqual(detokenizer.push(emoji[:-1]), "")
    self.assertIn("\ufffd", detokenizer.finish())

  def test_end_of_text_is_known_and_never_shown(self) -> None:
    end = self.tokenizer.encode("<|im_end|>")
    self.assertEqual(len(end), 1)
    self.assertIn(end[0], self.tokenizer.eos_ids)
    self.assertEqual(self.tokenizer.detokenizer().push(end), "")


class TestFolder(unittest.TestCase):
  def test_tokenizer_json(self) -> None:
    tokenizer = hf_tokenizer(ROOT / "test" / "data" / "goldens" / "llama")
    self.assertEqual(tokenizer.encode("t5 t7"), [5, 7])
    self.assertEqual(tokenizer.eos_ids, frozenset({2}))
    self.assertEqual(tokenizer.bos_id, 1)
    self.assertEqual(tokenizer.encode_chat([{"role": "user", "content": "t5"}]), [5])


if __name__ == "__main__":
  unittest.main()
