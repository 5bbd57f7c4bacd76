"""llama.cpp, unpatched, computing stages of GGUF models."""
