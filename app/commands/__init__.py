"""Groups of commands that app/cli.py puts together. Like it, each imports what it needs when it runs."""
