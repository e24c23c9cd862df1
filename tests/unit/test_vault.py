"""The vault: what it seals opens only where it belongs, and nothing of it shows."""

from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from app.errors import ConfigurationError
from app.settings import load
from app.vault import DIGEST_FIELD, INSTALLATION, Secret, SecretBytes, Vault, each_secret, owner_of

OLD, NEW = b"o" * 32, b"n" * 32
CANARY = "EAAGcanary0PX4ZCpsBA"


@given(st.text(), st.text(), st.text())
def test_what_was_sealed_opens_for_the_same_owner_and_field(plain: str, owner: str, field: str) -> None:
    """Sealing and opening are each other's opposite, for any text, owner and field."""
    vault = Vault([OLD])
    assert vault.open(vault.seal(plain, owner=owner, field=field), owner=owner, field=field) == plain


@pytest.mark.parametrize(("owner", "field"), [("tenant:2", "token"), ("tenant:1", "tokens"), ("tenant:1t", "oken")])
def test_a_sealed_text_opens_nowhere_else(owner: str, field: str) -> None:
    """Another owner, another field, or the same letters divided otherwise: none of them opens it."""
    sealed = Vault([OLD]).seal(CANARY, owner="tenant:1", field="token")
    with pytest.raises(ConfigurationError, match="does not open: it was sealed for another place or altered"):
        Vault([OLD]).open(sealed, owner=owner, field=field)


def test_no_character_of_a_sealed_text_can_be_altered() -> None:
    """Each single altered character is noticed."""
    vault = Vault([OLD])
    sealed = vault.seal("xy", owner="o", field="f")  # as long as base64 needs no padding for
    for place, letter in enumerate(sealed):
        altered = sealed[:place] + ("A" if letter != "A" else "B") + sealed[place + 1 :]
        with pytest.raises(ConfigurationError):
            vault.open(altered, owner="o", field="f")


def test_keys_rotate() -> None:
    """The first key seals, all open, and a text says whether it still needs an old one."""
    sealed = Vault([OLD]).seal(CANARY, owner="o", field="f")
    both = Vault([NEW, OLD])
    assert both.open(sealed, owner="o", field="f") == CANARY
    assert not both.is_current(sealed)
    assert both.is_current(both.seal(CANARY, owner="o", field="f"))
    with pytest.raises(ConfigurationError, match=r"was sealed under key [0-9a-f]{8}, which is not in QASID_SECRET_KEY"):
        Vault([NEW]).open(sealed, owner="o", field="f")


def test_for_a_key_of_digests_that_is_lost_it_says_where_to_read_on() -> None:
    """To apply again, as for other secrets, does not make it anew."""
    sealed = Vault([OLD]).seal(CANARY, owner=INSTALLATION, field=DIGEST_FIELD)
    for vault, text in ((Vault([NEW]), sealed), (Vault([OLD]), f"{sealed[:-6]}AAAAAA"), (Vault([OLD]), "none")):
        with pytest.raises(ConfigurationError, match=r"docs/operations.md .* \*If the key is lost\*") as told:
            vault.open(text, owner=INSTALLATION, field=DIGEST_FIELD)
        assert "pply" not in str(told.value)
    with pytest.raises(ConfigurationError, match=r"If it is lost: Apply it again\.$"):
        Vault([NEW]).open(Vault([OLD]).seal(CANARY, owner="o", field="f"), owner="o", field="f")


@given(st.binary(max_size=200))
def test_bytes_open_in_their_own_place_under_any_key_that_is_here(plain: bytes) -> None:
    """With the key's id beside them; elsewhere, or altered, they do not open, and that is no error."""
    key_id, sealed = Vault([OLD]).seal_bytes(plain, owner="o", field="f")
    both = Vault([NEW, OLD])
    assert key_id == both.key_ids[1]
    assert both.open_bytes(key_id, sealed, owner="o", field="f") == plain
    assert both.open_bytes(key_id, sealed, owner="of", field="") is None
    assert both.open_bytes(both.key_ids[0], sealed, owner="o", field="f") is None
    for altered in (sealed[:-1], sealed[:-1] + bytes([sealed[-1] ^ 1]), bytes([sealed[0] ^ 1]) + sealed[1:], b""):
        assert both.open_bytes(key_id, altered, owner="o", field="f") is None
    with pytest.raises(ConfigurationError, match=f"under key {key_id}, which is not in QASID_SECRET_KEY"):
        Vault([NEW]).open_bytes(key_id, sealed, owner="o", field="f")


def test_the_same_secret_is_sealed_differently_each_time() -> None:
    """Nobody sees from two sealed texts that they hold the same."""
    vault = Vault([OLD])
    assert len({vault.seal(CANARY, owner="o", field="f") for _ in range(100)}) == 100


def test_a_secret_does_not_show_itself() -> None:
    """Not in a repr, not in that of what holds it, and msgspec does not encode it unasked."""

    class Holder(Struct):
        token: Secret
        raw: SecretBytes

    holder = Holder(Secret(CANARY), SecretBytes(CANARY.encode()))
    assert CANARY not in f"{holder!r} {holder} {Vault([OLD])!r}"
    with pytest.raises(TypeError):
        msgspec.json.encode(holder)


def test_each_secret_is_reached_by_its_path() -> None:
    """Secrets in Structs within Structs are changed, with the path that they are sealed under."""

    class Inner(Struct):
        key: Secret
        n: int = 1

    class Outer(Struct):
        token: Secret
        inner: Inner

    changed = each_secret(Outer(Secret("a"), Inner(Secret("b"))), lambda place, text: f"{place}={text}")
    assert changed == Outer(Secret("token=a"), Inner(Secret("inner.key=b")))


def test_an_owner_is_named_by_kind_and_id() -> None:
    """A tenant and an endpoint of the same id are not the same owner."""
    same = uuid4()
    assert owner_of("tenant", same) != owner_of("endpoint", same)


def test_without_any_setting_a_key_is_made_once_and_kept(tmp_path: Path) -> None:
    """Embedded use: the state folder has the key, for its owner alone, and the next start finds it."""
    settings = load({"QASID_STATE_DIR": str(tmp_path / "state")})
    sealed = Vault.from_settings(settings).seal(CANARY, owner="o", field="f")
    assert Vault.from_settings(settings).open(sealed, owner="o", field="f") == CANARY
    assert (tmp_path / "state" / "secret_key").stat().st_mode & 0o777 == 0o600
    assert [file.name for file in (tmp_path / "state").iterdir()] == ["secret_key"]


def test_a_database_of_ones_own_needs_a_key_of_ones_own(tmp_path: Path) -> None:
    """No key is made up beside a named database: its content would be lost with the folder."""
    settings = load({"QASID_STATE_DIR": str(tmp_path), "QASID_DATABASE_URL": "postgresql://db/qasid"})
    with pytest.raises(ConfigurationError, match="QASID_SECRET_KEY is not set"):
        Vault.from_settings(settings)
    assert not (tmp_path / "secret_key").exists()


@pytest.mark.parametrize("text", ["00" * 31, "zz" * 32, f"{'00' * 32},", f"{'00' * 32},{'11' * 33}"])
def test_a_key_that_is_none_is_refused_unquoted(text: str) -> None:
    """Too short, not hex, one missing after a comma, too long: the error names none of the key's digits."""
    with pytest.raises(ConfigurationError, match="QASID_SECRET_KEY") as caught:
        Vault.from_settings(load({"QASID_SECRET_KEY": text}))
    assert text[:16] not in str(caught.value)
