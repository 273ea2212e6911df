"""Laws on all text files: no emoji, nothing of the machine they were written on, no placeholders left."""

import re

import pytest

EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f]")
MACHINE = re.compile(r"(?:^|[\s\"'`=:,(])/(?:home|root|work|tmp|Users|mnt|opt|scratch)/", re.MULTILINE)
REGISTRY = re.compile(r"pypi\.org|pythonhosted\.org|--[e]xtra-index-url|--[f]ind-links")
PLACEHOLDER = re.compile(r"\b(?:TODO|FIXME|TBD|XXX)\b|\bEXPECT_[A-Z]+\b")
REMOTE_CODE = re.compile(r"trust_remote_code:\s*[\"']?(?:true|yes|on)\b", re.IGNORECASE)

LAWS = {"emoji": EMOJI, "machine path": MACHINE, "registry": REGISTRY, "remote code": REMOTE_CODE}


def matches(pattern: re.Pattern, text: str, path: str) -> list[str]:
    return [f"{path}:{text.count(chr(10), 0, m.start()) + 1} {m.group().strip()!r}" for m in pattern.finditer(text)]


@pytest.mark.parametrize("name", LAWS)
def test_no_text_file_holds(name, texts):
    complaints = [found for path, text in texts.items() for found in matches(LAWS[name], text, path)]
    assert not complaints, "\n" + "\n".join(complaints)


def test_no_placeholder_is_left(texts):
    here = "tests/architecture/test_text_laws.py"
    complaints = [f for path, text in texts.items() if path != here for f in matches(PLACEHOLDER, text, path)]
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (EMOJI, "done \N{PARTY POPPER}"),
        (EMOJI, "\N{HEAVY CHECK MARK}"),
        (MACHINE, "see " + "/" + "home/me/x"),
        (MACHINE, "DIR=" + "/" + "tmp/x"),
        (REGISTRY, "https://pypi" + ".org/simple"),
        (REMOTE_CODE, "trust_remote_code" + ": true"),
        (PLACEHOLDER, "Expect: TODO"),
        (PLACEHOLDER, "Quick (EXPECT_QUICK)"),
    ],
)
def test_the_law_can_fail(pattern, text):
    assert matches(pattern, f"first line\n{text}", "a.md")[0].startswith("a.md:2 ")


def test_plain_symbols_pass():
    text = "a -> b \N{RIGHTWARDS ARROW} \N{GREEK SMALL LETTER LAMDA}\nhttps://example.org" + "/" + "home/x"
    complaints = [found for pattern in LAWS.values() for found in matches(pattern, text, "a.md")]
    assert not complaints, "\n" + "\n".join(complaints)
