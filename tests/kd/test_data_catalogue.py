"""The catalogue of published data sets: what is known is named, and nothing else."""

import pytest

from edgeseg.kd.data.catalogue import CATALOGUE, NOT_IN_CATALOGUE, describe_sets
from edgeseg.kd.data.layouts import LAYOUTS


@pytest.mark.parametrize("key", CATALOGUE)
def test_each_row_names_title_citation_doi_and_licence(key):
    name, layout = key
    published = CATALOGUE[key]
    assert name == name.casefold()  # as sets are named
    assert layout in LAYOUTS
    assert published.title
    assert published.citation
    assert published.licence
    assert published.doi.startswith("10.")
    assert not published.spdx or published.licence != "unknown"


def test_a_published_set_gets_its_facts_and_keeps_what_a_run_knows():
    (busi,) = describe_sets([{"name": "busi", "layout": "busi", "images": {"benign": 2}}])
    assert (busi["title"], busi["licence"], busi["spdx"]) == ("BUSI", "CC BY 4.0", "CC-BY-4.0")
    assert busi["images"] == {"benign": 2}


@pytest.mark.parametrize(("name", "layout"), [("phantoms", "busi"), ("busi", "plain")])
def test_a_set_outside_the_catalogue_says_so_and_gets_no_licence(name, layout):
    (other,) = describe_sets([{"name": name, "layout": layout}])
    assert other == {"name": name, "layout": layout, "catalogue": NOT_IN_CATALOGUE}
