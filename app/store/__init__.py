"""SQL in plain view: a constant beside the function that runs it. Functions take `conn` and never commit.

Each is one statement, so that on an autocommit connection it is one round trip and one commit.
Lock order everywhere: lanes (sorted) → chunks → the rest.
"""
