"""Tokenizers of every generation: SentencePiece, Llama 3's tiktoken file, Hugging Face's tokenizer.json."""
