"""The confidence of bundles' translations, without training them again."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from service.bundle.confidence import Confidence
from service.bundle.store import read_bundle
from training.config import ConfigError, load_config, parse_config
from training.evaluation.reliability_plot import draw_reliability
from training.experiments.kinds import translating_experiment_of


def add_confidence(folder: Path, config_path: Path | None, pairs: Sequence[Path]) -> str:
    """Fit a bundle's confidence and write it into its manifest. Returns its table.

    On the pairs of the configuration that it was trained with, or on a person's own. Raises
    BundleError, ConfigError and ExportError; then nothing has changed.
    """
    bundle = read_bundle(folder)
    name = bundle.manifest.name
    if (config_path is None) == (not pairs):
        raise ConfigError(f"{name}: name either its CONFIG.toml or --pairs")
    try:
        own = parse_config(bundle.manifest.training.config)
    except ValidationError as error:
        raise ConfigError(f"{name}: its training configuration is another version's") from error
    config = own if config_path is None else load_config(config_path)
    if config.kind != own.kind:
        raise ConfigError(f"{config_path}: a configuration of another kind of model than {name}")
    experiment = translating_experiment_of(config)
    base = Path() if config_path is None else config_path.resolve().parent
    written = experiment.add_confidence(bundle, folder.resolve().parent, base, pairs)
    return experiment.table(read_bundle(written).manifest)


def draw_bundles(folders: Sequence[Path], path: Path) -> None:
    """Draw the reliability of bundles' confidences on their first held-out set, as a PNG.

    Raises BundleError, and ConfigError for a bundle without one.
    """
    measured = {}
    for folder in folders:
        manifest = read_bundle(folder).manifest
        confidence: Confidence | None = getattr(manifest, "confidence", None)
        if confidence is None or not confidence.measured:
            raise ConfigError(f"{folder}: it has no measured confidence to draw")
        measured[manifest.name] = confidence.measured[0]
    draw_reliability(measured, path)
