"""The room where WhatsApp (Meta's Cloud API) and assistants (Anthropic's Messages API, OpenAI's chat
completions) are played.

Both speak the real wire formats over HTTP, with faults on demand, on loopback alone. The demo, the tests and the
benches use it; nothing that serves a tenant imports it. `server.running()` starts it inside a test, `python -m
app.sandbox` as a process.
"""
