"""Which way of isolating works on this machine: each is tried on a process that says what it sees."""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import time

from peftlab.errors import UserError
from peftlab.sandbox import ways
from peftlab.sandbox.limits import Limits
from peftlab.sandbox.nursing import NurseryError, nursery

PREFERRED: tuple[ways.Way, ...] = ("bubblewrap", "kernel")
"""Bubblewrap first: many eyes have read it, and some systems allow namespaces to it alone."""

_SECONDS = 60.0


def chosen(*, allow_unsafe: bool) -> ways.Way:
    """The first way that isolates here.

    Raises:
        UserError: None does, and `allow_unsafe` is false.
    """
    if not sys.platform.startswith("linux"):
        raise UserError("programs that a model wrote are run on Linux only", fix="score this task on a Linux machine")
    tried = []
    for way in PREFERRED:
        found = attempt(way, os.geteuid())
        if found.works:
            return way
        tried.append(f"{way}: {found.text}")
    if allow_unsafe:
        return "none"
    raise UserError(
        f"programs that a model wrote cannot be isolated on this machine ({'; '.join(tried)})",
        fix="install bubblewrap or allow user namespaces (peftlab doctor says what is missing, docs/sandbox.md what "
        "is needed); --allow-unsafe-code runs them with your own rights",
    )


@functools.cache
def attempt(way: ways.Way, user: int) -> ways.Found:
    """One way, tried once by each user of this process.

    Args:
        way: Which.
        user: The effective user now; it decides what the kernel allows.
    """
    del user
    if not sys.platform.startswith("linux"):
        return ways.Found(way=way, works=False, text="only Linux has namespaces", facts={})
    if way == "bubblewrap" and shutil.which("bwrap") is None:
        return ways.Found(way=way, works=False, text="not installed", facts={})
    output_in, output_out = os.pipe()
    report_in, report_out = os.pipe()
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        with nursery(way) as one:
            one.start("probe", Limits(), [output_out, nothing, nothing, nothing, report_out])
            os.close(output_out)
            os.close(report_out)
            output_out = report_out = -1
            one.hear(time.monotonic() + _SECONDS)
            report, said = os.read(report_in, 1 << 16), b""
            if not report:
                said = os.read(output_in, 1 << 12)
    except (NurseryError, OSError) as error:
        return ways.Found(way=way, works=False, text=str(error), facts={})
    finally:
        for each in (output_in, output_out, report_in, report_out, nothing):
            if each >= 0:
                os.close(each)
    if not report:
        return ways.Found(way=way, works=False, text=said.decode(errors="replace").strip()[-300:], facts={})
    return ways.judged(way, json.loads(report.splitlines()[0]))
