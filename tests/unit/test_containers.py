"""compose.yaml and Dockerfile: pinned, unprivileged, with health checks. No engine is needed to hold them to it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LASTING = ["postgres", "web", "worker"]


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_service_has_a_health_check_and_comes_back(name: str) -> None:
    """Web, worker and PostgreSQL are asked how they are, started again, and given time to end in order."""
    service = COMPOSE["services"][name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert "stop_grace_period" in service


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_no_service_has_more_rights_than_it_needs(name: str) -> None:
    """No capability that is not named, no new privileges; ours with a read-only root besides."""
    service = COMPOSE["services"][name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name != "postgres":
        assert service["read_only"] is True
        assert "cap_add" not in service


def test_every_image_is_pinned_to_a_patch_version() -> None:
    """A tag that moves would change an installation without anybody's decision."""
    images = re.findall(r"^(?:FROM|COPY --from=)(?:\s*)(\S+[:/]\S+)", DOCKERFILE, re.MULTILINE)
    images += [service["image"] for service in COMPOSE["services"].values()]
    assert len(images) >= 4
    for image in images:
        assert re.search(r":\d+\.\d+(\.\d+)?", image), image


def test_the_image_runs_as_nobody_special() -> None:
    """The last USER of the Dockerfile is not root."""
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)[-1] not in ("root", "0")


def test_secrets_are_asked_for_never_given() -> None:
    """compose.yaml holds no secret: it refuses to start without those of the environment."""
    assert all(
        f"${{{name}:?" in (ROOT / "compose.yaml").read_text() for name in ("POSTGRES_PASSWORD", "QASID_SECRET_KEY")
    )
