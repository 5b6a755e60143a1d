"""Publish a shapefile: three to four files that make sense only together.

    python examples/write_shapefile.py [FOLDER]          # default: ./map

A program that writes shapefiles gets one name, "roads.shp", and writes the others next to it.  ``also=`` says which these may
be: what the program has written is published in one transaction, and what only the old version had is removed.

The writer below is real, if small (points with a name; Esri's "Shapefile Technical Description", 1998), and so is the reader,
which fails if .shp, .shx and .dbf are not of one version.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import atomik

if TYPE_CHECKING:
    from collections.abc import Sequence

#: what belongs to a shapefile
ALSO = [".shx", ".dbf", ".prj", ".cpg", "places.shp.xml"]
WGS84 = (
    'GEOGCS["GCS_WGS_1984",DATUM["D_WGS_1984",SPHEROID["WGS_1984",6378137.0,298.257223563]],'
    'PRIMEM["Greenwich",0.0],UNIT["Degree",0.0174532925199433]]'
)

Point = tuple[str, float, float]


# --- a program that writes shapefiles ---------------------------------------------------------------------------------
def write_shapefile(path: Path, points: Sequence[Point], projection: str | None = WGS84) -> None:
    """Write PATH, and .shx, .dbf and perhaps .prj next to it."""
    xs, ys = [x for _, x, _ in points], [y for _, _, y in points]
    box = struct.pack("<4d4d", min(xs), min(ys), max(xs), max(ys), 0, 0, 0, 0)
    shapes = [struct.pack("<i2d", 1, x, y) for _, x, y in points]
    with open(path, "wb") as shp, open(path.with_suffix(".shx"), "wb") as shx:
        for file, size in ((shp, 100 + len(shapes) * 28), (shx, 100 + len(shapes) * 8)):
            file.write(struct.pack(">7i", 9994, 0, 0, 0, 0, 0, size // 2) + struct.pack("<2i", 1000, 1) + box)
        for number, shape in enumerate(shapes):
            shx.write(struct.pack(">2i", shp.tell() // 2, len(shape) // 2))
            shp.write(struct.pack(">2i", number + 1, len(shape) // 2) + shape)
    with open(path.with_suffix(".dbf"), "wb") as dbf:
        dbf.write(struct.pack("<4BIHH20x", 3, 126, 1, 1, len(points), 65, 33))
        dbf.write(struct.pack("<11sc4xBB14x", b"NAME", b"C", 32, 0) + b"\r")
        dbf.writelines(b" " + name.encode("latin-1").ljust(32) for name, _, _ in points)
        dbf.write(b"\x1a")
    if projection is not None:
        path.with_suffix(".prj").write_text(projection)


def read_shapefile(path: Path) -> list[Point]:
    """The points, read from all three files."""
    with (
        open(path, "rb") as shp,
        open(path.with_suffix(".shx"), "rb") as shx,
        open(path.with_suffix(".dbf"), "rb") as dbf,
    ):
        index, shapes, table = shx.read()[100:], shp.read(), dbf.read()
    (rows,) = struct.unpack_from("<I", table, 4)
    if rows * 8 != len(index):
        raise ValueError(f"{path}: {rows} names, and {len(index) // 8} points: the files are of two versions")
    points = []
    for row in range(rows):
        at, _ = struct.unpack_from(">2i", index, row * 8)
        _, x, y = struct.unpack_from("<i2d", shapes, at * 2 + 8)
        points.append((table[65 + row * 33 + 1 : 65 + row * 33 + 33].decode("latin-1").strip(), x, y))
    return points


# --- publishing -------------------------------------------------------------------------------------------------------
def publish(path: Path, points: Sequence[Point], projection: str | None = WGS84) -> atomik.Receipt:
    """Publish the shapefile, all of it or nothing."""
    output = atomik.path(path, overwrite=True, also=ALSO)
    with output as staged:
        write_shapefile(staged, points, projection)
    assert output.receipt is not None
    return output.receipt


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "map")
    folder.mkdir(exist_ok=True)
    path = folder / "places.shp"

    publish(path, [("Mainz", 8.27, 50.0), ("Köln", 6.96, 50.94)])
    print(f"{len(read_shapefile(path))} points in {', '.join(sorted(entry.name for entry in folder.iterdir()))}")

    receipt = publish(path, [("Mainz", 8.27, 50.0), ("Köln", 6.96, 50.94), ("Bonn", 7.1, 50.73)], projection=None)
    print(
        "the next version has no projection:", ", ".join(f"{item.op} {Path(item.path).name}" for item in receipt.items)
    )
    assert not path.with_suffix(".prj").exists(), "the old one would be taken for that of the new points"

    before = read_shapefile(path)
    try:
        publish(path, [("Aachen", 6.08, 50.77), ("Łódź", 19.46, 51.77)])
    except UnicodeEncodeError as exc:
        print(f"a version failed half-way through its table ({exc.object!r}): the old one is complete")
    assert read_shapefile(path) == before


if __name__ == "__main__":
    main()
