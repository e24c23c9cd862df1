"""The documentation says what is: its links lead somewhere, and the names in it are those in the code, all of them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import msgspec
import pytest

from app import configuration, metrics
from app.breaker import State
from app.channels import cloud_codes
from app.cli import main
from app.sandbox import faults
from app.settings import PREFIX, Settings
from app.store.breakers import Kind
from app.store.inbox import Verdict
from app.store.settlements import Ending

ROOT = Path(__file__).parents[2]
DOCS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
every_page = pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level = heading.split()[0]
    found = re.search(rf"^{re.escape(heading)}$(.*?)(?=^#{{1,{len(level)}}} |\Z)", page, re.DOTALL | re.MULTILINE)
    assert found, f"no heading {heading!r}"
    return found[1]


def rows(part: str) -> dict[str, str]:
    """Each table row by the names that stand in code in its first cell."""
    named: dict[str, str] = {}
    for line in part.splitlines():
        if cell := re.match(r"\| ([^|]*`[^|]*) \|", line.strip()):
            named |= dict.fromkeys(re.findall(r"`([^`]+)`", cell[1]), line)
    return named


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub(lambda m: m[0].strip("`"), page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))
        yield from sorted((ROOT / folder).rglob("*.sql"))


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link is a file of this repository, and its fragment a heading there."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text())):
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" in link:
            continue
        if not target.is_relative_to(ROOT) or not target.is_file():
            broken.append(link)
        elif fragment and fragment not in anchors(target):
            broken.append(f"{link} (no such heading)")
    assert not broken


def test_what_the_code_refers_to_is_there() -> None:
    """A docs page that a docstring or comment names exists."""
    named = {name for file in sources("app", "workers", "migrations") for name in
             re.findall(r"\bdocs/[\w/-]+\.md\b", file.read_text())}  # fmt: skip
    assert named
    assert not {name for name in named if not (ROOT / name).is_file()}


@every_page
def test_settings_that_are_named_exist(page: Path) -> None:
    """No page names a QASID_* that no process reads."""
    known = {PREFIX + name.upper() for name in Settings.__struct_fields__}
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]", page.read_text())) <= known


@every_page
def test_recipes_that_are_named_exist(page: Path) -> None:
    """No page sends anybody to a recipe that the justfile lacks."""
    said = "\n".join(CODE.findall(page.read_text()))
    assert set(re.findall(r"(?:^|`|\brun |&& )just ([a-z]+)", said, re.MULTILINE)) <= recipes()


def recipes() -> set[str]:
    return set(re.findall(r"^([a-z]+)(?: [^:=]*)?:(?!=)", text("justfile"), re.MULTILINE)) - {"default"}


def test_the_readme_names_every_recipe() -> None:
    """Its table is the list that a newcomer sees."""
    assert set(re.findall(r"`just ([a-z]+)", section(text("README.md"), "## Recipes"))) == recipes()


def test_every_command_is_told_of() -> None:
    """README or operations names each command of `qasid`, by itself or as a recipe."""
    said = " ".join((text("README.md") + text("docs/operations.md")).split())

    def commands(group: click.Group, path: str) -> Iterator[str]:
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                yield from commands(command, f"{path}{name} ")
            else:
                yield path + name

    assert [c for c in commands(main, "") if f"qasid {c}" not in said and f"just {c}" not in said] == []


def test_operations_tells_of_every_metric() -> None:
    """The table of metrics has each that app/metrics.py declares, and none besides."""
    declared = re.findall(r'\b(?:Counter|Gauge|Histogram)\(\s*"(\w+)"', text("app/metrics.py"))
    assert len(declared) > 5
    assert set(rows(section(text("docs/operations.md"), "## Metrics"))) == set(declared)


def test_operations_tells_what_a_metric_tells_apart() -> None:
    """Each value that a label can have stands in its metric's row: those of `metrics`, and the names of all batches."""
    told = rows(section(text("docs/operations.md"), "## Metrics"))
    values: dict[str, set[str]] = {
        "qasid_webhooks": set(get_args(metrics.Webhook)),
        "qasid_items": set(get_args(Verdict)),
        "qasid_wake_ups": set(get_args(metrics.WakeUp)),
        "qasid_woken_lanes": {*get_args(metrics.WakeUp), "unnamed"},
        "qasid_fallbacks": set(get_args(metrics.Fallback)),
        "qasid_sessions": set(get_args(metrics.Session)),
        "qasid_translations": set(get_args(metrics.Translation)),
        "qasid_files": set(get_args(metrics.File)),
        "qasid_typing": set(get_args(metrics.Typing)),
        "qasid_spooled": set(get_args(metrics.Spooled)),
        "qasid_breaker_state": set(get_args(State)),
        "qasid_flush_rows": {
            name
            for file in sources("app", "workers")
            for name in re.findall(r"(?:Batches|batched)\(\s*\"(\w+)\"", file.read_text())
        },
    }
    assert len(values["qasid_flush_rows"]) > 5
    missing = {
        metric: untold
        for metric, each in values.items()
        if (untold := {value for value in each if not re.search(rf"\b{value}\b", told[metric].split(" | ")[1])})
    }
    assert missing == {}


