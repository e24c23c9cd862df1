# Qasid's recipes. `uv run just` works where `just` is not installed. Settings come from the environment and `.env`.

set dotenv-load
set positional-arguments

# What `uv sync` installed, whether or not uv started us. The recipes `exec` it, so that its parent is `just` itself and
# --with-parent ends it when that ends, however it ends.
export PATH := justfile_directory() / ".venv" / "bin" + ":" + env("PATH")

# List the recipes.
default:
    @just --list --unsorted

# Everything on this machine: PostgreSQL, sandbox, web, worker. `just demo --once` plays one conversation and ends.
demo *ARGS:
    @exec qasid demo --with-parent "$@"

# Run the tests: all of them, or those that pytest's arguments name.
test *ARGS:
    @exec pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"

# Lint, format, types, direction of imports, dependencies.
check:
    ruff check
    ruff format --check
    mypy
    lint-imports
    deptry .

# Bring the database's schema up to date.
migrate:
    @exec qasid migrate

# Bring a configuration file into the database.
apply FILE:
    @exec qasid apply "$1"

# Take webhooks and serve the operators' pages.
web:
    @exec qasid web --with-parent

# Answer messages and deliver the answers.
worker:
    @exec qasid worker --with-parent

# Run the simulated WhatsApp and assistant.
sandbox *ARGS:
    @exec qasid sandbox --with-parent "$@"

# Measure. `just bench --help` lists what.
bench *ARGS:
    @exec python -m tests.bench "$@"

# The fault test: `just chaos --run A --size full`, `just chaos --mutants`; docs/guarantees.md says what it shows.
chaos *ARGS:
    @exec python -m tests.chaos "$@"

# What failed, was parked or set aside. `just replay ID…` makes it new.
dead *ARGS:
    @exec qasid dead "$@"

# Replay dead letters.
replay *ARGS:
    @exec qasid replay "$@"

# Have a conversation answered again that was handed over to people.
resume *ARGS:
    @exec qasid resume "$@"

# The breakers in the processes on this machine; `just breaker open database` holds one.
breaker *ARGS:
    @exec qasid breaker "$@"

# What lies in the spool. `just spool replay` brings it in.
spool *ARGS:
    @exec qasid spool "$@"

# Operators: `just user add NAME`, `password NAME`, `list`, `remove NAME`.
user *ARGS:
    @exec qasid user "$@"
