"""One score for each input row: what may be missing, unknown, superfluous or malformed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afm_dist.errors import DataError, OptionError
from data_prep.protocol import ColumnRule, Protocol
from data_prep.scoring.pipeline import predict
from data_prep.scoring.source import open_source
from data_prep.sources.avazu import AvazuSource
from data_prep.sources.criteo import CriteoSource
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from tests.data_prep.in_this_process import in_this_process
from tests.data_prep.raw_logs import avazu_text, criteo_text
from tests.data_prep.scoring.conftest import HEADER, clicks, write_csv
from tests.data_prep.scoring.models import Trained, train

ROW = ["u1", "a", "3.5"]


def test_unknown_token_is_scored_as_the_unknown_of_its_field(trained: Trained, tmp_path: Path) -> None:
    rows = write_csv(
        tmp_path / "rows.csv", HEADER[:3], [["never seen", "a", "1"], ["nor this", "a", "1"], ROW]
    )

    summary = trained.predict(tmp_path / "scores.parquet", rows)
    first, second, third = pq.read_table(tmp_path / "scores.parquet")["score"].to_pylist()

    assert first == second != third
    assert summary.unknown == {"user": pytest.approx(2 / 3), "ad": 0.0}


def test_missing_token_and_missing_number_are_those_of_the_training_data(
    trained: Trained, tmp_path: Path
) -> None:
    rows = write_csv(
        tmp_path / "rows.csv",
        HEADER[:3],
        [["u1", "", "3.5"], ["u1", "a", "NA"], ["u1", "a", ""], ["u1", "unknown", "3.5"]],
    )

    no_ad, no_price, neither_price, other_ad = trained.scores(tmp_path, rows)

    assert no_price == neither_price
    assert no_ad != other_ad


def test_order_of_columns_further_columns_and_labels_do_not_matter(trained: Trained, tmp_path: Path) -> None:
    plain = write_csv(tmp_path / "plain.csv", HEADER[:3], [ROW] * 2)
    other = tmp_path / "other.csv"
    other.write_text('price,junk,click,ad,user\n3.5,"a, ""b""",no label,a,u1\n3.5,,,a,u1\n')

    assert trained.scores(tmp_path, plain) == trained.scores(tmp_path, other)


ODD = {"index": "", "slash": "a/b", "long": "n" * 300, "alike": "junk", "told apart": "junk (column 6)"}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_names_of_columns_that_are_not_read_do_not_matter(
    trained: Trained, tmp_path: Path, odd: str, suffix: str
) -> None:
    names, values = [ODD[odd], *HEADER[:3], "junk", "junk"], ["7", *ROW, "y", "z"]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        # A quote: the file is read as a whole.
        write_csv(path, names, [values] * 2 + [[*values[:4], '"y"', "z"]])
    else:
        columns = [pa.array([float(v) if v == ROW[2] else v] * 3) for v in values]
        pq.write_table(pa.Table.from_arrays(columns, names), path)

    scores = trained.scores(tmp_path, path)

    assert scores == trained.scores(tmp_path, write_csv(tmp_path / "plain.csv", HEADER[:3], [ROW] * 3))


