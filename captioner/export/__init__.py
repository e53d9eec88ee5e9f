"""A trained model in another form: ``onnx`` writes ONNX graphs for captioning without torch."""
