"""Keys are kept as hashes, and a file that is none is refused without a word of it."""

from pathlib import Path

import pytest

from service.http.api_keys import ROLES, ApiKeysError, known_key, new_key, read_api_keys


def test_a_fresh_key_is_known_by_its_line(tmp_path: Path) -> None:
    made = {role: new_key(f"my-{role}", role) for role in ROLES}
    path = tmp_path / "keys"
    path.write_text(
        "# ours\n\n" + "".join(f"{key.line()}  # {r}\n" for r, (_, key) in made.items())
    )
    keys = read_api_keys(path)
    assert keys == [key for _, key in made.values()]
    for role, (secret, key) in made.items():
        assert known_key(keys, secret) == key
        assert secret not in path.read_text()
        assert [key.allows(other) for other in ROLES] == [
            role in {other, "admin"} for other in ROLES
        ]
    assert known_key(keys, "unroll-guess") is None
    assert known_key(keys, "") is None


def test_a_byte_order_mark_before_the_first_key_is_passed_over(tmp_path: Path) -> None:
    secret, key = new_key("me", "use")
    path = tmp_path / "keys"
    path.write_text(f"{key.line()}\n", "utf-8-sig")
    assert known_key(read_api_keys(path), secret) == key


def test_two_keys_are_never_the_same() -> None:
    assert new_key("a", "use")[0] != new_key("a", "use")[0]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "no key"),
        ("# nothing\n", "no key"),
        ("me use my-secret-in-the-clear\n", "line 1"),
        ("me use\n", "line 1"),
        (f"me root sha256:{'0' * 64}\n", "the role must be one of use, metrics, admin"),
        (f"m/e use sha256:{'0' * 64}\n", "line 1"),
        (f"me use sha256:{'0' * 63}\n", "line 1"),
        (f"me use sha256:{'0' * 64}\nme admin sha256:{'1' * 64}\n", "the same name"),
    ],
)
def test_a_file_that_is_none_is_refused_without_a_word_of_it(
    tmp_path: Path, text: str, cause: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ApiKeysError, match=cause) as refused:
        read_api_keys(path)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ApiKeysError, match="No such file"):
        read_api_keys(tmp_path / "no")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ApiKeysError, match="not UTF-8"):
        read_api_keys(tmp_path / "bytes")


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a\n", "ä"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ApiKeysError, match="1 to 64"):
        new_key(name, "use")
