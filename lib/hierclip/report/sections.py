"""The sections of the report, each a function of the results."""

from collections.abc import Iterator

import pandas as pd
import yaml

from hierclip.params.methods import FlatParams
from hierclip.plots.frames import check_frame, mistakes_table, superclass_attacks
from hierclip.plots.methods import first_seeds
from hierclip.plots.pictures import strip_path
from hierclip.plots.table import ablation_markdown, results, results_words, split_words, splits
from hierclip.report import captions
from hierclip.report.page import Picture, Section, Table, Text
from hierclip.report.results import Results
from hierclip.studies import STUDIES, best_points, load_studies

Parts = Iterator[Text | Table | Picture]
FIELDS = {  # of a threat model, in words
    "norm": "norm in which the change of a picture is measured",
    "eps": "budget: the most that it may be, pixels being in [0, 1]",
    "suite": "attacks, in turn, each on the pictures that still stand",
    "step": "step of PGD and CW; APGD chooses its own",
    "steps": "gradients that one run of an attack takes",
    "restarts": "random starts of each attack",
    "queries": "pictures that Square may ask for",
    "prune": "share of its way to the boundary short of which a picture gets no second gradient attack",
    "resolution": "pixels a side, at which the change is made",
    "prompt": "what a class name is put into",
    "precision": "arithmetic of the attack",
    "seed": "of every random draw",
}
SIGNS = """
A check that **fails** is no detail. `steps`, `restarts` and `suite`: a stronger attack found what the record's did not,
so the robust accuracy above is too high for that model, by about the share that the check counts. The others are signs
of an attack that cannot see (gradients that vanish or mislead): there robust accuracy may mean nothing, and no number
of that model should be used before the sign is explained. A check that **passes** found no more than its limit on
{images} pictures, of which one is {one:.1f} %; where it found none, up to {high:.0f} % may still be there (the upper
end of its exact 95 % interval).
"""
KNOWS = """
The attacker knows everything: weights, prompts, trees, readings. It changes the pixels of one picture at a time, as the
model gets them, and aims at one level of the tree, read from the level's own prompts or from the predicted leaf. Every
level is attacked in both readings, and a figure counts the worse. An attack stops where it has what it wants. Nothing
here is a proof: another attack may find more.
"""


def run(found: Results) -> Parts:
    """What was run."""
    params, shown = found.params, {r.split: r for r in found.records}
    sets = [
        (split_words(split), r.dataset, r.images, r.levels[0], ", ".join(map(str, r.levels)))
        for split in splits(found.records)
        if (r := shown[split])
    ]
    columns = ["what", "data set", "pictures", "classes", "nodes by level, leaves first"]
    yield Table(pd.DataFrame(sets, columns=columns), "What every model was attacked on.")
    methods = []
    for name in params.methods:
        settings = params.method[name].model_dump(mode="json")
        label, loss, trees = settings.pop("label"), settings.pop("loss"), settings.pop("trees", ["leaves alone"])
        if isinstance(params.method[name], FlatParams):
            del settings["perturbation"]  # there is no other
        own = yaml.safe_dump(settings, default_flow_style=True, sort_keys=False, width=10**9).strip("{}\n")
        methods.append((label, loss, ", ".join(trees) if loss != "none" else "–", own))
    columns = ["method", "loss", "trees", "settings"]
    yield Table(pd.DataFrame(methods, columns=columns), "Methods, as params.yaml has them.")
    first = found.records[0]
    facts = {"seeds": ", ".join(map(str, params.seeds)), "model": params.model.architecture}
    facts |= {"weights before fine-tuning": params.model.pretrained or "made here from scratch"}
    facts |= {f"tree {name}": digest for name, digest in first.trees.items()}
    facts |= first.versions | {"git": first.git or "unknown"}
    yield Table(pd.DataFrame(facts.items(), columns=["what", "value"]), "Under which conditions.")
    wanted = {(m, s, task) for m in params.methods for s in params.seeds for task in params.tasks}
    for method, seed, task in sorted(wanted - {(r.method, r.seed, r.split) for r in found.records}):
        yield found.missing(f"the record {method}-{seed}/{task}")


