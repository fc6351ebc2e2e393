"""The page without a browser: sentences, figures, tree view, palette, handlers with good and bad input."""

import colorsys
import html
import io
import json
import re
import shutil
from copy import copy
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from gradio.data_classes import ImageData
from helpers import make_mixed_tree, make_tiny_map, make_tiny_tree
from PIL import Image

from unirestorer import UniRestorer
from unirestorer.degradation import Recipe
from unirestorer.degradation.recipe import CLEAN_CAPTION
from unirestorer.demo.examples import find_examples, pick, thumbnails_html
from unirestorer.demo.handlers import Handlers, View
from unirestorer.demo.hosting.gradio_patches import photo_input
from unirestorer.demo.hosting.host import Limits
from unirestorer.demo.hosting.jobs import Watch
from unirestorer.demo.page import build_page, launch_options
from unirestorer.demo.photos import shrink
from unirestorer.demo.tabs.card import card_html, card_pictures, card_text
from unirestorer.demo.view import figures, notices, panels, theme, words
from unirestorer.demo.view.tree import node_probs, pruned_nodes, tree_html
from unirestorer.imaging import load_image, to_uint8
from unirestorer.report import describe
from unirestorer.types import Decision, Task

EVIL = "<img src=x onerror=alert(1)>"
PNG = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(PNG, "PNG")


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> UniRestorer:
    return UniRestorer.from_pretrained(tiny_checkpoint, device="cpu")


@pytest.fixture
def handlers(model: UniRestorer, tmp_path: Path) -> Handlers:
    return Handlers(model, tmp_path / "cache")


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    path.write_bytes(PNG.getvalue())
    return str(path)


@pytest.fixture(scope="module")
def report(model: UniRestorer) -> dict:
    return describe(model, model.restore(Image.open(io.BytesIO(PNG.getvalue()))).decision)


def made(leaf: float, percentile: float, level: int, caption: str = "a photo with heavy rain") -> dict:
    """A report of a tree {1, 2, 3} that leans to heavy rain."""
    return {
        "tasks": {"derain": 0.2 + 0.7 * leaf, "dehaze": 0.3},
        "captions": [{"text": caption, "probability": 0.8}],
        "leaves": [
            {"expert": "2-0", "name": "rain, light", "probability": 0.1},
            {"expert": "2-1", "name": "rain, heavy", "probability": leaf},
            {"expert": "2-2", "name": "haze, thick 2", "probability": 0.9 - leaf},
        ],
        "levels": [
            {"level": 0, "expert": "0-0", "name": "everything", "probability": 0.2},
            {"level": 1, "expert": "1-0", "name": "rain", "probability": 0.3},
            {"level": 2, "expert": "2-1", "name": "rain, heavy", "probability": 0.5},
        ],
        "leaf": 1,
        "level": level,
        "expert": ("0-0", "1-0", "2-1")[level],
        "expert_name": ("everything", "rain", "rain, heavy")[level],
        "forced": False,
        "e_gran_percentile": percentile,
        "distance_percentile": 97.0,
        "map": {"x": 0.0, "y": 0.0, "spread": 0.5, "neighbors": [0, 1]},
        "log_e_gran": 0.0,
        "seconds": {"estimate": 0.0821, "restore": 1.234},
    }


def text_of(markup: str) -> str:
    return re.sub(r"<[^>]+>", "", markup)


# Sentences


def test_the_verdict_is_the_promised_sentence() -> None:
    report = made(0.81, 72.0, 1)
    assert f"{words.looks_like(report)} {words.took_over(report)}".replace(words.NBSP, " ") == (
        "Looks like heavy rain (81 %). The estimate is shakier than 72 % of training photos, so a middle "
        "expert took over: rain."
    )


def test_the_verdict_claims_no_more_than_the_numbers() -> None:
    steady_specialist = words.took_over(made(0.81, 10.0, 2)).replace(words.NBSP, " ")
    assert steady_specialist == (
        "The estimate is steadier than 90 % of training photos, so a specialist took over: heavy rain."
    )
    assert ", yet the expert for everything" in words.took_over(made(0.81, 10.0, 0))
    assert ", yet a specialist" in words.took_over(made(0.81, 90.0, 2))
    unclear = words.looks_like(made(0.45, 50.0, 0)).replace(words.NBSP, " ")
    assert unclear == "Looks like rain (52 %), how much of it is unclear."
    assert words.looks_like(made(0.2, 50.0, 0)).startswith("Hard to tell: rain (34")


