"""Own tables: files and frames in, types proposed, rows and units kept, columns by name."""

import gzip
import json
import types

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

import pyrovae
from pyrovae import data, guides, models, nn, priors
from pyrovae.data import Table
from pyrovae.tables import Encoding, Scaling
from pyrovae.tables.frames import replaced

pytest.importorskip("hypothesis", reason="the tests of tables need hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

RNG = np.random.default_rng(0)
N = 60


def survey(rows=N):
    """A table of every kind of column, with missing cells."""
    rng = np.random.default_rng(rows)
    frame = pd.DataFrame(
        {
            "id": [f"p{i:03d}" for i in range(rows)],
            "age": rng.normal(45, 12, rows).round(1),
            "income": rng.lognormal(8, 1, rows).round(2),
            "visits": rng.poisson(2, rows),
            "smoker": rng.choice(["no", "yes"], rows),
            "grade": rng.integers(1, 8, rows),
            "region": pd.Categorical(rng.choice(["north", "south", "east"], rows), ["north", "south", "east", "west"]),
            "size": pd.Categorical(rng.choice(["S", "M", "L"], rows), ["S", "M", "L"], ordered=True),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 90, rows), "D"),
            "comment": [" ".join(rng.choice(list("abcdefgh"), 5)) + f" {i}" for i in range(rows)],
            "unit": "cm",
        }
    )
    return frame


ROLES = {"id": "id", "day": "time", "comment": "drop", "unit": "drop"}


def holed(frame, names=("age", "smoker", "region"), share=0.1):
    rng = np.random.default_rng(1)
    return replaced(frame, {name: frame[name].mask(rng.random(len(frame)) < share) for name in names})


# types


def test_types_are_proposed():
    proposed = data.describe(survey())
    assert proposed["type"].to_dict() == {
        "id": "id", "age": "continuous", "income": "positive", "visits": "count", "smoker": "binary",
        "grade": "ordinal", "region": "categorical", "size": "ordinal", "day": "date", "comment": "text",
        "unit": "constant",
    }  # fmt: skip
    assert proposed["likelihood"].to_dict()["region"] == "Categorical"
    assert proposed.loc["size", "levels"] == "S, M, L"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([3 * k + k % 2 for k in range(200)], "id"), ([1_000_003 * k % 900_001 for k in range(30)], "count"),
        ([0, 1, 1, 0], "binary"), ([0.0, 1.0, None, 0.0], "binary"), ([1, 2, 3, 2], "ordinal"), ([0, 3, 9, 2], "count"),
        ([-1, 3, 9, 2], "continuous"), ([19, 45, 91, 20], "continuous"), (list(range(100, 150)), "id"),
        ([1999, 2003, 2010, 2011], "continuous"), ([5, 5, 5], "constant"), ([None, None], "constant"),
        ([0.5, 0.1, 0.2, 9.0, 100.0], "positive"), ([0.0, 0.1, 0.2, 9.0, 100.0], "continuous"),
        (["2024-01-31", "2023-12-01", "2024-02-02"], "date"), (["31/01/2024", "01/12/2023", "02/02/2024"], "date"),
        (["1.5.1", "2.0.1", "2.1.0"], "categorical"), ([True, False, None], "binary"), (["x"] * 4, "constant"),
        ([f"a long answer {k}" for k in range(30)], "text"), ([f"k{k}" for k in range(30)], "id"),
        ([f"k{k % 40}" for k in range(500)], "categorical"), ([1.5, 2.5, 2.5], "binary"),
    ],
)  # fmt: skip
def test_the_type_of_a_column(values, kind):
    assert data.describe(pd.DataFrame({"v": values}))["type"]["v"] == kind


def test_types_levels_and_scalings_are_overridden_by_name():
    table = Table(
        survey(), roles=ROLES, types={"grade": "categorical", "visits": "ordinal", "income": "continuous"},
        levels={"smoker": ["yes", "no"]}, scaling={"age": "rank", "income": "none"},
    )  # fmt: skip
    described = table.describe()
    assert described["type"][["grade", "visits", "income"]].tolist() == ["categorical", "ordinal", "continuous"]
    assert described["levels"]["smoker"] == "yes, no"
    assert described["scaling"][["age", "income"]].tolist() == ["rank", "none"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"roles": {"ages": "drop"}}, "roles names 'ages', which is no column of the table; it has id, age"),
        ({"roles": {"age": "covariat"}}, "did you mean 'covariate'"),
        ({"types": {"age": "number"}}, "types of 'age' must be one of continuous"),
        ({"types": {"comment": "ordinal"}}, "its categories have no order of their own: give levels"),
        ({"types": {"grade": "binary"}}, "'grade' is said to be binary, and has 7 different values"),
        ({"types": {"age": "count"}}, "'age' is a count .* and holds .* correct it, mark it as missing"),
        ({"types": {"smoker": "continuous"}}, "column 'smoker' is numeric, and holds 'no' in row"),
        ({"levels": {"smoker": ["yes", "never"]}}, "levels of 'smoker' lack 'no'"),
        ({"scaling": {"smoker": "log"}}, "'smoker', which is binary and has no scale"),
        ({"scaling": "logit"}, "scaling must be one of none, standardise, log, rank, got 'logit'"),
        ({"roles": {"age": "id", "visits": "id"}}, "gives 'age' and 'visits' the role 'id'"),
        ({"missing": {"ages": [9]}}, "missing names 'ages'"),
        ({"missing": 9}, "missing must be a list of values"),
        ({"roles": dict.fromkeys(survey(), "drop")}, "no column in the role 'outcome'"),
        ({"types": ["age"]}, "types must be a dict from names of columns"),
    ],
)
def test_wrong_words_get_one_sentence(options, said):
    with pytest.raises(ValueError, match=said):
        Table(survey(), **{"roles": ROLES, **options})