def headline(found: Results) -> Parts:
    """The results table, split by split, and each method against each other."""
    yield Text(results_words(found.records))
    for split in splits(found.records):
        rows = [r for r in found.records if r.split == split]
        yield Table(results(rows, found.params.labels), f"{split_words(split)}: {rows[0].images} pictures.")
    pairs = found.frame("paired")
    if pairs is None:
        yield found.missing("the comparison of methods on the same pictures, `data/results/paired.csv`")
        return
    points = [f"{p:+.1f} [{low:+.1f}, {high:+.1f}]" for p, low, high in pairs[["points", "low", "high"]].to_numpy()]
    shown = pairs[["pair", "split", "seed"]].assign(points=points)
    for column in ("p", "holm"):
        shown[column] = [f"{p:.4f}" if p >= 1e-4 else "0.0001 or less" for p in pairs[column]]
    yield Table(
        shown,
        "Path-robust accuracy of one method less another's, in points with a 95 % interval, on the same pictures, each "
        "in its own reading; p of McNemar's exact test, and adjusted for the number of pairs (Holm).",
    )


def by_level(found: Results) -> Parts:
    """Accuracy by level, the level matrices, and what attacks on superclasses do."""
    labels = found.params.labels
    for split in found.params.tasks:
        if rows := first_seeds(found.records, split, found.params):
            where = f" {split_words(split)}."
            yield found.figure(f"levels_{split}", captions.levels(rows, labels) + where, "bars by level and method")
            yield found.figure(
                f"matrix_{split}", captions.matrix(rows, labels) + where, "accuracy by attacked and read level"
            )
    yield Table(
        superclass_attacks(found.records, labels).round(1).reset_index(),
        "What attacks on superclasses do, in percent: accuracy at the level under its own attack, by reading; on a few "
        "pictures, leaves that stay right under attacks that go on after success; and pictures whose leaf no attack "
        "broke inside the superclass (stay).",
        folded=True,
    )
    yield Table(
        mistakes_table(found.records, labels).reset_index(),
        "How bad mistakes are, clean and under the attack on the leaves. severity: the mean height at which a wrong "
        "leaf meets the right one; hd_k: the same over the k nearest leaves; consistent: right at every level; "
        "contradictions: nearest nodes that are on no path; ece: calibration error of the leaves.",
        folded=True,
    )


def by_tree(found: Results) -> Parts:
    """Every tree over the same leaves."""
    for split in found.params.splits:
        if rows := first_seeds(found.records, split, found.params):
            caption = f"{captions.trees(rows, found.params.labels)} {split_words(split)}."
            yield found.figure(f"trees_{split}", caption, "bars by tree and method")


def strips(found: Results) -> Parts:
    """Pictures under attack, for each method."""
    for r in first_seeds(found.records, "tuned", found.params):
        path = strip_path(found.root, f"{r.method}-{r.seed}").with_suffix(".png")
        part = found.picture(path, captions.strip(r, found.params.labels), "pictures clean, the change, and attacked")
        yield Text(f"{part.markdown[:-1]}, where an attack turns a picture.") if isinstance(part, Text) else part


