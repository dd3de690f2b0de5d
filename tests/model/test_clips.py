import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_model import augmentation, clips
from passerby_model.datasets import Tracklet
from passerby_model.train_config import Augmentation
from PIL import Image

PLAIN = Augmentation(crop=0, flip=0)


@pytest.fixture
def tracklet(tmp_path):
    """Five frames; frame i is filled with 10 * i, its left half 5 brighter."""
    frames = []
    for i in range(5):
        image = np.full((40, 20, 3), 10 * i, np.uint8)
        image[:, :10] += 5
        frames.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(frames[-1])
    return Tracklet("ann", "c1", "t1", tuple(frames))


def builder(tracklet, augmentation, seed=0, cache=10**6):
    store = clips.FrameStore(64, 32, cache)
    return clips.ClipBuilder([tracklet], store, augmentation, 4, (64, 32), seed)


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 99))
def test_clip_indices_are_consecutive_or_cyclic(frame_count, length, seed):
    indices = clips.clip_indices(frame_count, length, np.random.default_rng(seed))
    assert indices.shape == (length,)
    if frame_count >= length:
        assert 0 <= indices[0] <= frame_count - length
        assert (np.diff(indices) == 1).all()
    else:
        assert indices.tolist() == [i % frame_count for i in range(length)]


def test_every_start_of_a_tracklet_is_drawn():
    generator = np.random.default_rng(0)
    assert {int(clips.clip_indices(7, 4, generator)[0]) for _ in range(200)} == {0, 1, 2, 3}


def test_reference_starts_are_among_ours(shared):
    golden = json.loads((shared / "golden" / "sampling.json").read_text())
    assert set(golden) >= {"dense"}
    generator = np.random.default_rng(0)
    for length in (2, 4, 8):
        starts = {int(clips.clip_indices(length + 3, length, generator)[0]) for _ in range(300)}
        assert starts == {0, 1, 2, 3}


def test_without_augmentation_the_clip_is_the_resized_frames(tracklet):
    clip = builder(tracklet, PLAIN).batch(np.array([0]), iteration=0).frames[0]
    assert clip.shape == (4, 64, 32, 3)
    assert clip.dtype == np.uint8
    starts = clip[:, 0, -1, 0].astype(int)
    assert (np.diff(starts) == 10).all()
    assert (clip[:, 0, 0, 0] == starts + 5).all()


def test_batches_depend_on_seed_and_iteration_only(tracklet):
    everything = Augmentation(crop=0.5, flip=0.5, erase=0.5, colour=0.5, grey=0.2, blur=0.5)
    members = np.array([0, 0])
    one = builder(tracklet, everything).batch(members, 7).frames
    assert np.array_equal(one, builder(tracklet, everything, cache=0).batch(members, 7).frames)
    assert not np.array_equal(one, builder(tracklet, everything).batch(members, 8).frames)
    assert not np.array_equal(one, builder(tracklet, everything, seed=1).batch(members, 7).frames)
    assert not np.array_equal(one[0], one[1])


def test_flip_is_independent_for_each_frame_unless_asked(tracklet):
    def mirrored(options):
        made = builder(tracklet, options).batch(np.zeros(40, int), 0).frames
        return (made[:, :, 0, 0, 0] < made[:, :, 0, -1, 0]).sum(axis=1)

    assert set(mirrored(Augmentation(crop=0))) > {1, 2, 3}
    assert set(mirrored(Augmentation(crop=0, per_clip=True))) == {0, 4}


def test_recolour_is_the_same_for_all_frames_and_spreads_colours():
    clip = np.random.default_rng(0).integers(0, 256, (1, 16, 8, 3), dtype=np.uint8)
    clip = np.repeat(clip, 4, axis=0)
    means = []
    for seed in range(30):
        out = augmentation.recolour(clip, 1.0, np.random.default_rng(seed))
        assert out.dtype == np.uint8
        assert (out == out[:1]).all()
        means.append(out.mean(axis=(0, 1, 2)))
    assert np.std(means, axis=0).min() > 20
    faint = augmentation.recolour(clip, 1e-6, np.random.default_rng(0)).astype(int)
    assert np.abs(faint - clip).max() <= 1


