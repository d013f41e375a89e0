"Labels, boxes and masks under what augmentation does: moved, covered, pasted, blended; against pixels and against hand-made cases."
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnbench.core import UsageError
from cnnbench.geometry import affine, move_masks
from cnnbench.shapes import SHAPES, draw_shapes
from cnnbench.targets import IGNORE, BoxColumn, Boxes, LabelColumn, Labels, MaskColumn, Masks, as_column, cut_boxes, make_boxes, ranges

SIZE = (40, 48)


def random_boxes(seed, images=5, most=6, size=SIZE):
    "Whole-numbered boxes, float32, some images without any."
    rng, (height, width) = np.random.default_rng(seed), size
    counts = rng.integers(0, most, images)
    def of(count):
        left, top = rng.integers(0, width - 3, count), rng.integers(0, height - 3, count)
        return np.stack([left, top, left + rng.integers(1, width - left + 1), top + rng.integers(1, height - top + 1)], 1)
    return make_boxes([of(count) for count in counts], [rng.integers(0, 4, count) for count in counts], [rng.random(count) < 0.2 for count in counts])


def random_rectangles(seed, count, size=SIZE):
    "int64 (count, 4), some empty."
    return random_boxes(seed, count * 3, 5, size).boxes[:count].astype(np.int64)


def covered_pixels(box, size=SIZE):
    "bool (height, width): what a whole-numbered box covers."
    held = np.zeros(size, bool)
    left, top, right, bottom = np.asarray(box, int)
    held[top:bottom, left:right] = True
    return held


# Boxes against pixels


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000), st.floats(0, 1))
def test_what_covering_leaves_equals_a_count_of_pixels(seed, visible):
    boxes = random_boxes(seed)
    over = np.concatenate([random_rectangles(seed + 1, 4), np.zeros((1, 4), np.int64)])[:5]
    over = np.concatenate([over, np.zeros((5 - len(over), 4), np.int64)])
    result, expected = boxes.covered(over, visible), []
    for box, owner, crowd, label in zip(boxes.boxes, boxes.owner, boxes.crowd, boxes.labels, strict=True):
        before, left = covered_pixels(box), covered_pixels(box) & ~covered_pixels(over[owner])
        if not left.any() or not crowd and left.sum() / before.sum() < visible - 1e-9: continue
        y, x = np.nonzero(left)
        expected.append((x.min(), y.min(), x.max() + 1, y.max() + 1, owner, label))
    if any(abs((covered_pixels(box) & ~covered_pixels(over[owner])).sum() / covered_pixels(box).sum() - visible) < 1e-6
           for box, owner in zip(boxes.boxes, boxes.owner, strict=True)): return  # a tie
    found = [(*box, owner, label) for box, owner, label in zip(result.boxes, result.owner, result.labels, strict=True)]
    assert found == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000))
def test_pasting_boxes_equals_pasting_pixels(seed):
    rng, own, other = np.random.default_rng(seed), random_boxes(seed), random_boxes(seed + 1, 3)
    items = rng.permutation(5)[:3]
    rectangles = np.concatenate([random_rectangles(seed + 2, 3), np.zeros((3, 4), np.int64)])[:3]
    result = own.pasted(other, items, rectangles, SIZE)
    assert len(result) == 5 and (np.diff(result.owner) >= 0).all() and result.boxes.dtype == np.float32
    for image in range(5):
        inside = covered_pixels(rectangles[items.tolist().index(image)]) if image in items else np.zeros(SIZE, bool)
        seen = [covered_pixels(box) & ~inside for box in own.of(image).boxes]
        if image in items: seen += [covered_pixels(box) & inside for box in other.of(items.tolist().index(image)).boxes]
        expected = sorted((x.min(), y.min(), x.max() + 1, y.max() + 1) for y, x in map(np.nonzero, seen) if len(x))
        assert sorted(map(tuple, result.of(image).boxes.astype(int).tolist())) == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000), st.integers(-20, 20), st.integers(-20, 20), st.booleans())
def test_shifted_and_mirrored_boxes_equal_shifted_pixels(seed, right, down, mirrored):
    boxes = random_boxes(seed)
    matrix = affine(5, m00=-1 if mirrored else 1, m02=(47 if mirrored else 0) + right, m12=down)
    result, expected = boxes.moved(matrix, SIZE, 0.0), []
    for box, owner in zip(boxes.boxes, boxes.owner, strict=True):
        wide = np.pad(covered_pixels(box), 60)
        x, y = matrix[0, 0, 0] * np.arange(48) + matrix[0, 0, 2] + 60, np.arange(40) + down + 60
        rows, columns = np.nonzero(wide[y][:, x.astype(int)])
        if len(rows): expected.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, owner))
    assert [(*box, owner) for box, owner in zip(result.boxes, result.owner, strict=True)] == expected


