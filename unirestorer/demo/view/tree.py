"""The tree ALL → TYPE → DEGREE as nested lists of buttons: it wraps, follows theme and keyboard."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from unirestorer.demo.view import theme, words
from unirestorer.tree import DegradationTree
from unirestorer.types import Task


def node_probs(tree: DegradationTree, report: dict[str, Any]) -> list[float]:
    """Probability of each expert's branch, in the experts' order: the sum of its leaves'."""
    probs = [0.0] * len(tree.expert_names)
    for path, leaf in zip(tree.expert_table.tolist(), report["leaves"], strict=True):
        for node in path:
            probs[node] += leaf["probability"]
    return [1.0 if p > 1 - 1e-5 else p for p in probs]  # the root's is 1, whatever its sum's rounding


def pruned_nodes(tree: DegradationTree, tasks: Iterable[Task] | None) -> set[int]:
    """Experts that an instruction prunes: those with no leaf left. The root always stays."""
    kept = tree.mask(tasks).tolist()
    alive = {
        node for path, keep in zip(tree.expert_table.tolist(), kept, strict=True) if keep for node in path
    }
    return set(range(len(tree.expert_names))) - alive


def tree_html(
    tree: DegradationTree,
    report: dict[str, Any] | None = None,
    tasks: Iterable[Task] | None = None,
    auto_expert: str = "",
) -> str:
    """The tree with branch probabilities, the leaf's path lit and the chosen expert marked.

    `tasks` strike out what they prune; `auto_expert` is named where it differs from the chosen one. Without a
    `report` it is the bare topology.
    """
    head = "".join(f'<div class="head">{name}</div>' for name in words.level_words(tree))
    drawing = _Drawing(tree, report, tasks, auto_expert)
    roots = "".join(drawing.node(0, index) for index in range(len(tree.centers[0])))
    return (
        f'<div class="tree" style="--levels:{tree.levels}"><div class="heads" aria-hidden="true">{head}</div>'
        f'<ul aria-label="The tree of experts">{roots}</ul></div>{_real_note(tree)}'
    )


def _real_note(tree: DegradationTree) -> str:
    """What "real" means in a leaf's name."""
    real = [name.partition(", ")[0] for name in tree.names[-1] if name.endswith(", real")]
    if not real:
        return ""
    return (
        f'<p class="sub after">“real”: learnt mostly from photographed {html.escape(words.listed(real))}, '
        "the others from drawn ones.</p>"
    )


class _Drawing:
    def __init__(
        self,
        tree: DegradationTree,
        report: dict[str, Any] | None,
        tasks: Iterable[Task] | None,
        auto_expert: str,
    ) -> None:
        self.tree, self.report, self.auto = tree, report, auto_expert
        self.probs = node_probs(tree, report) if report else []
        self.pruned = pruned_nodes(tree, tasks) if tasks else set()
        self.path = set(tree.expert_table[report["leaf"]].tolist()) if report else set()
        self.colours = theme.node_colours(tree)

    def node(self, level: int, index: int) -> str:
        number = self.tree.offsets[level] + index
        below = ""
        if level + 1 < self.tree.levels:
            children = [i for i, p in enumerate(self.tree.parents[level + 1].tolist()) if p == index]
            below = (
                f"<ul>{''.join(self.node(level + 1, child) for child in children)}</ul>" if children else ""
            )
        return f"<li>{self.button(number)}{below}</li>"

    def button(self, number: int) -> str:
        expert = self.tree.expert_names[number]
        classes, notes = ["node"], []
        if number in self.path:
            classes.append("path")
        if number in self.pruned:
            classes.append("pruned")
            notes.append("pruned")
        if self.report and expert == self.report["expert"]:
            classes.append("chosen")
            notes.append("chosen")
        elif expert == self.auto:
            notes.append("auto")
        label = self.label(number)
        label = f"<s>{label}</s>" if number in self.pruned else label
        value = ""
        certain = number == 0 and len(self.tree.centers[0]) == 1  # every photo belongs to the root
        if self.report and number not in self.pruned and not certain:
            share = self.probs[number]
            value = f'<span class="p">{html.escape(words.short_percent(share))}</span>'
            value += f'<i class="fill" style="width:{100 * share:.1f}%"></i>'
        badges = "".join(f'<em class="{"badge" if note == "auto" else "sr"}">{note}</em>' for note in notes)
        hint = f"Force the expert {words.expert_label(self.tree, number)}"
        return (
            f'<button type="button" class="{" ".join(classes)}" data-expert="{html.escape(expert)}" '
            f'title="{html.escape(hint)}" style="--hue:{self.colours[number]}">'
            f'<span class="n">{label}</span>{badges}{value}</button>'
        )

    def label(self, number: int) -> str:
        """The node's name; what its parent's name already says is left to screen readers."""
        name = self.tree.words(number)
        level, index = self.tree.level_of(number)
        if level > 0:
            parent = f"{self.tree.names[level - 1][int(self.tree.parents[level][index])]}, "
            if name.startswith(parent):
                rest = name.removeprefix(parent)
                return f'<span class="sr">{html.escape(parent)}</span>{html.escape(rest)}'
        return html.escape(name)
