"""Settings: what is misspelt or out of range is refused in words, and what exists is written down."""

import re
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.settings import PREFIX, Settings, load

ROOT = Path(__file__).parents[2]
NAMES = {PREFIX + field.upper() for field in Settings.__struct_fields__}


def test_a_misspelt_name_is_refused_and_named() -> None:
    """A setting that nobody reads is an error, not a surprise later."""
    with pytest.raises(ConfigurationError, match=r"QASID_LEASE_SECOND, QASID_PROT.*QASID_LEASE_SECONDS"):
        load({"QASID_PROT": "8000", "QASID_LEASE_SECOND": "3", "PATH": "/bin", "QASIDX": "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "http"), ("PORT", "65536"), ("PORT", "-1"), ("LEASE_SECONDS", "0"), ("LEASE_SECONDS", "nan"),
     ("WEB_WORKERS", "0"), ("SECURE_COOKIES", "perhaps"), ("LOG_LEVEL", "loud"),
     ("LOG_FORMAT", "xml"), ("MEDIA_HOSTS", "*"), ("MEDIA_HOSTS", "a.example,https://b.example"), ("MEDIA_HOSTS", "*.com."),
     ("WORKER_LANES", "1.5")],
)  # fmt: skip
def test_a_value_out_of_its_range_names_its_setting(name: str, value: str) -> None:
    """The message says which setting."""
    with pytest.raises(ConfigurationError, match=PREFIX + name):
        load({PREFIX + name: value})


def test_a_send_may_not_outlive_its_lease() -> None:
    """The send timeout stays below the lease, the wait in doubt below its maximum."""
    with pytest.raises(ConfigurationError, match=r"QASID_SEND_TIMEOUT_SECONDS.*QASID_LEASE_SECONDS"):
        load({"QASID_SEND_TIMEOUT_SECONDS": "15"})
    with pytest.raises(ConfigurationError, match="QASID_IN_DOUBT_SECONDS"):
        load({"QASID_IN_DOUBT_SECONDS": "901"})


def test_values_come_as_their_types_and_blanks_as_defaults() -> None:
    """Text from the environment becomes numbers, flags and paths; an empty value is an unset one."""
    found = load(
        {"QASID_PORT": "9000", "QASID_SECURE_COOKIES": "true", "QASID_SPOOL_DIR": "/spool", "QASID_METRICS_TOKEN": ""}
    )
    assert (found.port, found.secure_cookies, found.spool_dir, found.metrics_token) == (
        9000,
        True,
        Path("/spool"),
        None,
    )
    assert load({}) == Settings()


def test_every_setting_stands_in_the_example_with_its_default() -> None:
    """.env.example has each name once, no other, and the default that holds."""
    lines = re.findall(rf"^#({PREFIX}\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert sorted(name for name, _ in lines) == sorted(NAMES)
    defaults = Settings()
    for name, value in lines:
        default = getattr(defaults, name.removeprefix(PREFIX).lower())
        if default is not None:
            assert load({name: value}) == defaults, name


def test_every_setting_is_documented() -> None:
    """docs/settings.md tells each name, and none that does not exist."""
    assert set(re.findall(rf"`({PREFIX}\w+)`", (ROOT / "docs" / "settings.md").read_text())) == NAMES
