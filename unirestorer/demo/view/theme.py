"""The one palette and the look of the page. Colour never stands alone: a shape or a word goes with it."""

from __future__ import annotations

import colorsys

from gradio.themes import Base, Default
from gradio.themes.utils.fonts import LocalFont

from unirestorer.tree import DegradationTree
from unirestorer.types import Task

TASK_COLOURS: dict[Task, str] = {
    Task.DERAIN: "#0072B2",
    Task.DEHAZE: "#7F7F7F",
    Task.DENOISE: "#D55E00",
    Task.DEBLUR: "#CC79A7",
    Task.LOWLIGHT: "#E69F00",
    Task.DESNOW: "#56B4E9",
    Task.DEJPEG: "#009E73",
}
TASK_SYMBOLS: dict[Task, str] = {  # plotly's names
    Task.DERAIN: "triangle-down",
    Task.DEHAZE: "square",
    Task.DENOISE: "circle",
    Task.DEBLUR: "diamond",
    Task.LOWLIGHT: "pentagon",
    Task.DESNOW: "hexagram",
    Task.DEJPEG: "cross",
}
CLEAN_COLOUR, CLEAN_SYMBOL = "#8A63D2", "circle-open"
SEVERAL_COLOUR, SEVERAL_SYMBOL = "#64748B", "x"
# Of clusters that mix tasks, one per node below ALL; none is a task's.
CLUSTER_COLOURS = ("#3F6FD8", "#2F9E55", "#C04A86", "#A8861A", "#8A5A3C", "#2C9CA6")
CLUSTER_SYMBOLS = ("triangle-up", "star-square", "diamond-wide", "hourglass", "bowtie", "star-diamond")
STAR_COLOUR = "#FFD23F"

# Gradio confines a page's style sheet to its content; this concerns what lies around it. Gradio itself
# measures how far an open sidebar pushes the page aside, but once, and sometimes before the style has come.
SIDEBAR_PX = 290
ASIDE_PX = SIDEBAR_PX + 8
SHELL_STYLE = f"""@media (min-width: 769px) {{
  .sidebar-parent:has(#sidebar.open) {{
    padding-left: clamp(0px, {ASIDE_PX}px - (100vw - 1680px) / 2, {ASIDE_PX}px) !important;
  }}
}}"""


def degree_colours(colour: str, count: int) -> list[str]:
    """`count` colours of one hue, mild (light) to severe (dark); the middle one, if there is, is `colour`."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    shades = []
    for i in range(count):
        shift = 0.0 if count == 1 else 0.22 - 0.44 * i / (count - 1)
        light = lightness + shift * (1 - lightness if shift > 0 else lightness)
        rgb = colorsys.hls_to_rgb(hue, light, saturation)
        shades.append("#" + "".join(f"{round(255 * channel):02X}" for channel in rgb))
    return shades


def node_colours(tree: DegradationTree) -> list[str]:
    """One colour per expert, in their order: its task's, for leaves by degree. Below ALL, which is grey, a
    node that mixes tasks has the colour of its cluster.
    """
    table = tree.expert_table.tolist()
    colours = [SEVERAL_COLOUR] * len(tree.expert_names)
    for node in range(len(colours)):
        leaves = [leaf for leaf, path in enumerate(table) if node in path]
        tasks = {task for leaf in leaves for tasks in tree.task_sets[leaf] for task in tasks}
        if len(tasks) == 1:
            colours[node] = TASK_COLOURS[tasks.pop()]
        elif tree.level_of(node)[0] > 0:
            colours[node] = CLUSTER_COLOURS[cluster_of(tree, leaves[0]) % len(CLUSTER_COLOURS)]
    if tree.levels > 1:
        parents = tree.parents[-1].tolist()
        for parent in set(parents):
            siblings = [tree.offsets[-1] + leaf for leaf, p in enumerate(parents) if p == parent]
            if len({colours[node] for node in siblings}) == 1:
                for node, shade in zip(
                    siblings, degree_colours(colours[siblings[0]], len(siblings)), strict=True
                ):
                    colours[node] = shade
    return colours


def cluster_of(tree: DegradationTree, leaf: int) -> int:
    """Index of the node right below ALL on a leaf's path."""
    level = min(1, tree.levels - 1)
    return int(tree.expert_table[leaf, level]) - tree.offsets[level]


def make_theme() -> Base:
    """Gradio's default in blue and slate, with the contrasts of WCAG AA in light and dark."""
    # Bold, not Gradio's 600: its semi-bold file lacks most letters. Both are served by the page itself.
    fonts = (LocalFont("Source Sans Pro", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif")
    return Default(primary_hue="blue", neutral_hue="slate", font=fonts).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_600",
    )
