"""onnxruntime behind small protocols, and the machine beneath it.

Here: sessions of each kind of model, graphs held to their manifests, processors, threads, the C
library's allocator. Not here: choosing tokens, queues. Imports the bundle, settings and errors.
"""
