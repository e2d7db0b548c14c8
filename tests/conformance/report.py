#!/usr/bin/env python3
"""Says which specs passed, failed and were skipped, and compares them with those that must pass.

usage: report.py REPORT MUST_PASS [--record | --focused] [--websocket=REPORT]

REPORT is ginkgo's JSON report. MUST_PASS has one spec in a line, as the texts of its containers and its own, with a space
between them; lines with # are comments. The specs of the second report are those over WebSocket, and named so.
"""

import json
import sys

HEAD = """# The specs of critest that must pass, as texts of the containers and the spec.
# Written by tests/conformance/run --record; tests/conformance/run fails if one of them does not pass.
"""


def specs(path, ending=""):
    with open(path) as file:
        report = json.load(file)
    for suite in report:
        for spec in suite["SpecReports"] or []:
            if spec["LeafNodeType"] == "It":
                texts = [*(spec["ContainerHierarchyTexts"] or []), spec["LeafNodeText"]]
                yield " ".join(texts) + ending, spec


def main():
    report_path, list_path, *options = sys.argv[1:]
    found = dict(specs(report_path))
    for option in options:
        if option.startswith("--websocket="):
            again = specs(option.removeprefix("--websocket="), " (WebSocket)")
            # What is not of Streaming was left out.
            found.update((name, spec) for name, spec in again if spec["State"] != "skipped")
    with open(list_path) as file:
        lines = [line.strip() for line in file]
    must = {line for line in lines if line and not line.startswith("#")}
    passed = {name for name, spec in found.items() if spec["State"] == "passed"}
    skipped = {name for name, spec in found.items() if spec["State"] in ("skipped", "pending")}
    failed = set(found) - passed - skipped
    for name in sorted(failed):
        failure = found[name].get("Failure") or {}
        message = " ".join(failure.get("Message", "").split())
        mark = "MUST PASS" if name in must else "not on the list"
        print(f"failed ({mark}): {name}\n    {message[:600]}")
    if "--record" in options:
        with open(list_path, "w") as file:
            file.write(HEAD + "".join(name + "\n" for name in sorted(passed)))
        must = passed
    missing = set() if "--focused" in options else must - passed - failed
    for name in sorted(missing):
        print(f"did not run (MUST PASS): {name}")
    print(f"conformance: {len(passed)} passed, {len(failed)} failed, {len(skipped)} skipped; {len(must)} must pass")
    sys.exit(1 if (failed & must) or missing else 0)


main()
