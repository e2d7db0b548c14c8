#!/usr/bin/env python3
"""Finds words and phrases that the style guide bans (CONTRIBUTING.md, "Style") in comments, messages and documents.

usage: tests/prose_lint.py [--count] [PATH...]     all tracked files, or only these files and folders
       tests/prose_lint.py --self-test

Prose is: comments and string literals of *.rs (except fuzz/corpus), the text of *.md, docstrings of *.py, and comments of *.sh,
*.py, *.toml, *.yml, *.proto, *.c, *.txt and of scripts without an extension. Inline code in backticks and captures such as {name} are not prose. A line that contains
"prose-lint: allow" is exempt. The exit code is 1 if there is a hit, 0 if there is none. --count prints only totals.
"""

import bisect
import collections
import os
import re
import subprocess
import sys

ALLOW = "prose-lint: allow"

# Pattern and suggestion. A space also matches a line break between two lines of one comment. Text outside of prose is \0.
BANNED = [
    (r"\btold\b", "reported, sent, notified, or the noun: event cursor"),
    (r"\bwhom\b", "name the client, user or process"),
    (r"(?<!there )\b(?:is|are|was|were) no\b(?! longer| more than)", "is not a, does not have"),
    (r"\bof (?:its|their|his|your|our) own\b", "private, separate, its own X"),
    (r"\b(?:as )?the peers\b", "containerd and CRI-O, other runtimes"),
    (r"\bno more(?=[.,;:)]| (?:and|or|if|when|after)\b)", "no longer"),
    (r"\b(?:a stranger|strangers|stranger's)\b", "another user, untrusted clients, third parties"),
    (r"\bnobody's\b", "without an owner, unused"),
    (r"\bwithout a word\b", "without a profile, without an error, silently"),
    (r"\bin the way of\b", "blocks, prevents"),
    (r"\bwhat is asked\b", "the request, the requested X"),
    (r"\b(?:hence|thus|thereof|lest)\b", "therefore, so, of it, so that ... not"),
    (r"\bbe it\b", "whether it is"),
    (r"\b(?:may|can|will) come of\b", "may be caused by"),
    (r"\bby hand of\b", "by, through"),
    (r"\b(?:and|or) (?:its|their) likes?\b", "list the items, and similar X"),
    (r"\bbrothers?\b", "sibling, the other X"),
    (r"\bmend(?:s|ed|ing)?\b", "fix, repair"),
    (r"\b(?:its|whose|the) hour\b", "load, moment, time"),
    (r"(?<!hello )(?<!hello, )\bworlds?\b(?!-| readable| writable)", "both runtimes, both formats, the host"),
    (r"\b(?:rooms|house|riddles?)\b", "crates, project, source tree"),
    (r"\bfor ever\b", "forever"),
    (r"\bhas it that\b", "specifies that"),
    (r"\bstands for\b", "is, means, represents"),
    (r"\b(?:is|are|was) due\b(?! to)", "must be done, expires"),
    (r"\b(?:is|are|was|be) let go\b|\blets? go of\b", "is released, is detached, unregisters"),
    (r"\bso that \w+ has it\b", "say who uses it"),
    (r"\b(?:file|kernel|header|record|manifest|index|policy|plan|spec|specification|field|configuration|config"
     r"|table|node|keeper|daemon|registry|image|layer) (?:says|knows|asks|tells)\b", "specifies, contains, requests, reports"),
    (r"\b(?-i:What|Who|Whoever) (?!to\b)(?![^.?!\0]*\?)", "start the sentence with its subject: The X that ..."),
    (r"(?<=[.\0] )(?-i:That an? )(?=\w+ (?:may|can|is|was|has)\b)", "start the sentence with its subject"),
    (r"\bDESIGN rule\b|\(case \d+\)", "cite a document that is in the repository, or give the reason"),
]
PATTERNS = [(re.compile(text, re.IGNORECASE), text, hint) for text, hint in BANNED]

RUST = re.compile(
    r"""(?P<line>//[/!]?[^\n]*) | (?P<block>/\*.*?\*/) | (?P<raw>\b[bc]?r(?P<hashes>\#*)".*?"(?P=hashes))
      | (?P<string>"(?:[^"\\]|\\.)*") | '(?:[^'\\\n]|\\[^\n][^'\n]*)' """, re.DOTALL | re.VERBOSE)
SLASHES = re.compile(r"""(?P<line>//[^\n]*) | (?P<block>/\*.*?\*/) | "(?:[^"\\]|\\.)*" """, re.DOTALL | re.VERBOSE)
PYTHON = re.compile(
    r"""(?P<line>\#[^\n]*) | (?P<string>(?:(?<=\n)|(?<=\n[ ]{4})|(?<=\n[ ]{8}))\"{3}.*?\"{3}) | \"{3}.*?\"{3}
      | '(?:[^'\\\n]|\\.)*' | "(?:[^"\\\n]|\\.)*" """, re.DOTALL | re.VERBOSE)
