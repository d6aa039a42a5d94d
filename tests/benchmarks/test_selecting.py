"""What proxies select, by scores that are looked up."""

import csv
import gzip
import json

import selecting

from nasi_jax import parse_genotype, tables


def test_what_is_selected_is_first_among_what_was_looked_at(run, tmp_path, data_file):
    path = data_file("nasbench201_cifar10.csv")
    printed = run("selecting", "--smoke", "--table", path, "--out", tmp_path)
    record = json.loads((tmp_path / "selecting.json").read_text())
    table = tables.load(path)
    with gzip.open(selecting.Config(table="").scores, "rt") as file:
        flops = {row["genotype"]: float(row["flops"]) for row in csv.DictReader(file)}
    for by, methods in record["found"].items():
        for method, rows in methods.items():
            assert f"| {by} | {method} |" in printed and len(rows) == 2
            for row in rows:
                cell = parse_genotype(row["text"])
                assert row["accuracy"] == table.look_up(cell, "c10_test_200") <= row["best"]
    # Random search looks at the same cells, whatever they are ranked by.
    drawn = {by: methods["random"] for by, methods in record["found"].items()}
    for seed in range(2):
        most = flops[drawn["flops"][seed]["text"]]
        assert all(flops[rows[seed]["text"]] <= most for rows in drawn.values())
        assert len({rows[seed]["best"] for rows in drawn.values()}) == 1
