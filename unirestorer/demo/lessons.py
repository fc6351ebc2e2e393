"""Short lessons on degradation estimation, uncertainty and sparse routing, each with something to try on the
page and a question that checks itself.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from unirestorer.demo.view import words
from unirestorer.demo.view.figures import bar
from unirestorer.pipeline import UniRestorer
from unirestorer.types import Estimate, Task


@dataclass(frozen=True)
class Setting:
    """How a lesson sets the page: a tab and what is chosen there."""

    tab: str
    example: str = ""  # its word; in "restore", and in "lessons" for the live figures
    tasks: tuple[Task, ...] = ()
    task: Task | None = None  # of the lab
    strength: float = 0.0


@dataclass(frozen=True)
class Lesson:
    title: str
    text: str  # HTML; symbols explain themselves through <abbr>
    question: str
    choices: tuple[str, ...]
    replies: tuple[str, ...]  # what each choice is told
    answer: int
    setting: Setting | None = None
    numbers: str = ""  # "likelihood" | "noise" | "load": live figures below the text


def symbol(name: str, meaning: str) -> str:
    return f'<abbr title="{html.escape(meaning)}"><i>{name}</i></abbr>'


def term(name: str, meaning: str) -> str:
    return f'<abbr title="{html.escape(meaning)}">{name}</abbr>'


K_MEANS = term("K-means", "puts points into groups: each belongs to the group whose centre is nearest")
LOGIT = term("logit", "the score that a router gives an expert, before scores become probabilities")
SOFTMAX = term("softmax", "turns scores into probabilities: all positive, and together one")
E = symbol("e", "the degradation representation (DR): 512 numbers that describe what happened to the photo")
U = symbol(
    "u", "the centre of the photo's leaf; unknown for a new photo, so the predicted leaf's stands for it"
)
E_DEG = symbol("e<sub>deg</sub>", "the estimate of that centre, made by the head H_d")
E_GRAN = symbol(
    "e<sub>gran</sub>", "how uncertain that estimate is: a variance for each of 512 numbers, by the head H_g"
)
NOISE = symbol("ε", "a fresh random number from the normal distribution, for every expert and every step")

LESSONS = (
    Lesson(
        "What is a degradation?",
        "<p>Rain, haze, noise, blur, darkness, snow and JPEG compression each change a photo in "
        "their own way, more or "
        "less strongly. Undoing one needs to know which it is: what removes noise also removes "
        "fine texture, and what "
        "brightens the dark bleaches a photo that was well lit.</p>",
        "Why not let one network undo everything, always?",
        (
            "Networks cannot learn more than one task",
            "Tasks pull in different directions, so a specialist does its own better",
            "It would need a bigger graphics card",
        ),
        (
            "They can; the lab's ALL expert does. It is only not as good at any of them.",
            "One network for everything works, but each task pays for the others. That is what the "
            "lab's ALL curve shows.",
            "Size would help, but the tasks would still pull at the same weights.",
        ),
        1,
        Setting("restore", "rain"),
    ),
    Lesson(
        "Seeing the damage, not the scene",
        f"<p>The extractor turns a photo into {E}: two photos with the same damage get similar "
        f"ones, whatever they show. "
        "It looks at pieces of 224 pixels and never resizes them: shrinking a photo averages its "
        "noise away before "
        "anyone has seen it.</p>",
        "A noisy photo is shrunk to half its size. What happens to its noise?",
        ("It gets about half as strong", "It stays the same", "It doubles"),
        (
            "Four pixels become one: averaging four independent errors halves their size.",
            "It would if neighbouring errors were alike; independent ones partly cancel.",
            "Averaging never makes independent errors larger.",
        ),
        0,
        Setting("lab", task=Task.DENOISE, strength=25),
    ),
    Lesson(
        "A tree of damages",
        f"<p>{K_MEANS} groups the representations of many training photos: nineteen leaves, such as "
        "<i>heavy rain</i>, under "
        "seven types under one root. The lines on the map are this tree. Where two types lie "
        "side by side, they are easily "
        "taken for each other.</p>",
        "On the map, haze, low light and clean photos lie close together. What follows?",
        ("They are restored alike", "Mild cases of them are often confused", "The map is wrong"),
        (
            "Near means hard to tell apart, not cured by the same means.",
            "Near in the map means near as representations: a little haze, a little darkness and "
            "nothing at all look alike.",
            "The map shows what the estimate sees, and in mild cases there is little to see.",
        ),
        1,
        Setting("lab", task=Task.DEHAZE, strength=0.4),
    ),
    Lesson(
        "Experts, coarse to fine",
        "<p>Every node of the tree has a network of its own, trained on the node's photos alone "
        "and started from its "
        "parent's weights. The finer the node, the less it has to know, and the better it can be at it.</p>",
        "Who restores heavy rain best, if it is surely heavy rain?",
        ("The expert for everything", "The expert for rain", "The expert for heavy rain"),
        (
            "It knows rain too, but spends its weights on everything else as well.",
            "Close, but it also has to know drizzle.",
            "Usually the finest. In the lab's sweep the DEGREE curve lies highest where the router's "
            "guess is right.",
        ),
        2,
        Setting("lab", task=Task.DERAIN, strength=120),
    ),
    Lesson(
        "The wrong expert",
        "<p>A specialist is only good at home. Name a wrong task in the Instruction panel and "
        "look at the second result: "
        "the photo is changed by somebody who sees rain, or darkness, where there is none.</p>",
        "What does the low-light expert do to a photo that is well lit?",
        ("Nothing", "It brightens it, although it was not dark", "It removes its noise"),
        (
            "An expert never asks whether it is the right one: it does what it was trained for.",
            "It was trained on dark photos, so it brightens. That is why a doubtful estimate should "
            "not pick a specialist.",
            "Noise is another expert's business.",
        ),
        1,
        Setting("restore", "blur", (Task.LOWLIGHT,)),
    ),
    Lesson(
        "How sure is the estimate?",
        f"<p>One head guesses the leaf's centre, {E_DEG}; another says how far off that guess may "
        f"be, {E_GRAN}. They learn "
        "together, by the likelihood of the paper’s Eq. 7:</p>"
        f'<p class="equation">({U} − {E_DEG})² / (2 {E_GRAN}) + ½ ln {E_GRAN}</p>'
        "<p>A big claimed variance makes the first term small and the second one big, so that "
        "the best claim is the true "
        "one. For your photo (the predicted leaf’s centre standing for u):</p>",
        "A head always claims a huge variance. What does it pay?",
        ("Nothing, errors no longer count", "The second term, which grows with the variance", "A fixed fine"),
        (
            "Errors count less then, but the claim itself has a price.",
            "½ ln of the variance is the price of modesty; it is worth paying only where errors are large.",
            "The price depends on how much is claimed.",
        ),
        1,
        Setting("lessons", "rain"),
        numbers="likelihood",
    ),
    Lesson(
        "Doubt chooses the granularity",
        f"<p>The level router sees nothing but {E_GRAN}. From how doubt is spread over its 512 "
        "numbers, more than from its size, it decides whether to trust a leaf, a type or nobody in "
        "particular. Sweep haze beyond the trained range and watch who takes over, and how each "
        "expert fares. Then sweep noise: where the specialist still does best on strengths that it "
        "never saw, a good router stays with it.</p>",
        "Haze far thicker than anything in training arrives. Which expert should restore it?",
        ("The finest: it is haze after all", "A coarser one: no leaf was made for it", "None"),
        (
            "Its leaf was made from thinner haze, and that is all its expert knows.",
            "No leaf stands for that thickness. The type is still right, and its expert has seen more "
            "kinds of haze: compare the two in the lab's table.",
            "Somebody restores every photo, at worst the expert for everything.",
        ),
        1,
        Setting("lab", task=Task.DEHAZE, strength=2.1),
    ),
    Lesson(
        "Why routers get noise",
        f"<p>In training, each {LOGIT} gets {NOISE} times a learned width (Eq. 2 of the paper) before the "
        f"{SOFTMAX}, so that also the second "
        "choice is tried now and then, and can prove itself. While serving, the noise is off. "
        "Press the button to see what "
        "training would have done with your photo:</p>",
        "Why add noise to the logits and not to the probabilities?",
        (
            "Afterwards they would not add up to one, and pruned leaves could come back",
            "It is faster",
            "Probabilities cannot be seen by a network",
        ),
        (
            "The softmax comes last, so whatever the noise did, a distribution comes out, and what "
            "the mask removed stays away.",
            "Both cost the same.",
            "Inside a network everything can be seen.",
        ),
        0,
        Setting("lessons", "rain"),
        numbers="noise",
    ),
    Lesson(
        "Load balance",
        "<p>Left alone, a router soon sends everybody to whoever was lucky first, and the others "
        "never learn. Eq. 8 of the paper "
        "charges it σ/μ of the levels’ loads: nothing when all are busy alike. But who charges "
        "too much gets equal loads "
        "whatever the photo needs: the weight is small on purpose.</p>",
        "Every photo goes to one of three levels. How big is σ/μ?",
        ("0", "1", "√2, about 1.41"),
        (
            "0 is what equal loads give.",
            "Equal loads give 0, but this is the most unequal case of three: more than 1.",
            "Loads 1, 0, 0 have the mean 1/3 and the deviation √2/3. The tab Many photos computes it for "
            "yours.",
        ),
        2,
        Setting("batch"),
    ),
    Lesson(
        "Telling it what you know",
        "<p>In instruction mode you name the damage, and all other branches are cut before the "
        f"{SOFTMAX}: their probability "
        "is exactly zero, and the rest is shared out among what stays. The root is always allowed.</p>",
        "The router is 98 % sure of haze, and you name rain. How likely is haze then?",
        ("2 %", "Exactly 0", "98 %"),
        (
            "The rest is shared out among what stays, and haze does not stay.",
            "Pruned is pruned: a logit of minus infinity. Struck-out nodes of the tree show it.",
            "That was before: an instruction overrules the estimate.",
        ),
        1,
        Setting("restore", "haze", (Task.DERAIN,)),
    ),
    Lesson(
        "When it fails",
        "<p>Each photo gets one expert, so two damages at once are half undone. Damage of a kind "
        "that was never trained, "
        "such as a scratch, has no leaf: look at the distance percentile, which says how far the "
        "photo lies from "
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
        Setting("restore", "snow"),
    ),
)


def show_label(number: int) -> str:
    """What the button says that sets the page for a lesson."""
    setting = LESSONS[number].setting
    if setting is None or setting.tab != "lessons":
        return "Show me on the page"
    return f"Use the {setting.example} example"


def lesson_html(number: int) -> str:
    """Title and text of a lesson."""
    lesson = LESSONS[number]
    return (
        f'<p class="label" data-lesson="{number + 1}">Lesson {number + 1} of {len(LESSONS)}</p>'
        f'<h2 class="title">{lesson.title}</h2>'
        f'<div class="lesson">{lesson.text}</div>'
    )


def verdict(number: int, choice: int | None) -> str:
    """What an answer is told; nothing before one was given."""
    if choice is None:
        return ""
    lesson = LESSONS[number]
    right = choice == lesson.answer
    word = "Right." if right else "Not quite."
    return f'<p class="say"><b>{word}</b> {lesson.replies[choice]}</p>'


def likelihood_html(model: UniRestorer, estimate: Estimate | None) -> str:
    """Both terms of Eq. 7 for a photo's own estimate, mean over the 512 numbers."""
    if estimate is None:
        return '<p class="sub">Give a photo in the Restore tab, or take the example, to see its numbers.</p>'
    leaf = int(model.router.route(estimate).leaf)
    u = model.router.standardised(model.tree.centers[-1].to(estimate.e))[leaf]
    misfit, price = likelihood_terms(estimate, u)
    return (
        '<table class="scores"><tbody>'
        f'<tr><th scope="row">misfit over claimed variance</th><td>{misfit:.3f}</td></tr>'
        f'<tr><th scope="row">price of the claim, ½ ln e<sub>gran</sub></th><td>{price:.3f}</td></tr>'
        f'<tr class="best"><th scope="row">together</th><td>{misfit + price:.3f}</td></tr></tbody></table>'
    )


