"""The page of ``captioner demo``: drop an image, read its captions, see the attention for each word (Gradio)."""