def test_erase_fills_a_rectangle_of_2_to_40_percent():
    for seed in range(50):
        frame = np.zeros((64, 32, 3), np.uint8)
        augmentation.erase(frame, np.random.default_rng(seed))
        share = (frame[..., 0] > 0).mean()
        assert 0.01 < share < 0.45
        rows, columns = np.nonzero(frame[..., 0])
        assert (frame[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == [124, 116, 104]).all()


def test_blur_loses_detail():
    noise = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    out = augmentation.augment([noise], (64, 32), Augmentation(crop=0, flip=0, blur=1), np.random.default_rng(0))
    assert out.std() < 0.8 * noise.std()


def test_store_shrinks_large_frames_and_keeps_to_its_limit(tmp_path):
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((400, 300, 3), np.uint8)).save(path)
    store = clips.FrameStore(64, 32, cache_bytes=72 * 36 * 3)
    first = store.get(path)
    assert first.shape == (72, 36, 3)
    assert store.get(path) is first
    other = tmp_path / "other.png"
    other.write_bytes(path.read_bytes())
    assert store.get(other) is not store.get(other)


def test_an_unreadable_frame_is_named(tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no image")
    with pytest.raises(InvalidArgumentError, match=r"broken\.jpg"):
        builder(Tracklet("ann", "c1", "t1", (path,)), PLAIN).batch(np.array([0]), 0)


def test_prefetched_keeps_the_order_and_runs_ahead():
    started, release = [], threading.Event()

    def work(job):
        started.append(job)
        if job:
            release.wait(10)
        return job * job

    results = clips.prefetched(iter(range(6)), work, workers=2)
    assert next(results) == (0, 0)
    release.set()
    assert list(results) == [(i, i * i) for i in range(1, 6)]
    assert sorted(started) == list(range(6))


def test_prefetched_passes_errors_on():
    def work(job):
        raise InvalidArgumentError(f"job {job}")

    with pytest.raises(InvalidArgumentError, match="job 0"):
        list(clips.prefetched(range(3), work, workers=2))


def test_join_takes_the_upper_body_of_one_and_the_lower_of_the_other():
    upper = [np.full((20, 10, 3), 200, np.uint8)] * 2
    lower = [np.full((33, 9, 3), 50, np.uint8)] * 2
    made = augmentation.join(upper, lower, waist=0.4)
    assert [frame.shape for frame in made] == [(20, 10, 3)] * 2
    assert (made[1][:8] == 200).all()
    assert (made[1][8:] == 50).all()


def test_joined_clips_are_nobody_and_partners_come_from_the_same_source(tmp_path):
    tracklets = []
    for number, (identity, level) in enumerate((("0/ann", 0), ("0/bob", 100), ("1/cid", 250))):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((40, 20, 3), level, np.uint8)).save(path)
        tracklets.append(Tracklet(identity, "c1", "t1", (path,)))
    store = clips.FrameStore(64, 32, 10**6)
    make = clips.ClipBuilder(tracklets, store, Augmentation(crop=0, flip=0, join=0.5), 2, (64, 32))
    batch = make.batch(np.zeros(60, int), 0)
    assert 10 < batch.whole.sum() < 50
    assert (batch.frames[batch.whole] == 0).all()
    joined = batch.frames[~batch.whole]
    assert (joined[:, :, 0] == 0).all()
    assert (joined.max(axis=(1, 2, 3, 4)) <= 100).all(), "ann with bob's legs, never with cid's"
    assert (joined[:, :, -1] == 100).any()


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 99))
def test_spread_indices_take_one_frame_of_each_part(frame_count, length, seed):
    indices = clips.spread_indices(frame_count, length, np.random.default_rng(seed))
    assert indices.shape == (length,)
    edges = np.linspace(0, frame_count, length + 1)
    assert (indices >= np.floor(edges[:-1])).all()
    assert (indices < np.maximum(edges[1:], 1)).all()
    assert (np.diff(indices) >= 0).all()


@pytest.fixture
def masked(tmp_path):
    """Two people, grey 200 and 100, in the middle third of frames whose backgrounds are 10 and 50."""
    tracklets = []
    for identity, person, scene in (("0/ann", 200, 10), ("0/bob", 100, 50)):
        folder = tmp_path / identity
        folder.mkdir(parents=True)
        frames = []
        for number in range(3):
            picture = np.full((64, 30, 3), scene, np.uint8)
            picture[:, 10:20] = person
            frames.append(folder / f"{number}.png")
            Image.fromarray(picture).save(frames[-1])
            labels = np.zeros((64, 30), np.uint8)
            labels[:, 10:20] = 3
            Image.fromarray(labels).save(folder / f"{number}.mask.png")
        tracklets.append(Tracklet(identity, "c1", "t1", tuple(frames)))
    return tracklets


