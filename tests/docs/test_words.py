"""The package and the pages use the field's words, not the private ones that earlier versions had.

docs/glossary.md defines the words in use; docs/renames.md maps the old ones to them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted((ROOT / "sa_durable").rglob("*.py")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "docs").rglob("*.py")),
    *sorted(ROOT.glob("*.md")),
]
OLD_TO_NEW = ROOT / "docs/renames.md"

PRIVATE = {
    "whoever, somebody, nobody, anybody": r"whoever|(?<![`\"])(?:some|no|any)body",
    "dear": r"dear(?:er)?",
    "anew": r"anew",
    "in hand": r"in (?:its )?hands?|empty hands",
    "by hand": r"by hand",
    "door": r"doors?",
    "let go": r"lets? go",
    "look": r"look(?:s|ed|ing)?(?! (?:up|like|as|so|cheaper)\b)",
    "kit": r"kits?",
    "chore": r"chores?",
    "flusher": r"flushers?",
    "intake": r"intakes?",
    "owed": r"owe[ds]",
    "hear": r"deaf|hears?|heard",
    # In quotes: the name of a column in SQL text, which stays.
    "hint": r"(?<![\"'])(?<!type )(?<!type_)hint(?:s|ed)?",
    "memo": r"memos?",
    "twins": r"twins?",
    "burnt": r"burnt",
    "plain handler": r"plain (?:handler|function|step|context|one)s?",
    "verb": r"verbs?",
    "stand still": r"stands? still|stand-stills?",
    "whereabouts": r"whereabouts|likeness|begun",
    "crowd": r"crowd(?:s|ed)?|crews?",
}
WORDS = {word: re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE) for word, pattern in PRIVATE.items()}


def test_package_and_pages_have_no_private_words():
    texts = {page: page.read_text() for page in PAGES if page != OLD_TO_NEW}
    found = [
        f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
        for page, text in texts.items()
        for pattern in WORDS.values()
        for match in pattern.finditer(text)
    ]
    assert found == []


@pytest.mark.parametrize("text", ["Nobody waits", "it looks again", "hinted", "by hand", "a plain handler"])
def test_word_list_finds_private_words(text):
    assert any(pattern.search(text) for pattern in WORDS.values())


@pytest.mark.parametrize("text", ["look up", "it looks like a UUID", "type hints", "handled", "adorned"])
def test_word_list_leaves_other_words_alone(text):
    assert not any(pattern.search(text) for pattern in WORDS.values())