@pytest.mark.parametrize(("visible", "left"), [(0.0, 3), (0.25, 2), (0.5, 2), (0.51, 1), (1.0, 1)])
def test_too_little_to_be_seen(visible, left):
    boxes = make_boxes([[[0, 0, 10, 10], [15, 0, 25, 10], [18, 5, 28, 15]]], [[0, 1, 2]])
    assert len(boxes.moved(affine(1), (20, 20), visible).labels) == left  # 1, 1/2 and 1/5 of the boxes lie inside
    crowds = replace(boxes, crowd=np.ones(3, bool))
    assert len(crowds.moved(affine(1), (20, 20), visible).labels) == 3
    assert len(crowds.moved(affine(1, m02=50), (20, 20), visible).labels) == 0


def test_a_window_counts_against_the_whole_box():
    boxes = make_boxes([[[0, 0, 10, 10]], [[0, 0, 10, 10]]], [[0], [1]])
    seen = boxes.moved(affine(2), (20, 20), 0.5, np.array([[0, 0, 4, 20], [5, 0, 20, 20]]))
    assert seen.labels.tolist() == [1] and seen.boxes.tolist() == [[5, 0, 10, 10]]


def test_what_is_wholly_covered_leaves_nothing():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 20, (200, 2)).astype(np.float32)  # places that no float holds exactly
    boxes = make_boxes([np.concatenate([corner, corner + rng.uniform(1, 20, (200, 2)).astype(np.float32)], 1)], [np.zeros(200, int)])
    assert len(boxes.covered(np.array([[0, 0, 48, 40]])).labels) == 0
    assert len(boxes.pasted(boxes, np.array([0]), np.array([[0, 0, 48, 40]]), SIZE).labels) == 200


def test_cutting_takes_only_whole_sides():
    boxes = np.array([[2, 2, 8, 8]] * 5, np.float32)
    over = np.array([[0, 0, 5, 9], [0, 0, 5, 5], [3, 3, 7, 7], [0, 6, 9, 9], [0, 0, 9, 9]])
    cut, shares = cut_boxes(boxes, over)
    assert cut[:4].tolist() == [[5, 2, 8, 8], [2, 2, 8, 8], [2, 2, 8, 8], [2, 2, 8, 6]]
    assert np.allclose(shares, [0.5, 0.75, 20 / 36, 4 / 6, 0])


@pytest.mark.parametrize("method", ["moved", "covered", "pasted", "blended", "pick"])
def test_images_without_any_box(method):
    empty = make_boxes([[], [], []], [[], [], []])
    items, rectangles = np.array([0, 2]), np.array([[0, 0, 5, 5], [1, 1, 2, 2]])
    result = {
        "moved": lambda: empty.moved(affine(3), SIZE, 0.25), "covered": lambda: empty.covered(np.zeros((3, 4), np.int64), 0.25),
        "pasted": lambda: empty.pasted(empty.pick(items), items, rectangles, SIZE), "pick": lambda: empty.pick(np.array([2, 1, 0])),
        "blended": lambda: empty.blended(empty.pick(items), items, np.array([0.5, 0.2])),
    }[method]()
    held = result.tensors()
    assert len(result) == 3 and held.boxes.shape == (0, 4) and held.boxes.dtype == torch.float32 and held.owner.dtype == torch.int64
    assert held.labels.dtype == torch.int64 and held.crowd.dtype == torch.bool and held.share.dtype == torch.float32


def test_blended_boxes_count_by_their_share():
    own, other = random_boxes(3), random_boxes(4, 2)
    result = own.blended(other, np.array([1, 4]), np.array([0.25, 1.0]))
    assert len(result.of(1).labels) == len(own.of(1).labels) + len(other.of(0).labels)
    assert np.allclose(result.of(1).share, [0.75] * len(own.of(1).labels) + [0.25] * len(other.of(0).labels))
    assert np.array_equal(result.of(4).boxes, other.of(1).boxes) and (result.of(4).share == 1).all()  # nothing of its own is left
    assert np.array_equal(result.of(0).boxes, own.of(0).boxes) and (result.of(0).share == 1).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), max_size=8))
def test_ranges(pairs):
    first, last = (np.array([pair[0] + k * pair[1] for pair in pairs], np.int64) for k in (0, 1))
    assert ranges(first, last).tolist() == [number for a, b in zip(first, last, strict=True) for number in range(a, b)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100_000))
def test_a_column_gives_any_rows_and_a_target_any_images(seed):
    table, rng = random_boxes(seed, 7), np.random.default_rng(seed)
    rows = rng.integers(0, 7, 10)
    for taken in (BoxColumn(table, 4).take(rows), table.pick(rows)):
        for place, row in enumerate(rows):
            assert np.array_equal(taken.of(place).boxes, table.of(row).boxes) and np.array_equal(taken.item(place).labels, table.of(row).labels)


# Labels


