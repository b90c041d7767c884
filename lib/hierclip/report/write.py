"""`make report`: everything that the pipeline left in one page."""

from pathlib import Path

from hierclip.report.page import Text, write_page
from hierclip.report.results import MISSING, RESULTS, load_results
from hierclip.report.sections import all_sections

LEAD = """
How often pictures are named rightly, clean and after a change too small to see that was made to break the answer, at
every level of a class tree. The **leaves** are the finest level. **Direct** reads a level from its own prompts,
**roll-up** from the predicted leaf. **Path-robust**, the headline, is the share of pictures whose whole path stays
right under every attack. Intervals are 95 %. `docs/results.md` says more.
"""
MANY = 100  # pictures, below which a report says that it proves nothing
TRIAL = """
**A trial run:** {few} pictures show that the pipeline works. They compare no methods, whatever the figures say.
"""


def write_report(root: Path) -> tuple[Path, list[str]]:
    """Writes data/results/report.html; gives its path and, line by line, what is missing from it.

    Raises RecordError where there are no records.
    """
    found, path = load_results(root), root / RESULTS / "report.html"
    sections = all_sections(found)
    few = max(r.images for r in found.records)
    lead = LEAD + (TRIAL.format(few=few) if few < MANY else "")
    write_page(path, f"hierclip: robustness at every level, {found.preset or found.records[0].dataset}", lead, sections)
    texts = [part.markdown for section in sections for part in section.parts if isinstance(part, Text)]
    return path, [text.replace("**", "").replace("`", "") for text in texts if text.startswith(MISSING)]
