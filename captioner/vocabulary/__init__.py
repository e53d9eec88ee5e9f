"""Words: the tokenizer, the vocabulary and its word vectors."""
