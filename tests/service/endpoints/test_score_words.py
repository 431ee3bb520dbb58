"""`units: "word"` on `/score`: every kind of text, in JSON and streamed."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.bundle.store import write_bundle
from service.bundle.tokenization import Tokenization
from service.settings import Settings
from tests.bundles import tiny_encoder_decoder_files
from tests.fakes import AppClient

TEXTS = [
    "",
    "the white rabbit",
    " two  blanks\tand\r\nlines.\n",
    "7 unknown \u05d0 cafe\u0301",
    "with pink eyes ran close by her. " * 40,  # several chunks
]
NDJSON = {"content-type": "application/x-ndjson"}


def scored(client: AppClient, texts: str | list[str], **options: Any) -> Any:
    return client.ask("/score", text=texts, **{"model": "tiny-lstm"} | options)["results"]


@pytest.mark.parametrize("options", [{}, {"eos": True}, {"bos": False}, {"context": "the "}])
@pytest.mark.parametrize("unknown", ["unk", "skip"])
def test_words_add_up_to_the_text_exactly(
    both_kinds: AppClient, options: dict[str, Any], unknown: str
) -> None:
    options = {"unknown": unknown, **options}
    plain = scored(both_kinds, TEXTS, **options)
    for result, bare in zip(scored(both_kinds, TEXTS, units="word", **options), plain, strict=True):
        words = result["words"]
        assert sum(x["logprob"] for x in words) == result["logprob"] == bare["logprob"]
        assert math.fsum(x["logprob"] for x in words) == result["logprob"]
        assert sum(x["chars"] for x in words) == result["chars"]
        assert bare["words"] is None
        assert {**result, "words": None} == bare


def test_words_have_their_places_and_their_characters_scores(both_kinds: AppClient) -> None:
    text = "The white\u0301  caf\u00e9,\tso\u2026"
    (result,) = scored(both_kinds, [text], units="word", tokens=True, eos=True)
    assert [x["text"] for x in result["words"]] == [
        "The ",
        "whit\u00e9  ",
        "caf\u00e9,\t",
        "so\u2026",
    ]
    for word in result["words"]:
        last = word["end"] + (word is result["words"][-1])
        own = [x["logprob"] for x in result["tokens"][word["start"] : last]]
        assert word["logprob"] == pytest.approx(sum(own), abs=1e-12)
        assert word["bits"] == pytest.approx(-word["logprob"] / math.log(2))


def test_places_are_those_of_the_text_without_what_is_skipped(both_kinds: AppClient) -> None:
    (result,) = scored(both_kinds, ["a7 \u05d0b"], units="word", unknown="skip")
    found = [(x["text"], x["start"], x["end"]) for x in result["words"]]
    assert found == [("a ", 0, 2), ("b", 2, 3)]


def test_a_target_of_characters_has_words_too(both_kinds: AppClient) -> None:
    (result,) = scored(both_kinds, ["a hat"], model="tiny-pairs", source="cat", units="word")
    assert [x["text"] for x in result["words"]] == ["a ", "hat"]
    assert sum(x["logprob"] for x in result["words"]) == result["logprob"]
    assert result["eos"]


@pytest.mark.parametrize("tokenization", ["whitespace", "bpe"])
def test_targets_of_other_tokens_have_no_words(tmp_path: Path, tokenization: Tokenization) -> None:
    write_bundle(tmp_path, *tiny_encoder_decoder_files(tokenization=tokenization))
    with AppClient(create_app(Settings(models_dir=tmp_path))) as client:
        answer = client.post("/score", json={"text": "a b", "source": "cat", "units": "word"})
    assert answer.status_code == 422
    (mistake,) = answer.json()["errors"]
    assert mistake["pointer"] == "/units"
    assert "`tokens` has a score each" in mistake["detail"]


def test_streamed_lines_have_the_same_words(both_kinds: AppClient) -> None:
    content = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    query = {"model": "tiny-lstm", "units": "word", "eos": "true"}
    answer = both_kinds.request("POST", "/score", params=query, content=content, headers=NDJSON)
    told = [json.loads(line)["words"] for line in answer.text.splitlines()]
    assert told == [x["words"] for x in scored(both_kinds, TEXTS, units="word", eos=True)]


def test_a_running_total_has_no_words(both_kinds: AppClient) -> None:
    query = {"model": "tiny-lstm", "units": "word", "mode": "total"}
    headers = {"content-type": "text/plain"}
    answer = both_kinds.request("POST", "/score", params=query, content="a b", headers=headers)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/units"
