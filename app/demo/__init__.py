"""`qasid demo`: the whole of Qasid on this machine, and a short conversation through it. `main.run()` is the door.

It starts the same commands that an installation runs, with a database, a key and logs of its own in
`<state>/demo`, and talks to them as the outside would. It imports no worker and nothing that serves a tenant needs it.
"""