def test_a_clean_photo_is_said_to_look_clean() -> None:
    assert "looks clean" in words.looks_like(made(0.9, 50.0, 2, CLEAN_CAPTION))
    assert words.took_over(made(0.9, 50.0, 2, CLEAN_CAPTION)).endswith("worked on it, heavy rain.")
    assert "than every training photo" in words.sure(made(0.9, 100.0, 0))
    assert "clean" not in words.looks_like(made(0.9, 50.0, 2))


def test_a_far_and_scattered_place_is_said_to_be_so() -> None:
    sentence = words.familiar(made(0.9, 50.0, 2))
    assert "97" in sentence and "unfamiliar" in sentence and "compromise" in sentence


def test_choices_are_told() -> None:
    sentence = words.choice_sentence(made(0.9, 50.0, 2), (Task.DERAIN, Task.DEHAZE), "")
    assert sentence.startswith("Only rain and haze kept") and "Of these, heavy rain fits best (90" in sentence
    forced = {**made(0.9, 50.0, 2), "expert": "0-0", "expert_name": "everything", "forced": True}
    assert words.choice_sentence(forced, (), "0-0").endswith(
        "Left alone, the router would choose heavy rain."
    )
    assert words.choice_sentence(made(0.9, 50.0, 2), (), "2-1").endswith("the router would choose the same.")


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, "0 %"), (0.001, "under 1 %"), (0.5, "50 %"), (0.996, "over 99 %"), (1.0, "100 %")],
)
def test_percentages_are_never_rounded_to_certainty(share: float, expected: str) -> None:
    assert words.percent(share).replace(words.NBSP, " ") == expected


def test_names_lists_times_and_devices_in_words() -> None:
    assert words.plain("noise, medium 2") == "medium noise"
    assert words.plain("low light + noise") == "low light + noise"
    assert words.task_list([Task.DEJPEG, Task.DERAIN, Task.DENOISE]) == "rain, noise and JPEG artefacts"
    assert words.timing(made(0, 0, 0)["seconds"]).replace(words.NBSP, " ") == "estimate 82 ms · restore 1.2 s"
    assert "CPU" in words.device("cpu") and "GPU" in words.device("cuda")
    assert words.spoken("noise, medium 2") == "medium noise 2" and words.spoken("everything") == "everything"


def test_levels_are_named_after_what_their_nodes_are() -> None:
    tree = make_tiny_tree()
    assert words.level_words(tree) == ("ALL", "TYPE", "DEGREE")
    assert words.expert_label(replace(tree, names=(*tree.names[:2], ("rain, heavy",) * 19)), 8) == (
        "DEGREE: heavy rain"
    )
    assert words.level_words(make_mixed_tree()) == ("ALL", "GROUP", "SUBGROUP"), "no node has one type"
    flat = replace(
        tree, centers=tree.centers[-1:], parents=(torch.zeros(19, dtype=torch.long),), names=tree.names[-1:]
    )
    assert words.level_words(flat) == (f"LEVEL{words.NBSP}0",)


def test_captions_are_set_beside_the_verdict() -> None:
    agree = {**made(0.9, 50.0, 2), "seen": {"derain": 0.9, "dehaze": 0.1}}
    assert "its verdict counts." in words.captions_note(agree)
    differ = {**agree, "seen": {"derain": 0.1, "dehaze": 0.9}}
    assert words.captions_note(differ).endswith("differ: haze by the words, rain by the router.")
    clean = {**made(0.9, 50.0, 2, CLEAN_CAPTION), "seen": agree["seen"]}
    assert "no place for clean photos" in words.captions_note(clean)
    leaves = [{**leaf, "name": "rain + haze"} for leaf in agree["leaves"]]
    assert "add up all that name" in words.captions_note({**agree, "leaves": leaves})


def test_a_mistake_is_told_without_markup() -> None:
    sentence = notices.sorry(ValueError(f"unknown expert '{EVIL}':\n  see above"))
    assert "<" not in sentence and "\n" not in sentence and sentence.startswith("Unknown expert")
    assert notices.sorry(ValueError("image: got nothing")) == "This photo cannot be used: got nothing."
    sentence = notices.sorry(ValueError("image: got a damaged image, expected a whole one, save it again"))
    assert (
        sentence == "This photo cannot be used: it is a damaged image (expected a whole one); save it again."
    )


# Palette


