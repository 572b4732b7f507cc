"""The model card: ``README.md`` beside a shipped checkpoint, in the layout of the Hugging Face hub.

A YAML front matter for machines, then what a stranger must know before they use the model. It is made of
``report.json`` and the checkpoint's ``config.json`` alone, so the same run gives the same card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from string import Template
from typing import Any

from afm_dist.compression.plan import Plan
from afm_dist.report import text
from afm_dist.report.dataset_words import label_rate, percent
from afm_dist.report.markdown import fenced, markdown_table, plain
from afm_dist.report.schema import Report, Row
from afm_dist.report.summary import Headline, attribution, auc_difference, auc_error, headline, sentence

FILE_NAME = "README.md"
TAGS = ("click-through-rate", "recommendation", "low-rank", "afm-dist")
METRICS = {"auc": ("roc_auc", "AUC"), "log_loss": ("log_loss", "log loss")}

CARD = Template("""\
---
$front
---

# $title

**$sentence** $attribution

## Model details

$details

The plan, one entry a module (`compression` in `config.json`):

$plan

## Uses

It estimates the probability of a click (or of another yes or no) from the fields below, to rank or price
what may be shown. It expects rows prepared as its training rows were: ids from the same vocabularies,
numbers scaled alike. It is not meant for decisions about people, and it was not examined for how it treats
groups of them.

## How to load it

```python
import torch
import afm_dist

model = afm_dist.from_pretrained("path/to/this/folder")
ids = torch.zeros(1, $categorical, dtype=torch.int64)  # id 0 is an unknown token
numeric = torch.zeros(1, $numeric)  # as scaled; 0 is the mean
probability = torch.sigmoid(model(ids, numeric))
```

Columns in this order: $fields.$raw

## Data

$data

## Evaluation

On the test split; choices were made on the validation split:

$evaluation

The control is the uncompressed model, fine-tuned with the same recipe and rows: a gain that it has too comes
from more training, not from compression. Speed is that of eager PyTorch on a CPU over the baseline's,
timed in turn.

## Limitations

$limitations

## Where it comes from

$origin
""")


RAW = """

Raw rows, as they were logged, are scored with the vocabularies of this folder:

