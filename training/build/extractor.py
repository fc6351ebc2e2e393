"""The DR extractor by contrast between crops and captions of their degradation: every sample of a caption is
a positive.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.build.data import Corpus, draw_fade, fade
from training.build.loop import Budget, Learner, half_precision, train
from training.config import ExtractorConfig
from unirestorer.degradation.recipe import CLEAN_CAPTION
from unirestorer.extractor import ClipTower, Extractor, ResNetTower
from unirestorer.imaging import from_uint8

TEXT_TOWER = open_clip.CLIPTextCfg(context_length=32, width=128, heads=4, layers=2)
LARGEST_SCALE = 100.0
ADOPTION_STEPS = 200
CAPTIONS_AT_ONCE = 64  # with more distinct captions, a batch is contrasted with its own


class Contrast(nn.Module):
    """Image tower, text tower and temperature: the logits (B, C) of crops (B, 3, 224, 224) against tokenised
    captions.
    """

    def __init__(self, config: ExtractorConfig) -> None:
        super().__init__()
        if config.shape.tower == "resnet":
            vision = open_clip.CLIPVisionCfg(
                layers=config.shape.layers,  # pyright: ignore[reportArgumentType]
                width=config.shape.width,
                image_size=config.shape.view_px,
            )
            clip = open_clip.CLIP(config.shape.dim, vision, TEXT_TOWER)
            self.image = ResNetTower(config.shape)
            self.context = TEXT_TOWER.context_length
        else:
            clip = load_published(config)
            self.image = ClipTower(config.shape, clip.visual)
            self.context = clip.context_length
        del clip.visual
        self.text = clip
        self.text.requires_grad_(config.shape.tower == "resnet")  # published text towers stay as they are
        self.text.logit_scale.requires_grad_(True)

    def text_features(self, tokens: Tensor) -> Tensor:
        """(C, context) -> unit features (C, D)."""
        return self.text.encode_text(tokens, normalize=True).float()

    def forward(self, crops: Tensor, tokens: Tensor) -> Tensor:
        features = F.normalize(self.image(crops).float(), dim=-1)
        return self.scale * features @ self.text_features(tokens).T

    @property
    def scale(self) -> Tensor:
        return self.text.logit_scale.exp().clamp(max=LARGEST_SCALE)


def load_published(config: ExtractorConfig) -> Any:  # noqa: ANN401 - open_clip's own model class
    """The open_clip model that `config` names, with random weights where it names none.

    Raises ValueError when the weights cannot be fetched.
    """
    tower = config.shape.tower
    try:
        return open_clip.create_model(tower, pretrained=config.pretrained or None)
    except Exception as error:  # the hub client raises many kinds
        raise ValueError(
            f"cannot load {tower}, weights {config.pretrained!r} ({str(error):.100}): connect to the "
            "internet once, or train from random weights with --set extractor.pretrained="
        ) from None


def contrast_loss(logits: Tensor, caption: Tensor, smoothing: float) -> Tensor:
    """Both directions of the contrast for logits (B, C) and each crop's caption (B,); same caption =
    positive.
    """
    to_caption = F.cross_entropy(logits, caption, label_smoothing=smoothing)
    positive = F.one_hot(caption, logits.shape[1]).to(logits)  # (B, C)
    count = positive.sum(0)  # (C,)
    log_share = logits.log_softmax(0)  # each caption over the crops
    to_crop = -(positive * log_share).sum(0)[count > 0] / count[count > 0]
    return 0.5 * (to_caption + to_crop.mean())


def balanced_rows(corpus: Corpus, clean_share: float) -> tuple[list[np.ndarray], np.ndarray]:
    """Rows grouped by type: one group per task, one for clean photos, one per combination in "mixed"; and
    each group's share of a batch (G,).
    """
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(corpus.rows):
        groups[corpus.entries[row.recipe].tasks if row.recipe >= 0 else ()].append(index)
    kinds = sorted(groups)
    share = np.ones(len(kinds))
    if () in groups and len(kinds) > 1:
        share[kinds.index(())] = (len(kinds) - 1) * clean_share / (1 - clean_share)
    return [np.array(groups[kind]) for kind in kinds], share / share.sum()


def adopt(model: Contrast, old: Extractor, captions: tuple[str, ...], tokens: Tensor) -> None:
    """Start `model` where the finished extractor `old` stood.

    Its tower is copied. Its text tower was not kept, so the new one first learns the kept features of the
    captions (C) that both know. Raises ValueError when the shapes or all captions differ.
    """
    try:
        model.image.load_state_dict(old.tower.state_dict())
    except RuntimeError:
        raise ValueError(
            "--init: its extractor has another shape; leave --init out or use its preset"
        ) from None
    shared = [i for i, text in enumerate(captions) if text in old.captions]
    if not shared:
        raise ValueError("--init: its extractor knows none of the captions; leave --init out")
    features = old.caption_features[[old.captions.index(captions[i]) for i in shared]].to(tokens.device)
    model.text.logit_scale.data.fill_(float(old.logit_scale.log()))
    optimizer = torch.optim.Adam([p for p in model.text.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(ADOPTION_STEPS):
        similarity = (model.text_features(tokens[shared]) * features).sum(1).mean()
        optimizer.zero_grad()
        (1 - similarity).backward()
        optimizer.step()


def train_extractor(
    corpus: Corpus,
    config: ExtractorConfig,
    work: Path,
    seed: int,
    device: torch.device,
    *,
    compile: bool,
    init: Extractor | None = None,
) -> Extractor:
    """Train on the corpus' windows within the budget and return the extractor with its captions' features.

    Starts from `init` where one is given, unless `work` holds a begun training. With `config.keep` every crop
    is also drawn to the DR that `init` gives it in full colour, and the normalisation stays as it is. Raises
    ValueError for `config.keep` without `init`.
    """
    if config.keep and init is None:
        raise ValueError("extractor.keep: there are no DRs to keep; name a finished model by --init")
    torch.manual_seed(seed)
    captions = tuple(sorted(set(corpus.captions), key=lambda text: (text != CLEAN_CAPTION, text)))
    index = {text: i for i, text in enumerate(captions)}
    label = np.array([index[text] for text in corpus.captions])
    model = Contrast(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    tokens = open_clip.SimpleTokenizer(context_length=model.context)(list(captions)).to(device)
    state = work / "extractor.state.safetensors"
    if init is not None and not state.is_file():
        adopt(model, init, captions, tokens)
    groups, share = balanced_rows(corpus, config.clean_share)
    if device.type == "cuda":
        corpus.to(device)
    image = torch.compile(model.image) if compile else model.image
    teacher = init.to(device) if init and config.keep else None

    def loss_at(step: int) -> Tensor:
        random = np.random.default_rng((seed, 7, step))
        picked = [groups[g] for g in random.choice(len(groups), size=config.batch, p=share)]
        rows = np.array([group[random.integers(len(group))] for group in picked])
        crops, _ = corpus.batch(rows, config.shape.view_px, random)
        crops = crops.to(device)
        caption = torch.from_numpy(label[rows]).to(device)
        used = torch.arange(len(captions), device=device)
        if len(captions) > CAPTIONS_AT_ONCE:
            used, caption = caption.unique(return_inverse=True)
        if teacher is not None:
            model.image.eval()
        drawn = torch.from_numpy(draw_fade((config.batch,), config.grey_share, random)).to(device)
        with half_precision(device):
            features = F.normalize(image(fade(crops, drawn)).float(), dim=-1)
            texts = model.text_features(tokens[used])
        loss = contrast_loss(model.scale * features @ texts.T, caption, config.smoothing)
        if teacher is not None:
            with torch.no_grad(), half_precision(device):
                earlier = teacher.embed(crops)
            loss = loss + config.keep * (features - earlier).square().sum(1).mean()
        return loss

    writer = SummaryWriter(str(work / "tensorboard"))
    budget = Budget(config.steps, config.minutes, config.lr, config.weight_decay, warmup=0.05)
    train([Learner("extractor", model, loss_at, budget, state)], writer=writer)
    writer.close()
    extractor = Extractor(config.shape, captions, model.image)
    with torch.no_grad():
        extractor.caption_features.copy_(model.text_features(tokens))
        extractor.logit_scale.copy_(model.scale)
    return extractor.eval()


@torch.no_grad()
def corpus_drs(extractor: Extractor, corpus: Corpus, device: torch.device) -> Tensor:
    """DRs (N, D) of all windows of a corpus, by the view policy of serving."""
    extractor.to(device)
    batch = 32 if device.type == "cpu" else 256
    parts = []
    for start in tqdm(range(0, len(corpus), batch), desc="DRs", unit="batch"):
        pixels = corpus.pixels[0][start : start + batch].to(device)
        parts.append(extractor(from_uint8(pixels)).cpu())
    return torch.cat(parts)


def accuracy_of(extractor: Extractor, corpus: Corpus, e: Tensor) -> dict[str, Any]:
    """Accuracy of the type, and of the degree within it, by the nearest caption.

    Over all, per type and per photo source. `e` (N, D) are the corpus' DRs. Clean photos count as a type of
    their own.
    """
    probs = extractor.caption_probs(e.to(extractor.caption_features.device)).cpu()
    kind = [caption_kind(text) for text in extractor.captions]
    truth_caption = corpus.captions
    types = sorted({*kind, *map(caption_kind, truth_caption)})  # also types that were never trained on
    truth = np.array([types.index(caption_kind(text)) for text in truth_caption])
    by_type = torch.stack([probs[:, [k == t for k in kind]].sum(1) for t in types], 1)
    guess = by_type.argmax(1).numpy()
    nearest = [extractor.captions[i] for i in _within_type(probs, kind, types, truth)]
    degree = np.array([a == b for a, b in zip(nearest, truth_caption, strict=True)])
    source = np.array([Path(row.photo).parent.as_posix() for row in corpus.rows])
    graded = np.array([types[t] != CLEAN for t in truth])
    return {
        "count": len(truth),
        "type_accuracy": float((guess == truth).mean()),
        "degree_accuracy_within_type": float(degree[graded].mean()) if graded.any() else None,
        "per_type": {
            t: float((guess == truth)[truth == i].mean()) for i, t in enumerate(types) if (truth == i).any()
        },
        "degree_per_type": {
            t: float(degree[truth == i].mean())
            for i, t in enumerate(types)
            if (truth == i).any() and t != CLEAN
        },
        "per_source": {s: float((guess == truth)[source == s].mean()) for s in sorted(set(source))},
    }


CLEAN = "clean"


def caption_kind(caption: str) -> str:
    """The type that a caption names, without the degree: "a photo with heavy rain" -> "rain"; clean photos
    are "clean".
    """
    if caption == CLEAN_CAPTION:
        return CLEAN
    parts = caption.removeprefix("a photo with ").split(" and ")
    return "+".join(sorted(part.split()[-1] for part in parts))


def _within_type(probs: Tensor, kind: list[str], types: list[str], truth: np.ndarray) -> list[int]:
    """Each row's nearest caption among those of its true type."""
    same = torch.tensor([[kind[c] == types[t] for c in range(len(kind))] for t in range(len(types))])
    return probs.masked_fill(~same[torch.from_numpy(truth)], -1).argmax(1).tolist()