def test_the_palette_is_that_of_the_design() -> None:
    assert list(theme.TASK_COLOURS) == list(Task)
    assert theme.TASK_COLOURS[Task.DERAIN] == "#0072B2" and theme.TASK_COLOURS[Task.DEJPEG] == "#009E73"
    clusters = theme.CLUSTER_SYMBOLS
    symbols = [*theme.TASK_SYMBOLS.values(), theme.CLEAN_SYMBOL, theme.SEVERAL_SYMBOL, *clusters, "star"]
    assert not set(theme.CLUSTER_COLOURS) & set(theme.TASK_COLOURS.values())
    assert len(set(symbols)) == len(symbols), "a shape goes with every colour"


@pytest.mark.parametrize("colour", theme.TASK_COLOURS.values())
def test_degrees_are_lightness_within_one_hue(colour: str) -> None:
    shades = theme.degree_colours(colour, 3)
    hls = [colorsys.rgb_to_hls(*(int(shade[i : i + 2], 16) / 255 for i in (1, 3, 5))) for shade in shades]
    assert shades[1] == colour
    assert hls[0][1] > hls[1][1] > hls[2][1]
    assert max(h[0] for h in hls) - min(h[0] for h in hls) < 0.02


def test_nodes_have_their_tasks_colour() -> None:
    tree = make_tiny_tree()
    colours = theme.node_colours(tree)
    assert colours[0] == theme.SEVERAL_COLOUR
    assert colours[1:8] == list(theme.TASK_COLOURS.values())
    assert len(set(colours[8:])) == tree.leaves


# Figures


def test_the_map_shows_what_describe_says(model: UniRestorer, report: dict) -> None:
    figure = panels.draw_map(model, "type")
    assert figure is not None
    traces = {trace.name: trace for trace in figure.data}
    points = sum(len(traces[name].x) for name in words.TASK_WORDS.values())
    assert points == len(model.map.xy)
    assert traces["rain"].marker.color == theme.TASK_COLOURS[Task.DERAIN]
    rain = model.map.task == "derain"
    assert list(traces["rain"].text) == model.map.text[rain].tolist()
    np.testing.assert_array_equal(traces["rain"].x, model.map.xy[rain, 0])
    assert [trace.name for trace in figure.data[-2:]] == ["neighbours", "your photo"]
    lines, star = figures.star_place(model.map, report)
    assert star == {"x": [report["map"]["x"]], "y": [report["map"]["y"]]}
    assert lines["x"][::3] == star["x"] * len(report["map"]["neighbors"])
    assert lines["x"][1::3] == [float(model.map.xy[i, 0]) for i in report["map"]["neighbors"]]
    assert lines["y"][1::3] == [float(model.map.xy[i, 1]) for i in report["map"]["neighbors"]]
    assert len(traces["centres"].x) == len(model.tree.expert_names)
    branches = sum(x is None for x in traces["tree"].x)
    assert branches == len(model.tree.expert_names) - 1, "every node but the root hangs on its parent"


def test_hover_texts_are_escaped() -> None:
    tree = make_tiny_tree()
    map_ = make_tiny_map(tree)
    evil = replace(map_, text=np.array([EVIL] * len(map_.text)))
    assert EVIL not in figures.map_figure(evil, tree).to_json()


def test_the_histogram_marks_the_percentile(model: UniRestorer) -> None:
    reference = np.sort(np.random.default_rng(0).normal(size=2000))
    middle = figures.histogram(reference, {**made(0.9, 50.0, 2), "log_e_gran": float(np.median(reference))})
    far = figures.histogram(reference, {**made(0.9, 100.0, 2), "log_e_gran": 99.0})
    bare = figures.histogram(reference)
    assert bare.count("<rect") == figures.BINS and "behind" not in bare and "marker" not in bare
    assert far.count('class="behind"') == figures.BINS and "left:100.0%" in far
    heights = [float(h) for h in re.findall(r'height="([\d.]+)" class="behind"', middle)]
    everything = [float(h) for h in re.findall(r'<rect[^>]* height="([\d.]+)"', middle)]
    assert sum(heights) / sum(everything) == pytest.approx(0.5, abs=0.06)


def test_the_bars_agree_with_describe(model: UniRestorer, report: dict) -> None:
    markup = figures.level_bars(model.tree, report)
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", markup)]
    assert widths == pytest.approx([100 * level["probability"] for level in report["levels"]], abs=0.06)
    assert markup.count("bar chosen") == 1
    assert "ALL" in markup and "TYPE" in markup and "DEGREE" in markup
    captions = figures.caption_bars(report)
    assert all(caption["text"] in captions for caption in report["captions"])


# Tree view


