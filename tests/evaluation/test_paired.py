"""The paired test over seeds, beside SciPy's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from afm_dist.evaluation.paired import paired, student_p


@given(st.floats(-50, 50), st.integers(1, 40))
def test_p_is_that_of_student_s_distribution(t: float, degrees: int) -> None:
    # SciPy's own error: for t = 2.5e-5 and one degree it is 1.9e-12 from 1 − 2/π·atan(t), ours 0.
    assert student_p(t, degrees) == pytest.approx(2 * stats.t.sf(abs(t), degrees), abs=1e-11)


@given(
    st.lists(st.floats(-1, 1).map(lambda x: round(x, 6)), min_size=2, max_size=9).filter(
        lambda x: len(set(x)) > 1
    )
)
def test_paired_test_agrees_with_scipy(differences: list[float]) -> None:
    found = paired(differences)
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=1e-9)


def test_what_no_seed_changes_is_not_tested() -> None:
    for found in (paired([0.0, 0.0]), paired([0.1, 0.1, 0.1])):
        assert found.p is None
        assert not found.noise
    with pytest.raises(ValueError, match="two differences"):
        paired([0.1])
