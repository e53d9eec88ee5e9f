"""Captions by onnxruntime from a folder that ``captioner export DIR --onnx`` made, without torch and timm.

``files`` reads the folder, ``beam`` searches captions in numpy, ``captioner`` puts both to work. What stands here and
what it imports needs onnxruntime, numpy, Pillow and click; a test blocks the import of everything else.
"""