def test_columns_that_are_read_are_named_once(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two columns are named 'ad'"):
        trained.source(write_csv(tmp_path / "rows.csv", [*HEADER[:3], "ad"], [[*ROW, "b"]]))


def test_files_may_differ_in_columns_that_are_not_read(trained: Trained, tmp_path: Path) -> None:
    rows = [write_csv(tmp_path / "1.csv", HEADER[:3], [ROW]), tmp_path / "2.csv"]
    write_csv(rows[1], ["x", *reversed(HEADER[:3])], [["y", *reversed(ROW)]])

    first, second = trained.scores(tmp_path, *rows)

    assert first == second
    lacking = write_csv(tmp_path / "3.csv", ["x", *HEADER[:2]], [["y", *ROW[:2]]])
    with pytest.raises(DataError, match=r"3\.csv: has no column price; it has: x, user, ad"):
        trained.source(*rows, lacking)
    with pytest.raises(OptionError, match=r"--keep x: .*1\.csv has no such column"):
        trained.source(rows[1], rows[0], keep=("x",))


def test_columns_to_carry_along_have_one_type_in_all_files(trained: Trained, tmp_path: Path) -> None:
    def write(name: str, ids: pa.Array) -> Path:
        pq.write_table(pa.table({"user": ["u1"], "ad": ["a"], "price": [1.0], "id": ids}), tmp_path / name)
        return tmp_path / name

    texts = write("text", pa.array(["a"])), write("large", pa.array(["b"], pa.large_string()))
    nothing = write("none", pa.nulls(1))
    numbers = write("integer", pa.array([2**60])), write("float", pa.array([0.5]))

    trained.predict(tmp_path / "scores.parquet", nothing, *texts, keep=("id",))

    assert pq.read_table(tmp_path / "scores.parquet")["id"].to_pylist() == [None, "a", "b"]
    for paths in (numbers, numbers[::-1], (texts[0], numbers[0])):
        types = [str(pq.read_schema(path).field("id").type) for path in paths]
        message = (
            f"--keep id: .* type {types[1]} in {paths[1]}, but {types[0]} in {paths[0]}; write the files"
        )
        with pytest.raises(OptionError, match=message):
            trained.source(*paths, keep=("id",))


def test_parquet_and_csv_of_the_same_rows_score_alike(trained: Trained, tmp_path: Path) -> None:
    rows = [row[:3] for row in clicks(50, seed=3)]
    table = pl.DataFrame(rows, schema=HEADER[:3], orient="row").with_columns(
        pl.col("price").cast(pl.Float64, strict=False), tags=pl.lit(1.5)
    )
    table.write_parquet(tmp_path / "rows.parquet", row_group_size=20)

    in_csv = trained.scores(tmp_path, write_csv(tmp_path / "rows.csv", HEADER[:3], rows))

    assert trained.scores(tmp_path, tmp_path / "rows.parquet") == in_csv


def test_missing_columns_are_named(trained: Trained, tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "rows.csv", ["price", "site"], [["1", "s"]])

    with pytest.raises(DataError, match=r"rows\.csv: has no column user, ad; it has: price, site"):
        trained.source(rows)


def test_column_of_another_type_is_refused(trained: Trained, tmp_path: Path) -> None:
    pl.DataFrame({"user": [1.0, None], "ad": ["a", "b"], "price": [1, 2]}).write_parquet(
        tmp_path / "rows.parquet"
    )

    with pytest.raises(DataError, match=r"column 'user' holds double values where .* trained on text"):
        trained.source(tmp_path / "rows.parquet")


def test_a_single_row_is_scored(trained: Trained, tmp_path: Path) -> None:
    (score,) = trained.scores(tmp_path, write_csv(tmp_path / "rows.csv", HEADER[:3], [ROW]))

    assert score is not None
    assert 0 < score < 1


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_header_without_rows_gives_a_result_without_rows(
    trained: Trained, tmp_path: Path, suffix: str
) -> None:
    rows = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        rows.write_text("user,ad,price\n")
    else:
        pq.write_table(pa.table({"user": ["a"], "ad": ["a"], "price": [1.0]}).slice(1), rows)

    trained.predict(tmp_path / "scores.parquet", rows, keep=("user",))

    result = pq.read_table(tmp_path / "scores.parquet")
    assert (result.num_rows, result.column_names) == (0, ["row", "score", "logit", "user"])


def test_an_empty_file_is_refused(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("")

    with pytest.raises(DataError, match="the file is empty"):
        trained.source(tmp_path / "rows.csv")


MALFORMED = 'user,ad,price\nu1,a,1\nu2,a\n\nu3,"x\ny",2\nu4,a,dear\nu5,a,5\nu6,a,6,7\n'


def test_malformed_rows_keep_their_place_without_a_score(trained: Trained, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(MALFORMED)

    summary = trained.predict(tmp_path / "scores.parquet", rows, keep=("user",), max_bad_rows=0.5)

    result = pq.read_table(tmp_path / "scores.parquet")
    assert (summary.rows, summary.rejected) == (6, 3)
    assert result["row"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert result["user"].to_pylist() == ["u1", None, "u3", None, "u5", None]
    for name in ("score", "logit"):
        assert [value is None for value in result[name].to_pylist()] == [False, True] * 3
    (file,) = Path(f"{tmp_path}/scores.parquet.rejected").iterdir()
    bad = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(each["line"], each["reason"]) for each in bad] == [
        (3, "2 fields instead of 3"),
        (7, "price 'dear' is not a finite number"),
        (9, "4 fields instead of 3"),
    ]


def test_rows_that_are_malformed_without_exception_have_no_score(trained: Trained, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("user,ad,price\nu1,a,dear\nu1\nu1,a,cheap\n")

    assert trained.scores(tmp_path, rows) == [None] * 3


def test_too_many_malformed_rows_end_the_job_which_goes_on_when_they_are_allowed(
    trained: Trained, tmp_path: Path
) -> None:
    rows, output = tmp_path / "rows.csv", tmp_path / "scores.parquet"
    rows.write_text(MALFORMED)

    with pytest.raises(DataError, match=r"3 of 6 rows .* --max-bad-rows 0\.1 allows; .*rows\.csv:3 2 fields"):
        trained.predict(output, rows, max_bad_rows=0.1)

    assert not output.exists()
    trained.predict(output, rows, max_bad_rows=0.5)
    assert pq.read_metadata(output).num_rows == 6
    assert not Path(f"{output}.work").exists()


@pytest.fixture(scope="module")
def plain_numbers(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model that takes prices as they are, but for mean and deviation."""
    folder = tmp_path_factory.mktemp("numbers")
    with in_this_process():
        log = write_csv(folder / "clicks.csv", HEADER, clicks(100))
        rules = Protocol(columns=(ColumnRule(column="price", transform="number"),))
        return train(log, TabularSource([str(log)], ColumnOptions(label="click")), rules, folder)


def test_row_of_an_extreme_number_is_malformed(plain_numbers: Trained, tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "rows.csv", HEADER[:3], [ROW, ["new", "a", "1e39"], ROW])

    model = plain_numbers.model
    for parameter in model.parameters():
        parameter.data *= 100
    scoring = model, plain_numbers.manifest, plain_numbers.source(rows), str(tmp_path / "scores.parquet")

    summary = predict(*scoring, max_bad_rows=0.5)

    first, extreme, last = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert (extreme["score"], extreme["logit"], summary.rejected) == (None, None, 1)
    assert first["logit"] == last["logit"] is not None
    assert summary.unknown["user"] == 0
    with pytest.raises(DataError, match=r"1 of 3 rows .*rows\.csv:3 price 1e\+39 is so extreme"):
        predict(*scoring)


def test_model_without_finite_logits_is_to_blame_where_inputs_are_sane(
    plain_numbers: Trained, tmp_path: Path
) -> None:
    rows, model = write_csv(tmp_path / "rows.csv", HEADER[:3], [ROW]), plain_numbers.model
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))

    with pytest.raises(DataError, match=r"rows\.csv:2 has a logit that is not finite; the model diverged"):
        predict(model, plain_numbers.manifest, plain_numbers.source(rows), str(tmp_path / "scores.parquet"))


def test_columns_are_carried_along_with_their_types(trained: Trained, tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array([2**60, None], pa.int64()),
            "user": pa.array(["u1", "u2"]).dictionary_encode(),
            "ad": ["a", "b"],
            "price": [1.0, 2.0],
            "at": pa.array([0, 1], pa.timestamp("ms")),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")

    trained.predict(tmp_path / "scores.parquet", tmp_path / "rows.parquet", keep=("at", "user", "id"))

    kept = pq.read_table(tmp_path / "scores.parquet").select(["at", "user", "id"])
    assert kept.equals(table.select(["at", "user", "id"]).cast(kept.schema))
    assert kept.schema.types == [pa.timestamp("ms"), pa.string(), pa.int64()]


def test_views_are_carried_along_past_malformed_rows(trained: Trained, tmp_path: Path) -> None:
    columns = {"user": ["u1", "u2"], "ad": ["a", "b"], "price": [1.0, float("inf")]}
    views = {"text": pa.array(["x", None], pa.string_view()), "raw": pa.array([b"y", b"z"], pa.binary_view())}
    pq.write_table(pa.table({**columns, **views}), tmp_path / "rows.parquet")

    trained.predict(
        tmp_path / "scores.parquet", tmp_path / "rows.parquet", keep=("text", "raw"), max_bad_rows=0.5
    )

    kept = pq.read_table(tmp_path / "scores.parquet").select(["text", "raw"])
    assert kept.to_pydict() == {"text": ["x", None], "raw": [b"y", None]}


def test_a_column_whose_rows_arrow_cannot_select_is_refused(trained: Trained, tmp_path: Path) -> None:
    tags = pa.array([["x"], []], pa.list_(pa.string_view()))
    columns = {"user": ["u1", "u2"], "ad": ["a", "b"], "price": [1.0, 2.0], "tags": tags}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")

    with pytest.raises(OptionError, match=r"--keep tags: .*rows\.parquet has type list<.*string_view>"):
        trained.source(tmp_path / "rows.parquet", keep=("tags",))


def test_an_empty_file_does_not_decide_the_format(trained: Trained, tmp_path: Path) -> None:
    empty, rows = tmp_path / "empty", tmp_path / "rows.parquet"
    empty.touch()
    pq.write_table(pa.table({"user": ["u1"], "ad": ["a"], "price": [1.0]}), rows)
    of_a_log = replace(trained.manifest, facts={**trained.manifest.facts, "source": "criteo"})

    source = open_source([str(empty), str(rows)], of_a_log)

    assert (source.kind, source.paths) == ("tabular", (str(rows),))


@pytest.mark.parametrize(
    ("keep", "message"), [(("id",), "--keep id: .* it has: user"), (("score",), "of its own")]
)
def test_columns_that_cannot_be_carried_along_are_refused(
    trained: Trained, tmp_path: Path, keep: tuple[str, ...], message: str
) -> None:
    rows = write_csv(tmp_path / "rows.csv", [*HEADER[:3], "score"], [[*ROW, "1"]])

    with pytest.raises(OptionError, match=message):
        trained.predict(tmp_path / "scores.parquet", rows, keep=keep)


def test_several_files_are_scored_in_natural_order(trained: Trained, tmp_path: Path) -> None:
    paths = [
        write_csv(tmp_path / f"day_{day}.csv", HEADER[:3], [[f"u{day}", "a", "1"]] * day) for day in (1, 2)
    ]

    together = trained.scores(tmp_path, *paths)

    assert together == [score for path in paths for score in trained.scores(tmp_path, path)]


def test_criteo_rows_need_no_label(tmp_path: Path) -> None:
    log, test = tmp_path / "train.txt", tmp_path / "test.txt"
    log.write_text(criteo_text(200))
    trained = train(log, CriteoSource([str(log)]), Protocol(), tmp_path)
    lines = log.read_text().splitlines()
    test.write_text("".join(line.partition("\t")[2] + "\n" for line in lines))

    with_label = trained.scores(tmp_path, log)

    assert trained.scores(tmp_path, test, keep=("C1",)) == with_label
    assert pq.read_table(tmp_path / "scores.parquet")["C1"].to_pylist() == [
        line.split("\t")[14] or None for line in lines
    ]
    unlabelled = tmp_path / "unlabelled.txt"
    unlabelled.write_text(log.read_text().replace("\n0\t", "\n\t"))
    assert trained.scores(tmp_path, unlabelled) == with_label


def test_label_is_absent_from_all_files_that_hold_rows_or_from_none(tmp_path: Path) -> None:
    text = criteo_text(20)
    empty, with_label, without = (tmp_path / name for name in ("empty", "with", "without"))
    empty.write_text("")
    with_label.write_text(text)
    without.write_text("".join(line.partition("\t")[2] + "\n" for line in text.splitlines()))
    malformed = tmp_path / "malformed"
    malformed.write_text(without.read_text().partition("\n")[0] + "\n" + text)

    def rejected(*paths: Path) -> int:
        source = CriteoSource([str(path) for path in paths], labelled=False)
        return sum(len(rows.rejected) for block in source.blocks() for rows in source.read(block, 0))

    assert rejected(empty, without) == rejected(empty, with_label) == 0
    assert rejected(malformed, with_label) == 1
    for paths in ((without, with_label), (with_label, empty, without)):
        with pytest.raises(DataError, match=f"{without}: its lines have a field less than .*{with_label}"):
            rejected(*paths)


def test_avazu_rows_need_no_label_and_carry_their_id_along(tmp_path: Path) -> None:
    log, test = tmp_path / "train.csv", tmp_path / "test.csv"
    log.write_text(avazu_text(200))
    hours = Protocol(columns=(ColumnRule(column="hour", transform="hour-of-day", time_format="%y%m%d%H"),))
    trained = train(log, AvazuSource([str(log)]), hours, tmp_path)
    fields = [line.split(",") for line in log.read_text().splitlines()]
    fields[7][2] = "noon"
    test.write_text("".join(",".join([row[0], *row[2:]]) + "\n" for row in fields))

    scores = trained.scores(tmp_path, test, keep=("id",))

    kept = pq.read_table(tmp_path / "scores.parquet")["id"].to_pylist()
    assert kept == [row[0] if number != 6 else None for number, row in enumerate(fields[1:])]
    assert scores[6] is None
    expected = trained.scores(tmp_path, log)
    assert scores[:6] + scores[7:] == pytest.approx(expected[:6] + expected[7:], abs=1e-6)


def test_model_for_a_text_log_scores_a_table_with_its_columns(tmp_path: Path) -> None:
    log = tmp_path / "train.txt"
    log.write_text(criteo_text(200))
    trained = train(log, CriteoSource([str(log)]), Protocol(), tmp_path)
    names = [*CriteoSource.names]
    frame = pl.read_csv(
        log, separator="\t", has_header=False, new_columns=names, infer_schema=False
    ).with_columns(pl.col("^I.*$").cast(pl.Int64))
    frame.drop("label").write_parquet(tmp_path / "rows.parquet")

    assert trained.scores(tmp_path, tmp_path / "rows.parquet") == trained.scores(tmp_path, log)
    unlike = write_csv(tmp_path / "rows.csv", names, [])
    advice = (
        "; no --source was given, and the model was trained on criteo text: for a CSV give --source tabular"
    )
    with pytest.raises(DataError, match=f"no tab in the first line.*{advice}"):
        trained.source(unlike)
    with pytest.raises(DataError, match=r"no tab in the first line.*tab-separated fields$"):
        open_source([str(unlike)], trained.manifest, name="criteo")


def test_source_without_the_columns_of_the_model_is_refused(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(avazu_text(3))

    with pytest.raises(OptionError, match=r"--source avazu: .* no column user, ad, price"):
        open_source([str(tmp_path / "rows.csv")], trained.manifest, name="avazu")


def test_named_source_is_taken_where_that_of_the_training_data_is_unknown(
    trained: Trained, tmp_path: Path
) -> None:
    rows = [str(write_csv(tmp_path / "rows.csv", HEADER[:3], [ROW]))]
    unknown = replace(trained.manifest, facts={"source": "of the future"})

    assert open_source(rows, unknown, name="tabular").paths == tuple(rows)
    with pytest.raises(DataError, match="its source 'of the future' is unknown; name one with --source"):
        open_source(rows, unknown)


def test_damaged_vocabulary_is_refused_by_name(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(Path(trained.checkpoint), tmp_path / "checkpoint")
    damaged = Trained(trained.log, trained.data, str(tmp_path / "checkpoint"))
    path = tmp_path / "checkpoint" / "preprocessing" / "vocabulary" / "ad.parquet"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(DataError, match=r"checkpoint/preprocessing/vocabulary/ad\.parquet: \d+ bytes where"):
        damaged.predict(tmp_path / "scores.parquet")


def test_integers_of_a_parquet_column_are_the_tokens_of_a_csv(tmp_path: Path) -> None:
    days = [[str(n % 7), str(int(n % 3 == 0))] for n in range(100)]
    log = write_csv(tmp_path / "log.csv", ["day", "click"], days)
    trained = train(log, TabularSource([str(log)], ColumnOptions(label="click")), Protocol(), tmp_path)
    pl.DataFrame({"day": list(range(9))}).write_parquet(tmp_path / "rows.parquet")
    rows = write_csv(tmp_path / "rows.csv", ["day"], [[str(n)] for n in range(9)])

    scores = trained.scores(tmp_path, rows)

    assert trained.scores(tmp_path, tmp_path / "rows.parquet") == scores
    assert len(set(scores)) == 8  # seven known tokens, and the unknown twice
