"""The contract between training and serving: what a bundle holds, how it is written and read.

A bundle is a folder `models/<name>/` with `manifest.json`, the vocabulary as JSON and one or more
ONNX graphs. This package is all that `training` may import of `service`; it needs the standard
library, pydantic, numpy and tokenizers only.
"""
