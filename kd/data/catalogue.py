"""Published breast-ultrasound data sets: name, licence and citation of each, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

NOT_IN_CATALOGUE = "not in the catalogue"
UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True)
class Published:
    """What is known of a data set, from its paper or the files it comes with."""

    title: str
    citation: str
    doi: str
    licence: str = UNKNOWN_LICENCE  # in words
    spdx: str = ""  # identifier of the licence, where it has one


# By name of the set and its layout, both as a run records them: a folder that is called so but is
# laid out otherwise, such as phantoms in BUSI's layout called "phantoms", is not in here. To add a
# data set: a row; tests/kd/test_data_catalogue.py walks the table.
CATALOGUE: Mapping[tuple[str, str], Published] = MappingProxyType(
    {
        ("busi", "busi"): Published(
            "BUSI",
            "W. Al-Dhabyani, M. Gomaa, H. Khaled, A. Fahmy, Dataset of breast ultrasound images, "
            "Data in Brief 28 (2020) 104863",
            "10.1016/j.dib.2019.104863",
            "CC BY 4.0",
            "CC-BY-4.0",
        ),
        ("bus-bra", "bus-bra"): Published(
            "BUS-BRA",
            "W. Gómez-Flores, M. J. Gregorio-Calas, W. Coelho de Albuquerque Pereira, BUS-BRA: A "
            "breast ultrasound dataset for assessing computer-aided diagnosis systems, Medical "
            "Physics 51 (2024) 3110-3123",
            "10.1002/mp.16812",
            "permissive, citation required (LICENSE.txt of the data set)",
        ),
        ("breast", "breast"): Published(
            "BrEaST",
            "A. Pawłowska et al., Curated benchmark dataset for ultrasound based breast lesion "
            "analysis, Scientific Data 11 (2024)",
            "10.1038/s41597-024-02984-z",
            "CC BY 4.0",
            "CC-BY-4.0",
        ),
        ("bus-uclm", "bus-uclm"): Published(
            "BUS-UCLM",
            "N. Vallez et al., BUS-UCLM: Breast ultrasound lesion segmentation dataset, "
            "Scientific Data 12 (2025)",
            "10.1038/s41597-025-04562-3",
        ),
        ("dataset-b", "dataset-b"): Published(
            "Dataset B",
            "M. H. Yap et al., Automated breast ultrasound lesions detection using convolutional "
            "neural networks, IEEE Journal of Biomedical and Health Informatics 22 (2018) "
            "1218-1226",
            "10.1109/JBHI.2017.2731873",
        ),
    }
)


def describe_sets(sets: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return sets as a run's provenance lists them, with what is published of each.

    A set that is in no row of the catalogue says so, and has neither licence nor citation.

    Args:
        sets: each with `name` and `layout`, and what else is known.

    Returns:
        JSON-ready: those fields, and `title`, `licence`, `spdx` (where there is one), `citation`
        and `doi`, or `catalogue`: `NOT_IN_CATALOGUE`.
    """
    described = []
    for each in sets:
        published = CATALOGUE.get((each["name"], each["layout"]))
        if published is None:
            described.append({**each, "catalogue": NOT_IN_CATALOGUE})
            continue
        facts = {
            "title": published.title,
            "licence": published.licence,
            **({"spdx": published.spdx} if published.spdx else {}),
            "citation": published.citation,
            "doi": published.doi,
        }
        described.append({**each, **facts})
    return described
