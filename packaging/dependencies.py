#!/usr/bin/env python3
"""Lists the crates that are linked into berth and into the programs that it embeds.

packaging/dependencies.py sbom       prints an SBOM (CycloneDX 1.6, JSON)
packaging/dependencies.py licences   prints all crates with their licences, then the texts of the licences

The lists come from `cargo metadata`, the checksums from Cargo.lock. Crates that only builds or tests need are not listed.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
import uuid
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The daemon and the embedded programs. The pause has no dependencies.
PROGRAMS = ["berth", "berth-keeper", "berth-demo-app"]
LICENCE_FILE = re.compile(r"^(LICEN[CS]E|COPYING|COPYRIGHT|NOTICE|UNLICENSE)", re.IGNORECASE)


def run(*command):
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def metadata(target):
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    return json.loads(run(*command))


def linked(data):
    """Returns the packages that the programs link, and the dependencies of each, by package id."""
    packages = {package["id"]: package for package in data["packages"]}
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}

    def dependencies(package):
        for dependency in nodes[package]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                yield dependency["pkg"]

    members = {packages[package]["name"]: package for package in data["workspace_members"]}
    pending = [members[name] for name in PROGRAMS]
    edges = {}
    while pending:
        package = pending.pop()
        if package not in edges:
            edges[package] = sorted(set(dependencies(package)))
            pending.extend(edges[package])
    return packages, edges


def licence(package):
    """Returns the licence as an SPDX expression. Old crates separate alternatives with a slash."""
    return " ".join((package["license"] or "NOASSERTION").replace("/", " OR ").split())


def reference(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def checksums():
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    return {(entry["name"], entry["version"]): entry.get("checksum") for entry in lock["package"]}


def component(package, sums):
    entry = {
        "type": "library",
        "bom-ref": reference(package),
        "name": package["name"],
        "version": package["version"],
        "purl": reference(package),
        "licenses": [{"expression": licence(package)}],
    }
    if package["description"]:
        entry["description"] = " ".join(package["description"].split())
    checksum = sums.get((package["name"], package["version"]))
    if checksum:
        entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package["repository"]:
        entry["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return entry


def build_time():
    """Returns the time of the commit: the same sources give the same document."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    if seconds is None:
        seconds = run("git", "log", "-1", "--format=%ct").strip()
    return datetime.fromtimestamp(int(seconds), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def sbom(packages, edges, target):
    sums = checksums()
    own = {package for package in edges if packages[package]["source"] is None}
    berth = next(packages[package] for package in own if packages[package]["name"] == "berth")
    compiler = run("rustc", "--version").split()[1]
    standard_library = {
        "type": "library",
        "bom-ref": f"pkg:generic/rust-std@{compiler}",
        "name": "rust-std",
        "version": compiler,
        "purl": f"pkg:generic/rust-std@{compiler}",
        "licenses": [{"expression": "MIT OR Apache-2.0"}],
    }
    main = component(berth, sums) | {"type": "application"}
    main["properties"] = [{"name": "rust:target", "value": target}]
    ordered = sorted(edges, key=lambda package: reference(packages[package]))
    names = {package: reference(packages[package]) for package in edges}
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"timestamp": build_time(), "component": main},
        "components": [component(packages[package], sums) for package in ordered if names[package] != main["bom-ref"]]
        + [standard_library],
        "dependencies": [
            {"ref": names[package], "dependsOn": [names[dependency] for dependency in edges[package]]}
            for package in ordered
        ],
    }
    # The keeper and the demo program are files in the daemon.
    embedded = [names[package] for package in own if packages[package]["name"] in PROGRAMS[1:]]
    for entry in document["dependencies"]:
        if entry["ref"] == main["bom-ref"]:
            entry["dependsOn"] = sorted({*entry["dependsOn"], *embedded, standard_library["bom-ref"]})
    content = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}"
    print(json.dumps(document, indent=1))


def texts_of(package):
    folder = Path(package["manifest_path"]).parent
    for path in sorted(folder.iterdir()):
        if path.is_file() and LICENCE_FILE.match(path.name):
            yield path.name, path.read_text(errors="replace").strip()


def licences(packages, edges):
    foreign = [packages[package] for package in edges if packages[package]["source"] is not None]
    foreign.sort(key=lambda package: (package["name"], package["version"]))
    texts = {}
    print("berth is linked with these crates. The texts of their licences follow.\n")
    for package in foreign:
        name = f"{package['name']} {package['version']}"
        authors = f" ({', '.join(package['authors'])})" if package["authors"] else ""
        print(f"{name}: {licence(package)}{authors}")
        for _, text in texts_of(package):
            # Texts that differ only in their spaces are printed once.
            key = hashlib.sha256(" ".join(text.split()).encode()).digest()
            texts.setdefault(key, (text, []))[1].append(name)
    for text, names in sorted(texts.values(), key=lambda entry: entry[1]):
        print("\n" + "-" * 78 + "\n" + ", ".join(dict.fromkeys(names)) + ":\n\n" + text)


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in ("sbom", "licences"):
        sys.exit("usage: packaging/dependencies.py sbom|licences [TARGET]")
    host = next(line.split()[1] for line in run("rustc", "-vV").splitlines() if line.startswith("host:"))
    target = sys.argv[2] if len(sys.argv) > 2 else host
    packages, edges = linked(metadata(target))
    if sys.argv[1] == "sbom":
        sbom(packages, edges, target)
    else:
        licences(packages, edges)


if __name__ == "__main__":
    main()