def test_branches_sum_their_leaves(model: UniRestorer, report: dict) -> None:
    probs = node_probs(model.tree, report)
    assert probs[0] == 1
    assert sum(probs[1:8]) == pytest.approx(1, abs=1e-5)
    assert probs[8:] == pytest.approx([leaf["probability"] for leaf in report["leaves"]], abs=1e-6)
    derain = [8 + i for i, parent in enumerate(model.tree.parents[-1].tolist()) if parent == 0]
    assert probs[1] == pytest.approx(sum(probs[i] for i in derain), abs=1e-5)


def test_the_tree_lights_the_path_and_the_choice(model: UniRestorer, report: dict) -> None:
    markup = tree_html(model.tree, report)
    nodes = dict(re.findall(r'class="(node[^"]*)" data-expert="([^"]+)"', markup)[i][::-1] for i in range(27))
    assert sorted(nodes) == sorted(model.tree.expert_names)
    assert [name for name, kind in nodes.items() if "chosen" in kind] == [report["expert"]]
    path = {model.tree.expert_names[i] for i in model.tree.expert_table[report["leaf"]].tolist()}
    assert {name for name, kind in nodes.items() if "path" in kind} == path
    assert "pruned" not in markup


def test_an_instruction_strikes_out_what_it_prunes(model: UniRestorer) -> None:
    tasks = (Task.DEHAZE, Task.DESNOW)
    result = model(torch.rand(1, 3, 64, 64), tasks=tasks)
    markup = tree_html(model.tree, describe(model, result.decision), tasks, "0-0")
    pruned = pruned_nodes(model.tree, tasks)
    assert len(pruned) == 26 - 2 - 2 - 3, "two types, their two and three leaves and the root stay"
    assert markup.count("<s>") == len(pruned)
    for node in pruned:
        assert node_probs(model.tree, describe(model, result.decision))[node] == 0


def test_the_tree_escapes_names() -> None:
    tree = make_tiny_tree()
    names = (tree.names[0], tree.names[1], (EVIL, f'"{EVIL}', *tree.names[2][2:]))
    markup = tree_html(replace(tree, names=names))
    assert EVIL not in markup and markup.count("&lt;img") >= 2
    assert not re.search(r'title="[^"]*"&lt;', markup)


def test_the_tree_takes_any_topology() -> None:
    tree = make_tiny_tree()
    flat = replace(
        tree, centers=tree.centers[-1:], parents=(torch.zeros(19, dtype=torch.long),), names=tree.names[-1:]
    )
    assert tree_html(flat).count("<li>") == 19
    assert "LEVEL" in tree_html(flat)


def test_the_tree_says_no_more_than_is_known(model: UniRestorer, report: dict) -> None:
    """A percentage for each branch but the root, to which every photo belongs; what "real" means, if said."""
    markup = tree_html(model.tree, report)
    assert markup.count('class="p"') == len(model.tree.expert_names) - 1
    heads = re.findall(r'<div class="head">([^<]*)</div>', markup)
    assert heads == ["ALL", "TYPE", "DEGREE"] and "photographed" not in markup
    names = (*model.tree.names[:2], ("rain, real", *model.tree.names[2][1:]))
    assert "learnt mostly from photographed rain," in tree_html(replace(model.tree, names=names))


def test_a_result_points_to_the_other_kind_of_model(model: UniRestorer) -> None:
    mixed = copy(model)
    mixed.mode, mixed.tree, mixed.name = "mixed", make_mixed_tree(), "several"
    sentence = panels.other_models(model, [model, mixed])
    assert 'data-model="several"' in sentence and "More than one thing wrong" in text_of(sentence)
    assert "Only one thing wrong" in text_of(panels.other_models(mixed, [model, mixed]))
    assert panels.other_models(model, [model]) == ""


# Handlers


def test_auto_comes_first_and_the_download_is_bit_equal(handlers: Handlers, photo: str) -> None:
    expected = handlers.model.restore(photo)
    (view,) = handlers.views(photo, [], "", None)
    assert view.memory is not None and view.choice is None and view.fresh and view.error is None
    saved = np.asarray(Image.open(view.memory.auto.png))
    np.testing.assert_array_equal(saved, to_uint8(expected.image))
    np.testing.assert_array_equal(np.asarray(Image.open(view.memory.before)), np.asarray(Image.open(photo)))
    assert view.memory.auto.report["leaves"] == describe(handlers.model, expected.decision)["leaves"]
    assert json.loads(Path(view.json).read_text())["photo"] == {"width": 64, "height": 48}
    assert isinstance(view.memory.decision, Decision), "no pixels are kept between clicks"


