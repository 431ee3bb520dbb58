"""The contract between training and serving: what a bundle holds, how it is written and read.

A bundle is a folder `models/<name>/` with `manifest.json`, the vocabulary as JSON and one or more
ONNX graphs. This package is all that `training` may import of `service`; it needs the standard
library, pydantic and numpy only.
"""

from service.bundle.manifest import (
    FORMAT_VERSION,
    DataSource,
    GoldenVector,
    Graph,
    Limits,
    Manifest,
    Measurement,
    Metrics,
    ModelShape,
    Precision,
    Role,
    StateTensor,
    Tensor,
    TrainingRecord,
    VocabFile,
)
from service.bundle.store import Bundle, BundleError, read_bundle, write_bundle
from service.bundle.text import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    UNK_ID,
    Normalization,
    Vocabulary,
    normalize,
)

__all__ = [
    "BOS_ID",
    "EOS_ID",
    "FORMAT_VERSION",
    "PAD_ID",
    "SPECIAL_TOKENS",
    "UNK_ID",
    "Bundle",
    "BundleError",
    "DataSource",
    "GoldenVector",
    "Graph",
    "Limits",
    "Manifest",
    "Measurement",
    "Metrics",
    "ModelShape",
    "Normalization",
    "Precision",
    "Role",
    "StateTensor",
    "Tensor",
    "TrainingRecord",
    "VocabFile",
    "Vocabulary",
    "normalize",
    "read_bundle",
    "write_bundle",
]