HASHES = re.compile(r"""(?P<line>\#[^\n]*) | '[^'\n]*' | "(?:[^"\\\n]|\\.)*" """, re.VERBOSE)
SCRIPT = re.compile(r"""(?P<line>(?:(?<=\s)|^)\#[^\n]*) | \\. | '[^']*' | "(?:[^"\\]|\\.)*" """, re.X | re.M | re.S)
SYNTAX = {
    ".rs": RUST, ".proto": SLASHES, ".c": SLASHES, ".py": PYTHON, ".toml": HASHES, ".yml": HASHES, ".txt": HASHES,
    ".sh": SCRIPT, "": SCRIPT,
}
MARKER = re.compile(r"^(?:\s*(?:///?|//!|/\*+|\#+!?|\*)(?=\s|$))", re.MULTILINE)
CODE = re.compile(r"(```).*?```|`[^`\n]*(?:\n[^`\n]*)?`|\{[^{}\n]*\}", re.DOTALL)


def blank(text):
    return re.sub(r"\S", "\0", text)


def prose_of(path, text):
    """The text with \\0 for everything that is not prose, and _ for code within a sentence. Line breaks stay."""
    if path.endswith(".md"):
        prose = text
    else:
        prose, end = "", 0
        for match in SYNTAX[os.path.splitext(path)[1]].finditer(text):
            if match.lastgroup in ("line", "block"):
                part = MARKER.sub(lambda marker: " " * len(marker[0]), match[0])
            elif match.lastgroup:
                part = "\0" + re.sub(r"\\(?=\n)", " ", match[0][1:-1]) + "\0"
            else:
                part = blank(match[0])
            prose, end = prose + blank(text[end : match.start()]) + part, match.end()
        prose += blank(text[end:])
    return CODE.sub(lambda code: re.sub(r"\S", "\0" if code[1] else "_", code[0]), prose)


def hits(path, text):
    """Yields line, matched text, pattern and suggestion."""
    allowed = [ALLOW in line for line in text.split("\n")]
    flat, starts = "", []
    for line in prose_of(path, text).split("\n"):
        starts.append(len(flat))
        flat += (" ".join(line.split()) or "\0") + " "
    for pattern, name, hint in PATTERNS:
        for match in pattern.finditer(flat):
            number = bisect.bisect_right(starts, match.start())
            if not allowed[number - 1]:
                yield number, match[0].strip("\0 "), name, hint


def tracked(paths):
    """The files with prose, below `paths` if there are any."""
    listed = subprocess.run(["git", "ls-files", "-z", "--", *paths], stdout=subprocess.PIPE, check=True, text=True)
    for path in filter(os.path.isfile, listed.stdout.split("\0")):
        ending = os.path.splitext(path)[1]
        with open(path, "rb") as file:
            is_script = not ending and file.read(2) == b"#!"
        if not path.startswith("fuzz/corpus/") and (is_script or ending and ending in (".md", *SYNTAX)):
            yield path


def self_test():
    def found(path, text):
        return sorted((line, matched.lower()) for line, matched, _, _ in hits(path, text))

    assert found("a.rs", '/// It was told.\nlet told = "told {told}";\n') == [(1, "told"), (2, "told")]
    assert found("a.rs", "// A folder of its\n// own.\n") == [(1, "of its own")]
    assert found("a.rs", "// A folder of its\nlet own = 1;\n") == []
    assert found("a.rs", 'let a = r#"a "told" b"#; let b = \'"\'; let told = \'t\'; // `told`\n') == [(1, "told")]
    assert found("a.rs", "fn told<'a>(told: &'a str) {} /* told */\n") == [(1, "told")]
    assert found("a.md", "Thus. <!-- prose-lint: allow -->\n\nThere is no file. It is no file.\n") == [(3, "is no")]
    assert found("a.md", "What is this? What this is.\n") == [(1, "what")]
    assert found("a.sh", "told=1 # told\necho '# told' \"$#\"\n") == [(1, "told")]
    assert found("a.py", 'x = "told" # told\ndef f():\n    """It was told."""\n') == [(1, "told"), (3, "told")]
    assert found("a.toml", 'a = "told" # told\n') == [(1, "told")]
    assert found("a.proto", "// told\nstring told = 1;\n") == [(1, "told")]
    assert found("a.md", "The file says at once.\nHello, world\n") == [(1, "file says")]
    print("self-test passed")


def main(arguments):
    if arguments == ["--self-test"]:
        return self_test()
    count, paths = "--count" in arguments, [argument for argument in arguments if argument != "--count"]
    if not paths:
        os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    patterns, folders = collections.Counter(), collections.Counter()
    for path in tracked(paths):
        with open(path, encoding="utf-8") as file:
            for line, matched, name, hint in sorted(hits(path, file.read())):
                patterns[name] += 1
                folders[path.split("/")[0] if "/" in path else "."] += 1
                if not count:
                    print(f'{path}:{line}: "{matched}" ({name}): {hint}')
    for title, counter in (("pattern", patterns), ("folder", folders)) if count else ():
        print("\n".join(f"{number:6} {title} {key}" for key, number in counter.most_common()))
    return 1 if patterns else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
