"""The process of one check: `python -P -m launcher.doctor.one_check NAME QUESTION`."""

import json
import os
import signal
import sys

from launcher.doctor.checks import Question, as_message, unknown
from launcher.doctor.mailbox import own_slot, post
from launcher.doctor.table import CHECKS


def main() -> None:
    # An exit, so that folders are removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    name, question = sys.argv[1], Question(**json.loads(sys.argv[2]))
    slot = own_slot()
    try:
        for said in CHECKS[name].look(question):
            post(slot, name, as_message(said))
    except BaseException as error:  # whatever it is, the report is to have it
        text = f"the check itself failed: {type(error).__name__}: {error}"
        post(slot, name, as_message(unknown(name, text, "if the other lines do not explain it, report it as a fault")))
    # A thread that hangs, in a resolver say, must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
