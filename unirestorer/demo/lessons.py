"""Short lessons on degradation estimation, uncertainty and sparse routing, each with something to try on the
page and a question that checks itself. What they say of the model is filled in from the opened one.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, replace

from unirestorer.demo.scale import Scale
from unirestorer.demo.view import words
from unirestorer.pipeline import UniRestorer
from unirestorer.types import Mode, Task


@dataclass(frozen=True)
class Scene:
    """How a lesson sets the page: a tab and what is chosen there."""

    tab: str
    example: str = ""  # its word; in "restore", and in "lessons" for the live figures
    tasks: tuple[Task, ...] = ()
    task: Task | None = None  # of the lab
    share: float = 0.0  # of the lab task's trained strengths, or
    beyond: bool = False  # of those that are held out

    def strength(self, scale: Scale) -> float:
        """The lab's strength on the opened model's scale."""
        return scale.held_out(self.share) if self.beyond else scale.trained(self.share)


@dataclass(frozen=True)
class Lesson:
    title: str
    text: str  # HTML; symbols explain themselves through <abbr>
    question: str
    choices: tuple[str, ...]
    replies: tuple[str, ...]  # to each choice, HTML
    answer: int
    scene: Scene | None = None
    numbers: str = ""  # "likelihood" | "noise": live figures below the text


def symbol(name: str, meaning: str) -> str:
    return f'<abbr title="{html.escape(meaning)}"><i>{name}</i></abbr>'


def term(name: str, meaning: str) -> str:
    return f'<abbr title="{html.escape(meaning)}">{name}</abbr>'


K_MEANS = term("K-means", "puts points into groups: each belongs to the group whose centre is nearest")
LOGIT = term("logit", "the score that a router gives an expert, before scores become probabilities")
SOFTMAX = term("softmax", "turns scores into probabilities: all positive, and together one")
E = symbol("e", "the degradation representation (DR): {dim} numbers that describe what happened to the photo")
U = symbol(
    "u", "the centre of the photo's leaf; unknown for a new photo, so the predicted leaf's stands for it"
)
E_DEG = symbol("e<sub>deg</sub>", "the estimate of that centre, made by the head H_d")
E_GRAN = symbol(
    "e<sub>gran</sub>",
    "how uncertain that estimate is: a variance for each of {dim} numbers, by the head H_g",
)
NOISE = symbol("ε", "a fresh random number from the normal distribution, for every expert and every step")

# Words in braces are of the opened model: see `facts`.
LESSONS = (
    Lesson(
        "What is a degradation?",
        "<p>Rain, haze, noise, blur, darkness, snow and JPEG compression each change a photo in their own "
        "way, more or less strongly. Undoing one needs to know which it is: what removes noise also removes "
        "fine texture, and what brightens the dark bleaches a photo that was well lit.</p>",
        "Why not let one network undo everything, always?",
        (
            "Networks cannot learn more than one task",
            "Tasks pull in different directions, so a specialist does its own better",
            "It would need a bigger graphics card",
        ),
        (
            "They can; the lab's ALL expert does. It is only not as good at any of them.",
            "One network for everything works, but each task pays for the others. That is what the lab's ALL "
            "curve shows.",
            "Size would help, but the tasks would still pull at the same weights.",
        ),
        1,
        Scene("restore", "rain"),
    ),
    Lesson(
        "Seeing the damage, not the scene",
        f"<p>The extractor turns a photo into {E}: two photos with the same damage get similar ones, "
        "whatever they show. It looks at pieces of {view_px} pixels and never resizes them: shrinking a "
        "photo averages its noise away before anyone has seen it.</p>",
        "A noisy photo is shrunk to half its size. What happens to its noise?",
        ("It gets about half as strong", "It stays the same", "It doubles"),
        (
            "Four pixels become one: averaging four independent errors halves their size.",
            "It would if neighbouring errors were alike; independent ones partly cancel.",
            "Averaging never makes independent errors larger.",
        ),
        0,
        Scene("lab", task=Task.DENOISE, share=0.48),
    ),
    Lesson(
        "A tree of damages",
        f"<p>{K_MEANS} groups the representations of many training photos: {{leaves}} leaves, such as "
        "<i>{leaf}</i>, {above}under one root. The lines on the map are this tree. Where two {middle}s lie "
        "side by side, they are easily taken for each other.</p>",
        "On the map, haze, low light and clean photos lie close together. What follows?",
        ("They are restored alike", "Mild cases of them are often confused", "The map is wrong"),
        (
            "Near means hard to tell apart, not cured by the same means.",
            "Near in the map means near as representations: a little haze, a little darkness and nothing at "
            "all look alike.",
            "The map shows what the estimate sees, and in mild cases there is little to see.",
        ),
        1,
        Scene("lab", task=Task.DEHAZE, share=0.083),
    ),
    Lesson(
        "Experts, coarse to fine",
        "<p>Every node of the tree has a network of its own, trained on the node's photos alone and started "
        "from its parent's weights. The finer the node, the less it has to know, and the better it can be at "
        "it.</p>",
        "Who restores {leaf} best, if it is surely {leaf}?",
        ("The expert for everything", "The expert for {parent}", "The expert for {leaf}"),
        (
            "It knows {parent} too, but spends its weights on everything else as well.",
            "Close, but it also has to know {siblings}.",
            "Usually the finest. In the lab's sweep the {finest} curve lies highest where the router's guess "
            "is right.",
        ),
        2,
        Scene("lab", task=Task.DERAIN, share=0.785),
    ),
    Lesson(
        "The wrong expert",
        "<p>A specialist is only good at home. Name a wrong task in the Instruction panel and look at the "
        "second result: the photo is changed by somebody who sees rain, or darkness, where there is "
        "none.</p>",
        "What does {dark_expert} do to a photo that is well lit?",
        ("Nothing", "It brightens it, although it was not dark", "{dark_guess}"),
        (
            "An expert never asks whether it is the right one: it does what it was trained for.",
            "It was trained on dark photos, so it brightens. That is why a doubtful estimate should not pick "
            "a specialist.",
            "{dark_reply}",
        ),
        1,
        Scene("restore", "blur", (Task.LOWLIGHT,)),
    ),
    Lesson(
        "How sure is the estimate?",
        f"<p>One head guesses the leaf's centre, {E_DEG}; another says how far off that guess may be, "
        f"{E_GRAN}. They learn together, by the likelihood of the paper’s Eq. 7:</p>"
        f'<p class="equation">({U} − {E_DEG})² / (2 {E_GRAN}) + ½ ln {E_GRAN}</p>'
        "<p>A big claimed variance makes the first term small and the second one big, so that the best claim "
        "is the true one. For your photo (the predicted leaf’s centre standing for u):</p>",
        "A head always claims a huge variance. What does it pay?",
        ("Nothing, errors no longer count", "The second term, which grows with the variance", "A fixed fine"),
        (
            "Errors count less then, but the claim itself has a price.",
            "½ ln of the variance is the price of modesty; it is worth paying only where errors are large.",
            "The price depends on how much is claimed.",
        ),
        1,
        Scene("lessons", "rain"),
        numbers="likelihood",
    ),
    Lesson(
        "Doubt chooses the granularity",
        f"<p>The level router sees nothing but {E_GRAN}. From how doubt is spread over its {{dim}} numbers, "
        "more than from its size, it decides whether to trust a leaf, a {middle} or nobody in particular. "
        "Sweep haze beyond the trained range and watch who takes over, and how each expert fares. Then sweep "
        "noise: where the specialist still does best on strengths that it never saw, a good router stays "
        "with it.</p>",
        "Haze far thicker than anything in training arrives. Which expert should restore it?",
        ("The finest: it is haze after all", "A coarser one: no leaf was made for it", "None"),
        (
            "Its leaf was made from thinner haze, and that is all its expert knows.",
            "No leaf stands for that thickness. The {middle} is still right, and its expert has seen more "
            "kinds of haze: compare the two in the lab's table.",
            "Somebody restores every photo, at worst the expert for everything.",
        ),
        1,
        Scene("lab", task=Task.DEHAZE, share=0.6, beyond=True),
    ),
    Lesson(
        "Why routers get noise",
        f"<p>In training, each {LOGIT} gets {NOISE} times a learned width (Eq. 2 of the paper) before the "
        f"{SOFTMAX}, so that also the second choice is tried now and then, and can prove itself. While "
        "serving, the noise is off. Press the button to see what training would have done with your "
        "photo:</p>",
        "Why add noise to the logits and not to the probabilities?",
        (
            "Afterwards they would not add up to one, and pruned leaves could come back",
            "It is faster",
            "Probabilities cannot be seen by a network",
        ),
        (
            "The softmax comes last, so whatever the noise did, a distribution comes out, and what the mask "
            "removed stays away.",
            "Both cost the same.",
            "Inside a network everything can be seen.",
        ),
        0,
        Scene("lessons", "rain"),
        numbers="noise",
    ),
    Lesson(
        "Load balance",
        "<p>Left alone, a router soon sends everybody to whoever was lucky first, and the others never "
        "learn. Eq. 8 of the paper charges it σ/μ of the levels’ loads: nothing when all are busy alike. But "
        "who charges too much gets equal loads whatever the photo needs: the weight is small on purpose.</p>",
        "Of three levels one gets every photo. How big is σ/μ?",
        ("0", "1", "√2, about 1.41"),
        (
            "0 is what equal loads give.",
            "Equal loads give 0, but this is the most unequal case of three: more than 1.",
            "Loads 1, 0, 0 have the mean 1/3 and the deviation √2/3. The tab Many photos computes it for "
            "yours.",
        ),
        2,
        Scene("batch"),
    ),
    Lesson(
        "Telling it what you know",
        "<p>In instruction mode you name the damage, and all other branches are cut before the "
        f"{SOFTMAX}: their probability is exactly zero, and the rest is shared out among what stays. The "
        "root is always allowed.</p>",
        "The router is 98 % sure of {ruled_out}. How likely is {it} then?",
        ("2 %", "Exactly 0", "98 %"),
        (
            "The rest is shared out among what stays, and {it} does not stay.",
            "Pruned is pruned: a logit of minus infinity. Struck-out nodes of the tree show it.",
            "That was before: an instruction overrules the estimate.",
        ),
        1,
        Scene("restore", "haze", (Task.DERAIN,)),
    ),
    Lesson(
        "When it fails",
        "<p>Each photo gets one expert, so {half_undone}. Damage of a kind that was never trained, such as "
        "{untrained}, has no leaf: look at the distance percentile, which says how far the photo lies from "
        "anything known. And mild damage may be missed altogether.</p>",
        "Which figure warns that a photo is unlike anything in training?",
        ("Its place on the map", "The distance percentile", "The probability of its leaf"),
        (
            "Whatever comes in gets a place there, near something.",
            "The map puts everything somewhere, and a softmax always adds up to one. Only the distance "
            "knows.",
            "It says which leaf is likeliest; all of them add up to one even where none fits.",
        ),
        1,
        Scene("restore", "snow"),
    ),
)

MODE_WORDS: dict[Mode, dict[str, str]] = {
    "single": {
        "siblings": "drizzle",
        "dark_expert": "the low-light expert",
        "dark_guess": "It removes its noise",
        "dark_reply": "Noise is another expert's business.",
        "ruled_out": "haze, and you name rain",
        "it": "haze",
        "half_undone": "two damages at once are half undone",
    },
    "mixed": {
        "siblings": "the other mixtures of its group",
        "dark_expert": "an expert for dark photos",
        "dark_guess": "It makes it darker still",
        "dark_reply": "It learned to undo darkness, never to make it.",
        "ruled_out": "a leaf that your instruction rules out",
        "it": "that leaf",
        "half_undone": "a damage that its mixtures lack is not undone",
    },
}


def facts(model: UniRestorer) -> dict[str, str]:
    """What the lessons say of a model: its tree, its networks, and what follows from its mode."""
    tree = model.tree
    middle = "group" if words.mixes_types(tree) else "type"
    above = [f"under {words.counted(len(names), middle)} " for names in tree.names[-2:0:-1]]
    first = tree.expert_table[:, min(1, tree.levels - 1)]
    example = int((first == first.min()).nonzero()[-1])  # the last leaf of the first branch: heavy rain
    path = [words.spoken(tree.words(node)) for node in tree.expert_table[example].tolist()]
    unknown = [task for task in Task if task not in model.ranges]
    return {
        **MODE_WORDS[model.mode],
        "dim": str(tree.centers[-1].shape[1]),
        "view_px": str(model.extractor.shape.view_px),
        "leaves": words.number_word(tree.leaves),
        "above": "".join(above),
        "middle": middle,
        "finest": words.level_words(tree)[-1],
        "leaf": path[-1],
        "parent": path[-2:][0],
        "untrained": f"a scratch{f' or {words.task_list(unknown)}' if unknown else ''}",
    }


def lessons_of(model: UniRestorer) -> tuple[Lesson, ...]:
    """The lessons, as true for this model."""
    plain = facts(model)
    safe = {name: html.escape(text) for name, text in plain.items()}
    return tuple(
        replace(
            lesson,
            text=lesson.text.format_map(safe),
            question=lesson.question.format_map(plain),
            choices=tuple(choice.format_map(plain) for choice in lesson.choices),
            replies=tuple(reply.format_map(safe) for reply in lesson.replies),
        )
        for lesson in LESSONS
    )


def show_label(lesson: Lesson) -> str:
    """What the button says that sets the page for a lesson."""
    if lesson.scene is None or lesson.scene.tab != "lessons":
        return "Show me on the page"
    return f"Use the {lesson.scene.example} example"


def lesson_html(lesson: Lesson, number: int, count: int) -> str:
    """Title and text of a lesson, the one after `number` others of `count`."""
    return (
        f'<p class="label" data-lesson="{number + 1}">Lesson {number + 1} of {count}</p>'
        f'<h2 class="title">{lesson.title}</h2>'
        f'<div class="lesson">{lesson.text}</div>'
    )


def reply_html(lesson: Lesson, choice: int | None) -> str:
    """What an answer is told; nothing before one was given."""
    if choice is None:
        return ""
    word = "Right." if choice == lesson.answer else "Not quite."
    return f'<p class="say"><b>{word}</b> {lesson.replies[choice]}</p>'