def likelihood_terms(estimate: Estimate, u: torch.Tensor) -> tuple[float, float]:
    """The two terms of Eq. 7 for one photo and a centre u (D,), standardised."""
    squared = (u - estimate.e_deg[0]).square()
    misfit = (0.5 * squared * torch.exp(-estimate.log_e_gran[0])).mean()
    return float(misfit), float(0.5 * estimate.log_e_gran[0].mean())


def noise_html(model: UniRestorer, estimate: Estimate | None, scale: float, seed: int) -> str:
    """Leaf probabilities without noise, and with one draw of it, `scale` times as wide as learned."""
    if estimate is None:
        return '<p class="sub">Give a photo in the Restore tab, or take the example, to see its leaves.</p>'
    plain, noisy = noisy_leaf_probs(model, estimate, scale, seed)
    best = sorted(
        {*plain.topk(min(4, len(plain))).indices.tolist(), int(noisy.argmax())}, key=lambda i: -plain[i]
    )
    rows = "".join(
        bar("", words.spoken(model.tree.names[-1][leaf]), float(plain[leaf]), False)
        + bar("", "… with noise", float(noisy[leaf]), leaf == int(noisy.argmax()))
        for leaf in best
    )
    return f'<div class="bars" role="list">{rows}</div>'


@torch.no_grad()
def noisy_leaf_probs(
    model: UniRestorer, estimate: Estimate, scale: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Leaf probabilities (leaves,) as served, and with the noise of Eq. 2 drawn under `seed`."""
    gate = model.router.gate_leaf
    logits = gate.gate(estimate.e_deg)[0]
    width = F.softplus(gate.noise(estimate.e_deg))[0]
    drawn = torch.randn(len(logits), generator=torch.Generator().manual_seed(seed)).to(logits)
    return logits.softmax(-1).cpu(), (logits + scale * drawn * width).softmax(-1).cpu()