def test_all_columns_that_no_model_observes_are_named_in_one_sentence():
    with pytest.raises(ValueError, match=r"'id' \(an id\), 'day' \(dates\), 'comment' \(texts\), 'unit' \(does"):
        Table(survey())


# round trips

NAMES = st.lists(
    st.text(st.characters(codec="ascii", categories=["L"]), min_size=1), min_size=1, max_size=6, unique=True
)


def holes(values):
    return st.one_of(values, st.none())


@st.composite
def columns(draw, rows):
    kind = draw(st.sampled_from(["float", "float32", "int", "Int64", "bool", "boolean", "text", "object", "category"]))
    of = {
        "float": holes(st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-100)),
        "float32": holes(st.floats(-1e3, 1e3, width=32)),
        "int": st.integers(-(2**50), 2**50), "Int64": holes(st.integers(0, 500)), "bool": st.booleans(),
        "boolean": holes(st.booleans()), "text": holes(st.sampled_from("abcd")),
        "object": holes(st.sampled_from("xyz")),
        "category": holes(st.sampled_from(["low", "mid", "high"])),
    }[kind]  # fmt: skip
    values = draw(st.lists(of, min_size=rows, max_size=rows))
    if kind == "category":
        order = draw(st.permutations(["low", "mid", "high"]))
        return pd.Series(pd.Categorical(values, order, ordered=draw(st.booleans())))
    dtype = {"float": "float64", "int": "int64", "text": "str"}.get(kind, kind)
    return pd.Series(values, dtype=dtype)


@st.composite
def tables(draw):
    rows = draw(st.integers(2, 30))
    frame = pd.DataFrame({name: draw(columns(rows)) for name in draw(NAMES)})
    kinds = data.describe(frame)["type"]
    roles = {name: "drop" for name, kind in kinds.items() if kind in ("constant", "id", "text", "date")}
    kept = frame.drop(columns=list(roles))
    filled = ~kept.isna().all(axis=1)
    return frame[filled].reset_index(drop=True), draw(st.sampled_from([None, "rank", "standardise"]))


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables())
def test_a_table_becomes_numbers_and_comes_back(drawn):
    frame, scaling = drawn
    if not len(frame):
        return
    kinds = data.describe(frame)["type"]
    dropped = {name: "drop" for name, kind in kinds.items() if kind in ("constant", "id", "text", "date")}
    expected = frame.drop(columns=list(dropped))
    if not len(expected.columns) or expected.isna().all(axis=1).any():
        return
    table = Table(frame, roles=dropped, scaling=scaling)
    pd.testing.assert_frame_equal(table.to_frame(), expected, check_exact=True)
    again = Encoding.of(json.loads(json.dumps(table.encoding.described())))
    assert again.described() == table.encoding.described()
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_default_dtype", lambda: torch.float64)
        values = table.batch(slice(None))[0]
    back = table.to_frame(values)
    for name in expected:
        column = expected[name]
        assert back[name].isna().equals(column.isna())
        if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
            spread = max(1.0, float(column.astype(float).abs().max()))
            np.testing.assert_allclose(
                back[name].astype(float), column.astype(float), atol=1e-9 * spread, rtol=1e-6, equal_nan=True
            )
        else:
            pd.testing.assert_series_equal(back[name], column)


def test_own_units_come_back_from_draws_and_means():
    table = Table(survey(), roles=ROLES)
    x = table.batch(slice(0, 3))[0]
    x[0, table.feature_names.index("visits")] = 2.5  # a mean
    frame = table.to_frame(x)
    assert frame["visits"].tolist()[0] == 2.5
    assert frame["smoker"].tolist() == survey()["smoker"].tolist()[:3]
    assert frame["region"].cat.categories.tolist() == ["north", "south", "east", "west"]
    np.testing.assert_allclose(frame["income"], survey()["income"][:3], rtol=1e-5)
    with pytest.raises(ValueError, match=r"values \[N, 7\] of age, income"):
        table.to_frame(x[:, :3])
    whole = Table(survey().set_index("id"), roles={k: v for k, v in ROLES.items() if k != "id"})
    means = whole.to_frame(whole.batch(slice(None))[0] + 0.25)  # as many rows as the table has
    assert not means[["visits", "age"]].isna().any().any()
    assert means.index.tolist() == list(range(N))
    assert means["region"].isna().all()  # between two unordered categories there is none
    assert whole.to_frame(whole.batch(slice(None))[0], index=whole.index).index.tolist() == survey()["id"].tolist()


# scales


