"""What the service asks of an engine: its abilities, whatever its kind of model."""

from collections.abc import Iterator
from typing import Any

import pytest

from service.app import create_app
from service.scheduling.language_model import LanguageModelRunner, TextWork
from service.scheduling.workers import Workers
from service.settings import Settings
from service.tasks.encoder_decoder import EncoderDecoderEngine
from service.tasks.engine import (
    CLASSIFY,
    CLASSIFY_IN_PARTS,
    DECIDE,
    GENERATE,
    INFILL,
    PROPOSE,
    SCORE,
    SCORE_IN_PARTS,
    SCORE_LABELS,
    TAG,
    TRANSLATE,
    Abilities,
    Ability,
    Engine,
)
from service.tasks.kinds import KINDS
from service.tasks.labeler import LabelerEngine
from service.tasks.language_model import LanguageModelEngine
from service.tasks.vocabularies import Vocabularies
from tests.bundles import (
    ALPHABET,
    encoder_decoder_in_memory,
    in_memory,
    plain_files,
    tiny_encoder_decoder_files,
)
from tests.fakes import AppClient, FakeEncoderDecoderSession, FakeLabelerSession, FakeSession
from tests.labelers import Sort, labeler_in_memory, tiny_labeler_files

SETTINGS = Settings()
ABILITIES: dict[str, Ability[Any]] = {
    "generate": GENERATE,
    "score": SCORE,
    "score in parts": SCORE_IN_PARTS,
    "translate": TRANSLATE,
    "infill": INFILL,
    "propose": PROPOSE,
    "decide": DECIDE,
    "classify": CLASSIFY,
    "classify in parts": CLASSIFY_IN_PARTS,
    "score labels": SCORE_LABELS,
    "tag": TAG,
}


class Mute:
    """An engine of a kind that can do nothing that is asked for today."""

    def __init__(self) -> None:
        session = FakeSession(vocab_size=4 + len(ALPHABET))
        self.holds = 0
        self.adapts = False
        self.manifest = in_memory(*plain_files("mute", ALPHABET)).manifest
        self.precision = self.manifest.precision
        self.abilities: Abilities = {}
        self.vocabularies: Vocabularies = {}
        self.workers: Workers[TextWork] = Workers(
            lambda name: LanguageModelRunner(session, 4, name=name),
            "mute",
            SETTINGS,
            threads=1,
            max_rows=4,
            metrics=None,
        )

    def start(self) -> None:
        self.workers.start()

    async def stop(self, timeout_s: float | None = None) -> None:
        await self.workers.stop(timeout_s)


@pytest.fixture
def client() -> Iterator[AppClient]:
    with AppClient(create_app(SETTINGS, [Mute()])) as client:
        yield client


def language_model() -> Engine:
    bundle = in_memory(*plain_files("fake", ALPHABET))
    session = FakeSession(vocab_size=4 + len(ALPHABET))
    return LanguageModelEngine(bundle, session, SETTINGS, precision="fp32")


def encoder_decoder() -> Engine:
    bundle = encoder_decoder_in_memory(*tiny_encoder_decoder_files("gru"))
    return EncoderDecoderEngine(bundle, FakeEncoderDecoderSession(), SETTINGS, precision="fp32")


def labeler(sort: Sort = "text") -> Engine:
    bundle = labeler_in_memory(*tiny_labeler_files(sort))
    return LabelerEngine(bundle, FakeLabelerSession(), SETTINGS, precision="fp32")


def abilities_of(engine: Engine) -> set[str]:
    able = {name for name, ability in ABILITIES.items() if ability.of(engine) is engine}
    assert set(engine.abilities) == {ABILITIES[name] for name in able}
    return able


def test_every_kind_has_its_abilities_and_no_others() -> None:
    engines = (language_model(), encoder_decoder(), labeler())
    found = {engine.manifest.task: abilities_of(engine) for engine in engines}
    assert found == {
        "language_model": {"generate", "score", "score in parts", "infill", "decide"},
        "encoder_decoder": {"translate", "score"},
        "labeler": {"classify", "score labels"},
    }
    assert found.keys() == KINDS.keys()
    assert abilities_of(labeler("restore")) == {"tag"}


def test_an_error_names_what_the_engine_can_be_asked_instead() -> None:
    told = "this model does not translate; it answers /generate, /score and /infill"
    assert TRANSLATE.lacking(language_model().abilities) == told
    told = "this model does not fill blanks; it answers /translate and /score"
    assert INFILL.lacking(encoder_decoder().abilities) == told
    told = "this model does not score texts; it answers /classify and /score with `label`"
    assert SCORE.lacking(labeler().abilities) == told
    assert SCORE.lacking({}) == "this model does not score texts; it answers nothing"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": "a"}),
        ("/translate", {"source": "a"}),
        ("/score", {"text": "a"}),
        ("/score", {"text": "a", "label": "b"}),
        ("/classify", {"text": "a"}),
        ("/tag", {"text": "a"}),
        ("/v1/completions", {"model": "mute", "prompt": "a"}),
    ],
)
def test_what_an_engine_is_not_able_to_do_is_refused(
    client: AppClient, path: str, body: dict[str, Any]
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 422
    pointers = [x["pointer"] for x in response.json().get("errors", ())]
    assert pointers == ["/model"] or response.json()["error"]["param"] == "model"


@pytest.mark.parametrize("mode", ["lines", "total"])
def test_a_stream_is_refused_by_an_engine_that_scores_nothing(client: AppClient, mode: str) -> None:
    headers = {"Content-Type": "text/plain"}
    response = client.post("/score", params={"mode": mode}, content="a\n", headers=headers)
    assert response.status_code == 422


def test_other_interfaces_offer_what_an_engine_is_able_to_do_alone(client: AppClient) -> None:
    assert client.get("/v1/models").json()["data"] == []
    assert client.get("/v1/models/mute").status_code == 404
    assert client.get("/libretranslate/languages").json() == []
    for path in ("generate", "generate_stream"):
        body = {"text_input": "a"}
        assert client.post(f"/v2/models/mute/{path}", json=body).status_code == 404


def test_an_engine_without_abilities_is_served_and_watched_like_any_other(
    client: AppClient,
) -> None:
    assert [x["name"] for x in client.get("/models").json()["models"]] == ["mute"]
    assert [x["model"] for x in client.get("/readyz").json()["engines"]] == ["mute"]
    assert client.get("/livez").status_code == 200
