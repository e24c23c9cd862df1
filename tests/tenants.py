"""The tenant of `tests/world.py` configured otherwise in the midst of a test, and what became of its turns."""

from collections.abc import Callable

import pytest

from app.apply import apply
from app.assistants import Answer
from app.vault import Vault
from tests.scripted import Scripted
from tests.world import ENVIRON, KEY, NUMBER, World

INTENTS = """
[[tenants.noor.intents]]
match = ["hi"]
reply = "Hello! How can we help?"
[[tenants.noor.intents]]
match = ["cancel"]
reply = "Cancel it?"
then = "confirm"
yes = "Cancelled."
no = "It stands."
[[tenants.noor.intents]]
match = ["agent"]
reply = "One moment."
then = "hand_over"
pause_hours = 2
[[tenants.noor.intents]]
match = ["stop"]
reply = "No more answers."
then = "stop"
[[tenants.noor.intents]]
match = ["start"]
reply = "Welcome back."
then = "start"
"""


# Of an assistant; `url` is the sandbox's.
ASSISTANT = """
provider = "anthropic"
base_url = "{url}/anthropic"
model = "{model}"
api_key = "env:AI_KEY"
deadline_seconds = {deadline}
"""


async def configure(world: World, more: str) -> None:
    """Bring these tables of the tenant into the database; the others stay."""
    path = world.folder / "more.toml"
    path.write_text(f'[tenants.noor]\nname = "Noor"\n{more}')
    await apply(world.url, path, Vault([bytes.fromhex(KEY)]), ENVIRON)


async def channel(world: World, more: str) -> None:
    """The tenant's channel, with these keys."""
    await configure(
        world,
        f'[tenants.noor.channels.main]\nendpoint = "meta"\naddress = "{NUMBER}"\nbase_url = "{world.sandbox.url}/graph/v23.0"\n'
        f'token = "env:TOKEN"\n{more}\n',
    )


async def outcomes(world: World) -> list[str]:
    return [outcome for (outcome,) in await world.rows("SELECT outcome FROM usage ORDER BY turn_id")]


Script = Callable[..., Scripted]


@pytest.fixture
def script(world: World) -> Script:
    """From here on every provider's assistant is this one."""

    def script(*answers: Answer | Exception) -> Scripted:
        scripted = Scripted(*answers)
        world.assistant = lambda provider: scripted
        return scripted

    return script
