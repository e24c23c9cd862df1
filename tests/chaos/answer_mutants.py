"""Bugs in what is made of the assistant's answers: cut, gone on with, remembered. It plants none."""

from tests.chaos.planting import Mutant, Patch

ANSWERS = (
    Mutant(
        name="partial-unmarked",
        breaks="what there is of an answer that was cut is sent without a word about that",
        scene="cut",
        by=(2,),
        patches=(
            Patch(
                "workers/answering.py",
                "        if answer.partial:\n            text = ",
                "        if answer.partial and not text:\n            text = ",
            ),
        ),
    ),
    Mutant(
        name="memo-not-read",
        breaks="whoever has a turn next asks again, though the answer is remembered",
        scene="dying",
        by=(14,),
        patches=(
            Patch(
                "workers/answering.py",
                "        if due.remembered is not None:\n",
                "        if due.remembered is not None and due.opening.stopped:\n",
            ),
        ),
    ),
)
