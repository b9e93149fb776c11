"""Tables of points as other programs write them, with the right answer to each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainmap.errors import DataError
from brainmap.points.table import read_locations

WANTED = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.5]])

READ = {
    "napari": "index,axis-0,axis-1,axis-2\n0,1,2,3\n1,4,5,6.5\n",
    "napari, a channel before": "index,axis-0,axis-1,axis-2,axis-3\n0,0.0,1,2,3\n1,0.0,4,5,6.5\n",
    "napari, t and c before": "axis-0,axis-1,axis-2,axis-3,axis-4\n2,0,1,2,3\n2,0,4,5,6.5\n",
    "napari shapes in between": "index,axis-2,axis-1,axis-0\n0,3,2,1\n1,6.5,5,4\n",
    "a European spreadsheet": "z;y;x\n1;2;3\n4;5;6,5\n",
    "tabs": "z\ty\tx\n1\t2\t3\n4\t5\t6.5\n",
    "a byte order mark": "\ufeffz,y,x\n1,2,3\n4,5,6.5\n",
    "Windows line ends": "z,y,x\r\n1,2,3\r\n4,5,6.5\r\n",
    "capitals": "Z,Y,X\n1,2,3\n4,5,6.5\n",
    "blanks": "z, y, x\n1, 2, 3\n4, 5, 6.5\n",
    "another order, and more": "name,x,y,z,note\na,3,2,1,\nb,6.5,5,4,sure\n",
    "quotation marks": '"z","y","x"\n"1","2","3"\n"4","5","6.5"\n',
    "blank lines at the end": "z,y,x\n1,2,3\n4,5,6.5\n\n\n",
    "no line end at the end": "z,y,x\n1,2,3\n4,5,6.5",
}


@pytest.mark.parametrize("kind", READ)
def test_read(kind: str, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_bytes(READ[kind].encode())
    np.testing.assert_allclose(read_locations(tmp_path / "points.csv").zyx_vox, WANTED)


REFUSED = {
    "two times": ("axis-0,axis-1,axis-2,axis-3\n0,1,2,3\n1,4,5,6\n", "axis-0 varies"),
    "an axis left out": ("axis-0,axis-1,axis-3\n0,1,2\n", "axis-0, axis-1 and so on"),
    "ImageJ's results": (" ,Area,Mean,XM,YM\n1,2,3,4,5\n", "needs columns z,y,x"),
    "no header": ("1,2,3\n4,5,6\n", "needs columns z,y,x"),
    "words": ("z,y,x\n1,2,three\n", "not numbers"),
    "a hole": ("z,y,x\n1,2,\n", "column x"),
    "infinity": ("z,y,x\n1,2,inf\n", "no finite number in row 1"),
    "twice the same": ("z,y,x,x\n1,2,3,3\n", "two columns"),
    "too few": ("z,y\n1,2\n", "needs columns"),
    "nothing": ("", "is empty"),
    "ragged": ("z,y,x\n1,2,3\n4,5\n", "not a readable CSV"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str, tmp_path: Path) -> None:
    text, sentence = REFUSED[kind]
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_locations(tmp_path / "points.csv")
