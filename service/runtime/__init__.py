"""onnxruntime behind small protocols, and the machine that it runs on.

Here: sessions for each kind of model, graphs checked against their manifests, golden checks,
processors, threads, the C library's allocator. Not here: choosing tokens, queues. Imports the
bundle, settings and errors.
"""
