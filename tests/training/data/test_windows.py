"""Windows of truncated backpropagation: what every lane reads, and that it can go on exactly."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from tests.training.helpers import documents, split_of
from training.data.corpus import Split
from training.data.windows import SequentialWindows, Window, Windows

NEWLINE = 4

letters = st.integers(NEWLINE, 7)
corpora = st.lists(st.lists(letters, min_size=1, max_size=12), min_size=1, max_size=7).map(split_of)
batch_sizes = st.integers(1, 5)
window_lengths = st.integers(1, 9)
orders = st.sampled_from(["stream", "shuffle"])
probabilities = st.sampled_from([0.0, 0.3, 0.95])
quick = settings(deadline=None, max_examples=50)


def take(windows: Windows, count: int) -> list[Window]:
    return [windows.next() for _ in range(count)]


def rows(windows: Iterable[Window], lane: int) -> Iterator[tuple[list[int], list[int], bool]]:
    """(tokens, targets, reset) of one lane's windows, padding cut off."""
    for window in windows:
        length = int((window.targets[lane] != PAD_ID).sum())
        yield (
            window.tokens[lane, :length].tolist(),
            window.targets[lane, :length].tolist(),
            bool(window.reset[lane]),
        )


def pairs(split: Split) -> list[tuple[int, int]]:
    """(token, target) of every document of the split in order."""
    return [pair for document in documents(split) for pair in itertools.pairwise(document)]


def read_pairs(windows: Iterable[Window], lane: int) -> list[tuple[int, int]]:
    return [
        pair
        for tokens, targets, _ in rows(windows, lane)
        for pair in zip(tokens, targets, strict=True)
    ]


# --- every window -------------------------------------------------------------------------------


@given(corpora, batch_sizes, window_lengths, orders, probabilities)
@quick
def test_padding_stands_at_the_ends_of_rows_only(
    split: Split, batch_size: int, bptt_len: int, order: str, probability: float
) -> None:
    windows = Windows(
        split,
        batch_size,
        bptt_len,
        order=order,
        restart_probability=probability,
        line_end_id=NEWLINE,
    )
    for window in take(windows, 12):
        padded = window.targets == PAD_ID
        assert np.array_equal(window.tokens == PAD_ID, padded)
        assert np.array_equal(np.sort(padded, axis=1), padded)
        assert not padded[:, 0].any()
        assert window.tokens.shape[1] <= bptt_len


@given(corpora, batch_sizes, window_lengths, orders, probabilities)
@quick
def test_eos_is_never_read_and_bos_never_predicted_and_bos_resets_the_state(
    split: Split, batch_size: int, bptt_len: int, order: str, probability: float
) -> None:
    windows = Windows(
        split,
        batch_size,
        bptt_len,
        order=order,
        restart_probability=probability,
        line_end_id=NEWLINE,
    )
    for window in take(windows, 12):
        assert not (window.tokens == EOS_ID).any()
        assert not (window.targets == BOS_ID).any()
        assert np.array_equal(window.tokens[:, 0] == BOS_ID, window.reset)
        assert not (window.tokens[:, 1:] == BOS_ID).any()


@given(corpora, batch_sizes, window_lengths, orders, probabilities)
@quick
def test_a_target_is_the_next_input_until_the_text_ends(
    split: Split, batch_size: int, bptt_len: int, order: str, probability: float
) -> None:
    windows = Windows(
        split,
        batch_size,
        bptt_len,
        order=order,
        restart_probability=probability,
        line_end_id=NEWLINE,
    )
    taken = take(windows, 12)
    for lane in range(batch_size):
        lane_rows = list(rows(taken, lane))
        for (tokens, targets, _), (next_tokens, _, next_reset) in itertools.pairwise(lane_rows):
            assert targets[:-1] == tokens[1:]
            assert EOS_ID not in targets[:-1]
            assert next_reset == (targets[-1] == EOS_ID)
            assert next_reset or next_tokens[0] == targets[-1]


# --- stream -------------------------------------------------------------------------------------