def test_shares_of_labels_add_up_and_follow_areas():
    own, other = Labels(np.array([0, 1, 2]), 4), Labels(np.array([3, 2]), 4)
    pasted = own.pasted(other, np.array([0, 2]), np.array([[0, 0, 24, 20], [0, 0, 48, 40]]), SIZE)
    assert np.allclose(pasted.values, [[0.75, 0, 0, 0.25], [0, 1, 0, 0], [0, 0, 1, 0]]) and pasted.values.dtype == np.float32
    several = Labels(np.array([[1, 1, 0], [0, 0, 0]], np.float32), 3)
    assert np.allclose(several.blended(several.pick(np.array([1])), np.array([0]), np.array([0.25])).values, [[0.75, 0.75, 0], [0, 0, 0]])
    assert own.moved(affine(3), SIZE) is own and own.covered(np.ones((3, 4), np.int64)) is own


# Masks


@pytest.mark.parametrize("tensors", [False, True])
def test_masks_are_moved_pasted_and_covered_pixel_by_pixel(tensors):
    ids = np.random.default_rng(0).integers(0, 5, (3, *SIZE), dtype=np.uint8)
    held = Masks(ids).tensors() if tensors else Masks(ids)
    def array(values): return values.numpy() if tensors else values

    mirror = affine(3, m00=-1, m02=47)
    assert np.array_equal(array(held.moved(mirror, SIZE).ids), ids[:, :, ::-1])
    turn = affine(3, m00=0.8, m01=0.6, m10=-0.6, m11=0.8, m02=-4, m12=9)
    assert (array(held.moved(turn, SIZE).ids) == move_masks(ids, turn)).mean() > 0.99
    rectangle = np.array([[5, 6, 20, 30]])
    pasted = array(held.pasted(held.pick(np.array([2])), np.array([1]), rectangle, SIZE).ids)
    inside = covered_pixels(rectangle[0])
    assert np.array_equal(pasted[1], np.where(inside, ids[2], ids[1])) and np.array_equal(pasted[[0, 2]], ids[[0, 2]])
    covered = array(held.covered(np.concatenate([rectangle, np.zeros((2, 4), np.int64)])).ids)
    assert np.array_equal(covered[0], np.where(inside, IGNORE, ids[0])) and np.array_equal(covered[1:], ids[1:])
    blended = held.blended(held.pick(np.array([0])), np.array([2]), np.array([0.375])).tensors()
    assert blended.share.tolist() == [0, 0, 0.375] and np.array_equal(blended.partner.numpy(), ids[[0, 1, 0]])
    assert np.array_equal(array(held.ids), ids)  # nothing was written to


def test_ignored_pixels_stay_ignored_when_moved():
    ids = np.full((1, *SIZE), IGNORE, np.uint8)
    assert (Masks(ids).moved(affine(1, m00=0.9, m01=0.3, m02=-9), SIZE).ids == IGNORE).all()


# All kinds


def test_boxes_and_masks_of_a_scene_agree_after_the_same_moves():
    scenes = [draw_shapes(3, row, 64, (1, 4)) for row in range(12)]
    boxes = make_boxes([scene.boxes for scene in scenes], [scene.labels for scene in scenes])
    matrix = affine(12, m00=-0.7, m02=54, m11=0.7, m12=8)  # a window inside the picture: nothing is reflected
    found, painted, whole = boxes.moved(matrix, (64, 64)), Masks(np.stack([scene.mask for scene in scenes])).moved(matrix, (64, 64)), 0
    for image, ids in enumerate(painted.ids):
        for label in np.unique(found.of(image).labels):
            y, x = np.nonzero(ids == label + 1)
            ours = found.of(image).boxes[found.of(image).labels == label]
            (left, top), (right, bottom) = ours[:, :2].min(0), ours[:, 2:].max(0)
            apart = np.array([x.min() - left, y.min() - top, right - x.max() - 1, bottom - y.max() - 1]) if len(x) else np.zeros(4)
            assert apart.min() > -1.5
            if min(left, top) > 0 and max(right, bottom) < 64:  # a box that was cut off at the border may be looser than what is left of its object
                assert apart.max() < 1.5
                whole += 1
    assert whole > 5


def test_any_target_becomes_a_column():
    for targets, kind in ((np.array([0, 1]), LabelColumn), (np.eye(2, dtype=np.uint8), LabelColumn), (BoxColumn(random_boxes(0), 4), BoxColumn),
                          (MaskColumn(lambda rows: np.zeros((len(rows), 4, 4), np.uint8), 2, 3), MaskColumn)):
        assert isinstance(as_column(targets, len(SHAPES)), kind)
    assert [kind.reflects for kind in (Labels, Boxes, Masks)] == [True, False, True]
    with pytest.raises(UsageError, match="order of their rows"): BoxColumn(replace(random_boxes(1), owner=random_boxes(1).owner[::-1]), 4)