def depth(found: Results) -> Parts:
    """Margins against depth, and whether they foretell the attack."""
    summary, correlation = found.frame("margins"), found.frame("correlation")
    if summary is None or correlation is None:
        yield found.missing("the margins, `data/results/margins.csv` and `correlation.csv`")
        return
    label = found.params.labels[found.params.margin.method]
    if summary.empty:
        yield Text(f"{label} is not read by distance in the Poincare ball: there are no margins to measure.")
        return
    yield found.figure("margin_depth", captions.margin(summary, label), "margins and their bounds against depth")
    yield Table(
        summary,
        "Margins by tree and level, in logits: norm and number of the texts; the bound of a pair and of all siblings "
        "at once; 5 %, 50 % and 95 % quantiles, the largest, its share of the bound; the mean of the nodes' largest.",
        folded=True,
    )
    yield Table(
        correlation,
        "Does a small margin foretell that the attack succeeds? Spearman's rank correlation by level with its 95 % "
        "interval, among pictures that were right; how often one that stood had a larger margin than one that broke.",
    )


def studies(found: Results) -> Parts:
    """The ablation and the sweep."""
    there, params = load_studies(found.root / STUDIES), found.params
    for split in params.splits if "ablation" in there else ():
        yield Text(f"### {split_words(split)}\n\n{ablation_markdown(there['ablation'], params, split)}")
    if "ablation" not in there:
        yield found.missing("the ablation", "ablate")
    if "sweep" in there:
        best = best_points(there["sweep"].frame).round(4)
        yield Table(best, "The sweep's best point of each method: leaf accuracy on validation pictures.")
    else:
        yield found.missing("the sweep that chose learning rates and logit scales", "sweep")


def audits(found: Results) -> Parts:
    """Whether it is robustness: what failing means, the figure, and every check."""
    labels, images = found.params.labels, found.records[0].audit.images
    checks = [c for r in found.records for name, c in r.audit.checks.items() if name != "float64"]  # on fewer pictures
    high = max((c.high for c in checks if c.value <= 0), default=1.0)
    yield Text(SIGNS.format(images=images, one=100 / images, high=100 * high))
    for split in splits(found.records):
        if rows := first_seeds(found.records, split, found.params):
            caption = f"{captions.audit(rows, labels)} {split_words(split)}."
            alt = "accuracy by budget and effort, and checks against their limits"
            yield found.figure(f"audit_{split}", caption, alt)
        table, failed = check_frame([r for r in found.records if r.split == split], labels)
        yield Table(table, f"Every check of the audit. {split_words(split)}.", failed)


def threats(found: Results) -> Parts:
    """Every threat model in full, with the records made under it."""
    yield Text(KNOWS)
    models = {}
    for r in found.records:
        models.setdefault(r.threat_model, []).append(r)
    for model, records in models.items():
        values = model.model_dump() | {"suite": ", ".join(model.suite)}
        rows = [(name, str(value), FIELDS[name]) for name, value in values.items()]
        caption = "Threat model of " + ", ".join(f"{r.name} ({r.images} pictures)" for r in records) + "."
        yield Table(pd.DataFrame(rows, columns=["what", "value", "meaning"]), caption)


def again(found: Results) -> Parts:
    """How to reproduce."""
    first = found.records[0]
    yield Text(
        "In a clone of the project, with Python 3.11 or newer, git and make"
        + (f", at the commit `{first.git.removesuffix('+')}`" if first.git else "")
        + (" with changes that were not committed" if first.git.endswith("+") else "")
        + f":\n\n```\n{found.make('repro')}     # every result\n{found.make('report')}    # this page\n"
        + f"{found.make('verify')}    # the results just made against the committed ones\n```\n\n"
        "All choices are in `params.yaml`; packages are pinned in `requirements.lock`. Other hardware rounds "
        "differently: figures of the same pictures may be 2 images, or 0.5 % of them, apart."
    )


SECTIONS = {
    "What was run": run,
    "Results": headline,
    "Every level": by_level,
    "Every tree": by_tree,
    "Pictures under attack": strips,
    "Depth and margin": depth,
    "What each part brings": studies,
    "Audit: is it robustness?": audits,
    "Threat models": threats,
    "How to reproduce": again,
}


def all_sections(found: Results) -> list[Section]:
    return [Section(title, list(parts(found))) for title, parts in SECTIONS.items()]