def test_an_instruction_gives_a_second_result(handlers: Handlers, photo: str) -> None:
    first, second = handlers.views(photo, ["desnow"], "", None)
    assert first.waiting and first.choice is None
    assert second.choice is not None and second.memory is first.memory and not second.fresh
    expected = handlers.model.restore(photo, tasks={Task.DESNOW})
    np.testing.assert_array_equal(np.asarray(Image.open(second.choice.png)), to_uint8(expected.image))
    saved = json.loads(Path(second.json).read_text())
    assert saved["choice"]["tasks_named"] == ["desnow"] and saved["auto"] == first.memory.auto.report
    assert second.choice.report["tasks"]["desnow"] == pytest.approx(1)


def test_a_second_click_does_not_restore_auto_again(handlers: Handlers, photo: str) -> None:
    (start,) = handlers.views(photo, [], "", None)
    handlers.model.estimate, estimate = None, handlers.model.estimate  # type: ignore[method-assign]
    try:
        (view,) = handlers.views(photo, [], "2-3", start.memory)
    finally:
        handlers.model.estimate = estimate  # type: ignore[method-assign]
    assert view.memory is start.memory and view.choice is not None
    assert view.choice.report["expert"] == "2-3"
    expected = handlers.model.restore(photo, expert="2-3")
    np.testing.assert_array_equal(np.asarray(Image.open(view.choice.png)), to_uint8(expected.image))


def test_the_same_expert_is_the_same_picture(handlers: Handlers, photo: str) -> None:
    (start,) = handlers.views(photo, [], "", None)
    (view,) = handlers.views(photo, [], start.memory.auto.report["expert"], start.memory)
    assert view.choice.png == start.memory.auto.png


def test_large_photos_are_shown_small_and_downloaded_whole(handlers: Handlers, tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGB", (1700, 34), "teal").save(path)
    (view,) = handlers.views(str(path), [], "", None)
    assert Image.open(view.memory.auto.png).size == (1700, 34)
    assert Image.open(view.memory.auto.after).size == Image.open(view.memory.before).size == (1600, 32)
    small = Image.new("RGB", (20, 10))
    assert shrink(small) is small


def test_nothing_is_remembered_on_the_server(handlers: Handlers, photo: str) -> None:
    before = dict(vars(handlers))
    list(handlers.views(photo, ["derain"], "", None))
    assert vars(handlers) == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"just text", "no readable image"),
        (b"", "empty file"),
        (PNG.getvalue()[: len(PNG.getvalue()) // 2], "damaged"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no readable image"),
    ],
)
def test_what_is_no_photo_is_a_sentence(
    handlers: Handlers, tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / f"{EVIL.replace('/', '')}.png"
    path.write_bytes(content)
    (view,) = handlers.views(str(path), [], "", None)
    assert view.memory is None and view.error is not None
    sentence = notices.sorry(view.error)
    assert reason in sentence and "onerror" not in sentence and "Traceback" not in sentence
    assert sentence in panels.draw(handlers.model, view).verdict


def test_other_bad_input_is_a_sentence(handlers: Handlers, photo: str) -> None:
    for arguments in ((photo, ["juggle"], ""), (photo, [], "9-9"), ("/nowhere/x.png", [], "")):
        *_, view = handlers.views(*arguments, None)
        assert view.error is not None and notices.sorry(view.error).endswith(".")
    (nothing,) = handlers.views(None, ["derain"], "", None)
    assert nothing.error is None and nothing.memory is None


def test_a_full_disk_is_a_sentence(model: UniRestorer, photo: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (view,) = Handlers(model, tmp_path / "file").views(photo, [], "", None)
    assert "try again later" in notices.sorry(view.error)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "I;16"])
def test_photos_of_all_kinds_keep_their_size(handlers: Handlers, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "photo.tif"
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 65535, (9, 31), dtype=np.uint16))
    (grey if mode == "I;16" else Image.new("RGB", (31, 9), "olive").convert(mode)).save(path)
    (view,) = handlers.views(str(path), [], "", None)
    assert view.error is None and Image.open(view.memory.auto.png).size == (31, 9)


def test_degrading_by_recipe_and_by_task(handlers: Handlers, photo: str) -> None:
    image, recipe = handlers.degrade(photo, "", "denoise", 25.0, 7)
    again, same = handlers.degrade(photo, json.dumps(recipe), "", None, None)
    assert recipe == same == {"seed": 7, "steps": [{"kind": "noise", "sigma_8bit": 25.0}]}
    expected = to_uint8(Recipe.from_dict(recipe).apply(load_image(photo)))
    np.testing.assert_array_equal(np.asarray(Image.open(image)), expected)
    np.testing.assert_array_equal(np.asarray(Image.open(again)), expected)
    assert handlers.make_recipe(json.dumps(recipe), "", None, 9).seed == 9
    for task in Task:
        assert handlers.make_recipe("", task, None, None).tasks == {task}