def test_operations_tells_of_every_alert() -> None:
    """Each kind of alert that the code raises has a line that says what to do; so has no other."""
    kinds = {f"{kind}_away" for kind in get_args(Kind)}  # workers/breakers.py raises one for each
    for file in sources("app", "workers"):
        if file.suffix != ".py":
            continue
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) == "alert" and isinstance(kind := call.args[1], ast.Constant):
                kinds.add(str(kind.value))
    assert len(kinds) > 5
    assert set(rows(section(text("docs/operations.md"), "## Alerts"))) == kinds


HEADINGS: dict[str, type[msgspec.Struct]] = {
    "## `[endpoints.NAME]`: a webhook URL": configuration.Endpoint,
    "## `[tenants.NAME]`: an organisation": configuration.Tenant,
    "## `[tenants.NAME.assistant]`: who answers": configuration.Assistant,
    "## `[[tenants.NAME.assistant.documents]]`: what it answers from": configuration.Document,
    "## `[tenants.NAME.translation]`: who translates citations": configuration.Translation,
    "## `[tenants.NAME.transcription]`: who writes down voice messages": configuration.Transcription,
    "## `[tenants.NAME.texts]`: what people read when the assistant cannot answer": configuration.Texts,
    "## `[tenants.NAME.limits]`": configuration.Limits,
    "## `[[tenants.NAME.intents]]`: fixed replies": configuration.Intent,
    "## `[tenants.NAME.channels.NAME]`: one WhatsApp address": configuration.Channel,
}


@pytest.mark.parametrize("heading", HEADINGS)
def test_every_key_of_the_configuration_is_told_with_its_default(heading: str) -> None:
    """Each table of docs/configuration.md has the keys of its Struct, and the defaults that hold."""
    told = rows(section(text("docs/configuration.md"), heading))
    # These have sections of their own.
    tables = {"assistant", "translation", "transcription", "texts", "limits", "intents", "channels"}
    fields = {f.name: f for f in msgspec.structs.fields(HEADINGS[heading]) if f.name not in tables}
    assert set(told) == set(fields)
    for name, field in fields.items():
        default = field.default
        if isinstance(default, bool):
            assert str(default).lower() in told[name], name
        elif isinstance(default, int | float):
            assert f"| {default:g} |" in told[name], name
        elif isinstance(default, str) and default:
            assert default in told[name], name
        if field.required and "| required |" in section(text("docs/configuration.md"), heading):
            assert "| yes" in told[name] or "| for" in told[name], name


@pytest.mark.parametrize("page", ["README.md", "docs/configuration.md", "docs/sandbox.md"])
def test_configurations_that_are_shown_can_be_applied(page: str, tmp_path: Path) -> None:
    """Each example file is without mistakes, and has no key that does nothing yet."""
    shown = re.findall(r"^```toml\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)
    assert shown
    for example in shown:
        (tmp_path / "qasid.toml").write_text(example)
        for path in re.findall(r'"file:([^"]+)"', example):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text("a secret")
        environ = dict.fromkeys(re.findall(r'"env:([A-Z_]+)"', example), "a secret")
        assert configuration.load(tmp_path / "qasid.toml", environ).warnings == ()


def test_tests_that_security_names_exist() -> None:
    """A control's test can be run as it stands there."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text("docs/security.md"))
    assert len(named) > 20
    assert [f"{file}::{name}" for file, name in named if f"def {name}(" not in text(file)] == []


def test_decisions_are_listed_and_whole() -> None:
    """The first one lists the others; each says what, why, what was weighed, what would change our mind."""
    records = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", records[0].read_text())
    assert listed == [record.name for record in records[1:]]
    for record in records:
        words = [f"**{word}.**" for word in ("What", "Why", "Weighed", "Would change our mind")]
        assert [word for word in words if word not in record.read_text()] == [], record.name


def test_the_sandboxs_faults_are_listed() -> None:
    """docs/sandbox.md has each kind of fault of each face, and no other."""
    told = section(text("docs/sandbox.md"), "## Faults")
    listed = set(re.findall(r"`(\w+)`", "\n".join(line for line in told.splitlines() if line.startswith("| "))))
    kinds = (
        faults.SendKind,
        faults.AssistantKind,
        faults.AnsariKind,
        faults.ThreadsKind,
        faults.TranslatorKind,
        faults.MediaKind,
        faults.TranscriptionKind,
    )
    assert listed - {"code"} == {kind for face in kinds for kind in get_args(face)}


def test_endings_and_codes_are_listed() -> None:
    """docs/lanes.md has every way a turn ends; docs/wire-cloud.md every error code that is not simply final."""
    assert set(rows(section(text("docs/lanes.md"), "## A turn"))) == set(get_args(Ending))
    told = section(text("docs/wire-cloud.md"), "### Error codes")
    codes = {*cloud_codes.UNKNOWN, *cloud_codes.HELD, *cloud_codes.BUSY, cloud_codes.PAIR} - {*range(200, 300)}
    assert "200–299" in told
    assert {code for code in codes if not re.search(rf"\b{code}\b", told)} == set()


def test_compose_mounts_what_a_configuration_may_refer_to() -> None:
    """The folders that docs/operations.md names; and none of them is a thing for git."""
    ignored = text(".gitignore").splitlines()
    for name in ("qasid.toml", "secrets", "documents"):
        assert f'"./{name}:/etc/qasid/{name}:ro"' in text("compose.yaml")
        assert f"/{name}" in {line.rstrip("/") for line in ignored}
