"""What test_workers.py lets processes and Ray tasks do, which must import it by this name."""

import os
import signal
import time

from evonorm_runs.errors import UserError


def answer(folder, text):
    """Of "once": its process is killed the first time. Of "a" its number; of "bad" an error."""
    if text == "once" and not (folder / "once").exists():
        (folder / "once").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "bad":
        raise UserError("a bad candidate")
    if text == "long":
        (folder / "long").write_text(str(os.getpid()))
        time.sleep(300)
    return {"text": text, "pid": os.getpid()}
