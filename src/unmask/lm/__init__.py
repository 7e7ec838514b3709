"""The public language model: text in, text out."""
