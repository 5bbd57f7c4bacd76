"""llama-index with Ollama's model and its embedder."""

from asked import MODEL, URL
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.llms.ollama import Ollama

model = Ollama(
    model=MODEL, base_url=URL, request_timeout=60, context_window=4096, additional_kwargs={"num_predict": 10}
)
assert model.complete("hello").text
assert "".join(piece.delta or "" for piece in model.stream_complete("hello"))
embedder = OllamaEmbedding(model_name=MODEL, base_url=URL)
assert len(embedder.get_text_embedding_batch(["a text", "another"])) == 2
