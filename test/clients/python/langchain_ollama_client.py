"""langchain by Ollama's routes: an answer, a stream, embeddings."""

from asked import MODEL, URL
from langchain_ollama import ChatOllama, OllamaEmbeddings

model = ChatOllama(model=MODEL, base_url=URL, num_predict=10)
assert model.invoke("hello").content
assert "".join(str(piece.content) for piece in model.stream("hello"))
vectors = OllamaEmbeddings(model=MODEL, base_url=URL).embed_documents(["a text", "another"])
assert len(vectors) == 2 and vectors[0] != vectors[1]