@pytest.mark.parametrize(
    "arguments",
    [
        ("", "", None, None),
        ("{", "", None, None),
        ("[1]", "", None, None),
        ("", "juggle", None, None),
        ("", "denoise", float("nan"), None),
        ("", "denoise", -3.0, None),
        ("", "denoise", 1e9, None),
        ("", "dejpeg", 1e300, 0),
        ("", "denoise", 25.0, -1),
        ('{"steps": [{"kind": "noise"}]}', "", None, None),
    ],
)
def test_bad_recipes_are_sentences(handlers: Handlers, arguments: tuple) -> None:
    with pytest.raises(ValueError, match="[a-z]"):
        handlers.make_recipe(*arguments)


# The page as a whole


def test_panels_for_every_state(handlers: Handlers, photo: str) -> None:
    model = handlers.model
    start = panels.draw(model, View())
    assert "Drop a photo" in start.verdict and start.choice_words == "" and "data-star" not in start.what
    auto, chosen = handlers.views(photo, ["dehaze"], "", None)
    first, second = panels.draw(model, auto), panels.draw(model, chosen)
    assert words.took_over(auto.memory.auto.report) in text_of(first.verdict)
    assert "Restoring your choice" in first.hint and second.hint == ""
    place = re.findall(r'data-star="([^"]+)"', first.what)
    star = figures.star_place(model.map, auto.memory.auto.report)
    assert [json.loads(html.unescape(text)) for text in place] == [star]
    assert second.what == first.what, "the estimate is the same, so the star stays"
    assert "<s>" in second.who and "<s>" not in first.who
    assert "<b>TYPE</b> dehaze" in second.sure and "<b>TYPE</b> dehaze" not in first.sure
    assert "Only haze kept" in second.choice_words
    bare = copy(model)
    bare.map = None
    (view,) = Handlers(bare, handlers.folder).views(photo, [], "", None)
    assert panels.draw_map(bare, "type") is None
    assert "no map" in (unmapped := panels.draw(bare, view).what) and "data-star" not in unmapped


def test_the_map_is_coloured_by_type_degree_or_leaf() -> None:
    """Every point is drawn once; severer degrees are darker; a leaf has its expert's colour."""
    tree = make_tiny_tree()
    drawn = make_tiny_map(tree)
    words_of = {
        Task.DERAIN: ("light rain", "medium rain", "heavy rain"),
        Task.DEJPEG: ("heavy compression", "medium compression", "light compression"),
    }
    text = [
        f"{words_of[task][i % 3]} (5)" if (task := Task(name)) in words_of else name
        for i, name in enumerate(drawn.task.tolist())
    ]
    leaf, task = drawn.leaf.copy(), drawn.task.copy()
    leaf[:4], task[:4], text[:4] = -1, "clean", ["clean photo"] * 4
    map_ = replace(drawn, text=np.array(text), leaf=leaf, task=task)
    groups = {}
    for by in figures.colour_by(tree):
        traces = figures.map_figure(map_, tree, by=by).data
        points = [trace for trace in traces if trace.marker.size == 5.5]
        assert sum(len(trace.x) for trace in points) == len(map_.xy)
        groups[by] = {trace.name: trace for trace in points}
    assert len(groups["type"]) == 8 and len(groups["finest expert"]) == tree.leaves + 1
    assert "clean" in groups["finest expert"]
    colour = {name: trace.marker.color for name, trace in groups["degree"].items()}
    for worse, better in (("heavy rain", "light rain"), ("heavy compression", "light compression")):
        assert lightness(colour[worse]) < lightness(colour[better])
    shades = theme.node_colours(tree)
    assert groups["finest expert"]["5"].marker.color == shades[tree.offsets[-1] + 5]


def test_the_map_of_mixtures_is_coloured_by_cluster_or_leaf() -> None:
    tree = make_mixed_tree()
    map_ = make_tiny_map(tree)
    assert figures.colour_by(tree) == ("group", "subgroup")
    for by, count in (("group", 4), ("subgroup", 8)):
        points = [t for t in figures.map_figure(map_, tree, by=by).data if t.marker.size == 5.5]
        assert sum(len(trace.x) for trace in points) == len(map_.xy)
        assert len({trace.marker.color for trace in points}) == len(points) == count
        assert len({trace.marker.symbol for trace in points}) == 4, "leaves have their cluster's shape"
    shades = theme.node_colours(tree)
    assert shades[1:5] == list(theme.CLUSTER_COLOURS[:4]) and len(set(shades)) == 13


