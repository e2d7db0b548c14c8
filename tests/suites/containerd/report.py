#!/usr/bin/env python3
"""Reports which tests of a Go test program passed, and compares them with the list of tests that must pass.

usage: report.py LOG MUST_PASS [--record | --only]

LOG is the output of `-test.v`. MUST_PASS has one test per line, with subtests as `TEST/PART`; lines with # are comments.
"""

import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../stand-ins"))
from passing import compare  # noqa: E402

HEAD = """# The tests of containerd's integration suite that must pass.
# Written by tests/suites/containerd/run --record. The others are in docs/compatibility.md.
"""


def main():
    log, list_path, *options = sys.argv[1:]
    with open(log, errors="replace") as file:
        ends = re.findall(r"^\s*--- (PASS|FAIL|SKIP): (\S+)", file.read(), re.MULTILINE)
    # The first result of a test counts. Later ones come from what ended the test.
    states = {name: state for state, name in reversed(ends)}
    passed = {name for name, state in states.items() if state == "PASS"}
    failed = {name: "" for name, state in states.items() if state == "FAIL"}
    skipped = len(states) - len(passed) - len(failed)
    record, part = "--record" in options, "--only" in options
    sys.exit(compare("containerd's suite", list_path, HEAD, passed, failed, skipped, record=record, part=part))


main()