@given(corpora, batch_sizes, window_lengths)
@quick
def test_a_lane_reads_the_stream_from_its_place_on_and_around_its_end(
    split: Split, batch_size: int, bptt_len: int
) -> None:
    stream = pairs(split)
    taken = take(Windows(split, batch_size, bptt_len), 1 + 2 * len(stream) // bptt_len)
    # The input at offset i of ids is pair i, less the documents that ended before it.
    offsets = [i for i, token in enumerate(split.ids) if token != EOS_ID]
    for lane in range(batch_size):
        wanted = lane * len(split.ids) // batch_size
        # Where eos stands, which is never an input, the one before it.
        start = max(i for i, offset in enumerate(offsets) if offset <= wanted)
        around = itertools.islice(itertools.cycle(stream), start, None)
        found = read_pairs(taken, lane)
        assert found == list(itertools.islice(around, len(found)))


def test_a_window_ends_where_a_document_ends() -> None:
    windows = Windows(split_of([[5, 6], [7, 7, 7, 7]]), 1, 4)
    assert list(rows(take(windows, 4), 0)) == [
        ([BOS_ID, 5, 6], [5, 6, EOS_ID], True),
        ([BOS_ID, 7, 7, 7], [7, 7, 7, 7], True),
        ([7], [EOS_ID], False),
        ([BOS_ID, 5, 6], [5, 6, EOS_ID], True),
    ]


def test_a_shorter_row_is_padded_to_the_longest() -> None:
    window = Windows(split_of([[5], [6, 6, 6]]), 2, 8, order="shuffle").next()
    assert window.tokens.shape == (2, 4)
    assert sorted(window.tokens.tolist()) == [[BOS_ID, 5, PAD_ID, PAD_ID], [BOS_ID, 6, 6, 6]]


# --- shuffle ------------------------------------------------------------------------------------


def documents_taken(windows: Windows, count: int) -> list[int]:
    """Documents in the order in which lanes began them; document i is letters 10 + i."""
    order: list[int] = []
    while len(order) < count:
        window = windows.next()
        order += (window.targets[window.reset, 0] - 10).tolist()
    return order[:count]


def numbered(sizes: Sequence[int]) -> Split:
    return split_of([[10 + i] * size for i, size in enumerate(sizes)])


sizes = st.lists(st.integers(1, 10), min_size=1, max_size=30)


@given(sizes, batch_sizes, window_lengths, st.integers(0, 1000))
@quick
def test_an_epoch_visits_every_document_once(
    lengths: list[int], batch_size: int, bptt_len: int, seed: int
) -> None:
    windows = Windows(numbered(lengths), batch_size, bptt_len, order="shuffle", seed=seed)
    taken = documents_taken(windows, 3 * len(lengths))
    for epoch in range(3):
        visited = taken[epoch * len(lengths) : (epoch + 1) * len(lengths)]
        assert sorted(visited) == list(range(len(lengths)))


def test_every_document_is_read_from_bos_to_eos() -> None:
    split = numbered([3, 1, 4, 1, 5, 9])
    taken = take(Windows(split, 1, 2, order="shuffle"), 60)
    targets = [target for _, target in read_pairs(taken, 0)]
    ended = [
        list(group) for is_eos, group in itertools.groupby(targets, EOS_ID.__eq__) if not is_eos
    ]
    contents = [document[1:-1] for document in documents(split)]
    assert sorted(ended[:6]) == sorted(contents)


def test_epochs_have_different_orders() -> None:
    taken = documents_taken(Windows(numbered([1] * 40), 1, 4, order="shuffle"), 120)
    assert len({tuple(taken[epoch * 40 : epoch * 40 + 40]) for epoch in range(3)}) == 3


def test_seeds_have_different_orders() -> None:
    split = numbered([1] * 40)
    orders = [documents_taken(Windows(split, 1, 4, order="shuffle", seed=s), 40) for s in (1, 2)]
    assert orders[0] != orders[1]


def test_an_epoch_is_not_in_the_files_order() -> None:
    taken = documents_taken(Windows(numbered([1] * 40), 1, 4, order="shuffle", seed=1), 40)
    assert taken != sorted(taken)


# --- restarts -----------------------------------------------------------------------------------


@given(corpora, batch_sizes, st.integers(2, 9), st.integers(0, 9))
@quick
def test_a_restart_comes_after_a_line_end_and_neither_loses_nor_doubles_a_character(
    split: Split, batch_size: int, bptt_len: int, seed: int
) -> None:
    def lanes(probability: float) -> list[list[tuple[int, int]]]:
        windows = Windows(
            split,
            batch_size,
            bptt_len,
            seed=seed,
            restart_probability=probability,
            line_end_id=NEWLINE,
        )
        taken = take(windows, 40)
        return [read_pairs(taken, lane) for lane in range(batch_size)]

    for plain, restarted in zip(lanes(0.0), lanes(0.95), strict=True):
        position = 0
        for (token, target), (next_token, _) in itertools.pairwise(restarted):
            if target == EOS_ID and plain[position][1] != EOS_ID:
                # A restart: an extra target, after which bos stands for the line end.
                assert (token, next_token) == (NEWLINE, BOS_ID)
                continue
            assert target == plain[position][1]
            assert token == plain[position][0] or token == BOS_ID
            position += 1


def test_restarts_happen_about_as_often_as_asked() -> None:
    split = split_of([[5, 6, NEWLINE] * 400])
    windows = Windows(split, 1, 8, seed=3, restart_probability=0.25, line_end_id=NEWLINE)
    ends = sum(bool((window.targets == EOS_ID).any()) for window in take(windows, 100))
    assert 13 <= ends <= 37  # 25, and three standard deviations


def test_a_restart_cuts_at_the_windows_last_line_end() -> None:
    split = split_of([[5, NEWLINE, 6, NEWLINE, 7, 7, 7, 7]])
    windows = Windows(split, 1, 7, restart_probability=0.999, line_end_id=NEWLINE)
    assert list(rows(take(windows, 2), 0)) == [
        ([BOS_ID, 5, NEWLINE, 6, NEWLINE], [5, NEWLINE, 6, NEWLINE, EOS_ID], True),
        ([BOS_ID, 7, 7, 7, 7], [7, 7, 7, 7, EOS_ID], True),
    ]


def test_a_restart_before_a_documents_end_leaves_no_empty_text() -> None:
    split = split_of([[5, 6, NEWLINE], [7, NEWLINE]])
    windows = Windows(split, 1, 9, restart_probability=0.999, line_end_id=NEWLINE)
    assert list(rows(take(windows, 2), 0)) == [
        ([BOS_ID, 5, 6, NEWLINE], [5, 6, NEWLINE, EOS_ID], True),
        ([BOS_ID, 7, NEWLINE], [7, NEWLINE, EOS_ID], True),
    ]


@pytest.mark.parametrize(("probability", "line_end"), [(0.0, NEWLINE), (0.999, None)])
def test_without_a_probability_or_a_line_end_nothing_restarts(
    probability: float, line_end: int | None
) -> None:
    split = split_of([[5, 6, NEWLINE] * 20])
    windows = Windows(split, 1, 4, restart_probability=probability, line_end_id=line_end)
    assert read_pairs(take(windows, 15), 0) == pairs(split)[:60]


# --- resuming -----------------------------------------------------------------------------------


@given(corpora, window_lengths, orders, probabilities, st.integers(0, 20))
@quick
def test_restored_windows_go_on_identically(
    split: Split, bptt_len: int, order: str, probability: float, before: int
) -> None:
    def fresh() -> Windows:
        return Windows(
            split,
            3,
            bptt_len,
            order=order,
            seed=7,
            restart_probability=probability,
            line_end_id=NEWLINE,
        )

    first, second = fresh(), fresh()
    take(first, before)
    second.restore(json.loads(json.dumps(first.state())))
    for a, b in zip(take(first, 8), take(second, 8), strict=True):
        assert np.array_equal(a.tokens, b.tokens)
        assert np.array_equal(a.targets, b.targets)
        assert np.array_equal(a.reset, b.reset)


# --- evaluation ---------------------------------------------------------------------------------


@given(corpora, st.integers(1, 9), window_lengths)
@quick
def test_sequential_windows_read_every_document_once_in_order(
    split: Split, batch_size: int, bptt_len: int
) -> None:
    read: list[list[tuple[int, int]]] = []
    reading: dict[int, list[tuple[int, int]]] = {}
    for window in SequentialWindows(split, batch_size, bptt_len):
        for lane in range(len(window.tokens)):
            for tokens, targets, reset in rows([window], lane):
                if reset and tokens:
                    reading[lane] = []
                    read.append(reading[lane])
                if tokens:
                    reading[lane] += zip(tokens, targets, strict=True)
    assert read == [list(itertools.pairwise(document)) for document in documents(split)]


@given(corpora, st.integers(1, 9), window_lengths)
@quick
def test_sequential_windows_count_what_the_split_counts(
    split: Split, batch_size: int, bptt_len: int
) -> None:
    windows = SequentialWindows(split, batch_size, bptt_len)
    assert sum(int((window.targets != PAD_ID).sum()) for window in windows) == split.tokens