def test_mixtures_are_named_by_what_the_captions_name() -> None:
    """A leaf of mixtures has a long name whatever the photo has: the captions say which ones are there."""
    tree = make_mixed_tree()
    seen = dict.fromkeys((task.value for task in Task), 0.02)
    report = {
        "captions": [{"text": "a photo with heavy noise and thick haze", "probability": 0.3}],
        "leaf": 0,
        "leaves": [{"name": tree.names[-1][0], "probability": 0.99}],
        "seen": {**seen, "dehaze": 0.97, "denoise": 0.8},
    }
    assert words.looks_like(report) == "Looks like haze (97\u00a0%) and noise (80\u00a0%)."
    report["seen"] = {**seen, "dehaze": 0.4, "derain": 0.3}
    assert words.looks_like(report) == "Hard to tell: haze (40\u00a0%), rain (30\u00a0%) or others."
    report |= {"level": 0, "levels": [{"name": "all"}] * 3, "expert_name": "all", "forced": False}
    reason = words.choice_sentence(report, [Task.DEHAZE], "")
    assert reason == "Only haze kept, all other experts ruled out; the expert for everything took over."


def lightness(colour: str) -> float:
    return colorsys.rgb_to_hls(*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)))[1]


def test_examples_are_there_and_chosen_by_number() -> None:
    examples = find_examples()
    assert [example.word for example in examples][:3] == ["rain", "haze", "noise"] and len(examples) == 12
    assert thumbnails_html(examples).count("<button") == 12
    assert pick(examples, "7").word == "clean"
    assert [example.word for example in examples if example.several][0] == "rain + haze"
    for bad in ("12", "-1", "x", None, EVIL):
        with pytest.raises(ValueError, match="unknown example"):
            pick(examples, bad)
    assert find_examples(Path("/nowhere")) == () and thumbnails_html(()) == ""
    assert sum(example.path.stat().st_size for example in examples) < 4 * 2**20


