"""Tasks that decoders are compared on: what to fill, and when a filling is right.

Each module makes its examples from public data or from a seed, writes them as canvases for a
model's tokenizer, and judges finished texts. `tabes bench` and the training scripts share them.
"""
