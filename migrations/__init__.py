"""The schema, as plain SQL, numbered and forward only. `app/migrate.py` runs it; nothing here is ever edited once applied."""
