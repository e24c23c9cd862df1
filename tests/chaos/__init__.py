"""The fault test: Qasid's real processes under faults, judged by what the recipients got. See docs/guarantees.md."""