```sh
python jobs/predict.py --checkpoint path/to/this/folder --input rows.csv --output scores.parquet
```"""


def model_card(report: Report, config: Mapping[str, Any], *, vocabularies: bool) -> str:
    """The whole of the card.

    Args:
        report: Of the run that ships the checkpoint.
        config: The checkpoint's ``config.json``.
        vocabularies: Whether the checkpoint comes with its vocabularies.
    """
    figures = headline(report)
    kinds = [field["kind"] for field in config["fields"]]
    return CARD.substitute(
        front=_front(report, config, figures),
        title=plain(_name(report, config)),
        sentence=plain(sentence(figures)),
        attribution=plain(attribution(figures)),
        details=_details(config, figures),
        plan=_plan(config),
        categorical=kinds.count("categorical"),
        numeric=kinds.count("numeric"),
        fields="; ".join(
            f"{kind} {', '.join(plain(field['name']) for field in config['fields'] if field['kind'] == kind)}"
            for kind in dict.fromkeys(kinds)
        ),
        raw=RAW if vocabularies else "",
        data=_data(report),
        evaluation=_evaluation(report, figures),
        limitations=_limitations(report, figures, vocabularies),
        origin=_origin(report),
    )


def _name(report: Report, config: Mapping[str, Any]) -> str:
    return f"{config['architecture']} for click-through rates, {report['shipped']['name']}"


def _front(report: Report, config: Mapping[str, Any], figures: Headline) -> str:
    """The front matter. A quoted string of JSON is one of YAML. No licence: only the owner can give one."""
    data = report.get("data")
    shipped: Mapping[str, Any] = figures.shipped
    lines = [
        "library_name: afm-dist",
        "pipeline_tag: tabular-classification",
        "tags:",
        *(f"- {tag}" for tag in TAGS),
        f"- {json.dumps(config['architecture'])}",
        "metrics:",
        *(f"- {metric}" for metric, _ in METRICS.values()),
    ]
    defined = {key: shipped[key] for key in METRICS if shipped[key] is not None}
    if not defined:
        return "\n".join(lines)
    lines += [
        "model-index:",
        f"- name: {json.dumps(_name(report, config))}",
        "  results:",
        "  - task:",
        "      type: tabular-classification",
        "      name: click-through rate prediction",
        "    dataset:",
        f"      name: {json.dumps(data['name'] if data else 'unknown')}",
        f"      type: {json.dumps(data.get('preset', 'unknown') if data else 'unknown')}",
        "      split: test",
        "    metrics:",
    ]
    for key, figure in defined.items():
        (metric, name), value = METRICS[key], json.dumps(round(figure, 6))
        lines += [f"    - type: {metric}", f"      name: {name}", f"      value: {value}"]
    return "\n".join(lines)


def _details(config: Mapping[str, Any], figures: Headline) -> str:
    shipped, baseline = figures.shipped, figures.baseline
    settings = ", ".join(f"{key} {value}" for key, value in config["hyper_parameters"].items())
    return "\n".join(
        [
            f"- Architecture: {plain(config['architecture'])} ({plain(settings)}), compressed by afm-dist.",
            f"- Size: {text.count(shipped['bytes'])} bytes, {text.count(shipped['parameters'])} parameters; "
            f"before {text.count(baseline['bytes'])} bytes, {text.count(baseline['parameters'])} parameters.",
            "- Files: `config.json` and safetensors; nothing is pickled.",
        ]
    )


def _plan(config: Mapping[str, Any]) -> str:
    entries = Plan.from_json(config["compression"]).entries
    if not entries:
        return "Nothing was compressed."
    details = [entry.config.details() for entry in entries]
    columns = list(dict.fromkeys(column for own in details for column in own))
    rows = [
        [
            plain(entry.name),
            plain(entry.config.label),
            *(plain(own.get(column, text.NONE)) for column in columns),
        ]
        for entry, own in zip(entries, details, strict=True)
    ]
    return markdown_table(["Module", "Method", *columns], rows, 2 + len(columns))


def _data(report: Report) -> str:
    data = report.get("data")
    if not data:
        return "Not recorded."
    lines = [f"- {plain(data['name'])}" + (f", preset {plain(data['preset'])}" if "preset" in data else "")]
    for name, split in (data.get("splits") or {}).items():
        rate = f", {label_rate(split['positive_share'])} positive" if "positive_share" in split else ""
        lines.append(f"- {plain(name)}: {text.count(split['rows'])} rows{rate}")
    fields = text.listed([f"{number} {plain(kind)}" for kind, number in (data.get("fields") or {}).items()])
    lines.append(f"- Fields: {fields}; {text.count(data.get('ids', 0))} ids")
    if "fingerprint" in data:
        lines.append(f"- Fingerprint of the prepared data: `{data['fingerprint']}`")
    return "\n".join(lines)


def _evaluation(report: Report, figures: Headline) -> str:
    rows: list[tuple[str, Row]] = [("this model", figures.shipped)]
    if figures.control is not None and figures.control is not figures.baseline:
        rows.append(("control", figures.control))
    rows.append(("baseline", figures.baseline))
    body = [
        [
            name,
            text.measured(row["auc"]),
            text.signed(auc_difference(figures.shipped, row)) if row is not figures.shipped else text.NONE,
            text.measured(row["log_loss"]),
            text.measured(row["calibration"]) if "calibration" in row else text.NONE,
            text.megabytes(row["bytes"]),
            text.ratio(row["throughput_ratio"]),
        ]
        for name, row in rows
    ]
    columns = [
        "",
        "AUC",
        "This model's AUC over it",
        "Log loss",
        "Predicted over observed clicks",
        "MB",
        "Speed",
    ]
    table = markdown_table(columns, body, 1)
    data: Mapping[str, Any] = report.get("data") or {}
    bayes = data.get("bayes_auc")
    if bayes is None:
        return table
    return f"{table}\n\nThe log is synthetic: the best AUC any model can reach is {text.score(bayes)}."


def _limitations(report: Report, figures: Headline, vocabularies: bool) -> str:
    """What is known of the model's limits, from figures where there are any."""
    data: Mapping[str, Any] = report.get("data") or {}
    items = ["It knows one log. Where clicks or fields drift from it, its probabilities do, too."]
    unknown = _most_unknown(data.get("description") or {})
    if unknown is not None:
        name, share = unknown
        items.append(
            f"A token it has not seen in training is id 0, all alike. On the test split that is at most "
            f"{percent(share)} % of a field's rows ({plain(name)}); later rows have more."
        )
    ratio = figures.shipped.get("calibration")
    if ratio is not None:
        items.append(
            f"It predicts {ratio:.3f} times the clicks of the test split. Recalibrate it before prices "
            "depend on it."
        )
    test = (data.get("splits") or {}).get("test")
    if test and "positive_share" in test:
        error = auc_error(figures.shipped["auc"], test["rows"], test["positive_share"])
        if error is not None:
            items.append(
                f"Its AUC is of {text.count(test['rows'])} rows and one seed: others of that number would "
                f"move it by about ±{error:.4f} (one standard error)."
            )
    if vocabularies:
        items.append(
            "`preprocessing/` holds the vocabularies, with the tokens as they stand in the log. See that "
            "they may be passed on, or remove that folder: the model loads without it, but no raw rows are "
            "scored."
        )
    return "\n".join(f"- {item}" for item in items)


def _most_unknown(description: Mapping[str, Any]) -> tuple[str, float] | None:
    """The field whose test rows have the largest share of unknown tokens, and that share."""
    shares = {
        field["name"]: field["unknown_share"]["test"]
        for field in description.get("categorical", ())
        if field["unknown_share"].get("test") is not None
    }
    return max(shares.items(), key=lambda item: item[1]) if shares else None


def _origin(report: Report) -> str:
    environment = report.get("environment") or {}
    parts = []
    if environment:
        made = [f"afm-dist {environment.get('afm_dist', '?')}"]
        made += [f"{name} {version}" for name, version in (environment.get("packages") or {}).items()]
        made.append(f"revision {environment.get('git_revision', 'unknown')}")
        parts.append(f"{plain(', '.join(made))}; {plain(report.get('created', ''))}.")
    if report.get("command"):
        parts.append(fenced(report["command"]))
    parts.append(
        "The whole evidence (every model that was tried, spectra, curves) is in `report/report.html` of the "
        "run. Method: Yu et al., [KDD 2024](https://doi.org/10.1145/3637528.3671520)."
    )
    return "\n\n".join(parts)
