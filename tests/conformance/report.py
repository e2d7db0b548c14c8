#!/usr/bin/env python3
"""Reports which specs passed, failed and were skipped, and compares them with the list of specs that must pass.

usage: report.py REPORT MUST_PASS [--record | --focused] [--websocket=REPORT]

REPORT is ginkgo's JSON report. MUST_PASS has one spec per line, as the texts of its containers and the spec, with a space
between them; lines with # are comments. The second report has the specs over WebSocket; their names get a suffix.
"""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../stand-ins"))
from passing import compare  # noqa: E402

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
            # Specs other than Streaming were skipped.
            found.update((name, spec) for name, spec in again if spec["State"] != "skipped")
    passed = {name for name, spec in found.items() if spec["State"] == "passed"}
    skipped = {name for name, spec in found.items() if spec["State"] in ("skipped", "pending")}
    failed = {name: message(found[name]) for name in set(found) - passed - skipped}
    record, part = "--record" in options, "--focused" in options
    sys.exit(compare("conformance", list_path, HEAD, passed, failed, len(skipped), record=record, part=part))


def message(spec):
    return " ".join((spec.get("Failure") or {}).get("Message", "").split())[:600]


main()
