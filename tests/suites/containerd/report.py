#!/usr/bin/env python3
"""Says which tests of a Go test program passed, and compares them with those that must pass.

usage: report.py LOG MUST_PASS [--record | --only]

LOG is the output of `-test.v`. MUST_PASS has one test in a line, with its parts as `TEST/PART`; lines with # are comments.
"""

import re
import sys

HEAD = """# The tests of containerd's integration suite that must pass.
# Written by tests/suites/containerd/run --record. The others are in docs/compatibility.md.
"""


def main():
    log, list_path, *options = sys.argv[1:]
    with open(log, errors="replace") as file:
        ends = re.findall(r"^\s*--- (PASS|FAIL|SKIP): (\S+)", file.read(), re.MULTILINE)
    # The first word on a test counts: what ended it comes after.
    states = {name: state for state, name in reversed(ends)}
    with open(list_path) as file:
        must = {line.strip() for line in file if line.strip() and not line.startswith("#")}
    passed = {name for name, state in states.items() if state == "PASS"}
    failed = {name for name, state in states.items() if state == "FAIL"}
    for name in sorted(failed):
        print(f"failed ({'MUST PASS' if name in must else 'not on the list'}): {name}")
    if "--record" in options:
        with open(list_path, "w") as file:
            file.write(HEAD + "".join(name + "\n" for name in sorted(passed)))
        must = passed
    missing = set() if "--only" in options else must - passed - failed
    for name in sorted(missing):
        print(f"did not pass (MUST PASS): {name}")
    skipped = len(states) - len(passed) - len(failed)
    print(f"containerd's suite: {len(passed)} passed, {len(failed)} failed, {skipped} skipped; {len(must)} must pass")
    sys.exit(1 if (failed & must) or missing else 0)


main()