def test_scales_are_taken_from_the_training_part_alone():
    """The held-out rows are made a thousand times larger: nothing of the training part may change."""
    frame = survey()
    train, _, test = Table(frame, roles=ROLES).splits(test=0.5, seed=3)
    numbers = {id: row for row, id in enumerate(frame["id"])}
    held_out = [numbers[name] for part in (_, test) for name in part.index]
    moved = frame.copy()
    moved.loc[held_out, ["age", "income"]] *= 1000
    again, _, far = Table(moved, roles=ROLES).splits(test=0.5, seed=3)
    assert train.encoding.described() == again.encoding.described()
    assert train.batch(slice(None))[0].equal(again.batch(slice(None))[0])
    ages = train.batch(slice(None))[0][:, 0].double()
    assert abs(float(ages.mean())) < 1e-6
    assert float(ages.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert float(far.batch(slice(None))[0][:, 0].mean()) > 100
    assert train.fingerprint() == again.fingerprint() != far.fingerprint()


def test_normal_scores_are_those_of_the_ranks():
    values = torch.from_numpy(np.random.default_rng(2).permutation(200).astype(float))[:, None]
    scaling = Scaling.fitted(values, ["rank"], ["v"])
    scores = scaling.apply(values)[:, 0]
    expected = torch.special.ndtri((values[:, 0] + 0.5) / 200)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(scaling.invert(scores[:, None]), values)
    tied = torch.tensor([[0.0], [1.0], [1.0], [1.0], [2.0]], dtype=torch.float64)
    torch.testing.assert_close(Scaling.fitted(tied, ["rank"], ["v"]).apply(tied)[1, 0], torch.zeros(()).double())


def test_a_spread_that_double_precision_cannot_hold_is_refused():
    for size in (1e-176, 1e200):
        table = Table(pd.DataFrame({"a": [0.0, 1.5 * size, 0.25 * size]}), types={"a": "continuous"})
        with pytest.raises(ValueError, match="column 'a' has the standard deviation"):
            table.batch(slice(None))


def test_a_column_that_does_not_vary_in_the_training_part_is_named():
    frame = pd.DataFrame({"a": RNG.normal(size=20), "b": [1.5] + [0.5] * 18 + [2.5]})
    table = Table(frame)
    with pytest.raises(ValueError, match="column 'b' does not vary among the rows"):
        [table.splits(test=0.5, seed=k) for k in range(50)]


# files


def written(tmp_path, text, name="t.csv", encoding="utf-8"):
    path = tmp_path / name
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


GERMAN = "größe;gewicht;stadt\n1,72;70,5;Köln\n1,80;81,0;Bonn\n1,65;55,25;Köln\n1,91;90,0;Bonn\n"
ENGLISH = GERMAN.replace(",", ".").replace(";", ",")


@pytest.mark.parametrize(
    ("text", "name", "encoding", "options"),
    [
        (ENGLISH, "t.csv", "utf-8", {}), (ENGLISH, "t.csv", "utf-8-sig", {}), (ENGLISH, "t.csv.gz", "utf-8", {}),
        (GERMAN, "t.csv", "utf-8", {"decimal": ","}),
        (GERMAN, "t.csv", "latin-1", {"decimal": ",", "encoding": "latin-1"}),
        (ENGLISH.replace(",", "\t"), "t.tsv", "utf-8", {}), (ENGLISH.replace(",", "\t"), "t.tsv.gz", "utf-8", {}),
        (ENGLISH.replace(",", "|"), "t.txt", "utf-8", {}),
        (ENGLISH.replace(",", ";"), "t.csv", "utf-8", {"separator": ";"}),
        (ENGLISH.replace("Köln", '"Köln"').replace("größe", '"größe"'), "t.csv", "utf-16", {"encoding": "utf-16"}),
        (ENGLISH.replace("\n", "\r\n"), "t.csv", "utf-8", {}),
    ],
)  # fmt: skip
def test_csv_of_many_kinds(tmp_path, text, name, encoding, options):
    frame = Table(written(tmp_path, text, name, encoding), **options).to_frame()
    assert frame.columns.tolist() == ["größe", "gewicht", "stadt"]
    assert frame["gewicht"].tolist() == [70.5, 81.0, 55.25, 90.0]
    assert frame["stadt"].tolist() == ["Köln", "Bonn"] * 2


def test_a_nameless_first_column_is_the_index(tmp_path):
    frame = survey().set_index("id")
    frame.to_csv(tmp_path / "t.csv")
    roles = {name: role for name, role in ROLES.items() if name != "id"}
    frame.rename_axis(None).to_csv(tmp_path / "u.csv")
    assert Table(tmp_path / "u.csv", roles=roles).index.tolist() == survey()["id"].tolist()
    assert Table(tmp_path / "t.csv", roles=ROLES).index.tolist() == survey()["id"].tolist()


@pytest.mark.parametrize(
    ("text", "name", "options", "said"),
    [
        ("a,b\n1,2\n3\n", "t.csv", {}, "line 3 of .* has 1 fields"),
        ("", "t.csv", {}, "it is empty"),
        ("a,a\n1,2\n", "t.csv", {}, "several columns named 'a'"),
        ("1,2\n3,4\n", "t.csv", {}, "holds numbers"),
        ("a,b\n1,ö\n", "t.csv", {"encoding": "ascii"}, "it is not ASCII text"),
        ("a,b\n1,2\n", "t.csv", {"encoding": "klingon"}, "encoding 'klingon' is not known"),
        ("a;b\n1;2\n", "t.csv", {"decimal": ";"}, "decimal must be '.' or ','"),
        ("a,b\n1,2\n", "t.csv", {"decimal": ",", "separator": ","}, "they must differ"),
        ("not a table", "t.parquet", {}, "cannot read a table from"),
        ("not a table", "t.xlsx", {}, "cannot read a table from"),
    ],
)  # fmt: skip
def test_wrong_files_get_one_sentence(tmp_path, text, name, options, said):
    if name.endswith((".parquet", ".xlsx")):
        pytest.importorskip({".parquet": "pyarrow", ".xlsx": "openpyxl"}[name[name.index(".") :]], exc_type=ImportError)
    with pytest.raises(ValueError, match=said) as caught:
        Table(written(tmp_path, text, name), **options)
    assert "\n" not in str(caught.value)


def test_there_is_no_such_file(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        Table(tmp_path / "t.csv")


def test_parquet_excel_and_polars(tmp_path):
    polars = pytest.importorskip("polars")
    frame = holed(survey()).drop(columns=["region", "size"])
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_excel(tmp_path / "t.xlsx", index=False)
    expected = Table(frame, roles=ROLES)
    for other in (tmp_path / "t.parquet", tmp_path / "t.xlsx", polars.from_pandas(frame)):
        table = Table(other, roles=ROLES)
        assert table.describe()["type"].equals(expected.describe()["type"])
        assert table.batch(slice(None))[0].nan_to_num(-9).equal(expected.batch(slice(None))[0].nan_to_num(-9))
    kinds = polars.DataFrame(
        {"e": polars.Series(["b", "a", "b"], dtype=polars.Enum(["b", "a", "c"])), "v": [1.5, 2, 3]}
    )
    assert Table(kinds).describe().loc["e", ["type", "levels"]].tolist() == ["ordinal", "b, a, c"]


def test_codes_of_missing_cells(tmp_path):
    frame = pd.DataFrame({"a": [1.5, -9, 2.5, 3.5], "b": ["x", "y", ".", "x"], "c": ["4.5", "7.25", "none", "8"]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    codes = {"a": [-9], "b": ["."], "c": ["none"]}
    for source in (frame, tmp_path / "t.csv"):
        table = Table(source, missing=codes)
        assert table.describe()["missing"].tolist() == [1, 1, 1]
        assert table.describe()["type"].tolist() == ["continuous", "binary", "continuous"]
        assert table.missing
    everywhere = Table(tmp_path / "t.csv", missing=["-9", ".", "none"])
    assert everywhere.describe()["missing"].tolist() == [1, 1, 1]
    again = Table.like(frame.iloc[[1, 2]].assign(a=[2.0, 3.0]), everywhere.encoding)
    assert again.to_frame()["b"].isna().tolist() == [False, True]


def test_codes_beside_decimal_commas(tmp_path):
    path = written(tmp_path, "a;b\n1,5;x\nnone;y\n2,25;x\n3,5;y\n")
    for codes in (["none"], {"a": ["none"]}):
        table = Table(path, decimal=",", missing=codes)
        assert table.describe()[["type", "missing"]].loc["a"].tolist() == ["continuous", 1]


def test_none_is_a_category_and_not_a_missing_cell(tmp_path):
    table = Table(written(tmp_path, "a,b\nNone,1.5\nsome,2.5\nNone,NA\n"))
    assert table.describe().loc["a", "levels"] == "None, some"
    assert table.describe()["missing"].tolist() == [0, 1]


def test_arrays_and_sparse_matrices():
    counts = RNG.poisson(1.0, (30, 5))
    for source in (counts, torch.from_numpy(counts), scipy.sparse.csr_matrix(counts.astype(float)),
                   torch.from_numpy(counts).to_sparse()):  # fmt: skip
        table = Table(source)
        assert table.feature_names == ["V1", "V2", "V3", "V4", "V5"]
        assert table.batch(slice(None))[0].equal(torch.from_numpy(counts).float())
    with pytest.raises(ValueError, match="a table must be a path, a pandas or polars table"):
        Table({"a": [1]})


def test_an_anndata_object_has_a_layer_and_obs_columns():
    counts = RNG.poisson(2.0, (20, 3))
    cells = pd.Index([f"cell{k}" for k in range(20)])
    cell_data = types.SimpleNamespace(
        X=np.log1p(counts), layers={"counts": scipy.sparse.csr_matrix(counts)}, var_names=pd.Index(["g1", "g2", "g3"]),
        obs=pd.DataFrame({"batch": ["a", "b"] * 10}, index=cells),
    )  # fmt: skip
    table = Table(cell_data, layer="counts", roles={"batch": "covariate"}, types={"g1": "count"})
    assert table.index.tolist() == cells.tolist()
    assert table.batch(slice(None))[0][:, 0].equal(torch.from_numpy(counts[:, 0]).float())
    with pytest.raises(ValueError, match="no layer 'raw'; it has counts"):
        Table(cell_data, layer="raw")


# roles


def test_covariates_labels_and_names_of_rows():
    frame = survey()
    roles = {**ROLES, "smoker": "label", "region": "covariate", "age": "covariate", "size": "covariate"}
    table = Table(frame, roles=roles)
    x, c = table.batch(slice(0, 4))
    assert x.shape == (4, 3)
    assert c.shape == (4, table.num_covariates) == (4, 6)
    assert c[:, 1:5].sum(1).equal(torch.ones(4))
    assert table.classes.tolist() == frame["smoker"].tolist()
    assert table.index.tolist() == frame["id"].tolist()
    test = table.splits(seed=1).test
    assert test.index.tolist() == [frame["id"][k] for k in test.origin.tolist()]
    kept = [name for name in frame if roles.get(name, "covariate") == "covariate"]
    pd.testing.assert_frame_equal(table.to_frame(), frame[kept].set_axis(frame["id"]), check_names=False)
    with pytest.raises(ValueError, match=r"covariates cannot have missing cells.*: age, region in"):
        Table(holed(frame), roles=roles)
    with pytest.raises(ValueError, match="several observations have the name 'p001'"):
        Table(frame.assign(id=["p001"] * N), roles=ROLES)


# fits


@torch.random.fork_rng()
def a_pair(table):
    torch.manual_seed(0)
    encoder = nn.Table(lambda width: nn.MLP(width, 16, hidden=(16,)), table.inputs)
    likelihood = table.likelihood()
    decoder = nn.MLP(2, likelihood.features(table.shape), hidden=(16,))
    model = models.VAE(prior=priors.StandardNormal(2), decoder=decoder, likelihood=likelihood)
    return model, guides.MeanField(encoder, 2)


QUICK = {"num_particles": 5, "progress": False}


@pytest.fixture(scope="module")
def fitted():
    frame = holed(survey())
    train, validation, test = Table(frame, roles=ROLES).splits(test=0.4)
    fit = pyrovae.fit(*a_pair(train), train, validation_data=validation, epochs=2, compile=False, progress=False)
    return fit, frame.set_index("id").loc[test.index], test


def test_later_tables_are_read_by_name(fitted, tmp_path):
    fit, frame, test = fitted
    expected = pyrovae.evaluate(fit.model, fit.guide, test, **QUICK)
    assert expected.table().index.tolist() == test.index.tolist()
    fit.save(tmp_path)
    for one in (fit, pyrovae.load(tmp_path)):
        table = Table(frame, roles={k: ROLES[k] for k in ("day", "comment", "unit")})
        for rows in (frame, frame.sample(frac=1, axis=1, random_state=0), table):
            result = pyrovae.evaluate(one.model, one.guide, rows, **QUICK)
            assert result.log_evidence.equal(expected.log_evidence)
            assert result.table().index.tolist() == test.index.tolist()
    single = pyrovae.evaluate(fit.model, fit.guide, frame.iloc[[0]], **QUICK)
    torch.testing.assert_close(single.log_evidence, expected.log_evidence[:1])


def test_wrong_later_tables_get_one_sentence(fitted):
    fit, frame, _ = fitted
    wrong = {
        "the table lacks 'age'": frame.drop(columns="age"),
        "the table has 'height' beside them": frame.assign(height=1.0),
        "column 'smoker' holds 'sometimes' in row 'p.*none of its categories 'no', 'yes'": frame.assign(
            smoker="sometimes"
        ),
        "column 'income' is positive .above 0., and holds -1": frame.assign(income=-1.0),
        "column 'age' is numeric, and holds 'old'": frame.assign(age="old"),
        "is it in another unit": frame.assign(age=frame["age"] * 365),
    }
    for said, rows in wrong.items():
        with pytest.raises((ValueError, UserWarning), match=said):
            pyrovae.evaluate(fit.model, fit.guide, rows, **QUICK)


def test_a_frame_needs_a_pair_that_was_fitted_to_one(fitted):
    _, frame, test = fitted
    with pytest.raises(ValueError, match="unknown how its columns become numbers"):
        pyrovae.evaluate(*a_pair(test), frame, **QUICK)


def test_a_frame_is_fitted_and_compared_as_it_is():
    frame = survey()[["age", "income", "visits"]]
    fits = {}
    for name in ("a", "b"):
        table = Table(frame)
        fits[name] = pyrovae.fit(
            *a_pair(table), frame, epochs=1, validation_data=frame[:9], compile=False, progress=False
        )
    assert fits["a"].encoding.described() == Table(frame).encoding.described()
    result = pyrovae.compare(fits, frame[:20], num_particles=5, progress=False)
    assert len(result) == 2


def test_plain_functions_carry_how_their_table_was_read(tmp_path):
    import pyro
    import pyro.distributions as dist

    with torch.random.fork_rng():
        weights = torch.nn.Linear(3, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights.weight, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(weights(x), 1.0).to_event(1))

    def model_of(x):
        pyro.module("weights", weights)
        return model(x)

    frame = survey()[["age", "income", "visits"]].assign(visits=lambda f: f["visits"] + RNG.normal(size=N))
    fit = pyrovae.fit(model_of, guide, frame, epochs=1, compile=False, progress=False)
    shuffled = frame[["visits", "age", "income"]]
    results = [pyrovae.evaluate(fit.model, fit.guide, rows, **QUICK).elbo for rows in (frame, shuffled)]
    assert results[0].equal(results[1])
    fit.save(tmp_path)
    loaded = pyrovae.load(tmp_path, model_of, guide)
    assert pyrovae.evaluate(loaded.model, loaded.guide, shuffled, **QUICK).elbo.equal(results[0])


def test_rows_are_named_in_every_answer(fitted):
    fit, _, test = fitted
    names = test.index.tolist()
    inference = pyrovae.to_arviz(fit.model, fit.guide, test, num_draws=3, num_particles=5, progress=False)
    assert inference.posterior["z"].coords["datum"].values.tolist() == names
    assert inference.posterior_predictive["x"].coords["x_dim"].values.tolist() == test.feature_names
    assert test.subset([2, 0]).index.tolist() == [names[2], names[0]]
    observed = inference.observed_data["x"]
    expected = test.to_frame()
    np.testing.assert_allclose(observed.sel(x_dim="age"), expected["age"], rtol=1e-5)
    assert bool((inference.posterior_predictive["x"].sel(x_dim="income") > 0).all())
    assert json.loads(observed.attrs["categories"])["region"] == ["north", "south", "east", "west"]
    back = test.to_frame(observed.values, scaled=False, index=test.index)
    assert back["region"].equals(expected["region"])


# what an encoder is given


@torch.random.fork_rng()
def test_an_encoder_sees_types():
    inputs = [
        ("continuous", 1, True),
        ("count", 1, False),
        ("binary", 2, False),
        ("ordinal", 3, True),
        ("categorical", 3, True),
    ]
    encoder = nn.Table(lambda width: nn.MLP(width, 4), inputs)
    nan = float("nan")
    shown = encoder.shown(
        torch.tensor([[1.5, 7.0, 1.0, 2.0, 1.0], [nan, 0.0, 0.0, nan, nan], [0.0, 0.0, 0.0, 1.0, 2.0]])
    )
    expected = torch.tensor(
        [
            [1.5, 1, np.log(8), 1, 1, 1, 1, 0, 1, 0, 1],
            [0.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0.0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 1],
        ]
    )
    torch.testing.assert_close(shown, expected.float())
    assert nn.Table.width(inputs) == encoder.network.in_features == 11
    with pytest.raises(ValueError, match="made for 5 columns, got 4"):
        encoder(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="the type in inputs must be one of"):
        nn.Table(nn.MLP(1, 1), [("number",)])


@torch.random.fork_rng()
def test_categories_are_embedded_where_they_are_many():
    inputs = [("categorical", 9, True), ("categorical", 3, False), ("continuous", 1, False)]
    encoder = nn.Table(lambda width: nn.MLP(width, 4), inputs, embedding=4)
    assert encoder.network.in_features == nn.Table.width(inputs, 4) == 4 + 3 + 1
    shown = encoder.shown(torch.tensor([[8.0, 1.0, 0.5], [float("nan"), 2.0, 1.5]]))
    vectors = encoder.vectors["0"].weight
    torch.testing.assert_close(shown[0], torch.cat([vectors[8], torch.tensor([0.0, 1, 0, 0.5])]))
    torch.testing.assert_close(shown[1], torch.cat([vectors[9], torch.tensor([0.0, 0, 1, 1.5])]))
    encoder(torch.tensor([[8.0, 1.0, 0.5]])).sum().backward()
    assert bool(vectors.grad[8].any())
    assert not bool(vectors.grad[:8].any())
    zero = encoder.shown(torch.tensor([[11.0, 1.0, 0.5]]))  # no category, as one-hot
    assert zero[0, :4].tolist() == [0.0] * 4
    assert list(nn.Table(lambda width: nn.MLP(width, 4), inputs).vectors) == []
    with pytest.raises(ValueError, match="embedding must be a whole number of at least 1"):
        nn.Table(lambda width: nn.MLP(width, 4), inputs, embedding=-1)


# tables larger than memory


@pytest.mark.parametrize("rows", [400])
def test_a_mapped_table_is_that_in_memory(rows, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow", exc_type=ImportError)
    monkeypatch.setattr("pyrovae.tables.parquet.ROWS", 37)
    frame = holed(survey(rows)).drop(columns=["comment", "unit"])
    frame.loc[rows - 1, "region"] = "west"  # first met in the last part
    frame.to_parquet(tmp_path / "t.parquet")
    options = {"roles": {"id": "id", "day": "time", "size": "covariate"}, "missing": {"income": [0.0]}}
    one, other = (Table(tmp_path / "t.parquet", mapped=mapped, **options) for mapped in (True, False))
    assert one.describe().drop(columns="note").equals(other.describe().drop(columns="note"))
    for a, b in zip(one.splits(seed=1), other.splits(seed=1), strict=True):
        assert a.index.tolist() == b.index.tolist()
        assert all(
            x.nan_to_num(-9).equal(y.nan_to_num(-9))
            for x, y in zip(a.batch(slice(0, 9)), b.batch(slice(0, 9)), strict=True)
        )
        assert a.describe().drop(columns="note").equals(b.describe().drop(columns="note"))
        pd.testing.assert_frame_equal(a.to_frame(), b.to_frame())
    train, validation, test = one.splits(seed=1)
    fit = pyrovae.fit(
        *a_conditional_pair(train), train, validation_data=validation, epochs=1, compile=False, progress=False
    )
    in_memory = other.splits(seed=1)
    again = pyrovae.fit(*a_conditional_pair(in_memory.train), in_memory.train, epochs=1, compile=False, progress=False)
    assert fit.history["loss"].tolist() == again.history["loss"].tolist()
    results = [pyrovae.evaluate(fit.model, fit.guide, part, **QUICK).elbo for part in (test, in_memory.test)]
    assert results[0].equal(results[1])
    with pytest.raises(ValueError, match="cannot read a table from"):
        Table(tmp_path / "none.parquet", mapped=True)
    frame.to_csv(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="cannot read a table from"):
        Table(tmp_path / "t.csv", mapped=True)


@torch.random.fork_rng()
def a_conditional_pair(table):
    torch.manual_seed(0)
    more, likelihood = table.num_covariates, table.likelihood()
    encoder = nn.Table(lambda width: nn.MLP(width + more, 8), table.inputs)
    decoder = nn.MLP(2 + more, likelihood.features(table.shape))
    model = models.ConditionalVAE(prior=priors.StandardNormal(2), decoder=decoder, likelihood=likelihood)
    return model, guides.MeanField(encoder, 2)


# what a newcomer met


def test_a_single_row_in_another_unit_gets_a_warning(fitted):
    fit, frame, _ = fitted
    for rows in (frame.iloc[[0]].assign(income=3e7), frame.assign(age=[999.0] + [40.0] * (len(frame) - 1))):
        with pytest.warns(UserWarning, match=r"has .* in row 'p\d+' \(1 such rows\), and held .*another unit"):
            pyrovae.evaluate(fit.model, fit.guide, rows, **QUICK)


def test_an_index_with_doubles_is_told():
    with pytest.warns(UserWarning, match="several rows of the table have the index 'a', so rows are numbered"):
        table = Table(pd.DataFrame({"v": [1.5, 2.5, 4.0]}, index=["a", "a", "b"]))
    assert table.index.tolist() == [0, 1, 2]


def test_rows_that_are_left_out_are_counted():
    frame = holed(survey(), ("age",))
    with pytest.warns(UserWarning, match=r"\d+ of 60 rows are left out, which lack age"):
        Table(frame, roles={**ROLES, "age": "covariate"}, drop_incomplete=True)


@pytest.mark.parametrize(("days", "months"), [("%d.%m.%Y", True), ("%m/%d/%Y", False), ("%Y-%m-%d", False)])
def test_dates_that_are_texts_are_split_as_times(days, months):
    times = pd.Timestamp("2023-03-01") + pd.to_timedelta(np.random.default_rng(3).permutation(200), "D")
    frame = pd.DataFrame({"v": np.random.default_rng(0).normal(size=200), "day": times.strftime(days)})
    for table in (Table(frame, roles={"day": "time"}), Table(frame, roles={"day": "drop"})):
        parts = table.splits(time="day" if table.kept is not None else frame["day"])
        order = [times[part.index] for part in parts]
        assert order[0].max() < order[1].min() < order[2].min()
    few = pd.DataFrame({"v": [1.5, 2.5, 3.5], "day": ["01.02.2024", "03.04.2024", "05.06.2024"]})
    with pytest.raises(ValueError, match="days and months cannot be told apart"):
        Table(few, roles={"day": "time"})


def test_decimal_commas_are_recognised(tmp_path):
    path = written(tmp_path, "a;b\n1,5;2\n2,25;3\n3,5;7\n")
    with pytest.raises(ValueError, match=r"'a' \(texts: numbers with decimal commas: say decimal=','\)"):
        Table(path)
    assert Table(path, decimal=",").describe()["type"]["a"] == "continuous"


def test_words_that_are_suggested_can_be_said():
    frame = survey().assign(other=[f"q{k}" for k in range(N)])
    with pytest.raises(ValueError, match="texts") as caught:
        Table(frame)
    words = str(caught.value).partition("roles=")[2].partition(", or another")[0]
    assert Table(frame, roles=eval(words)).index.tolist() == survey()["id"].tolist()


def test_grades_that_are_texts_of_numbers_have_their_order():
    frame = pd.DataFrame({"g": ["10", "2", "1", "2"], "v": [1.5, 2.0, 2.5, 3.5]})
    assert Table(frame, types={"g": "ordinal"}).describe().loc["g", "levels"] == "1, 2, 10"


def test_cells_that_are_missing_for_the_first_time_are_refused(fitted):
    fit, frame, _ = fitted
    with pytest.raises(ValueError, match="has missing cells in visits, which had none where the pair was fitted"):
        pyrovae.evaluate(fit.model, fit.guide, frame.assign(visits=None), **QUICK)


# what a hostile reader met


def test_labels_of_a_later_table_keep_their_numbers(tmp_path):
    frame = survey()
    table = Table(frame, roles={**ROLES, "region": "label"})
    assert table.label_names == ["north", "south", "east", "west"]
    south = frame[frame["region"] == "south"].reset_index(drop=True)
    later = Table.like(south, table.encoding)
    assert later.labels.unique().tolist() == [1]
    assert later.label_names == table.label_names
    with pytest.raises(ValueError, match=r"holds 'mars' in row .*none of its categories"):
        Table.like(frame.assign(region="mars"), table.encoding)


def test_repeated_entries_of_a_sparse_matrix_add_up():
    rows, columns = np.array([0] * 300 + [1, 2]), np.array([0] * 300 + [1, 1])
    matrix = scipy.sparse.coo_matrix((np.ones(302), (rows, columns)), shape=(3, 2))
    assert Table(matrix, types={"V1": "count", "V2": "count"}).to_frame()["V1"].tolist() == [300, 0, 0]


def test_a_part_without_a_scale_takes_that_of_its_own_rows():
    frame = pd.DataFrame(
        {"x": [*np.random.default_rng(0).normal(size=50), *np.random.default_rng(1).normal(100, 1, 50)]}
    )
    part = Table(frame).subset(slice(0, 50))
    fit = pyrovae.fit(*a_pair(part), part, epochs=1, compile=False, progress=False)
    assert abs(float(fit.encoding.scalings["outcome"].shift)) < 1


def test_a_model_with_given_latents_reads_tables_as_its_fit_did(fitted):
    fit, frame, _ = fitted
    given_model = pyrovae.given(fit.model, {})
    results = [pyrovae.evaluate(model, fit.guide, frame, **QUICK).elbo for model in (given_model, fit.model)]
    assert results[0].equal(results[1])


def test_a_value_without_a_logarithm_is_refused_later_too():
    frame = pd.DataFrame({"x": [1.5, 2.5, 9.0], "y": [1.5, np.nan, 2.5]})
    table = Table(frame, types={"x": "continuous"}, scaling={"x": "log"})
    with pytest.raises(ValueError, match=r"column 'x' is positive \(above 0\), and holds -4"):
        Table.like(frame.assign(x=-4.0), table.encoding)


def test_an_order_is_never_taken_from_the_alphabet():
    frame = survey().astype({"size": pd.CategoricalDtype(["S", "M", "L"])})
    with pytest.raises(ValueError, match="no order of their own"):
        Table(frame, roles=ROLES, types={"size": "ordinal"})


def test_numbers_with_a_stray_text_are_no_categories(tmp_path):
    ages = [str(k % 60 + 18) for k in range(300)]
    frame = pd.DataFrame({"age": [*ages, "?"], "v": np.random.default_rng(0).normal(size=301)})
    with pytest.raises(ValueError, match=r"'age' \(texts: numbers, but '\?': mark it as missing\)"):
        Table(frame)
    assert Table(frame, missing={"age": ["?"]}).describe()["type"]["age"] == "continuous"
    words = pd.DataFrame({"a": ["1.5", "NA", "2.5", ""], "v": [1.5, 2.5, 3.5, 4.5]})
    assert Table(words, missing=["x"]).describe()["missing"]["a"] == 2


def test_ids_stay_as_they_are_written(tmp_path):
    path = written(tmp_path, "id,x\n007,1.5\n070,2.5\n1e3,4.0\n")
    assert Table(path, roles={"id": "id"}).index.tolist() == ["007", "070", "1e3"]


def test_a_blank_line_of_a_single_column_is_a_missing_cell(tmp_path):
    path = written(tmp_path, "x\n1.5\n\n2.5\n4.0\n")
    with pytest.raises(ValueError, match=r"observation 1 has no observed value"):
        Table(path)


def test_codes_are_found_among_numbers_and_among_texts():
    for cells, codes in (([1.5, -9.0, 2.5], ["-9"]), (["a", "-9", "b"], [-9])):
        frame = pd.DataFrame({"g": cells, "v": [1.5, 2.5, 4.0]})
        assert Table(frame, missing=codes).describe()["missing"]["g"] == 1


def test_columns_that_lose_their_spread_are_refused():
    times = 1.6e9 + np.random.default_rng(0).normal(0, 10, 100)
    frame = pd.DataFrame({"t": times, "v": np.random.default_rng(1).normal(size=100)})
    table = Table(frame, scaling={"t": "none"})
    with pytest.raises(ValueError, match="column 't' of the data loses"):
        pyrovae.fit(*a_pair(table), table, epochs=1, compile=False, progress=False)
    table = Table(frame)
    fit = pyrovae.fit(*a_pair(table), table, epochs=1, compile=False, progress=False)
    inference = pyrovae.to_arviz(fit.model, fit.guide, table, num_draws=2, num_particles=3, progress=False)
    np.testing.assert_allclose(inference.observed_data["x"].sel(x_dim="t"), times, atol=1e-4, rtol=0)


def test_fits_on_different_scales_are_not_compared():
    frame = survey()[["age", "income"]]
    fits = {}
    for scaling in ("standardise", "rank"):
        table = Table(frame, scaling=scaling)
        fits[scaling] = pyrovae.fit(*a_pair(table), table, epochs=1, compile=False, progress=False)
    with pytest.raises(ValueError, match="'a' and 'a' were fitted to tables that were read"):  # of two seeds, say
        pyrovae.compare({"a": list(fits.values())}, frame, num_particles=3, progress=False)
    with pytest.raises(ValueError, match="'standardise' and 'rank' were fitted to tables that were read"):
        pyrovae.compare(fits, frame, num_particles=3, progress=False)
    with pytest.raises(ValueError, match="model and guide were fitted to tables that were read differently"):
        pyrovae.evaluate(fits["rank"].model, fits["standardise"].guide, frame, **QUICK)


def test_intervals_and_times_can_be_categories(tmp_path):
    frame = pd.DataFrame({"age": pd.cut([5, 25, 45, 65, 15], [0, 30, 60, 90]), "v": [1.5, 2.0, 2.5, 3.0, 9.0]})
    table = Table(frame)
    assert table.describe().loc["age", "levels"] == "(0, 30], (30, 60], (60, 90]"
    assert table.batch(slice(None))[0][:, 0].tolist() == [0, 0, 1, 2, 0]


def test_levels_and_codes_of_numpy_are_saved(tmp_path):
    frame = pd.DataFrame({"g": [1, 2, 3, 1], "v": [1.5, -9.0, 2.5, 4.0]})
    table = Table(
        frame, types={"g": "ordinal"}, levels={"g": list(np.arange(1, 4))}, missing={"v": list(np.array([-9.0]))}
    )
    fit = pyrovae.fit(*a_pair(table), table, epochs=1, compile=False, progress=False)
    fit.save(tmp_path)
    assert pyrovae.load(tmp_path).encoding.described() == fit.encoding.described()


def test_late_categories_of_a_mapped_table_are_in_order(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow", exc_type=ImportError)
    monkeypatch.setattr("pyrovae.tables.parquet.ROWS", 10)
    grades = [1, 3, 5] * 20 + [2, 4]
    frame = pd.DataFrame(
        {"g": grades, "v": np.random.default_rng(0).normal(size=62)}, index=[f"p{k}" for k in range(62)]
    )
    frame.to_parquet(tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet", mapped=True, types={"g": "ordinal"})
    assert table.columns[0].levels == (1, 2, 3, 4, 5)
    assert table.index.tolist() == frame.index.tolist()
    frame.assign(g=[1, 3, 5] * 20 + [0, 4]).to_parquet(tmp_path / "u.parquet")
    with pytest.raises(ValueError, match=r"'g' looks ordinal in its first 40 rows, .*later holds 0: say its type"):
        Table(tmp_path / "u.parquet", mapped=True, types={"g": "ordinal"})