def test_a_person_is_put_before_the_backgrounds_of_others(masked):
    options = Augmentation(crop=0, flip=0, background=1, spread=1)
    store = clips.FrameStore(64, 30, 10**6)
    make = clips.ClipBuilder(masked, store, options, 3, (64, 30), 0, lambda frame: frame.with_suffix(".mask.png"))
    drawn = [make.clip(0, np.random.default_rng(seed)) for seed in range(20)]
    for clip in drawn:
        assert clip.whole
        assert (clip.original[:, :, :10] == 10).all()
        assert (clip.frames[:, :, 10:20] == 200).all()
        assert np.isin(clip.frames[:, :, :10], (10, 50)).all(), "nothing is left of the other person"
    seen = [tuple(clip.frames[:, 0, 0, 0]) for clip in drawn]
    assert (50, 50, 50) in seen
    assert any(len(set(levels)) == 2 for levels in seen), "another background in each frame"


@pytest.mark.parametrize("background", [0, 1])
def test_silhouettes_move_with_the_person(masked, background):
    options = Augmentation(crop=0.7, flip=0.5, spread=0.5, blur=0.3, background=background)
    store = clips.FrameStore(64, 30, 10**6)
    make = clips.ClipBuilder(masked, store, options, 3, (64, 30), 0, lambda frame: frame.with_suffix(".mask.png"))
    drawn = make.batch(np.zeros(40, int), 0)
    person = drawn.frames[..., 0] > 120
    assert drawn.silhouettes.shape == (40, 3, 64, 30)
    assert (drawn.silhouettes != person).mean() < 0.04, "but for the blurred edge"
    assert len({silhouette[0].tobytes() for silhouette in drawn.silhouettes}) > 3


def test_without_a_mask_and_of_two_people_the_silhouette_is_unknown(masked):
    mask_of = lambda frame: frame.with_suffix(".mask.png")  # noqa: E731
    for options, find in ((Augmentation(), lambda frame: None), (Augmentation(join=1), mask_of)):
        make = clips.ClipBuilder(masked, clips.FrameStore(64, 30, 10**6), options, 3, (64, 30), 0, find)
        assert (make.batch(np.zeros(2, int), 0).silhouettes == augmentation.UNKNOWN).all()


def test_a_missing_mask_is_named(masked):
    store = clips.FrameStore(64, 30, 10**6)
    options = Augmentation(background=1)
    make = clips.ClipBuilder(masked, store, options, 3, (64, 30), 0, lambda frame: frame.with_suffix(".none.png"))
    with pytest.raises(NotFoundError, match=r"\.none\.png is missing: the masks are not"):
        make.batch(np.zeros(2, int), 0)


def test_garments_change_colour_and_the_rest_does_not(tracklet):
    frames = [np.random.default_rng(1).integers(0, 256, (64, 32, 3), dtype=np.uint8)] * 2
    made = augmentation.augment(frames, (64, 32), Augmentation(crop=0, flip=0, garment=1), np.random.default_rng(0))
    assert np.array_equal(made[:, :9], np.stack(frames)[:, :9]), "the head"
    assert np.array_equal(made[:, :, :2], np.stack(frames)[:, :, :2]), "beside the person"
    changed = (made != np.stack(frames)).any(axis=-1)
    assert changed[:, 12:30, 4:28].mean() > 0.9
    assert changed[:, 36:56, 4:28].mean() > 0.9
    assert np.array_equal(made[0], made[1]), "the same clothes in every frame"


def test_a_plain_original_is_the_frame_before_augmentation(tracklet):
    everything = Augmentation(crop=1, flip=1, colour=1, erase=1)
    store = clips.FrameStore(64, 32, 10**6)
    make = clips.ClipBuilder([tracklet], store, everything, 4, (64, 32))
    drawn = make.resized((32, 16), plain_original=True).clip(0, np.random.default_rng(3))
    same = make.resized((32, 16)).clip(0, np.random.default_rng(3))
    assert np.array_equal(drawn.frames, same.frames), "what the student sees does not depend on the teacher"
    assert not np.array_equal(same.original, drawn.original)
    assert set(np.unique(drawn.original[:, :, :6])) <= {5, 15, 25, 35, 45}, "the tracklet's own levels, to the left"
