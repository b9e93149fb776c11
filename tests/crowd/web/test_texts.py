"""One catalogue: every text in every language, the same places to fill in, and nothing that is not used."""

from __future__ import annotations

import re

import pytest

from brainmap.crowd.store.settings import LANGUAGES
from brainmap.crowd.web.pages import STATIC
from brainmap.crowd.web.texts import catalogue, texts

BRACES = re.compile(r"\{(\w+)\}")


@pytest.mark.parametrize("key", sorted(catalogue()))
def test_every_text_is_there_in_every_language(key):
    found = catalogue()[key]
    assert set(found) == set(LANGUAGES)
    assert all(text.strip() for text in found.values())
    assert len({tuple(sorted(BRACES.findall(text))) for text in found.values()}) == 1


def test_every_text_is_used_and_every_used_text_is_there():
    pages = "".join(path.read_text() for path in (STATIC.parent / "templates").glob("*.html"))
    code = "".join(path.read_text() for path in STATIC.glob("*.js"))
    used = set(re.findall(r"\bt\.(\w+)", pages)) | set(re.findall(r"say\(\"(\w+)\"", code))
    used |= {"account_delete_delete", "account_delete_anonymous", "marks_hidden", "marks_shown"}
    used |= {f"feedback_{kind}" for kind in ("found", "missed", "extra")} | {
        "progress",
        "progress_practice",
        "not_found",
    }
    assert used <= set(catalogue())
    assert set(catalogue()) - used == set()


def test_pages_hold_no_text_of_their_own():
    """The pages workers see take every word from the catalogue."""
    for path in (STATIC.parent / "templates").glob("*.html"):
        if path.name.startswith("admin"):
            continue
        text = re.sub(r"{% block kind %}.*?{% endblock %}", " ", path.read_text())
        text = re.sub(r"<script.*?</script>|<svg.*?</svg>|{[{%].*?[}%]}|<[^>]*>", " ", text, flags=re.S)
        assert re.findall(r"[A-Za-z]{3,}", text) == [], path.name


def test_the_languages_differ():
    english, japanese = texts("en"), texts("ja")
    assert all(english[key] != japanese[key] for key in english)
