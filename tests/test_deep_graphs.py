"""Readers of graph sets against miniatures made here and real files; batches against slow loops."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from graph_cases import drawn_graphs, neighbours, text_of

from deep.data.graphs import GRAPH_SETS, load_graph_examples, load_graphs
from deep.data.load import DATA_SETS, load_examples
from theory.errors import InputError

REAL_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def tu_files(name, graphs, tagged=True):
    """TUDataset's form, every directed edge twice, as in its IMDB files."""
    edges, indicator, first = [], [], 1
    for number, graph in enumerate(graphs, 1):
        for node, others in enumerate(neighbours(graph)):
            edges += [f"{first + node}, {first + other}" for other in others] * 2
        indicator += [str(number)] * len(graph.tags)
        first += len(graph.tags)
    files = {
        "A": edges,
        "graph_indicator": indicator,
        "graph_labels": [str(graph.label) for graph in graphs],
    }
    if tagged:
        files["node_labels"] = [str(tag) for graph in graphs for tag in graph.tags]
    return {f"{name}_{part}.txt": "\n".join(lines) + "\n" for part, lines in files.items()}


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)


def write_zip(path, files, folder="MUTAG"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{folder}/{name}", content)


def assert_holds(loaded, drawn, features):
    """Each graph has the drawn edges, once each way, and these features; labels in order."""
    graphs, labels, _ = loaded
    assert len(graphs) == len(drawn)
    order = sorted({graph.label for graph in drawn})
    assert labels.tolist() == [order.index(graph.label) for graph in drawn]
    for i, (graph, expected) in enumerate(zip(drawn, features, strict=True)):
        one = graphs[torch.tensor([i])]
        both = graph.edges | {(b, a) for a, b in graph.edges}
        assert sorted(zip(*one.edge_index.tolist(), strict=True)) == sorted(both)
        np.testing.assert_array_equal(one.features.numpy(), expected)


def one_hot(rows):
    """What features should be: the place of each value among all values, sorted."""
    values = sorted({value for row in rows for value in row})
    return [np.eye(len(values))[[values.index(value) for value in row]] for row in rows]


def refusal(name, folder):
    """The one line with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        load_graphs(name, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- both forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "MUTAG", "dgcnn_txt", "dgcnn_txt/MUTAG"])
def test_one_file_text_gives_back_every_graph(place, tmp_path):
    drawn = drawn_graphs()
    write(tmp_path / place, {"MUTAG.txt": text_of(drawn)})
    loaded = load_graphs("mutag", tmp_path)
    assert_holds(loaded, drawn, one_hot([graph.tags for graph in drawn]))
    assert loaded[0].pooling == "sum"
    assert loaded[2].startswith("MUTAG.txt; SHA-256 ")


@pytest.mark.parametrize("place", [".", "PROTEINS_full", "tudataset/PROTEINS_full"])
def test_tu_text_with_doubled_edges_gives_back_every_graph(place, tmp_path):
    drawn = drawn_graphs(labels=(1, -1))
    write(tmp_path / place, tu_files("PROTEINS_full", drawn))
    loaded = load_graphs("PROTEINS", tmp_path)
    assert_holds(loaded, drawn, one_hot([graph.tags for graph in drawn]))


def test_tu_zip_gives_back_every_graph(tmp_path):
    drawn = drawn_graphs(labels=(1, -1))
    write_zip(tmp_path / "MUTAG.zip", {"README.txt": "words", **tu_files("MUTAG", drawn)})
    loaded = load_graphs("MUTAG", tmp_path)
    assert_holds(loaded, drawn, one_hot([graph.tags for graph in drawn]))
    assert loaded[2].startswith("MUTAG.zip; SHA-256 ")


@pytest.mark.parametrize("form", ["text", "tu"])
def test_without_tags_that_differ_the_degree_is_the_tag(form, tmp_path):
    drawn = drawn_graphs(labels=(1, 2, 3), tags=(0,))
    if form == "text":
        write(tmp_path / "IMDBMULTI", {"IMDBMULTI.txt": text_of(drawn)})
    else:
        write(tmp_path, tu_files("IMDB-MULTI", drawn, tagged=False))
    loaded = load_graphs("imdb-multi", tmp_path)
    assert_holds(loaded, drawn, one_hot([[*map(len, neighbours(graph))] for graph in drawn]))
    assert loaded[0].pooling == "mean"


def test_an_edge_given_one_way_leads_both_ways(tmp_path):
    """And a graph without any edge is one."""
    files = tu_files("MUTAG", drawn_graphs())
    write(tmp_path, {**files, "MUTAG_A.txt": "1, 2\n"})
    graphs, _, _ = load_graphs("MUTAG", tmp_path)
    assert graphs.edge_index.tolist() == [[0, 1], [1, 0]]


def test_one_file_text_comes_before_tu_text(tmp_path):
    write(
        tmp_path, {"MUTAG.txt": text_of(drawn_graphs(seed=1))} | tu_files("MUTAG", drawn_graphs())
    )
    assert_holds(
        load_graphs("MUTAG", tmp_path),
        drawn := drawn_graphs(seed=1),
        one_hot([graph.tags for graph in drawn]),
    )


def test_examples_are_split_in_proportion_and_always_alike(tmp_path):
    drawn = drawn_graphs(count=40, labels=(0, 0, 0, 2))
    write(tmp_path, {"MUTAG.txt": text_of(drawn)})
    data = load_examples("Mutag", tmp_path)
    assert data.name == "MUTAG"
    assert data.num_classes == 2
    assert data.y_train.bincount().tolist() == [27, 9]
    assert data.y_test.bincount().tolist() == [3, 1]
    sizes = sorted(data.x_train.nodes.diff().tolist() + data.x_test.nodes.diff().tolist())
    assert sizes == sorted(len(graph.tags) for graph in drawn)
    again = load_graph_examples("MUTAG", tmp_path)
    assert torch.equal(again.x_test.features, data.x_test.features)
    assert set(GRAPH_SETS) <= set(DATA_SETS)


# --- batches --------------------------------------------------------------------------------------


def test_a_batch_has_the_chosen_graphs_in_that_order_and_may_repeat_one(tmp_path):
    drawn = drawn_graphs()
    write(tmp_path, {"MUTAG.txt": text_of(drawn)})
    graphs, _, _ = load_graphs("MUTAG", tmp_path)
    chosen = [7, 0, 7, 19]
    batch = graphs[torch.tensor(chosen)]
    sizes = [len(drawn[i].tags) for i in chosen]
    assert batch.nodes.diff().tolist() == sizes
    assert batch.graph_of_node.tolist() == [k for k, size in enumerate(sizes) for _ in range(size)]
    expected, first = set(), 0
    for i, size in zip(chosen, sizes, strict=True):
        pairs = drawn[i].edges | {(b, a) for a, b in drawn[i].edges}
        expected |= {(first + a, first + b) for a, b in pairs}
        first += size
    assert set(zip(*batch.edge_index.tolist(), strict=True)) == expected
    assert batch.edge_index.shape[1] == len(expected)
    assert batch.shape == (4, 3)
    assert len(graphs[:5]) == 5
    assert torch.equal(graphs[:5].features, graphs[torch.arange(5)].features)
    assert len(batch[torch.tensor([], dtype=torch.long)]) == 0


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no number of graphs"),
        ("many\n", "invalid literal"),
        ("1 2\n", "no number of graphs"),
        ("2\n1 0\n0 0\n", "graph 1 lacks"),
        ("1\n3 0\n0 1 1\n0 1 0\n", "graph 0 lacks"),
        ("1\n0 0\n", "graph 0 lacks"),
        ("1\n2 0\n0 1 1\n0 1 2\n", "node 1 of graph 0"),
        ("1\n2 0\n0 1 1\n0 1 -1\n", "node 1 of graph 0"),
        ("1\n2 0\n0 2 1\n0 1 0\n", "node 0 of graph 0"),
        ("1\n2 0\n0 1 1 0.5\n0 1 0\n", "invalid literal"),
        ("1\n2 0\n0 1 1\n0 1 0\n5 5\n", "goes on after its 1 graphs"),
        ("1\n2 0\n0 1 1\n0 1 0\n", "too few to train"),
        ("é", "MUTAG.txt cannot be read"),
    ],
)
def test_damaged_text_is_refused_by_its_name_and_place(text, fault, tmp_path):
    (tmp_path / "MUTAG.txt").write_text(text, encoding="utf-8")
    message = refusal("MUTAG", tmp_path)
    assert fault in message
    assert "MUTAG.txt" in message


def test_text_of_one_class_is_refused(tmp_path):
    write(tmp_path, {"MUTAG.txt": text_of(drawn_graphs(labels=(1,)))})
    assert "of 1 classes" in refusal("MUTAG", tmp_path)


TU_FAULTS = [
    ("A", "1, 2, 3\n", "has not 2 numbers a row"),
    ("A", "1\n", "has not 2 numbers a row"),
    ("A", "", "empty"),
    ("A", "1, x\n", "could not convert"),
    ("A", "0, 1\n", "nodes outside 1"),
    ("A", "1, 9999\n", "nodes outside 1"),
    ("A", "1, 100\n", "between two graphs"),
    ("graph_indicator", "1\n2\n1\n", "does not run from 1"),
    ("graph_indicator", "2\n3\n", "does not run from 1"),
    ("graph_labels", "1\n0\n", "does not run from 1 to 2"),
    ("node_labels", "1\n0\n", "2 rows for"),
    ("node_labels", "1, 2\n", "has not 1 numbers a row"),
]


@pytest.mark.parametrize("form", ["text", "zip"])
@pytest.mark.parametrize(("part", "content", "fault"), TU_FAULTS)
def test_damaged_tu_files_are_refused(part, content, fault, form, tmp_path):
    files = tu_files("MUTAG", drawn_graphs(count=30)) | {f"MUTAG_{part}.txt": content}
    write(tmp_path, files) if form == "text" else write_zip(tmp_path / "MUTAG.zip", files)
    message = refusal("MUTAG", tmp_path)
    assert fault in message
    assert "MUTAG_" in message if form == "text" else "MUTAG.zip" in message


@pytest.mark.parametrize("part", ["A", "graph_indicator", "graph_labels"])
def test_incomplete_tu_files_are_refused(part, tmp_path):
    files = tu_files("MUTAG", drawn_graphs())
    del files[f"MUTAG_{part}.txt"]
    write_zip(tmp_path / "MUTAG.zip", files)
    assert f"no file that ends in _{part}.txt" in refusal("MUTAG", tmp_path)
    write(tmp_path / "plain", files)
    wanted = "no MUTAG in" if part == "A" else f"MUTAG_{part}.txt is missing"
    assert wanted in refusal("MUTAG", tmp_path / "plain")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_zip_is_refused(kept, tmp_path):
    path = tmp_path / "MUTAG.zip"
    write_zip(path, tu_files("MUTAG", drawn_graphs()))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert "MUTAG.zip cannot be read" in refusal("MUTAG", tmp_path)


def test_zip_with_damaged_bytes_is_refused(tmp_path):
    path = tmp_path / "MUTAG.zip"
    with zipfile.ZipFile(path, "w") as archive:  # not compressed: only the check sum tells
        for name, content in tu_files("MUTAG", drawn_graphs()).items():
            archive.writestr(name, content)
    path.write_bytes(path.read_bytes().replace(b"1, 2\n", b"1, 3\n", 1))
    assert "CRC" in refusal("MUTAG", tmp_path)


def test_zip_that_would_unpack_to_gigabytes_is_refused_unread(tmp_path):
    """100 MB of zeros pack to 100 kB."""
    files = tu_files("MUTAG", drawn_graphs()) | {"MUTAG_A.txt": "0" * 100_000_000}
    write_zip(tmp_path / "MUTAG.zip", files)
    assert "larger than" in refusal("MUTAG", tmp_path)


def test_zip_in_another_packing_or_with_a_file_twice_is_refused(tmp_path):
    files = tu_files("MUTAG", drawn_graphs())
    with zipfile.ZipFile(tmp_path / "MUTAG.zip", "w", zipfile.ZIP_LZMA) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert "packed in an unknown way" in refusal("MUTAG", tmp_path)
    with zipfile.ZipFile(tmp_path / "MUTAG.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"a/{name}", content)
            archive.writestr(f"b/{name}", content)
    assert "there twice" in refusal("MUTAG", tmp_path)


def test_names_in_a_zip_that_lead_elsewhere_write_nothing(tmp_path):
    drawn = drawn_graphs()
    (tmp_path / "in").mkdir()
    write_zip(tmp_path / "in" / "MUTAG.zip", tu_files("MUTAG", drawn), folder="../../out")
    assert_holds(
        load_graphs("MUTAG", tmp_path / "in"), drawn, one_hot([graph.tags for graph in drawn])
    )
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "MUTAG.zip"]


def test_what_is_not_there_is_named(tmp_path):
    assert "looked there" in refusal("NCI1", tmp_path)
    assert "NCI1_A.txt, NCI1.zip" in refusal("NCI1", tmp_path)
    assert "not a folder" in refusal("NCI1", tmp_path / "nowhere")
    assert "choose one of MUTAG" in refusal("DD", tmp_path)
    assert "cannot read" in refusal("NCI1", tmp_path / ("x" * 5000))


def test_ptc_is_never_taken_from_tu(tmp_path):
    """TUDataset's PTC_MR is another set; PTC itself cannot be downloaded."""
    write(tmp_path, tu_files("PTC_MR", drawn_graphs()))
    assert len(load_graphs("ptc_mr", tmp_path)[0]) == 20
    assert "for PTC.txt;" in refusal("PTC", tmp_path)
    assert "take PTC_MR" in refusal("PTC", None)


# --- real files -----------------------------------------------------------------------------------

KNOWN = {  # classes, nodes, mean undirected edges, tags
    "MUTAG": ([63, 125], 3371, 19.79, 7),
    "NCI1": ([2053, 2057], 122747, 32.30, 37),
    "PTC": ([192, 152], 8792, 25.96, 19),
    "PROTEINS": ([663, 450], 43471, 72.82, 3),
    "IMDB-BINARY": ([500, 500], 19773, 96.53, None),
    "IMDB-MULTI": ([500, 500, 500], 19502, 65.94, None),
    "PTC_MR": ([192, 152], 4915, 14.69, 18),
}


@pytest.mark.skipif(
    not (REAL_DATA / "dgcnn_txt").is_dir(),
    reason="needs the real graph sets, which are not part of the repository",
)
@pytest.mark.parametrize("name", KNOWN)
def test_real_sets_have_the_known_counts(name):
    graphs, labels, _ = load_graphs(name, REAL_DATA)
    classes, nodes, edges, tags = KNOWN[name]
    assert labels.bincount().tolist() == classes
    assert len(graphs.features) == nodes
    assert round(graphs.edge_index.shape[1] / 2 / len(graphs), 2) == edges
    if tags is None:  # one-hot degrees
        degree = torch.bincount(graphs.edge_index[0], minlength=nodes)
        assert graphs.shape[1] == len(degree.unique())
        assert torch.equal(degree.unique()[graphs.features.argmax(1)], degree)
    else:
        assert graphs.shape[1] == tags
    assert bool((graphs.features.sum(1) == 1).all())


@pytest.mark.skipif(
    not (REAL_DATA / "tudataset").is_dir(),
    reason="needs the real graph sets, which are not part of the repository",
)
@pytest.mark.parametrize("name", ["PROTEINS", "IMDB-MULTI"])
def test_both_forms_of_a_real_set_are_the_same_graphs(name):
    """In one order, and IMDB's doubled edges once."""
    text, labels, _ = load_graphs(name, REAL_DATA / "dgcnn_txt")
    tu, tu_labels, _ = load_graphs(name, REAL_DATA / "tudataset")
    assert torch.equal(text.edge_index, tu.edge_index)
    assert torch.equal(labels, tu_labels)
    assert torch.equal(text.features, tu.features)
