# SPDX-License-Identifier: Apache-2.0
"""The Grafana dashboard, and the files that hand it to Grafana, agree with what is served."""

import json
import re
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from headkv_vllm.engine.metrics.definitions import METRICS

DOCKER = Path(__file__).parents[1] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "headkv.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
SUFFIXES = ("_bucket", "_count", "_sum", "_total")


def expressions(panel):
    return [target["expr"] for target in panel["targets"]]


def names_in(text):
    return set(re.findall(r"\b(?:headkv|vllm):\w+", text))


def vllm_names():
    """Every name in the source of vLLM's own logger, with the suffixes that Prometheus adds."""
    package = find_spec("vllm")
    (folder,) = package.submodule_search_locations
    source = (Path(folder) / "v1" / "metrics" / "loggers.py").read_text()
    names = names_in(source)
    return names | {f"{name}{suffix}" for name in names for suffix in SUFFIXES}


def known_names():
    return vllm_names() | {name for metric in METRICS.values() for name in metric.sample_names}


@pytest.mark.parametrize("panel", PANELS.values(), ids=list(PANELS))
def test_a_panel_asks_for_names_that_are_served(panel):
    assert expressions(panel)
    for expression in expressions(panel):
        assert names_in(expression)
        assert names_in(expression) <= known_names()


def test_a_name_that_is_not_served_would_be_noticed():
    assert not {"vllm:kv_cache_usage", "headkv:freed_blocks"} & known_names()


def test_every_metric_of_ours_is_on_the_dashboard():
    shown = {name for panel in PANELS.values() for e in expressions(panel) for name in names_in(e)}
    # How many plans the cache holds says nothing on its own: its hit rate is there.
    left_out = {"headkv:allocation_cache_size"}
    for metric in METRICS.values():
        assert bool(set(metric.sample_names) & shown) == (metric.name not in left_out)


@pytest.mark.parametrize("panel", PANELS.values(), ids=list(PANELS))
def test_each_query_is_narrowed_to_the_chosen_model_and_engine(panel):
    for expression in expressions(panel):
        selectors = re.findall(r"(?:headkv|vllm):\w+(\{[^}]*\})?", expression)
        assert set(selectors) == {'{model_name=~"$model_name", engine=~"$engine"}'}


def test_variables_ask_for_names_that_are_served():
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "model_name", "engine"]
    for name in ("model_name", "engine"):
        query = variables[name]["query"]["query"]
        assert query == variables[name]["definition"]
        assert names_in(query) and names_in(query) <= known_names()


def test_panels_have_places_of_their_own():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(PANELS)
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(0 <= place["x"] <= 24 - place["w"] for place in places)
    for one, other in combinations(places, 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )


def read_yaml(path):
    return yaml.safe_load((DOCKER / path).read_text())


def provisioned_source():
    (source,) = read_yaml("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    return source


def test_the_dashboards_data_source_is_the_provisioned_one():
    source = provisioned_source()
    chosen = DASHBOARD["templating"]["list"][0]
    assert chosen["current"]["value"] == source["uid"]
    assert chosen["query"] == source["type"] == "prometheus"
    for panel in PANELS.values():
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(used == {"type": "prometheus", "uid": "${datasource}"} for used in sources)


def test_grafana_expects_a_sample_as_often_as_prometheus_takes_one():
    interval = read_yaml("prometheus.yaml")["global"]["scrape_interval"]
    assert provisioned_source()["jsonData"]["timeInterval"] == interval
