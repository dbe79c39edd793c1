"""GGUF files, read: their sizes, numbers and tokenizers."""
