"""The parts of a bundle's model: networks of runs, an n-gram, and how they are mixed."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from service.bundle.language_model import (
    Adapt,
    Fit,
    LanguageModelMeasurement,
    LanguageModelShape,
    MixturePart,
)
from training.config import AdaptConfig, NGramConfig
from training.data.corpus import Corpus, Split
from training.evaluation.fitting import (
    Shares,
    fit_mixture,
    fit_temperature,
    predictions,
    text_to_fit,
)
from training.evaluation.language_model import evaluate
from training.evaluation.language_model_report import measurement
from training.evaluation.ngram_network import network
from training.export.adapting import adapt_record
from training.export.adapting_fit import fit_adaptation
from training.loop.ngram import fit_ngram
from training.loop.trainer import parameter_count
from training.networks.adapting import Adaptation
from training.networks.language_model import LanguageModel
from training.networks.mixture import AnyLanguageModel, Mixture
from training.networks.ngram import NGram

# Weight of all networks together where there is no text to fit it on: about what the fit found for
# texts of 100,000 and of a million characters.
_NETWORKS_SHARE = 0.7
_CPU = torch.device("cpu")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """A model in its parts."""

    model: AnyLanguageModel  # the whole, as it is exported
    networks: Sequence[LanguageModel]  # as they were trained
    ngram: NGram | None  # as it is in the whole
    shares: Shares
    own_temperatures: Sequence[float]  # of each network alone
    fit: Fit | None
    adaptation: Adaptation | None = None

    @property
    def names(self) -> list[str]:
        """Of the parts, in the order of the weights."""
        return [*self._network_names(), *self._ngram_names()]

    def shapes(self) -> list[LanguageModelShape]:
        """Of the parts, in the same order."""
        found = [network_shape(x) for x in self.networks]
        return found if self.ngram is None else [*found, ngram_shape(self.ngram)]

    def described(self) -> list[MixturePart]:
        """The parts as the manifest writes them."""
        ngrams = len(self.shares.weights) - len(self.networks)
        temperatures = [*self.shares.temperatures, *[None] * ngrams]
        described = zip(self.names, self.shapes(), self.shares.weights, temperatures, strict=True)
        return [
            MixturePart(name=name, model=shape, weight=weight, temperature=temperature)
            for name, shape, weight, temperature in described
        ]

    def adapt_record(self) -> Adapt | None:
        """How it adapts, as the manifest writes it."""
        if self.adaptation is None:
            return None
        return adapt_record(self.model, self.adaptation, self.shares.temperatures)

    def measured(self, held_out: Split) -> list[LanguageModelMeasurement]:
        """Each part alone: a network as it was trained and at its own temperature."""
        found = []
        names = self._network_names()
        for name, part, own in zip(names, self.networks, self.own_temperatures, strict=True):
            if part is not self.model:
                found.append((name, part))
            if own != 1.0 and len(self.shares.weights) > 1:
                found.append((f"{name} at temperature {own:.2f}", part.tempered(own)))
        scored = [(name, evaluate(part, held_out, _CPU)) for name, part in found]
        if self.ngram is not None and self.networks:
            scored += [(x, evaluate(self.ngram, held_out, _CPU)) for x in self._ngram_names()]
        return [measurement(name, "part", score) for name, score in scored]

    def _network_names(self) -> list[str]:
        cells: list[str] = [x.config.cell for x in self.networks]
        return cells if len(cells) == 1 else [f"{x} {i}" for i, x in enumerate(cells, start=1)]

    def _ngram_names(self) -> list[str]:
        """The name says whether the text of the fit has been counted, too."""
        if self.ngram is None:
            return []
        counted = " with the text of the fit" if self.fit is not None and self.networks else ""
        return [f"{self.ngram.order}-gram{counted}"]


def of_ngram(model: NGram) -> Parts:
    """An n-gram alone: nothing is fitted."""
    return Parts(model, (), model, Shares((1.0,), ()), (), None)


def of_networks(
    networks: Sequence[LanguageModel],
    options: NGramConfig | None,
    corpus: Corpus,
    adapt: AdaptConfig | None = None,
) -> Parts:
    """Networks and, given options for one, an n-gram: a mixture fitted on the corpus's text.

    For the fit, the n-gram counts the training split alone; for the model, it is counted again with
    the text of the fit as well. Where there is too little text, nothing is fitted.
    """
    vocab_size = len(corpus.vocab)
    ngram = None if options is None else _counted(options, corpus.train, vocab_size)
    if corpus.fitting is None:
        _LOG.warning(
            "too little validation text to fit %s on: left at the defaults",
            "a temperature" if ngram is None and len(networks) == 1 else "temperatures and weights",
        )
        shares = _unfitted(len(networks), with_ngram=ngram is not None)
        model = _whole(networks, ngram, shares)
        return Parts(model, networks, ngram, shares, [1.0] * len(networks), None)
    text = text_to_fit(corpus.fitting, vocab_size)
    logits = []
    for part in networks:
        found, targets = predictions(part, text)
        logits.append(found)
    probs = [] if ngram is None else [predictions(ngram, text)[0].exp()]
    shares = fit_mixture(logits, probs, targets)
    own = [fit_temperature(x, targets) for x in logits] if len(shares.weights) > 1 else []
    adaptation = None
    if adapt is not None:
        # The n-gram that has counted the text of the fit would know it by heart.
        adaptation = fit_adaptation(_whole(networks, ngram, shares), shares, text, adapt.rank)
    if options is not None:
        ngram = _counted(options, corpus.train.joined(corpus.fitting), vocab_size)
    return Parts(
        _whole(networks, ngram, shares),
        networks,
        ngram,
        shares,
        own or shares.temperatures,
        Fit(split="valid", chars=text.chars),
        adaptation,
    )


def _counted(options: NGramConfig, split: Split, vocab_size: int) -> NGram:
    return network(fit_ngram(options, split, vocab_size)).eval()


def _whole(
    networks: Sequence[LanguageModel], ngram: NGram | None, shares: Shares
) -> AnyLanguageModel:
    tempered = [x.tempered(t) for x, t in zip(networks, shares.temperatures, strict=True)]
    if ngram is None and len(tempered) == 1:
        return tempered[0]
    return Mixture(tempered, ngram, shares.weights, shares.exponent).eval()


def _unfitted(networks: int, *, with_ngram: bool) -> Shares:
    share = _NETWORKS_SHARE if with_ngram else 1.0
    weights = [share / networks] * networks + [1.0 - share] * with_ngram
    return Shares(tuple(weights), (1.0,) * networks)


def network_shape(model: LanguageModel) -> LanguageModelShape:
    """A network's shape, as the manifest writes it."""
    return LanguageModelShape(
        cell=model.config.cell,
        num_layers=model.config.num_layers,
        hidden_size=model.config.hidden_size,
        embedding_dim=model.config.embedding_dim,
        parameters=parameter_count(model),
    )


def ngram_shape(model: NGram) -> LanguageModelShape:
    """An n-gram's shape, as the manifest writes it."""
    return LanguageModelShape(
        cell="ngram",
        num_layers=None,
        hidden_size=None,
        embedding_dim=None,
        parameters=model.trie.grams,
        order=model.order,
    )
