"""Parts of Blosc frames against the whole of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Blosc, blosc

from brainmap.image.storage.blosc import block_bytes, read

SIZE = 300_000


def values(dtype: str) -> np.ndarray:
    rng = np.random.default_rng(4)
    return np.cumsum(rng.integers(0, 9, SIZE // np.dtype(dtype).itemsize)).astype(dtype)


def decode(frame: bytes, first: int, stop: int, chunk: int = SIZE) -> tuple[bytes, int]:
    return read(lambda begin, count: frame[begin : begin + count], len(frame), first, stop, chunk)


@pytest.mark.parametrize(
    ("name", "shuffle", "dtype", "block"),
    [
        *itertools.product(
            ("zstd", "lz4"), (Blosc.NOSHUFFLE, Blosc.SHUFFLE, Blosc.BITSHUFFLE), ("u2",), (0, 4096)
        ),
        ("blosclz", Blosc.SHUFFLE, "f4", 8192),
        ("zlib", Blosc.BITSHUFFLE, "u1", 65536),
        ("lz4hc", Blosc.SHUFFLE, "f8", 1 << 20),
    ],
)
def test_a_part_is_what_the_whole_holds(name: str, shuffle: int, dtype: str, block: int) -> None:
    array = values(dtype)
    whole = array.tobytes()
    frame = Blosc(name, 5, shuffle, block).encode(array)
    rng = np.random.default_rng(1)
    spans = [tuple(sorted(rng.integers(0, len(whole), 2))) for _ in range(20)]
    for first, stop in [(0, 1), (0, len(whole)), (len(whole) - 1, len(whole)), *spans]:
        if first == stop:
            continue
        part, begins = decode(frame, first, stop)
        assert begins <= first
        assert begins + len(part) >= stop
        assert part == whole[begins : begins + len(part)]


def test_blocks_may_lie_in_any_order() -> None:
    """As threads leave them that finish one after the other."""
    frame = Blosc("zstd", 1, Blosc.BITSHUFFLE, 16384).encode(values("u2"))
    starts = np.frombuffer(frame, "<i4", -(-SIZE // 16384), 16)
    blocks = [frame[a:b] for a, b in itertools.pairwise([*starts, len(frame)])]
    order = np.random.default_rng(2).permutation(len(blocks))
    ends = np.cumsum([len(blocks[i]) for i in order])
    places = np.empty_like(starts)
    places[order] = starts[0] + np.append(0, ends[:-1])
    shuffled = b"".join([frame[:16], places.tobytes(), *(blocks[i] for i in order)])
    whole = values("u2").tobytes()
    assert blosc.decompress(shuffled) == whole
    for first in range(0, SIZE, 9999):
        part, begins = decode(shuffled, first, min(first + 20_000, SIZE))
        assert part == whole[begins : begins + len(part)]
        assert begins <= first < begins + len(part)


def test_only_the_blocks_needed_are_decoded() -> None:
    frame = Blosc("zstd", 1, Blosc.BITSHUFFLE, 16384).encode(values("u2"))
    fetched = []

    def fetch(begin: int, count: int) -> bytes:
        fetched.append(count)
        return frame[begin : begin + count]

    part, begins = read(fetch, len(frame), 40_000, 50_000, SIZE)
    assert (begins, len(part)) == (32768, 32768)
    assert sum(fetched) < len(frame) / 4
    assert block_bytes(fetch, len(frame)) == 16384


def test_noise_is_stored_as_it_is() -> None:
    noise = np.random.default_rng(0).bytes(SIZE)
    part, begins = decode(Blosc("lz4", 5, Blosc.NOSHUFFLE, 4096).encode(noise), 100, 200)
    assert part[100 - begins : 200 - begins] == noise[100:200]


@pytest.mark.parametrize("keep", [3, 16, 200, -1])
def test_truncated_frames_are_refused(keep: int) -> None:
    frame = Blosc("zstd", 1, Blosc.BITSHUFFLE, 16384).encode(values("u2"))
    with pytest.raises(ValueError, match="bytes are stored where"):
        decode(frame[:keep], 0, 100)
    with pytest.raises(ValueError, match="bytes are stored where"):
        decode(frame[:keep], 0, SIZE)


def test_frames_of_another_size_are_refused() -> None:
    frame = Blosc("zstd", 1, Blosc.BITSHUFFLE, 16384).encode(values("u2"))
    with pytest.raises(ValueError, match="300000 bytes are encoded where 400000 should be"):
        decode(frame, 0, 100, 400_000)


def test_damaged_places_are_refused() -> None:
    frame = bytearray(Blosc("zstd", 1, Blosc.BITSHUFFLE, 16384).encode(values("u2")))
    frame[20:24] = (2**31 - 1).to_bytes(4, "little")
    with pytest.raises(ValueError, match="places of its blocks"):
        decode(bytes(frame), 0, 100)
    frame[20:24] = (3).to_bytes(4, "little")
    with pytest.raises(ValueError, match="places of its blocks"):
        decode(bytes(frame), 0, 100)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 40_000), st.sampled_from([0, 256, 1024, 5000]), st.sampled_from(["zstd", "lz4", "blosclz"]),
    st.sampled_from([Blosc.NOSHUFFLE, Blosc.SHUFFLE, Blosc.BITSHUFFLE]), st.booleans(), st.data(),
)  # fmt: skip
def test_any_part_of_any_frame(count, block, name, shuffle, noise, data):
    rng = np.random.default_rng(count)
    array = (rng.integers(0, 65536, count) if noise else np.arange(count) // 3).astype("u2")
    whole, frame = array.tobytes(), bytes(Blosc(name, 5, shuffle, block).encode(array))
    first = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(first + 1, len(whole)))
    part, begins = decode(frame, first, stop, len(whole))
    assert begins <= first
    assert bytes(part) == whole[begins : begins + len(part)]
    assert begins + len(part) >= stop
    with pytest.raises((ValueError, RuntimeError)):
        decode(frame[: data.draw(st.integers(0, len(frame) - 1))], first, stop, len(whole))
