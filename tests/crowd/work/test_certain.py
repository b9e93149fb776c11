"""Stop when certain: further workers only where aggregation is in doubt."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import select

from brainmap.crowd.store import schema
from brainmap.crowd.web.app import create_app
from brainmap.crowd.work.analysis import analyse, heat_of_tile, stored_analysis
from brainmap.crowd.work.certain import judge
from brainmap.crowd.work.certainty import count_undecided
from brainmap.crowd.work.progress import site_status
from brainmap.crowd.work.projects import ProjectSpec, add_project

from ..conftest import Person, make_tiles, quick_passwords


@pytest.fixture
def certain(empty_site, tmp_path):
    """A project until certain: one tile for quality control, one on which all agree, one on which they do not."""
    truth = make_tiles(tmp_path / "c", ["q", "clear", "doubtful"], qc=1, cells=8)
    add_project(empty_site, ProjectSpec("cortex", tmp_path / "c", until_certain=True))
    return empty_site, truth, create_app(empty_site, passwords=quick_passwords(), scan=False)


def image_of(site, tile):
    with site.database.read() as connection:
        return connection.execute(
            select(schema.tile.c.image_id)
            .join(schema.assignment, schema.assignment.c.tile_id == schema.tile.c.id)
            .where(schema.assignment.c.token == tile["tile"])
        ).scalar_one()


def completed(site):
    with site.database.read() as connection:
        return {
            row.image_id: row.n_completed
            for row in connection.execute(select(schema.tile.c.image_id, schema.tile.c.n_completed))
        }


def test_only_what_is_in_doubt_goes_to_further_workers(certain):
    site, truth, app = certain
    rng = np.random.default_rng(1)

    def clicks(tile):
        name = image_of(site, tile)
        cells = truth[name] + rng.normal(0, 0.4, truth[name].shape)
        # People who overlook a third of the cells: three of them leave doubt, but not where all agree.
        return cells if name == "clear" else cells[rng.random(len(cells)) < 0.65]

    for _ in range(14):
        Person(app).work_through(clicks)
    counts = completed(site)
    assert counts["q"] == 14
    assert counts["clear"] == 3
    assert 3 < counts["doubtful"] <= 12
    status = site_status(site)["projects"][0]
    assert status["until_certain"] is True and status["redundancy"] is None
    assert status["finished"] == 3 and status["answers"] == 14 + 3 + counts["doubtful"]


def test_what_is_not_judged_yet_waits(certain):
    """A fourth worker gets no tile of which nobody knows whether it needs him."""
    site, truth, app = certain
    for _ in range(3):
        Person(app).work_through(lambda tile: truth[image_of(site, tile)])
    with site.database.write() as connection:
        connection.execute(schema.tile.update().values(n_judged=0))
    # Asking judges what is pending, so a restart between finishing and judging costs nothing.
    assert Person(app).work_through(lambda tile: truth[image_of(site, tile)]) == 1
    assert completed(site)["clear"] == 3


def test_the_posterior_decides():
    assert count_undecided(np.array([0.05, 0.1, 0.11, 0.5, 0.89, 0.9, 0.99])) == 3
    assert count_undecided(np.zeros(0)) == 0


def test_a_tile_on_which_nobody_clicked_is_certain(certain):
    site, _, app = certain
    for _ in range(3):
        Person(app).work_through()
    with site.database.read() as connection:
        row = connection.execute(select(schema.tile).where(schema.tile.c.image_id == "clear")).one()
    assert (row.n_judged, row.n_undecided) == (3, 0)
    assert judge(site, row.project_id, row.id) == 0


def test_agreement_and_ability_are_stored(certain):
    site, truth, app = certain
    assert analyse(site, "cortex") is None
    for name, missed in (("Ann", 0), ("Bob", 0), ("Carl", 4)):
        Person(app, name).work_through(lambda tile, missed=missed: truth[image_of(site, tile)][missed:])
    result = analyse(site, "cortex")
    assert result["cells"] == 24
    assert result["workers"]["Carl"]["sensitivity"] < result["workers"]["Ann"]["sensitivity"]
    assert result["tiles"]["clear"]["agreement"] == pytest.approx((4 * 1 + 4 * 2 / 3) / 8, abs=0.01)
    with site.database.read() as connection:
        row = connection.execute(select(schema.tile).where(schema.tile.c.image_id == "clear")).one()
        stored = stored_analysis(connection, row.project_id)
        heat = heat_of_tile(connection, row, {})
    assert stored["tiles"] == result["tiles"] and stored["n_clicks"] == 3 * 3 * 8 - 12
    x, y = np.rint(truth["clear"][-1]).astype(int)
    assert heat.shape == (row.height, row.width) and heat[y, x] > 0.9 and heat[0, 0] == 0
