"""Each published data set, from a miniature of its own files: which video, which segment of it, which class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from eval.datasets import OFFICIAL, Dataset, read_splits

SSV2_LABELS = {"Holding something": "0", "Moving something down": "1"}
PERCEPTION = {
    "train": {
        "video_2": {
            "metadata": {"video_id": "video_2"},
            "action_localisation": [
                {"id": 0, "label": "Pouring", "label_id": 7, "timestamps": [1500000, 4000000], "frame_ids": [45, 120]},
                {"id": 1, "label": "Clapping", "label_id": 3, "timestamps": [0, 500000], "frame_ids": [0, 15]},
            ],
        },
        "video_1": {"metadata": {}, "action_localisation": []},
    },
    "valid": {
        "video_3": {"action_localisation": [{"id": 0, "label": "Pouring", "label_id": 7, "timestamps": [0, 1000000]}]}
    },
}
CHARADES = "id,subject,scene,actions,length,egocentric,charades_video\n"
EPIC = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,verb,verb_class,noun,noun_class\n"
KINETICS = "label,youtube_id,time_start,time_end,split\n"

FILES: Mapping[str, Mapping[str, str]] = {
    "ssv2": {
        "20bn-something-something-v2/": "",
        "labels/labels.json": json.dumps(SSV2_LABELS),
        "labels/train.json": json.dumps(
            [
                {
                    "id": "78687",
                    "label": "moving a pen down",
                    "template": "Moving [something] down",
                    "placeholders": ["a pen"],
                }
            ]
        ),
        "labels/validation.json": json.dumps([{"id": "5", "template": "Holding [something]"}]),
    },
    "diving48": {
        "rgb/": "",
        "Diving48_vocab.json": json.dumps([["Back", "15som", "05Twis", "FREE"], ["Reverse", "Dive", "NoTwis", "PIKE"]]),
        "Diving48_V2_train.json": json.dumps([{"vid_name": "_8Vy_0", "label": 1, "start_frame": 0, "end_frame": 99}]),
        "Diving48_V2_test.json": json.dumps([{"vid_name": "_8Vy_1", "label": 0, "start_frame": 0, "end_frame": 9}]),
    },
    "perception_test": {
        "videos/": "",
        "all_train.json": json.dumps(PERCEPTION["train"]),
        "all_valid.json": json.dumps(PERCEPTION["valid"]),
    },
    "charades_ego": {
        "CharadesEgo_v1_480/": "",
        "CharadesEgo/Charades_v1_classes.txt": "c000 Holding some clothes\nc001 Putting clothes somewhere\n",
        "CharadesEgo/CharadesEgo_v1_train_only1st.csv": CHARADES
        + 'A1EGO,S1,Bedroom,c001 11.90 21.20;c000 0.00 12.60;c001 25.0 26.0,30.1,Yes,A1\nB2EGO,S2,"Hall, dark",,9.0,Yes,B2\n',
        "CharadesEgo/CharadesEgo_v1_test_only1st.csv": CHARADES + "C3EGO,S3,Kitchen,c000 0.00 2.00,5.0,Yes,C3\n",
    },
    "epic_verb": {
        "EPIC-KITCHENS/": "",
        "epic-kitchens-100-annotations/EPIC_100_verb_classes.csv": "id,key,instances\n0,take,['take']\n1,put,[]\n",
        "epic-kitchens-100-annotations/EPIC_100_noun_classes.csv": "id,key,instances,category\n0,tap,['tap'],appliances\n",
        "epic-kitchens-100-annotations/EPIC_100_train.csv": EPIC
        + "P01_01_0,P01,P01_01,00:00:01.14,00:01:02.50,put,1,tap,0\n",
        "epic-kitchens-100-annotations/EPIC_100_validation.csv": EPIC
        + "P02_101_7,P02,P02_101,01:00:00.00,01:00:01.00,take,0,tap,0\n",
    },
    "k400": {
        "train/air drumming/": "",
        "val/": "",
        "annotations/train.csv": KINETICS + "air drumming,-abc,3,13,train\nabseiling,_xy,20,30,train\n",
        "annotations/val.csv": KINETICS + "air drumming,zz9,0,10,validate\n",
    },
    "hmdb51": {
        "videos/": "",
        "testTrainMulti_7030_splits/brush_hair_test_split1.txt": "a b.avi 1 \nc.avi 2 \nd.avi 0 \n",
        "testTrainMulti_7030_splits/wave_test_split1.txt": "e.avi 2 \n",
        "testTrainMulti_7030_splits/wave_test_split2.txt": "e.avi 1 \n",
    },
    "ucf101": {
        "UCF-101/": "",
        "ucfTrainTestlist/classInd.txt": "1 ApplyEyeMakeup\n2 Archery\n",
        "ucfTrainTestlist/trainlist01.txt": "Archery/v_Archery_g08_c01.avi 2\n",
        "ucfTrainTestlist/testlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\n",
    },
}
FILES = {**FILES, "epic_noun": FILES["epic_verb"]}

EXPECTED: Mapping[str, tuple[list[tuple], list[tuple]]] = {
    "ssv2": ([("20bn-something-something-v2/78687.webm", (1,))], [("20bn-something-something-v2/5.webm", (0,))]),
    "diving48": ([("rgb/_8Vy_0.mp4", (1,))], [("rgb/_8Vy_1.mp4", (0,))]),
    "perception_test": (
        [("videos/video_2.mp4", (1,), (1.5, 4.0)), ("videos/video_2.mp4", (0,), (0.0, 0.5))],
        [("videos/video_3.mp4", (1,), (0.0, 1.0))],
    ),
    "charades_ego": (
        [("CharadesEgo_v1_480/A1EGO.mp4", (0, 1)), ("CharadesEgo_v1_480/B2EGO.mp4", ())],
        [("CharadesEgo_v1_480/C3EGO.mp4", (0,))],
    ),
    "epic_verb": (
        [("EPIC-KITCHENS/P01/videos/P01_01.MP4", (1,), (1.14, 62.5))],
        [("EPIC-KITCHENS/P02/videos/P02_101.MP4", (0,), (3600.0, 3601.0))],
    ),
    "epic_noun": (
        [("EPIC-KITCHENS/P01/videos/P01_01.MP4", (0,), (1.14, 62.5))],
        [("EPIC-KITCHENS/P02/videos/P02_101.MP4", (0,), (3600.0, 3601.0))],
    ),
    "k400": (
        [("train/air drumming/-abc_000003_000013.mp4", (1,)), ("train/_xy_000020_000030.mp4", (0,))],
        [("val/zz9_000000_000010.mp4", (1,))],
    ),
    "hmdb51": ([("videos/brush_hair/a b.avi", (0,))], [("videos/brush_hair/c.avi", (0,)), ("videos/wave/e.avi", (1,))]),
    "ucf101": (
        [("UCF-101/Archery/v_Archery_g08_c01.avi", (1,))],
        [("UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", (0,))],
    ),
}
CLASSES = {
    "ssv2": ("Holding something", "Moving something down"),
    "diving48": ("Back 15som 05Twis FREE", "Reverse Dive NoTwis PIKE"),
    "perception_test": ("Clapping", "Pouring"),
    "charades_ego": ("Holding some clothes", "Putting clothes somewhere"),
    "epic_verb": ("take", "put"),
    "epic_noun": ("tap",),
    "k400": ("abseiling", "air drumming"),
    "hmdb51": ("brush_hair", "wave"),
    "ucf101": ("ApplyEyeMakeup", "Archery"),
}


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text(content)
    return root


def plain(dataset: Dataset, root: Path) -> list[tuple]:
    return [
        (str(sample.path.relative_to(root)), sample.labels, *([sample.seconds] if sample.seconds else []))
        for sample in dataset.samples
    ]


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_a_miniature_of_the_published_files(name: str, tmp_path: Path) -> None:
    train, val = read_splits(name, root=write(tmp_path, FILES[name]))
    assert (plain(train, tmp_path), plain(val, tmp_path)) == EXPECTED[name]
    assert train.classes == val.classes == CLASSES[name]
    assert train.multi_label == (name == "charades_ego")


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_each_file_is_asked_for_by_name(name: str, tmp_path: Path) -> None:
    """Without its folder of videos or without a file of annotations, what is missing is named."""
    for absent in FILES[name]:
        if (
            absent.endswith("_split2.txt")
            or "/wave_" in absent
            or "/brush_" in absent
            or absent.startswith("train/air")
        ):
            continue
        if name in ("epic_verb", "epic_noun") and (absent == "EPIC-KITCHENS/" or name[5:] not in absent):
            continue
        root = write(
            tmp_path / absent.replace("/", "-"), {key: value for key, value in FILES[name].items() if key != absent}
        )
        with pytest.raises(ValueError, match=Path(absent).name.replace(".", r"\.")):
            read_splits(name, root=root)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        (
            "ssv2",
            "labels/train.json",
            '[{"id": "1", "template": "Eating [something]"}]',
            "names the class 'Eating something'",
        ),
        ("ssv2", "labels/train.json", '[{"id": "1"}]', "annotation 0 has no 'template'"),
        ("ssv2", "labels/train.json", "[{", "cannot be read as JSON"),
        ("diving48", "Diving48_V2_test.json", '[{"vid_name": "a", "label": 2}]', r"the label 2, outside \[0, 2\)"),
        ("diving48", "Diving48_V2_test.json", '[{"vid_name": "a", "label": "x"}]', "the label 'x', which is no number"),
        ("diving48", "Diving48_V2_test.json", "[]", "name no sample"),
        ("charades_ego", "CharadesEgo/CharadesEgo_v1_test_only1st.csv", "id,length\nA,3\n", "has no column 'actions'"),
        (
            "epic_verb",
            "epic-kitchens-100-annotations/EPIC_100_train.csv",
            EPIC + "a,P01,b,12,13,put,1,tap,0\n",
            "the time '12'",
        ),
    ],
)
def test_damaged_annotations(name: str, file: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_splits(name, root=write(tmp_path, {**FILES[name], file: content}))
