"""`POST /translate`, and `/score` given a source: what is asked for is what comes back."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.bundle.encoder_decoder import EncoderDecoderBundle
from service.bundle.store import read_bundle
from service.bundle.text import EOS_ID, UNK_ID
from service.bundle.tokenization import Characters, Subwords, Symbols
from service.decoding.sampling import SamplingParams
from service.decoding.search import Search
from service.runtime.encoder_decoder import OnnxEncoderDecoderSession
from service.settings import Settings
from service.tasks.encoder_decoder import EncoderDecoderEngine
from service.tasks.kinds import Surroundings, open_engine
from service.tasks.language_model import LanguageModelEngine
from tests.bundles import (
    ALPHABET,
    MAX_SOURCE_TOKENS,
    POOL_STRIDE,
    SYMBOLS,
    encoder_decoder_in_memory,
    in_memory,
    plain_files,
    tiny_encoder_decoder_files,
    tiny_tokenizer,
)
from tests.fakes import DECODER_RAISES, GIVES_NAN, AppClient, FakeEncoderDecoderSession, FakeSession
from tests.service.events import parsed
from tests.service.search_reference import Found, alone, source_of

EOS, UNK = "\ue002", "\ue003"
MARKER = "q7zmarkerz7q"
UNKNOWN = "\u2603"  # in no vocabulary
SOURCES = ["a", "abc", "a cat in a hat", "rabbit, rabbit, rabbit!"]
ATTENTIVE = ["fake", "tiny", "crnn"]
MODELS = [*ATTENTIVE, "plain"]

SETTINGS = Settings(
    max_inputs=5,
    max_tokens=200,
    max_n=6,
    max_beam_size=8,
    max_cost_tokens=4000,
    max_details=7200,
    max_queue_tokens=20_000,
)


def fake_session() -> FakeEncoderDecoderSession:
    return FakeEncoderDecoderSession(vocab_size=len(tiny_tokenizer("character")))


def bundles() -> dict[str, EncoderDecoderBundle]:
    """One behind a fake session, and three real ones of different kinds."""
    letters = Characters.of_characters(ALPHABET)
    made = {
        "fake": tiny_encoder_decoder_files("gru", name="fake", source=letters),
        "tiny": tiny_encoder_decoder_files("lstm", name="tiny", input_feeding=True),
        "crnn": tiny_encoder_decoder_files(
            "gru", name="crnn", tokenization="whitespace", encoder="crnn", attention="additive"
        ),
        "plain": tiny_encoder_decoder_files(
            "rnn", name="plain", tokenization="bpe", shared=True, attention="none"
        ),
    }
    return {name: encoder_decoder_in_memory(*parts) for name, parts in made.items()}


@pytest.fixture(scope="module")
def bundle() -> EncoderDecoderBundle:
    """What `fake` serves."""
    return bundles()["fake"]


@pytest.fixture(scope="module")
def client() -> Iterator[AppClient]:
    """The bundles, and a language model beside them."""
    engines: list[LanguageModelEngine | EncoderDecoderEngine] = [
        LanguageModelEngine(
            in_memory(*plain_files("language", ALPHABET)),
            FakeSession(vocab_size=4 + len(ALPHABET)),
            SETTINGS,
            precision="fp32",
        )
    ]
    for name, made in bundles().items():
        session = fake_session() if name == "fake" else OnnxEncoderDecoderSession(made, "fp32")
        engines.append(EncoderDecoderEngine(made, session, SETTINGS, precision="fp32", threads=2))
    with AppClient(create_app(SETTINGS, engines)) as running:
        yield running


def translate(
    client: AppClient, source: str | list[str], model: str = "fake", **options: Any
) -> Any:
    return client.ask("/translate", model=model, source=source, **options)


def one(client: AppClient, source: str, model: str = "fake", **options: Any) -> Any:
    (result,) = translate(client, source, model, **options)["results"]
    return result


def best(client: AppClient, source: str, model: str = "fake", **options: Any) -> Any:
    return one(client, source, model, **options)["hypotheses"][0]


def expected(bundle: EncoderDecoderBundle, source: str, width: int, **options: Any) -> list[Found]:
    """What the search finds by its description."""
    ids = source_of(bundle.source.encode(source).tolist())
    bound = bundle.manifest.limits.max_tokens(len(ids))
    search = Search(ids, width, **{"max_tokens": bound} | options)
    return alone(fake_session(), search)


def text_of(bundle: EncoderDecoderBundle, tokens: tuple[int, ...]) -> str:
    return bundle.target.decode(tokens)


# --- what comes back ------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("penalty", [None, 0.0, 0.6, 2.0])
def test_a_translation_is_what_the_search_finds(
    client: AppClient, bundle: EncoderDecoderBundle, source: str, penalty: float | None
) -> None:
    given: dict[str, Any] = {} if penalty is None else {"length_penalty": penalty}
    result = one(client, source, num_hypotheses=3, beam_size=4, **given)
    p = 1.0 if penalty is None else penalty
    wanted = expected(bundle, source, 4, num_hypotheses=3, length_penalty=p)
    assert [
        (x["text"], x["logprob"], x["finish_reason"], x["score"]) for x in result["hypotheses"]
    ] == [
        (
            text_of(bundle, x.tokens),
            x.logprob,
            x.finish_reason,
            x.logprob / math.pow(len(x.tokens), p),
        )
        for x in wanted
    ]
    assert result["seed"] is None
    assert result["source_tokens"] is None
    assert all(x["tokens"] is None and x["alignment"] is None for x in result["hypotheses"])


def test_left_to_itself_it_gives_the_best_of_five_beams(
    client: AppClient, bundle: EncoderDecoderBundle
) -> None:
    (found,) = expected(bundle, "a cat", 5)
    answer = translate(client, "a cat")
    assert set(answer) == {"model", "precision", "results", "usage"}
    assert (answer["model"], answer["precision"]) == ("fake", "fp32")
    (hypothesis,) = answer["results"][0]["hypotheses"]
    assert hypothesis["logprob"] == found.logprob


@pytest.mark.parametrize("model", MODELS)
def test_a_list_is_answered_in_order_and_as_each_source_alone(
    client: AppClient, model: str
) -> None:
    listed = translate(client, SOURCES, model, beam_size=3)
    singly = [translate(client, source, model, beam_size=3) for source in SOURCES]
    assert listed["results"] == [x["results"][0] for x in singly]
    assert {x["cached_tokens"] for x in (listed["usage"], *(y["usage"] for y in singly))} == {0}
    for name in ("prompt_tokens", "completion_tokens"):
        assert listed["usage"][name] == sum(x["usage"][name] for x in singly)


@pytest.mark.parametrize("model", MODELS)
def test_answers_do_not_depend_on_the_requests_beside_them(client: AppClient, model: str) -> None:
    options: list[Mapping[str, Any]] = [
        {"beam_size": 4, "num_hypotheses": 2},
        {"beam_size": 1, "tokens": True},
        {"temperature": 1.0, "seed": 3, "num_hypotheses": 4},
    ]
    bodies = [
        {"model": model, "source": source, **x} for source, x in itertools.product(SOURCES, options)
    ]
    scores = [{"model": model, "source": x, "text": "a cat", "tokens": True} for x in SOURCES]
    alone_answers = [client.post("/translate", json=x).content for x in bodies]
    alone_scores = [client.post("/score", json=x).content for x in scores]
    assert [x.content for x in client.together("/translate", bodies * 3)] == alone_answers * 3
    assert [x.content for x in client.together("/score", scores * 3)] == alone_scores * 3


def test_usage_counts_source_tokens_and_the_tokens_of_what_is_answered(client: AppClient) -> None:
    answer = translate(client, ["abc", "b"], tokens=True, num_hypotheses=2)
    written = [len(y["tokens"]) for x in answer["results"] for y in x["hypotheses"]]
    assert len(written) == 4
    assert answer["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": sum(written),
        "cached_tokens": 0,
    }


@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_no_target_is_longer_than_asked_for(client: AppClient, max_tokens: int) -> None:
    result = one(client, "abc", max_tokens=max_tokens, beam_size=6, num_hypotheses=6, tokens=True)
    lengths = [len(x["tokens"]) for x in result["hypotheses"]]
    assert max(lengths) <= max_tokens
    reasons = [x["finish_reason"] for x in result["hypotheses"]]
    assert reasons == sorted(reasons, reverse=True)  # "stop" before "length"
    cut = [x for x in result["hypotheses"] if x["finish_reason"] == "length"]
    assert all(x["tokens"][-1]["token"] != EOS for x in cut)
    assert cut


def test_the_bundles_own_bound_holds_besides(
    client: AppClient, bundle: EncoderDecoderBundle
) -> None:
    bound = bundle.manifest.limits.max_tokens(2)
    options: dict[str, Any] = {"temperature": 1.0, "num_hypotheses": 6, "tokens": True}
    lengths = []
    for seed in range(20):
        result = one(client, "a", max_tokens=200, seed=seed, **options)
        assert result == one(client, "a", seed=seed, **options)
        lengths += [len(x["tokens"]) for x in result["hypotheses"]]
    assert max(lengths) == bound


def test_with_tokens_every_token_is_told(client: AppClient) -> None:
    for x in one(client, "abc", tokens=True, num_hypotheses=5)["hypotheses"]:
        tokens = [y["token"] for y in x["tokens"]]
        assert (tokens[-1] == EOS) == (x["finish_reason"] == "stop")
        assert "".join(tokens).removesuffix(EOS) == x["text"]
        total = 0.0
        for y in x["tokens"]:
            total += y["logprob"]
        assert total == x["logprob"]


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 2}, {"top_p": 0.7}, {"temperature": 0.3}, {"num_hypotheses": 1}]
)
def test_samples_are_those_of_their_seed(
    client: AppClient, bundle: EncoderDecoderBundle, options: dict[str, Any]
) -> None:
    options = {"temperature": 1.3, "num_hypotheses": 4} | options
    result = one(client, "a hat", seed=2**47 + 1, tokens=True, **options)
    params = SamplingParams(
        temperature=options["temperature"],
        top_k=options.get("top_k"),
        top_p=options.get("top_p", 1.0),
    )
    count = options["num_hypotheses"]
    wanted = expected(bundle, "a hat", count, params=params, seed=2**47 + 1, num_hypotheses=count)
    assert [x["logprob"] for x in result["hypotheses"]] == [x.logprob for x in wanted]
    assert [x["text"] for x in result["hypotheses"]] == [text_of(bundle, x.tokens) for x in wanted]
    assert result["seed"] == 2**47 + 1


def test_a_seed_that_was_drawn_asks_for_the_same_samples_again(client: AppClient) -> None:
    first, second = (
        translate(client, SOURCES, temperature=1.0, num_hypotheses=3)["results"] for _ in range(2)
    )
    assert first != second
    again = translate(client, SOURCES, temperature=1.0, num_hypotheses=3, seed=first[0]["seed"])[
        "results"
    ]
    assert again == first


def test_the_first_samples_of_many_are_those_of_few(client: AppClient) -> None:
    few, many = (
        one(client, "abc", temperature=1.0, seed=7, num_hypotheses=x)["hypotheses"] for x in (2, 6)
    )
    assert many[:2] == few


# --- prefixes -------------------------------------------------------------------------------------


def test_every_target_begins_with_its_prefix(
    client: AppClient, bundle: EncoderDecoderBundle
) -> None:
    forced = tuple(bundle.target.encode("the ").tolist())
    wanted = expected(bundle, "abc", 5, forced=forced, num_hypotheses=2)
    result = one(client, "abc", target_prefix="the ", num_hypotheses=2)
    assert [x["logprob"] for x in result["hypotheses"]] == [x.logprob for x in wanted]
    assert all(x["text"].startswith("the ") for x in result["hypotheses"])


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 1}])
def test_a_prefix_is_for_all_sources_or_one_for_each(
    client: AppClient, options: dict[str, Any]
) -> None:
    shared = translate(client, ["a", "b"], target_prefix="the ", **options)["results"]
    assert shared == [one(client, x, target_prefix="the ", **options) for x in ("a", "b")]
    each = translate(client, ["a", "b"], target_prefix=["the ", ""], **options)["results"]
    assert each == [shared[0], one(client, "b", **options)]


@pytest.mark.parametrize("model", MODELS)
def test_a_translation_goes_on_from_any_of_its_prefixes(client: AppClient, model: str) -> None:
    """Its likeliest target begins with the prefix, so nothing else can come of it."""
    options = {"beam_size": 1, "length_penalty": 0.0, "tokens": True}
    whole = best(client, "a cat", model, **options)
    text = whole["text"]
    prefix = text[: len(text) // 2]
    if model == "crnn":
        symbols = text.split(" ")
        prefix = " ".join(symbols[: len(symbols) // 2])
    if model == "plain":
        prefix = ""  # half a subword is another token
    again = best(client, "a cat", model, target_prefix=prefix, **options)
    assert again == whole


# --- alignments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ATTENTIVE)
@pytest.mark.parametrize("source", ["a", "a cat", "rabbit, rabbit, rabbit!"])
def test_an_alignment_has_a_row_a_token_and_a_column_a_place_of_the_source(
    client: AppClient, model: str, source: str
) -> None:
    result = one(
        client, source, model, return_alignments=True, tokens=True, num_hypotheses=3, max_tokens=30
    )
    stride = POOL_STRIDE if model == "crnn" else 1
    pieces = [*source, EOS]
    places = ["".join(pieces[i : i + stride]) for i in range(0, len(pieces), stride)]
    assert result["source_tokens"] == places
    for x in result["hypotheses"]:
        alignment = np.array(x["alignment"])
        assert alignment.shape == (len(x["tokens"]), len(places))
        assert (alignment >= 0.0).all()
        np.testing.assert_allclose(alignment.sum(axis=1), 1.0, atol=1e-5)
    plain = one(client, source, model, tokens=True, num_hypotheses=3, max_tokens=30)
    for x, y in zip(result["hypotheses"], plain["hypotheses"], strict=True):
        assert {**x, "alignment": None} == y


def test_an_alignment_is_what_the_model_gives(
    client: AppClient, bundle: EncoderDecoderBundle
) -> None:
    (wanted,) = expected(bundle, "a cat", 5, wants_attention=True)
    assert wanted.attention is not None
    weights = np.frombuffer(wanted.attention, np.float32).reshape(len(wanted.tokens), -1)
    alignment = best(client, "a cat", return_alignments=True)["alignment"]
    assert alignment == weights[:, :6].tolist()


# --- as training read it --------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("streams", [False, True])
def test_blanks_around_a_source_change_nothing(
    client: AppClient, model: str, streams: bool
) -> None:
    forms = ["a cat", " a cat", "a cat\n", "\u2003a cat\r\n", "\ta cat\u00a0"]
    if streams:
        body = {"model": model, "source": forms, "tokens": True, "stream": True}
        *_, done = parsed(client.post("/translate", json=body).content)
        results = json.loads(done.data)["results"]
    else:
        results = translate(client, forms, model, tokens=True)["results"]
    assert [x == results[0] for x in results] == [True] * len(forms)


def test_blanks_around_a_target_change_nothing_and_one_in_a_prefix_goes_on(
    client: AppClient,
) -> None:
    scores = score(client, ["the hat", " the hat\n"], source="a cat")["results"]
    assert scores[0] == scores[1]
    assert best(client, "abc", target_prefix=" \tthe ")["text"].startswith("the ")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("blank", ["", " ", "\n", "\u2003\r\n\t"])
def test_a_blank_source_has_a_blank_translation_and_no_model_is_run(
    client: AppClient, model: str, blank: str
) -> None:
    options = {"tokens": True, "return_alignments": model != "plain", "target_prefix": "a"}
    if model == "crnn":
        options["target_prefix"] = "AH"
    answer = translate(client, [blank, "a"], model, **options)
    (result, other) = answer["results"]
    assert result == {
        "hypotheses": [
            {
                "text": "",
                "logprob": 0.0,
                "score": 0.0,
                "confidence": None,
                "finish_reason": "stop",
                "tokens": [],
                "alignment": None if model == "plain" else [],
                "matched": None,
            }
        ],
        "abstained": False,
        "unknown": [],
        "unknown_chars": 0,
        "source_tokens": None if model == "plain" else [EOS],
        "seed": None,
    }
    assert other == one(client, "a", model, **options)
    assert translate(client, [blank], model)["usage"]["completion_tokens"] == 0
    assert (
        "blank"
        in client.post("/score", json={"model": model, "source": blank, "text": "a"}).json()[
            "detail"
        ]
    )


@pytest.fixture(scope="module")
def shipped() -> Iterator[AppClient]:
    """Two of the shipped models."""
    engines = [
        open_engine(read_bundle(Path("models") / name), Surroundings(settings=SETTINGS, threads=1))
        for name in ("dates-iso", "g2p-en")
    ]
    with AppClient(create_app(SETTINGS, engines)) as running:
        yield running


@pytest.mark.parametrize(
    ("model", "plain", "forms"),
    [
        (
            "dates-iso",
            "4 July 1976",
            [" 4 July 1976", "4 July 1976 ", "4 July 1976\n", "4\u00a0July\u202f1976"],
        ),
        ("g2p-en", "don't", ["don\u2019t", "Don\u2018t\r\n", "don\u02bct"]),
        ("g2p-en", "x-ray", ["x\u2011ray", "x\u2013ray"]),
    ],
)
def test_shipped_models_read_what_people_send_as_they_were_trained(
    shipped: AppClient, model: str, plain: str, forms: list[str]
) -> None:
    results = translate(shipped, [plain, *forms], model)["results"]
    assert [x == results[0] for x in results] == [True] * len(results)
    assert results[0]["unknown"] == []
    wanted = {"4 July 1976": "1976-07-04", "don't": "D OW N T"}
    assert results[0]["hypotheses"][0]["text"] == wanted.get(plain, "EH K S R EY")


def test_what_skipping_leaves_is_stripped_again(client: AppClient) -> None:
    left_out = one(client, f"{UNKNOWN} a cat {UNKNOWN}", unknown="skip")
    assert left_out == {**one(client, "a cat"), "unknown": [0, 8], "unknown_chars": 2}
    (blank,) = one(client, f" {UNKNOWN} ", unknown="skip")["hypotheses"]
    assert blank["text"] == ""
    asked = {"source": "a cat", "unknown": "skip"}
    (scored,) = score(client, f"the hat {UNKNOWN}", **asked)["results"]
    assert (scored["chars"], scored["unknown"]) == (7, [8])
    assert scored["logprob"] == score(client, "the hat", **asked)["results"][0]["logprob"]


# --- unknown characters ---------------------------------------------------------------------------


def test_unknown_characters_are_told_at_their_places_in_the_normalized_source(
    client: AppClient,
) -> None:
    result = one(client, f"a\r\n{UNKNOWN}b{UNKNOWN}")
    assert result["unknown"] == [2, 4]
    assert one(client, "ab")["unknown"] == []


def test_an_unknown_character_is_read_as_the_unknown_token(
    client: AppClient, bundle: EncoderDecoderBundle
) -> None:
    (wanted,) = expected(bundle, f"a{UNKNOWN}b", 5)
    assert best(client, f"a{UNKNOWN}b")["logprob"] == wanted.logprob
    assert best(client, f"a{UNKNOWN}b", unknown="unk") == best(client, f"a{UNKNOWN}b")


def test_unknown_characters_can_be_left_out(client: AppClient) -> None:
    left_out = one(client, f"{UNKNOWN}a{UNKNOWN}b", unknown="skip", return_alignments=True)
    without = one(client, "ab", return_alignments=True)
    assert left_out == {**without, "unknown": [0, 2], "unknown_chars": 2}


def test_an_alignment_of_subwords_has_a_label_for_each_place_whatever_is_left_out() -> None:
    made = encoder_decoder_in_memory(
        *tiny_encoder_decoder_files("gru", name="pieces", tokenization="bpe")
    )
    engine = EncoderDecoderEngine(
        made, OnnxEncoderDecoderSession(made, "fp32"), SETTINGS, precision="fp32"
    )
    with AppClient(create_app(SETTINGS, [engine])) as client:
        for source in (f"{UNKNOWN} a cat", f"a{UNKNOWN} cat", f"a cat {UNKNOWN}", f"{UNKNOWN}a"):
            for policy in ("skip", "unk"):
                options = {"unknown": policy, "return_alignments": True, "copy_unknown": True}
                result = one(client, source, "pieces", **options)
                for row in result["hypotheses"][0]["alignment"]:
                    assert len(row) == len(result["source_tokens"])
                    assert sum(row) == pytest.approx(1.0, abs=1e-4)
                shown = "".join(result["source_tokens"]).removesuffix(EOS)
                left = source.replace(UNKNOWN, "").strip() if policy == "skip" else source
                assert shown.strip() == left


@pytest.mark.parametrize("model", MODELS)
def test_every_model_tells_its_unknown_characters(client: AppClient, model: str) -> None:
    assert one(client, f"a {UNKNOWN} cat", model)["unknown"] == [2]
    refused(
        client, "/translate", "/source", "at positions 2 of", model=model,
        source=f"a {UNKNOWN} cat", unknown="error",
    )  # fmt: skip


def test_an_unknown_token_is_replaced_by_what_the_model_attends_to() -> None:
    made = bundles()["fake"]
    session = fake_session()
    session._table[:, UNK_ID] += 6.0
    engine = EncoderDecoderEngine(made, session, SETTINGS, precision="fp32")
    copied = 0
    with AppClient(create_app(SETTINGS, [engine])) as client:
        for source in ("ab", "a cat", "white rabbit", f"{UNKNOWN}x?"):
            ids = source_of(made.source.encode(source).tolist())
            bound = made.manifest.limits.max_tokens(len(ids))
            (wanted,) = alone(
                session, Search(ids, 5, bound, writes_unknown=True, wants_attention=True)
            )
            assert wanted.attention is not None
            weights = np.frombuffer(wanted.attention, np.float32).reshape(len(wanted.tokens), -1)
            text = ""
            for token, row in zip(wanted.tokens, weights, strict=True):
                place = int(row.argmax())
                if token == UNK_ID:
                    copied += 1
                    text += source[place] if place < len(source) else ""
                elif token != EOS_ID:
                    text += made.target.tokens[token]
            found = best(client, source, copy_unknown=True, tokens=True)
            assert found["text"] == text
            assert found["logprob"] == wanted.logprob
            assert [x["token"] for x in found["tokens"]] == [
                made.target.tokens[i] for i in wanted.tokens
            ]
            assert found["alignment"] is None
            without = best(client, source, tokens=True)
            assert UNK not in [x["token"] for x in without["tokens"]]
    assert copied >= 3


def test_behind_a_stride_all_that_a_place_stands_for_is_copied(client: AppClient) -> None:
    copied = 0
    for source in ("a cat", "tea at three", "hhhhh", "the white rabbit!"):
        result = one(
            client,
            source,
            "crnn",
            copy_unknown=True,
            tokens=True,
            return_alignments=True,
            num_hypotheses=5,
            max_tokens=6,
        )
        for x in result["hypotheses"]:
            pieces = []
            for token, row in zip(x["tokens"], x["alignment"], strict=True):
                place = result["source_tokens"][int(np.argmax(row))]
                copied += token["token"] == UNK
                pieces.append(place.removesuffix(EOS) if token["token"] == UNK else token["token"])
            # The end of the source has nothing to copy, and leaves no blank behind.
            assert x["text"] == " ".join(y for y in pieces if y not in {"", EOS})
    assert copied


# --- what is refused ------------------------------------------------------------------------------


def refused(client: AppClient, path: str, pointer: str, words: str, **body: Any) -> Any:
    """The problem of a request with one mistake."""
    response = client.post(path, json={"model": "fake"} | body)
    assert response.status_code == 422, response.text
    problem = response.json()
    assert problem["type"] == "invalid-request"
    assert [x["pointer"] for x in problem["errors"]] == [pointer]
    assert words in problem["errors"][0]["detail"]
    assert MARKER not in response.text
    return problem


@pytest.mark.parametrize(
    ("pointer", "words", "options"),
    [
        ("/beam_size", "at most 8 are allowed", {"beam_size": 9}),
        ("/beam_size", "greater than or equal to 1", {"beam_size": 0}),
        ("/beam_size", "valid integer", {"beam_size": "5"}),
        ("/num_hypotheses", "at most 5 are allowed", {"num_hypotheses": 6}),
        ("/num_hypotheses", "(beam_size); at most 2", {"num_hypotheses": 3, "beam_size": 2}),
        ("/num_hypotheses", "at most 6 are allowed", {"num_hypotheses": 7, "beam_size": 8}),
        (
            "/num_hypotheses",
            "at most 6 are allowed",
            {"num_hypotheses": 7, "temperature": 1.0},
        ),
        ("/num_hypotheses", "greater than or equal to 1", {"num_hypotheses": 0}),
        ("/length_penalty", "greater than or equal to 0", {"length_penalty": -0.1}),
        ("/length_penalty", "less than or equal to 10", {"length_penalty": 10.1}),
        ("/max_tokens", "greater than or equal to 1", {"max_tokens": 0}),
        ("/max_tokens", "valid integer", {"max_tokens": 1.5}),
        ("/temperature", "greater than or equal to 0", {"temperature": -1.0}),
        ("/top_p", "less than or equal to 1", {"temperature": 1.0, "top_p": 1.1}),
        ("/top_k", "greater than or equal to 1", {"temperature": 1.0, "top_k": 0}),
        ("/seed", "greater than or equal to 0", {"temperature": 1.0, "seed": -1}),
        ("", "seed: only with a temperature above 0", {"seed": 1}),
        ("", "top_k: only with a temperature above 0", {"top_k": 1}),
        ("", "seed, top_p: only with", {"temperature": 0.0, "top_p": 0.5, "seed": 1}),
        ("", "beam_size: only with temperature 0", {"temperature": 1.0, "beam_size": 5}),
        ("", "one for each source", {"target_prefix": ["a", "b"]}),
        ("", "one for each source", {"target_prefix": []}),
        ("", "one for each source", {"source": ["a", "b"], "target_prefix": ["a"]}),
        ("/target_prefix", "the prefix has 3 tokens", {"target_prefix": "the", "max_tokens": 3}),
        ("/target_prefix", "at most 23, the end", {"target_prefix": "t" * 30, "source": "a"}),
        ("/target_prefix", "at positions 1, 2 of", {"target_prefix": f"t{UNKNOWN}{UNKNOWN}"}),
        ("/source", "at positions 0, 2 of", {"source": "\u2603a\u2603", "unknown": "error"}),
        ("/source", "tokens in a source; at most 60", {"source": "a" * (MAX_SOURCE_TOKENS + 1)}),
        ("/source", "at least one text", {"source": []}),
        ("/source", "too many sources; at most 5", {"source": ["a"] * 6}),
        ("/source", "over all sources; at most 4000", {"source": ["a" * 60] * 5, "beam_size": 8}),
        (
            "/return_alignments",
            "tokens · (4 + alternatives); at most 7200",
            {"source": ["a" * 60] * 5, "return_alignments": True},
        ),
        (
            "/copy_unknown",
            "tokens · (4 + alternatives); at most 7200",
            {"source": ["a" * 60] * 5, "copy_unknown": True},
        ),
        ("/unknown", "'unk', 'error' or 'skip'", {"unknown": MARKER}),
        ("/copy_unknown", "needs temperature 0", {"copy_unknown": True, "temperature": 1.0}),
        ("/copy_unknown", "no attention", {"copy_unknown": True, "model": "plain"}),
        ("/return_alignments", "no attention", {"return_alignments": True, "model": "plain"}),
        ("/model", "does not translate", {"model": "language"}),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place(
    client: AppClient, pointer: str, words: str, options: dict[str, Any]
) -> None:
    refused(client, "/translate", pointer, words, **{"source": "abc"} | options)


def test_of_many_unknown_characters_the_first_are_told(client: AppClient) -> None:
    problem = refused(
        client, "/translate", "/source", "20 characters", source=UNKNOWN * 20, unknown="error"
    )
    assert "14, 15, …" in problem["detail"]
    assert UNKNOWN not in problem["detail"]


def test_an_unknown_field_is_refused(client: AppClient) -> None:
    response = client.post("/translate", json={"model": "fake", "source": "a", MARKER: 1})
    assert response.status_code == 422
    assert "unknown field; the known fields are model, source, beam_size" in response.text
    assert MARKER not in response.text


def test_a_source_of_the_longest_length_is_translated(client: AppClient) -> None:
    longest = "a" * MAX_SOURCE_TOKENS
    assert best(client, longest)
    assert one(client, longest + UNKNOWN, unknown="skip")["hypotheses"] == [best(client, longest)]


def test_an_encoder_decoder_continues_nothing(client: AppClient) -> None:
    refused(client, "/generate", "/model", "it answers /translate and /score", prompt="a")


def test_a_model_that_is_not_served_is_not_found(client: AppClient) -> None:
    response = client.post("/translate", json={"model": MARKER, "source": "a"})
    assert response.status_code == 404
    assert MARKER not in response.text


def test_samples_do_not_mind_how_wide_a_beam_may_be(bundle: EncoderDecoderBundle) -> None:
    settings = Settings(max_beam_size=2)
    engine = EncoderDecoderEngine(bundle, fake_session(), settings, precision="fp32")
    with AppClient(create_app(settings, [engine])) as client:
        assert one(client, "abc", temperature=1.0, num_hypotheses=4)["seed"] is not None
        assert best(client, "abc", beam_size=2)
        refused(client, "/translate", "/beam_size", "at most 2", source="a", beam_size=3)


@pytest.mark.parametrize("token", [GIVES_NAN, DECODER_RAISES])
def test_a_source_that_breaks_the_model_is_told_and_others_go_on(
    client: AppClient, bundle: EncoderDecoderBundle, token: int
) -> None:
    bad = bundle.source.tokens[token]
    response = client.post("/translate", json={"model": "fake", "source": ["a", f"a{bad}a"]})
    assert response.status_code == 500
    assert response.json()["type"] == "model-failure"
    assert best(client, "abc")


# --- score ----------------------------------------------------------------------------------------


def score(client: AppClient, text: str | list[str], model: str = "fake", **options: Any) -> Any:
    return client.ask("/score", model=model, text=text, **options)


@pytest.mark.parametrize("eos", [None, True, False])
@pytest.mark.parametrize("text", ["", "t", "the hat", "a" * 50])
def test_the_score_of_a_target_is_the_models(
    client: AppClient, bundle: EncoderDecoderBundle, text: str, eos: bool | None
) -> None:
    given: dict[str, Any] = {} if eos is None else {"eos": eos}
    (result,) = score(client, text, source="a cat", **given)["results"]
    forced = tuple(bundle.target.encode(text).tolist()) + (() if eos is False else (EOS_ID,))
    total = 0.0
    if forced:
        search = {"max_tokens": len(forced), "forced": forced, "given": True}
        total = expected(bundle, "a cat", 1, **search)[0].logprob
    assert result["logprob"] == total
    assert result["chars"] == len(text)
    assert (result["bos"], result["eos"]) == (True, eos is not False)
    assert result["tokens"] is None


def test_a_source_is_for_all_texts_or_one_for_each(client: AppClient) -> None:
    shared = score(client, ["the", "hat"], source="abc")
    assert shared["results"] == [
        score(client, x, source="abc")["results"][0] for x in ("the", "hat")
    ]
    each = score(client, ["the", "hat"], source=["abc", "b"])
    assert each["results"][0] == shared["results"][0]
    assert each["results"][1] == score(client, "hat", source="b")["results"][0]
    assert each["results"][1] != shared["results"][1]
    counts = {"prompt_tokens": 3 + 3 + 1 + 3, "completion_tokens": 0, "cached_tokens": 0}
    assert each["usage"] == counts


@pytest.mark.parametrize("model", MODELS)
def test_details_agree_with_the_score(client: AppClient, model: str) -> None:
    text = "AH B" if model == "crnn" else "a cat"
    (result,) = score(client, text, model, source="tea", tokens=True, top_logprobs=3)["results"]
    tokens = result["tokens"]
    total = 0.0
    for token in tokens:
        total += token["logprob"]
        assert len(token["top"]) == 3
        assert token["surprisal_bits"] == pytest.approx(-token["logprob"] / math.log(2))
        assert token["entropy_bits"] > 0.0
        ranked = [x["logprob"] for x in token["top"]]
        assert ranked == sorted(ranked, reverse=True)
        if token["rank"] <= 3:
            assert ranked[token["rank"] - 1] == token["logprob"]
    assert total == result["logprob"]
    assert tokens[-1]["token"] == EOS
    shown = {"crnn": ["AH", "B"]}.get(model, list(text) if model != "plain" else None)
    assert shown is None or [x["token"] for x in tokens[:-1]] == shown


@pytest.mark.parametrize("model", MODELS)
def test_a_translation_scores_what_it_was_found_with(client: AppClient, model: str) -> None:
    options = {"temperature": 1.0, "seed": 5, "num_hypotheses": 1, "tokens": True}
    for source in SOURCES:
        found = best(client, source, model, **options)
        if model == "plain" and found["finish_reason"] == "length":
            continue
        ended = found["finish_reason"] == "stop"
        asked = {"source": source, "eos": ended, "tokens": True}
        (scored,) = score(client, found["text"], model, **asked)["results"]
        if [x["token"] for x in scored["tokens"]] == [x["token"] for x in found["tokens"]]:
            # The same number, to the bit.
            assert scored["logprob"] == found["logprob"]
        else:
            # Another way to cut the same text into subwords, or a blank at an end of it.
            assert model == "plain" or found["text"] != found["text"].strip()


def test_unknown_characters_of_a_target(client: AppClient) -> None:
    text = f"t{UNKNOWN}e{UNKNOWN}"
    (result,) = score(client, text, source="abc", tokens=True)["results"]
    assert result["unknown"] == [1, 3]
    assert [x["token"] for x in result["tokens"]] == ["t", UNK, "e", UNK, EOS]
    assert result["chars"] == 4
    (skipped,) = score(client, text, source="abc", unknown="skip")["results"]
    (without,) = score(client, "te", source="abc")["results"]
    assert skipped == {**without, "unknown": [1, 3], "unknown_chars": 2}
    refused(
        client, "/score", "/text", "at positions 1, 3 of", text=text, source="a", unknown="error"
    )
    refused(
        client, "/score", "/source", "at positions 0 of", text="t", source=UNKNOWN, unknown="error"
    )


def test_what_is_left_out_of_symbols_is_not_counted(client: AppClient) -> None:
    text = f"AH {UNKNOWN}{UNKNOWN} B"
    (result,) = score(client, text, "crnn", source="a", unknown="skip")["results"]
    assert result["unknown"] == [3]
    assert result["chars"] == len(text) - 2


@pytest.mark.parametrize(
    ("pointer", "words", "body"),
    [
        ("/source", "scores a text given its source", {}),
        ("/source", "scores a text given its source", {"source": None}),
        ("/context", "from its beginning", {"source": "a", "context": "b"}),
        ("/context", "from its beginning", {"source": "a", "context": ["b"]}),
        ("/bos", "from its beginning", {"source": "a", "bos": False}),
        ("", "one for each text", {"source": ["a", "b"]}),
        ("", "one for each text", {"source": []}),
        ("", "top_logprobs needs tokens: true", {"source": "a", "top_logprobs": 1}),
        ("/source", "at most 60", {"source": "a" * 61}),
        ("/text", "tokens in a target; at most 200", {"source": "a", "text": "t" * 200}),
        ("/text", "characters, sources included", {"source": "a", "text": "t" * 20_000}),
        (
            "/text",
            "tokens · (4 + alternatives)",
            {"source": "a", "text": "t" * 1801, "tokens": True},
        ),
        ("/source", "takes `context`, not `source`", {"source": "a", "model": "language"}),
    ],
)
def test_a_mistake_in_a_score_is_told_with_its_place(
    client: AppClient, pointer: str, words: str, body: dict[str, Any]
) -> None:
    refused(client, "/score", pointer, words, **{"text": "the"} | body)


def test_a_language_model_scores_as_before_beside_them(client: AppClient) -> None:
    (result,) = score(client, "abc", "language", context="a")["results"]
    assert (result["chars"], result["eos"]) == (3, False)


# --- what the service says of them ----------------------------------------------------------------


def test_encoder_decoders_are_listed_with_their_task(client: AppClient) -> None:
    listed = client.get("/models").json()["models"]
    assert {x["name"]: x["task"] for x in listed} == {
        "language": "language_model",
        **dict.fromkeys(MODELS, "encoder_decoder"),
    }


@pytest.mark.parametrize("model", MODELS)
def test_an_encoder_decoder_tells_what_it_is(client: AppClient, model: str) -> None:
    detail = client.get(f"/models/{model}").json()
    manifest = bundles()[model].manifest
    assert detail["name"] == model
    assert (detail["source_lang"], detail["target_lang"]) == ("source", "target")
    assert detail["precisions"] == ["fp32", "int8"]
    assert detail["precision"] == "fp32"
    for name in ("model", "limits", "data", "metrics", "examples", "training"):
        assert detail[name] == manifest.model_dump(mode="json")[name]
    assert "golden" not in detail


def test_the_documentation_has_the_new_endpoint(client: AppClient) -> None:
    document = client.get("/openapi.json").json()
    body = document["paths"]["/translate"]["post"]["requestBody"]["content"]["application/json"]
    assert set(body["schema"]["properties"]) >= {"source", "beam_size", "target_prefix"}
    assert body["example"]["source"]
    answers = document["paths"]["/translate"]["post"]["responses"]
    assert {"200", "404", "422", "429", "500", "503", "504"} <= set(answers)
    schemas = document["components"]["schemas"]
    for schema in ("TranslateResponse", "TranslateResult", "HypothesisOut", "EncoderDecoderDetail"):
        assert all(x.get("description") for x in schemas[schema]["properties"].values())
    assert client.get("/docs").status_code == 200


def test_the_tokenizers_of_the_models_are_of_every_kind() -> None:
    made = bundles()
    assert isinstance(made["crnn"].target, Symbols)
    assert set(made["crnn"].target.tokens[4:]) == set(SYMBOLS)
    assert isinstance(made["plain"].target, Subwords)
    assert made["plain"].source.tokens == made["plain"].target.tokens


def test_defaults_that_are_sent_are_as_good_as_left_out(client: AppClient) -> None:
    body = {"model": MODELS[0], "source": "abc"}
    defaults = {"top_k": None, "top_p": 1.0, "seed": None, "temperature": 0.0, "beam_size": None}
    first = client.post("/translate", json=body).json()
    assert client.post("/translate", json=body | defaults).json()["results"] == first["results"]


@settings(max_examples=60, deadline=None)
@given(
    sources=st.lists(st.text("abcde t", max_size=12), min_size=1, max_size=3),
    options=st.one_of(
        st.fixed_dictionaries(
            {
                "beam_size": st.integers(1, 5),
                "max_tokens": st.integers(1, 30),
                "target_prefix": st.sampled_from(["", "t", "ab"]),
            }
        ),
        st.fixed_dictionaries(
            {
                "temperature": st.sampled_from([0.5, 2.0]),
                "num_hypotheses": st.integers(1, 3),
                "seed": st.integers(0, 99),
            }
        ),
    ),
    name=st.sampled_from(MODELS),
)
def test_the_events_say_what_the_plain_answer_says(
    client: AppClient, sources: list[str], options: dict[str, Any], name: str
) -> None:
    body = {"model": name, "source": sources, "tokens": True, **options}
    plain = client.post("/translate", json=body)
    if plain.status_code == 422:  # the prefix is as long as the target may be
        assert client.post("/translate", json=body | {"stream": True}).status_code == 422
        return
    *told, done = parsed(client.post("/translate", json=body | {"stream": True}).content)
    assert done.name == "done"
    assert json.loads(done.data) == plain.json()
    tokens = [json.loads(event.data) for event in told]
    for i, result in enumerate(plain.json()["results"]):
        samples = "temperature" in options
        for k, hypothesis in enumerate(result["hypotheses"][: None if samples else 1]):
            own = [x for x in tokens if (x["index"], x["hypothesis"]) == (i, k)]
            assert "".join(x["text"] for x in own) == hypothesis["text"]
            assert [{"token": x["token"], "logprob": x["logprob"]} for x in own] == hypothesis[
                "tokens"
            ]
            assert [x["offset"] for x in own] == [
                len("".join(x["text"] for x in own[:j])) for j in range(len(own))
            ]


def test_copied_tokens_are_not_streamed(client: AppClient) -> None:
    refused(
        client,
        "/translate",
        "/copy_unknown",
        "not together with stream",
        source="abc",
        copy_unknown=True,
        stream=True,
    )
