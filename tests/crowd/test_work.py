"""What workers do: clicks arrive once however often they are sent, tiles are shared out without overshoot."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import select

from brainmap.crowd import schema


def test_first(ann, site):
    tile = ann.next()
    assert tile["order"] == 1
    assert ann.put(tile["tile"], 3, 4).status_code == 201
    ann.look_through(tile)
    print(ann.client.post(f"/api/tiles/{tile['tile']}/complete").json(), ann.client.get("/api/projects").json())
    print(ann.client.get("/api/me").json())
    print(ann.work_through())
