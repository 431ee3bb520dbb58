"""One client beside a bare loop, and the default settings beside others."""

import numpy as np
import pytest

from bench import as_it_starts, one_client
from bench.load import Answer, Request, Run
from service.runtime.language_model import OnnxLanguageModelSession
from tests.bundles import in_memory, tiny_files


def test_the_bare_loop_writes_other_tokens_every_time() -> None:
    session = OnnxLanguageModelSession(in_memory(*tiny_files("lstm")), "fp32")
    write = one_client.bare_loop(session)
    first, second = write(), write()
    assert len(first) == len(second) == one_client.TOKENS
    assert first != second
    assert set(first) <= set(range(session.vocab_size))


def test_the_bare_loop_draws_each_token_with_its_probability() -> None:
    logprobs = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    uniforms = (np.arange(1000) + 0.5) / 1000
    found = [one_client.drawn(logprobs, float(x)) for x in uniforms]
    assert np.bincount(found).tolist() == [100, 600, 300]


def test_times_compare_as_how_many_times_faster_the_first_is() -> None:
    first, bare = one_client.rows_of("here", {"ours": [0.002, 0.004], "bare": [0.001, 0.001]})
    assert (first.name, first.against) == ("here: ours", "bare")
    assert first.value == pytest.approx(3.0)
    assert first.ratio == pytest.approx(0.375)
    assert bare.value == pytest.approx(1.0)
    (alone,) = one_client.rows_of("here", {"ours": [0.002]})
    assert alone.ratio is None


def run_at(tokens_per_s: int) -> Run:
    """A run of two seconds at this speed, with one and a half processors busy."""
    answers = [Answer(Request("", 2 * tokens_per_s, 0), 0.0, 2.0, 200)]
    return Run(answers, 0.0, 2.0, server_cpu_s=3.0, client_cpu_s=0.1, server_memory_bytes=0)


def test_the_default_settings_are_compared_with_the_fastest_of_the_others() -> None:
    runs = {"defaults": [run_at(60), run_at(90)], "a": [run_at(50)] * 2, "b": [run_at(100)] * 2}
    defaults, slow, fast, *cores = as_it_starts.rows_of("here", runs)
    assert (defaults.value, defaults.against) == (75, "b")
    assert defaults.ratio == pytest.approx(0.75)
    assert slow.against == fast.against == "defaults"
    assert [row.value for row in cores] == [1.5] * 3
