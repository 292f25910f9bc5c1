"""Our distractor captions beside those RoCOCO published, figures and samples.

python tests/benchmarks/compare_rococo.py FOLDER_OF_ROCOCO [N_IMAGES]
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from shifts.catalogue import apply_shift, find_shift
from shifts.text import wordnet
from shifts.text.parse import parse
from shifts.text.word import article_of, main_sense

KINDS = ("same_concept", "diff_concept", "rand_voca", "danger")
N_SAMPLES = 10


class Change(NamedTuple):
    before: str
    after: str
    place: float
    tag_before: str
    tag_after: str


def words(caption: str) -> list[str]:
    return re.findall(r"[\w'-]+", caption.lower())


def replaced_words(before: str, after: str) -> list[tuple[int, int]]:
    """The places in both captions of words replaced one for one, an article that follows suit not counted."""
    a, b = words(before), words(after)
    runs = [run for run in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes() if run[0] != "equal"]
    if any(run[2] - run[1] != run[4] - run[3] for run in runs):
        return []
    pairs = [(i, j) for _, i1, i2, j1, j2 in runs for i, j in zip(range(i1, i2), range(j1, j2), strict=True)]
    return [(i, j) for i, j in pairs if not {a[i], b[j]} <= {"a", "an"}]


def change_of(before: str, after: str) -> Change | None:
    pairs = replaced_words(before, after)
    if len(pairs) != 1:
        return None
    (i, j), a, b = pairs[0], words(before), words(after)
    tags_before = {token.lower_: token.tag_ for token in parse(before)}
    tags_after = {token.lower_: token.tag_ for token in parse(after)}
    return Change(a[i], b[j], i / max(1, len(a) - 1), tags_before.get(a[i], "?"), tags_after.get(b[j], "?"))


def field(word: str) -> str | None:
    lemma = wordnet.base_form(word, "noun")
    sense = main_sense(lemma, "noun") if lemma else None
    return sense.synset.lexname if sense else None


def share(hits: int, of: int) -> str:
    return f"{100 * hits / max(of, 1):6.1f} %"


def bad_articles(captions: Sequence[str]) -> int:
    pairs = [pair for caption in captions for pair in re.findall(r"\b(a|an) ([a-z]+)", caption.lower())]
    return sum(article != article_of(word) for article, word in pairs)


def report(name: str, before: Sequence[str], after: Sequence[str]) -> None:
    kept = [(b, a) for b, a in zip(before, after, strict=True) if a]
    changes = [change for b, a in kept if (change := change_of(b, a)) is not None]
    fields = [(field(change.before), field(change.after)) for change in changes]
    known = [(old, new) for old, new in fields if old and new]
    thirds = Counter(min(2, int(change.place * 3)) for change in changes)
    plurals = [change for change in changes if change.tag_before == "NNS"]
    vocabulary = Counter(change.after for change in changes)
    print(f"  {name}")
    print(f"    no distractor               {share(len(before) - len(kept), len(before))}")
    print(f"    changed (case ignored)      {share(sum(words(b) != words(a) for b, a in kept), len(kept))}")
    print(f"    exactly one word changed    {share(len(changes), len(kept))}")
    print(f"    replaced is a noun          {share(sum(c.tag_before.startswith('NN') for c in changes), len(changes))}")
    print(f"    replacement is a noun       {share(sum(c.tag_after.startswith('NN') for c in changes), len(changes))}")
    print(f"    plural stays plural         {share(sum(c.tag_after == 'NNS' for c in plurals), len(plurals))}")
    print(f"    same WordNet field          {share(sum(old == new for old, new in known), len(known))} of {len(known)}")
    print(f"    in first, middle, last third{''.join(share(thirds[i], len(changes)) for i in range(3))}")
    print(
        f"    first letter's case kept    {share(sum(b[:1].isupper() == a[:1].isupper() for b, a in kept), len(kept))}"
    )
    print(f"    a / an wrong, per 100       {100 * bad_articles([a for _, a in kept]) / max(len(kept), 1):6.1f}")
    print(f"    different new words         {len(vocabulary)}; commonest {vocabulary.most_common(5)}")


def main() -> None:
    folder, n_images = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200
    for kind in KINDS:
        entries = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))[:: 5000 // n_images]
        rows = [(entry["caption"][i], entry["caption"][-5 + i]) for entry in entries for i in range(5)]
        captions = [caption.strip() for caption, _ in rows]
        theirs = [distractor.strip() for _, distractor in rows]
        shift = find_shift(f"gallery_{kind}")
        ours = [apply_shift(shift, 1, caption, str(i), seed=0) for i, caption in enumerate(captions)]
        wrong = 100 * bad_articles(captions) / len(captions)
        print(f"{kind}: {len(captions)} captions, a / an wrong in the originals, per 100: {wrong:.1f}")
        report("theirs", captions, theirs)
        report("ours", captions, ours)
        for row in list(zip(captions, theirs, ours, strict=True))[3 :: len(captions) // N_SAMPLES][:N_SAMPLES]:
            print("\n      ".join(("", *row)))


if __name__ == "__main__":
    main()
