"""Every form on disk gives the same collection, reads nothing early, and names what is wrong."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from made_data import (
    WRITERS,
    Photo,
    make_photos,
    write_coco_json,
    write_folder,
    write_images,
    write_karpathy,
    write_wds,
)

from bench.data import classes
from bench.data.registry import load_collection
from bench.errors import InputError, UsageError

OPENED: list[str] = []
sys.addaudithook(lambda event, args: OPENED.append(str(args[0])) if event == "open" else None)


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_gives_the_same_collection(form: str, tmp_path: Path, photos: list[Photo]) -> None:
    collection = load_collection(WRITERS[form](tmp_path / "made", photos))
    assert [image.id.removesuffix(".jpg") for image in collection.images] == [photo.stem for photo in photos]
    assert list(collection.captions) == [caption for photo in photos for caption in photo.captions]
    for i, photo in enumerate(photos):
        mine = [collection.captions[c] for image, c in collection.positives.tolist() if image == i]
        assert mine == photo.captions
        np.testing.assert_array_equal(np.asarray(collection.images[i].decode()), pixels_of(photo.data))
    assert collection.positives.dtype == np.int64
    assert collection.labels is None
    assert collection.revision.startswith("sha256:")
    assert collection.name.split("/")[0] == "made"


def test_every_form_gives_the_same_bytes(tmp_path: Path, photos: list[Photo]) -> None:
    digests = {
        tuple(image.sha256 for image in load_collection(write(tmp_path / form, photos)).images)
        for form, write in WRITERS.items()
    }
    assert len(digests) == 1


@pytest.mark.parametrize("form", WRITERS)
def test_revision_follows_the_captions(form: str, tmp_path: Path, photos: list[Photo]) -> None:
    changed = [photos[0]._replace(captions=[photos[0].captions[0].upper()]), *photos[1:]]
    first, again, other = (
        load_collection(WRITERS[form](tmp_path / str(i) / "made", those))
        for i, those in enumerate((photos, photos, changed))
    )
    assert first.revision == again.revision != other.revision


@pytest.mark.parametrize("form", ["karpathy", "coco_json", "folder"])
def test_loading_opens_no_image(form: str, tmp_path: Path, photos: list[Photo]) -> None:
    dataset = WRITERS[form](tmp_path / "made", photos)
    OPENED.clear()
    collection = load_collection(dataset)
    assert not [path for path in OPENED if path.endswith(".jpg")]
    collection.images[0].decode()
    assert len([path for path in OPENED if path.endswith(".jpg")]) == 1


def test_loading_an_archive_decodes_no_image(tmp_path: Path) -> None:
    """Its images are no images, which nobody can tell who does not look."""
    photos = [photo._replace(data=b"not decoded") for photo in make_photos(3)]
    collection = load_collection(write_wds(tmp_path / "made", photos))
    assert len(collection.images) == 3
    with pytest.raises(InputError):
        collection.images[0].decode()


@pytest.mark.parametrize("form", ["karpathy", "coco_json", "folder"])
def test_a_missing_image_is_named(form: str, tmp_path: Path, photos: list[Photo]) -> None:
    dataset = WRITERS[form](tmp_path / "made", photos)
    next((tmp_path / "made").rglob("photo_0003.jpg")).unlink()
    with pytest.raises(InputError, match=r"image photo_0003\.jpg is missing"):
        load_collection(dataset)


@pytest.mark.parametrize("form", ["karpathy", "coco_json"])
def test_a_folder_without_any_image_is_named(form: str, tmp_path: Path, photos: list[Photo]) -> None:
    dataset = WRITERS[form](tmp_path / "made", photos)
    for file in (tmp_path / "made" / "images").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"image photo_0000\.jpg is missing; looked in .*images"):
        load_collection(dataset)


@pytest.mark.parametrize("form", WRITERS)
def test_a_corrupt_image_is_named_when_it_is_decoded(form: str, tmp_path: Path, photos: list[Photo]) -> None:
    photos[2] = photos[2]._replace(data=photos[2].data[:300])
    collection = load_collection(WRITERS[form](tmp_path / "made", photos))
    collection.images[1].decode()
    with pytest.raises(InputError, match="image photo_0002"):
        collection.images[2].decode()


@pytest.mark.parametrize("form", WRITERS)
def test_an_image_without_captions_is_named(form: str, tmp_path: Path, photos: list[Photo]) -> None:
    photos[2] = photos[2]._replace(captions=[])
    with pytest.raises(InputError, match=r"image photo_0002\S* has no caption"):
        load_collection(WRITERS[form](tmp_path / "made", photos))


@pytest.mark.parametrize("form", ["karpathy", "coco_json", "folder"])
def test_a_caption_that_is_no_string_is_named(form: str, tmp_path: Path, photos: list[Photo]) -> None:
    photos[2] = photos[2]._replace(captions=["fine", 7])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"photo_0002.*7"):
        load_collection(WRITERS[form](tmp_path / "made", photos))


@pytest.mark.parametrize("form", ["karpathy", "coco_json", "folder"])
def test_an_id_that_stands_twice_is_named(form: str, tmp_path: Path, photos: list[Photo]) -> None:
    with pytest.raises(InputError, match=r"photo_0001\.jpg' stands twice"):
        load_collection(WRITERS[form](tmp_path / "made", [*photos, photos[1]]))


@pytest.mark.parametrize("name", ["../outside.jpg", "/etc/hostname", "a/../../b.jpg", "", "nul\0.jpg"])
@pytest.mark.parametrize("form", ["karpathy", "coco_json", "folder"])
def test_a_name_that_leads_out_of_the_folder_is_refused(form: str, name: str, tmp_path: Path) -> None:
    write = {"karpathy": write_karpathy, "coco_json": write_coco_json, "folder": write_folder}[form]
    photo = make_photos(1)[0]
    dataset = write(tmp_path / "made", [photo])
    for file in (tmp_path / "made").glob("*.json*"):
        file.write_text(file.read_text().replace('"photo_0000.jpg"', json.dumps(name)))
    with pytest.raises(InputError, match="leads out of its folder"):
        load_collection(dataset)


@pytest.mark.parametrize("caption", ["", " ", "e\u0301 é", "שלום", "nul\0inside", "x" * 10_000, "two\nlines", "\u2028"])
@pytest.mark.parametrize("form", ["karpathy", "coco_json", "folder"])
def test_captions_are_passed_on_verbatim(form: str, caption: str, tmp_path: Path, photos: list[Photo]) -> None:
    photos[0] = photos[0]._replace(captions=[caption])
    assert load_collection(WRITERS[form](tmp_path / "made", photos)).captions[0] == caption


@pytest.mark.parametrize("form", ["karpathy", "coco_json"])
@pytest.mark.parametrize(
    ("content", "place"),
    [('{"images": [\n  {,}]}', "line 2, column 4"), ("[" * 100_000, "malformed JSON"), ("\udcff", "malformed JSON")],
)
def test_malformed_json_gives_file_and_place(
    form: str, content: str, place: str, tmp_path: Path, photos: list[Photo]
) -> None:
    dataset = WRITERS[form](tmp_path / "made", photos)
    file = next((tmp_path / "made").glob("*.json"))
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=place) as caught:
        load_collection(dataset)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{}", '{"images": 3}', '{"images": [], "annotations": []}'])
@pytest.mark.parametrize("form", ["karpathy", "coco_json"])
def test_json_of_another_kind_is_refused(form: str, content: str, tmp_path: Path, photos: list[Photo]) -> None:
    dataset = WRITERS[form](tmp_path / "made", photos)
    next((tmp_path / "made").glob("*.json")).write_text(content)
    with pytest.raises((InputError, UsageError)):
        load_collection(dataset)


class TestKarpathy:
    def test_splits_are_kept_apart_and_restval_is_train(self, tmp_path: Path, photos: list[Photo]) -> None:
        dataset = write_karpathy(tmp_path / "made", photos)

        def split(document: dict) -> None:
            for entry, name in zip(document["images"], ["train", "test", "restval", "val", "train"], strict=True):
                entry["split"] = name

        edit(tmp_path / "made" / "dataset_made.json", split)
        assert [i.id for i in load_collection(f"{dataset}/train").images] == [f"photo_000{i}.jpg" for i in (0, 2, 4)]
        assert [i.id for i in load_collection(dataset).images] == ["photo_0001.jpg"]
        assert load_collection(f"{dataset}/val").name == "made/val"
        with pytest.raises(UsageError, match=r"'tran'. Did you mean 'train'\? .*\{test,train,val\}"):
            load_collection(f"{dataset}/tran")

    def test_the_json_itself_can_be_named(self, tmp_path: Path, photos: list[Photo]) -> None:
        write_karpathy(tmp_path / "made", photos)
        (tmp_path / "made" / "dataset_other.json").write_text("{}")
        file = tmp_path / "made" / "dataset_made.json"
        assert load_collection(f"karpathy:{file}/test").name == "dataset_made/test"
        with pytest.raises(InputError, match=r"got dataset_made\.json, dataset_other\.json"):
            load_collection(f"karpathy:{tmp_path}/made")

    def test_filepath_is_the_folder_between(self, tmp_path: Path, photos: list[Photo]) -> None:
        dataset = write_karpathy(tmp_path / "made", photos)
        (tmp_path / "made" / "images").rename(tmp_path / "made" / "val2014")

        def add(document: dict) -> None:
            for entry in document["images"]:
                entry["filepath"] = "val2014"

        edit(tmp_path / "made" / "dataset_made.json", add)
        collection = load_collection(dataset)
        assert collection.images[0].id == "val2014/photo_0000.jpg"
        assert collection.images[0].decode().size == (12, 8)


class TestCocoJson:
    def test_splits_by_file_name(self, tmp_path: Path, photos: list[Photo]) -> None:
        root = tmp_path / "coco"
        write_coco_json(root, photos)
        (root / "images").rename(root / "val2017")
        (root / "annotations").mkdir()
        (root / "captions.json").rename(root / "annotations" / "captions_val2017.json")
        for dataset in (f"coco_json:{root}/val", f"coco_json:{root}/val2017", f"coco_json:{root}"):
            assert len(load_collection(dataset).images) == len(photos)
        assert load_collection(f"coco_json:{root}/val").name == "coco/val"
        with pytest.raises(UsageError, match=r"unknown split .* 'train'"):
            load_collection(f"coco_json:{root}/train")
        (root / "annotations" / "captions_val2014.json").write_text("{}")
        with pytest.raises(InputError, match="expected one captions file, got val2014, val2017"):
            load_collection(f"coco_json:{root}/val")

    def test_a_caption_of_an_unlisted_image_is_named(self, tmp_path: Path, photos: list[Photo]) -> None:
        dataset = write_coco_json(tmp_path / "made", photos)
        edit(tmp_path / "made" / "captions.json", lambda d: d["annotations"][2].update(image_id=5))
        with pytest.raises(InputError, match="annotation at position 2 names image 5"):
            load_collection(dataset)

    def test_an_image_id_that_stands_twice_is_named(self, tmp_path: Path, photos: list[Photo]) -> None:
        dataset = write_coco_json(tmp_path / "made", photos)
        edit(tmp_path / "made" / "captions.json", lambda d: d["images"][2].update(id=1000))
        with pytest.raises(InputError, match="image id 1000 stands twice"):
            load_collection(dataset)


class TestFolder:
    def write(self, root: Path, lines: list[str]) -> str:
        write_images(root, make_photos(2))
        (root / "metadata.jsonl").write_text("\n".join(lines))
        return f"folder:{root}"

    def test_one_caption_as_text_or_caption_and_string_labels(self, tmp_path: Path) -> None:
        lines = [
            '{"file_name": "photo_0000.jpg", "text": "one", "label": "zebra"}',
            "",
            '{"file_name": "photo_0001.jpg", "caption": "two", "label": "ant"}',
        ]
        collection = load_collection(self.write(tmp_path / "made", lines))
        assert list(collection.captions) == ["one", "two"]
        assert collection.labels is not None
        assert collection.labels.tolist() == [1, 0]
        assert collection.label_names == ("ant", "zebra")
        assert collection.directions == ("t2i", "i2t", "i2i")

    def test_integer_labels_are_kept(self, tmp_path: Path) -> None:
        lines = [f'{{"file_name": "photo_000{i}.jpg", "text": "x", "label": {7 - i}}}' for i in range(2)]
        collection = load_collection(self.write(tmp_path / "made", lines))
        assert collection.labels is not None
        assert collection.labels.tolist() == [7, 6]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{broken", r"metadata\.jsonl, line 2 is malformed JSON at line 1, column 2"),
            ("[]", r"line 2: expected a string as 'file_name', got nothing"),
            ('{"text": "x"}', r"line 2: expected a string as 'file_name'"),
            ('{"file_name": "photo_0001.jpg"}', r"line 2: expected one of 'captions', 'caption' and 'text', got none"),
            ('{"file_name": "photo_0001.jpg", "text": "x", "caption": "y"}', "line 2: .*got caption and text"),
            ('{"file_name": "photo_0001.jpg", "captions": "x"}', "line 2: expected a list as 'captions'"),
            ('{"file_name": "nowhere.jpg", "text": "x"}', r"line 2: image nowhere\.jpg is missing"),
            ('{"file_name": "photo_0001.jpg", "text": "x"}', r"image photo_0001\.jpg has nothing as label"),
            ('{"file_name": "photo_0001.jpg", "text": "x", "label": 3}', r"image photo_0001\.jpg has 3 as label"),
        ],
    )
    def test_a_wrong_line_is_named(self, line: str, message: str, tmp_path: Path) -> None:
        dataset = self.write(tmp_path / "made", ['{"file_name": "photo_0000.jpg", "text": "x", "label": "a"}', line])
        with pytest.raises(InputError, match=message):
            load_collection(dataset)

    def test_splits_are_folders(self, tmp_path: Path, photos: list[Photo]) -> None:
        write_folder(tmp_path / "made" / "train", photos)
        write_folder(tmp_path / "made" / "odd", photos[:2])
        assert load_collection(f"folder:{tmp_path}/made/train").name == "made/train"
        assert len(load_collection(f"folder:{tmp_path}/made/odd").images) == 2
        with pytest.raises(UsageError, match=r"unknown split .* 'test'"):
            load_collection(f"folder:{tmp_path}/made/test")
        with pytest.raises(InputError, match=r"splits that have one: odd, train"):
            load_collection(f"folder:{tmp_path}/made")


class TestClasses:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for domain in ("photo", "sketch"):
            write_images(tmp_path / "pacs" / domain / "guide_dog", make_photos(2))
            write_images(tmp_path / "pacs" / domain / "ant", make_photos(3, seed=1))
        (tmp_path / "pacs" / "labels.csv").write_text("image,domain,class\n")
        return tmp_path / "pacs"

    def test_captions_are_prompts_and_labels_classes(self, root: Path) -> None:
        collection = load_collection(f"classes:{root}/photo")
        assert collection.name == "pacs/photo"
        assert list(collection.captions) == ["a photo of a ant.", "a photo of a guide dog."]
        assert collection.label_names == ("ant", "guide dog")
        assert collection.labels is not None
        assert collection.labels.tolist() == [0, 0, 0, 1, 1]
        assert collection.positives.tolist() == [[0, 0], [1, 0], [2, 0], [3, 1], [4, 1]]
        assert [image.id for image in collection.images][2:4] == ["ant/photo_0002.jpg", "guide_dog/photo_0000.jpg"]
        assert collection.images[0].decode().mode == "RGB"

    @pytest.mark.parametrize("template", ["a drawing of the {}", "a drawing of the {c}"])
    def test_first_template_and_display_names(self, template: str, root: Path) -> None:
        plain = load_collection(f"classes:{root}/photo")
        (root / "templates.txt").write_text(f"{template}\nanother {{}}\n")
        (root / "classes.json").write_text('{"ant": "tiny ant", "guide_dog": "dog"}')
        collection = load_collection(f"classes:{root}/photo")
        assert list(collection.captions) == ["a drawing of the tiny ant", "a drawing of the dog"]
        assert collection.revision != plain.revision

    def test_what_is_wrong_is_named(self, root: Path) -> None:
        with pytest.raises(InputError, match="domains: photo, sketch"):
            load_collection(f"classes:{root}")
        with pytest.raises(UsageError, match=r"'skech'. Did you mean 'sketch'"):
            load_collection(f"classes:{root}/skech")
        (root / "classes.json").write_text('{"ant": "tiny ant"}')
        with pytest.raises(InputError, match="expected a string as 'guide_dog'"):
            load_collection(f"classes:{root}/photo")
        (root / "classes.json").unlink()
        (root / "templates.txt").write_text("no place for a class\n")
        with pytest.raises(InputError, match=r"templates\.txt, line 1"):
            classes.load(root / "photo")

    def test_class_folders_without_domains(self, root: Path) -> None:
        assert len(load_collection(f"classes:{root / 'sketch'}").images) == 5
