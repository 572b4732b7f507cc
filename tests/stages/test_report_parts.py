from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from afm_dist.dataset.manifest import Manifest
from afm_dist.stages.report_parts import data_facts
from tests.small_dataset import write_vocabulary


def test_data_with_vocabularies_of_another_order_are_reported_without_a_description(
    dataset: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    first = dataset.categorical[0]
    rising = write_vocabulary(dataset.location, first.name, np.arange(first.cardinality))
    dataset = replace(dataset, vocabulary={**dataset.vocabulary, first.name: rising})

    facts = data_facts(dataset)

    assert "description" not in facts
    assert facts["splits"]["train"]["rows"] > 0
    assert "descending count" in capsys.readouterr().err


def test_the_best_auc_of_rows_with_one_label_is_left_out(dataset: Manifest) -> None:
    dataset = replace(dataset, facts={"bayes_auc": None, "bayes_log_loss": 0.1, "bayes_split": "test"})

    facts = data_facts(dataset)

    assert "bayes_auc" not in facts
    assert facts["bayes_log_loss"] == 0.1
