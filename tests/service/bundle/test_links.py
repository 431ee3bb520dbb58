"""Bundles behind symbolic links, as Kubernetes mounts them, and links that lead elsewhere."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from service.bundle.files import BundleError, read_file
from service.bundle.links import BundleFolder, LinkRefused
from service.bundle.store import read_bundle, write_bundle
from service.tasks.folders import bundle_folders, stamp_of
from tests.bundles import plain_files

OUT = "symbolic links must stay within the folder"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A good bundle."""
    return write_bundle(tmp_path / "made", *plain_files())


def mounted(bundle: Path, to: Path) -> Path:
    """The bundle as the volume of a ConfigMap: every file a link behind `..data`."""
    to.mkdir(parents=True)
    publish(bundle, to, "..2026_01_01_00_00_00.1")
    for file in bundle.iterdir():
        (to / file.name).symlink_to(f"..data/{file.name}")
    return to


def publish(bundle: Path, to: Path, version: str) -> None:
    """Exchange `..data` at once, as the kubelet does, and remove the version before."""
    before = (to / "..data").readlink() if (to / "..data").is_symlink() else None
    shutil.copytree(bundle, to / version)
    (to / "..data_tmp").symlink_to(version)
    (to / "..data_tmp").rename(to / "..data")
    if before is not None:
        shutil.rmtree(to / before)


def test_a_bundle_mounted_from_a_configmap_is_read(bundle: Path, tmp_path: Path) -> None:
    folder = mounted(bundle, tmp_path / "models/plain")
    assert read_bundle(folder, contained=True).graphs == read_bundle(bundle).graphs


def test_a_folder_projected_from_a_configmap_is_read(bundle: Path, tmp_path: Path) -> None:
    """With `items` whose path is `plain/manifest.json`, the folder itself is a link."""
    models = tmp_path / "models"
    shutil.copytree(bundle, models / "..2026/plain")
    (models / "..data").symlink_to("..2026")
    (models / "plain").symlink_to("..data/plain")
    assert [folder.name for folder in bundle_folders(models)] == ["plain"]
    assert read_bundle(models / "plain", contained=True).graphs == read_bundle(bundle).graphs


def test_an_update_of_a_configmap_changes_the_stamp(bundle: Path, tmp_path: Path) -> None:
    folder = mounted(bundle, tmp_path / "models/plain")
    before = stamp_of(folder)
    publish(bundle, folder, "..2026_02")
    assert stamp_of(folder) not in {before, None}


def test_all_files_of_a_bundle_are_read_in_one_version(bundle: Path, tmp_path: Path) -> None:
    """The link is exchanged between two files: the second is of the first's version, too."""
    folder = mounted(bundle, tmp_path / "models/plain")
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    (other / "vocab.json").write_text("of another version")
    with BundleFolder(folder) as opened:
        read_file(opened, "manifest.json", 2**20)
        shutil.copytree(other, folder / "..2026_02")
        (folder / "..tmp").symlink_to("..2026_02")
        (folder / "..tmp").rename(folder / "..data")
        assert read_file(opened, "vocab.json", 2**20) == (bundle / "vocab.json").read_bytes()
        assert opened.has_changed


def test_a_bundle_updated_while_it_is_read_is_read_again(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mounted(bundle, tmp_path / "models/plain")
    opened: list[str] = []
    plainly = BundleFolder.open

    def exchanging(self: BundleFolder, file: str) -> int:
        opened.append(file)
        if len(opened) == 2:
            publish(bundle, folder, "..2026_02")  # the version being read is gone
        return plainly(self, file)

    monkeypatch.setattr(BundleFolder, "open", exchanging)
    assert read_bundle(folder).manifest.name == "plain"
    assert opened.count("manifest.json") == 2


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd", "../secret", "..data/../../secret", "inner/../../secret", "up/secret",
        "absolute/passwd", "..",
    ],
)  # fmt: skip
def test_a_link_that_leads_out_is_refused(bundle: Path, target: str) -> None:
    (bundle.parent / "secret").write_text("secret")
    (bundle / "inner").mkdir()
    (bundle / "..data").symlink_to("inner")
    (bundle / "up").symlink_to("..")
    (bundle / "absolute").symlink_to("/etc")
    (bundle / "vocab.json").unlink()
    (bundle / "vocab.json").symlink_to(target)
    with pytest.raises(BundleError, match=f"^plain: vocab.json: {OUT}$"):
        read_bundle(bundle)


def test_links_in_circles_are_refused(bundle: Path) -> None:
    (bundle / "vocab.json").unlink()
    (bundle / "vocab.json").symlink_to("again")
    (bundle / "again").symlink_to("vocab.json")
    with pytest.raises(BundleError, match="too many symbolic links in a row"):
        read_bundle(bundle)


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize("target", ["/etc", "../made/plain", "..data/../../made/plain"])
def test_a_folder_behind_a_link_that_leads_out_is_refused(tmp_path: Path, target: str) -> None:
    models = tmp_path / "models"
    (models / "..data").mkdir(parents=True)
    (models / "plain").symlink_to(target)
    with pytest.raises(BundleError, match=f"plain: {OUT}"):
        read_bundle(models / "plain", contained=True)


def test_a_hard_link_behind_a_link_is_refused(bundle: Path, tmp_path: Path) -> None:
    folder = mounted(bundle, tmp_path / "models/plain")
    os.link(folder / "..data/vocab.json", tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="hard links are not accepted"):
        read_bundle(folder)


def test_a_link_put_in_place_of_a_file_after_it_was_looked_at_is_not_followed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race that an attacker would try: the open itself follows nothing."""
    with BundleFolder(bundle) as opened:
        read = os.readlink

        def exchanged(path: str, *, dir_fd: int | None = None) -> str:
            try:
                return read(path, dir_fd=dir_fd)
            finally:
                (bundle / "vocab.json").unlink()
                (bundle / "vocab.json").symlink_to("/etc/passwd")

        monkeypatch.setattr(os, "readlink", exchanged)
        with pytest.raises(OSError, match="symbolic links") as refused:
            opened.open("vocab.json")
    assert refused.value.errno == errno.ELOOP


def test_no_descriptor_stays_open(bundle: Path, tmp_path: Path) -> None:
    folder = mounted(bundle, tmp_path / "models/plain")
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(3):
        read_bundle(folder, contained=True)
        with BundleFolder(folder) as opened, pytest.raises(LinkRefused):
            opened.open("..")
    assert len(list(descriptors.iterdir())) == before
