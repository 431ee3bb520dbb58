"""One browser for all tests of the page; each opens tabs of its own."""

import shutil
from collections.abc import Iterator

import pytest

from tests.page.chromium import Browser, chromium

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("the page is tested in Chromium")
    with chromium(CHROMIUM, tmp_path_factory.mktemp("profile")) as running:
        yield running