def test_the_photo_input_gives_away_no_file_of_the_server(
    tmp_path: Path, photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    component = photo_input()
    for path in (photo, f"{tmp_path}/cache/../photo.png", "/etc/hostname"):
        with pytest.raises(gr.Error, match="uploaded first"):
            component.preprocess(ImageData(path=path))
    inside = str(tmp_path / "cache/photo.png")
    assert component.preprocess(ImageData(path=inside)) == inside and component.preprocess(None) is None


def test_only_the_three_endpoints_are_public(model: UniRestorer) -> None:
    page = build_page([model], Watch(Limits()))
    public = page.get_api_info()["named_endpoints"]
    assert set(public) == {"/restore", "/inspect", "/degrade"}
    for name, endpoint in public.items():
        assert "photo" in endpoint["description"], name
    assert [p["parameter_name"] for p in public["/restore"]["parameters"]] == ["photo", "tasks", "expert"]
    for block in page.blocks.values():
        if type(block).__name__ in ("Image", "ImageSlider"):
            assert block.format == "png", "webp would lose what was restored"
    model_events = [fn for fn in page.fns.values() if fn.concurrency_id == "model"]
    assert len(model_events) == 10
    assert all(hasattr(fn.fn, "__wrapped__") for fn in model_events), "each is a job of the watch"
    two = build_page([model, model], Watch(Limits()))
    assert set(two.get_api_info()["named_endpoints"]) == {*public, "/restore_tiny", "/inspect_tiny"}
    options = launch_options()
    assert options["ssr_mode"] is False and options["show_error"] is False
    assert page.delete_cache == (600, 3600)


def test_a_large_photo_is_told_before_it_is_restored(
    handlers: Handlers, photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unirestorer.demo.handlers.LARGE_PX", 100)
    early, view = handlers.views(photo, [], "", None)
    assert early.memory is None and early.fresh and view.decided is None
    drawn, restored = panels.draw(handlers.model, early), panels.draw(handlers.model, view)
    assert "Now restoring" in drawn.verdict and "Now restoring" not in restored.verdict
    assert (drawn.what, drawn.sure, drawn.who) == (restored.what, restored.sure, restored.who)
    assert list(view.memory.auto.report["seconds"]) == ["decode", "estimate", "route", "load", "restore"]


def test_an_example_is_restored_ahead(
    handlers: Handlers, photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for it gives auto mode's result without running the model, from any copy of its file; what is
    no photo, and other photos, change nothing.
    """
    (plain,) = handlers.views(photo, [], "", None)
    bad = Path(photo).with_name("bad.png")
    bad.write_bytes(b"no photo")
    handlers.prepare([bad, Path(photo)])
    for file in (plain.memory.before, plain.memory.auto.png, plain.memory.auto.after):
        Path(file).unlink(missing_ok=True)  # the page deletes old files
    copy = Path(photo).with_name("copy.png")
    copy.write_bytes(Path(photo).read_bytes())
    other = Path(photo).with_name("other.png")
    Image.new("RGB", (30, 20)).save(other)

    def fail(*args: object, **named: object) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(UniRestorer, "inspect", fail)
    assert handlers.prepared_view(str(other), [], "") is None
    view = handlers.prepared_view(str(copy), ["derain"], "")
    assert view.memory.ahead and view.waiting and view.choice is None  # which the model has yet to make
    (view,) = handlers.views(str(copy), [], "", None)
    assert view.memory.ahead and view.memory.photo == str(copy) and view.error is None
    assert view.memory.auto.report["expert"] == plain.memory.auto.report["expert"]
    assert load_image(view.memory.auto.png).shape[2:] == load_image(photo).shape[2:]
    assert "restored ahead" in panels.draw(handlers.model, view).timing
    with pytest.raises(AssertionError, match="the model ran"):
        list(handlers.views(str(other), [], "", None))


# The model card


def test_the_model_card_shows_what_was_measured(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny_checkpoint, folder)
    model = UniRestorer.from_pretrained(folder, device="cpu")
    assert card_text(model) == "This checkpoint came without a model card."
    assert "<table" not in card_html(model)
    (folder / "README.md").write_text(
        "# Title\n\nFor *photos*, x < 3. ![a picture](https://elsewhere/x.png) <script>evil()</script>\n"
        "![Failures](../limits.jpg) [more](../README.md)\n![No picture](bad.jpg) ![A <b>ramp](ramp.png)\n"
        "<!-- results -->\n<details>\n<summary>All <i>of</i> it</summary>\n\n| a |\n| - |\n\n</details>\n"
        "<details open ontoggle=evil()><scr<!-- -->ipt><!-- end\nof results -->"
    )
    (folder / "bad.jpg").write_bytes(b"<script>")
    Image.linear_gradient("L").save(folder / "ramp.png")
    Image.linear_gradient("L").save(tmp_path / "limits.jpg")
    text = card_text(model)
    assert text.startswith("\nFor *photos*, x < 3.") and "Title" not in text
    assert "elsewhere" in text and "![" not in text and "<script" not in text
    assert "(Picture: Failures.) more" in text and "limits.jpg" not in text
    folded = "<details>\n<summary>All &lt;i>of&lt;/i> it</summary>\n\n| a |\n| - |\n\n</details>"
    assert (
        folded in text
        and "results" not in text
        and text.endswith("&lt;details open ontoggle=evil()>&lt;script>")
    )
    pictures = card_pictures(model)  # those beside the card alone
    assert pictures.count("<img") == 1 and 'src="data:image/jpeg;base64,' in pictures
    assert "A &lt;b&gt;ramp." in pictures and "script" not in pictures
    psnr = {"input": 20.0, "all": 22.0, "auto": 23.5, "instruction": 24.0, "oracle": 24.25}
    cases = {
        "single-in/dehaze-1": {"n": 4, "psnr": psnr},
        f"single-out/{EVIL}": {"n": EVIL, "psnr": {"input": 20.0, "auto": 19.0}},
        "single-out/deblur-31": {"n": 4, "psnr": {"input": 20.0, "auto": 19.999}},
        "real/polyu": {"n": 4, "psnr": psnr},
    }
    (folder / "metrics.json").write_text(json.dumps({"evaluation": {"cases": cases}}))
    shown = card_html(model)
    assert "20.00" in shown and "24.25" in shown and "+3.50" in shown and "-1.00" in shown
    assert "<img" not in shown and shown.count("<tr>") == 5 and "polyu" not in shown
    assert ">haze, 1<" in shown and ">blur, 31<" in shown and "+0.00" in shown and "-0.00" not in shown
    for broken in ("{", "[]", '{"evaluation": {"cases": {"a": 3}}}', '{"evaluation": 1}'):
        (folder / "metrics.json").write_text(broken)
        assert "<table" not in card_html(model)
