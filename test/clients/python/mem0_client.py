"""mem0: memories with OpenAI's chat and embeddings behind them; what the model makes of a text may be nothing."""

import tempfile

from asked import MODEL, URL
from mem0 import Memory

at = {"model": MODEL, "openai_base_url": f"{URL}/v1", "api_key": "none"}
with tempfile.TemporaryDirectory() as folder:
  size = len(
      __import__("openai").OpenAI(base_url=f"{URL}/v1", api_key="none").embeddings.create(model=MODEL,
                                                                                          input="x").data[0].embedding
  )
  memory = Memory.from_config({
      "llm": {"provider": "openai", "config": at | {"max_tokens": 60}},
      "embedder": {"provider": "openai", "config": at | {"embedding_dims": size}},
      "vector_store": {"provider": "qdrant",
                       "config": {"path": folder,
                                  "embedding_model_dims": size}}, "history_db_path": f"{folder}/history.db"
  })
  memory.add("I like cheese.", user_id="u", infer=False)
  assert memory.search("cheese", filters={"user_id": "u"})["results"]
  memory.add("I live in Paris.", user_id="u")
