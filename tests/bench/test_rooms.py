"""The profile by room: what py-spy writes is counted by thread, place, own file and function."""

from bench.rooms import parsed, tables

LOOP = "thread (18): MainThread;_run (asyncio/events.py:80);ask (service/http/body.py:12)"
RAW = f"""\
process 17:"python -m service";process 18:"python -c x";{LOOP};loads (json/__init__.py:3) 50
process 17:"python -m service";process 18:"python -c x";{LOOP};write (h11/_writers.py:9) 10
thread (19): engine-lstm;step (service/runtime/stepping.py:7);run (onnxruntime/capi/x.py:2) 30
thread (19): engine-lstm;<genexpr> (service/decoding/rows.py:7) 8
thread (20): asyncio_0;work (threading.py:7) 2
thread (20): asyncio_0;work (service/tasks/kinds.py:7);Condition.wait (threading.py:7) 90
process 21:"py-spy" 7
"""


def test_a_sample_belongs_to_the_innermost_frame_that_has_a_place() -> None:
    samples = parsed(RAW)
    assert [(x.thread, x.place, x.own_file, x.count) for x in samples] == [
        ("event loop", "http/", "service/http/body.py", 50),
        ("event loop", "h11 or httptools", "service/http/body.py", 10),
        ("engine", "runtime, in onnxruntime", "service/runtime/stepping.py", 30),
        ("engine", "decoding/", "service/decoding/rows.py", 8),
        ("others", "elsewhere", "elsewhere", 2),
    ]


def test_the_tables_have_the_shares_of_all_samples() -> None:
    lines = [line.split() for line in tables(parsed(RAW))]
    assert ["http/", "50.0", "0.0", "0.0", "50.0"] in lines
    assert ["runtime,", "in", "onnxruntime", "0.0", "30.0", "0.0", "30.0"] in lines
    assert ["all", "60.0", "38.0", "2.0", "100.0"] in lines
    assert ["60.0", "%", "service/http/body.py"] in lines
    assert ["50.0", "%", "loads", "(json/__init__.py)"] in lines
    assert tables(parsed("")) == ["no samples"]
