"""The founding study's headline on real data: model P, then T fine-tuned on aggregated clicks of c-Fos sections.

    python benchmarks/cfos_study.py DATA --start CHECKPOINT|DETECTOR [--work DIR] [--json FILE]

DATA holds sections/cfos (`images/`, `expert_clicks.csv`): 13 sections of 1024 px, five experts, cells about 15 px
across; a pixel is called 1 um. The clicks of all experts are aggregated by `brainmap.gt`; its maps teach, and
their maxima judge. P was pre-trained on synthetic data only. T is P fine-tuned on 8, 4 or 1 of the sections outside a
fold, and detects in the sections of the fold; R is the same from random weights, with more steps. Detections of the
folds are put together, so that every section is judged once, by a network that never saw it.

- Confidence: the network's own sigmoid, on matched pairs at 5 px, against the confidence of the ground truth.
- Probability: the score after a calibration. That of a fold is fitted to the sections outside it, each detected by the
  network of its own fold. No detection in the fold's own sections enters its calibration; but those networks did train
  on them, so that their labels can still reach it through the weights.

Finished trainings are kept in the work folder, one file for each seed, fold and kind, and not repeated.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch

from brainmap.errors import UsageError
from brainmap.files import atomic_path, fingerprint, read_json, to_jsonable, write_json
from brainmap.gt.aggregate import aggregate
from brainmap.gt.truth import GroundTruth
from brainmap.tiles.tiles import Tiles, import_tiles
from brainmap.train.judge.calibrate_tiles import tile_calibration
from brainmap.train.judge.evaluate import EvaluationSettings, evaluate_points, true_points
from brainmap.train.judge.predict import TilePoints, predict_tiles
from brainmap.train.judge.scores import Scored, match_truth, reliability
from brainmap.train.learn.centernet import CenterNet
from brainmap.train.learn.finetune import FinetuneConfig, finetune_network
from brainmap.train.learn.loop import load_network
from brainmap.train.learn.samples import GridSettings

CELL_UM = 15.0
SECTIONS = (8, 4, 1)
SETTINGS = EvaluationSettings()
# Random weights need more and larger steps to get anywhere.
SCRATCH_STEPS, SCRATCH_RATE = 2, 4e-3
# Methods 9: the study's P and T.
STUDY = {
    "AUPRC 3 px": (0.296, 0.408), "AUPRC 5 px": (0.568, 0.671), "AUPRC 7 px": (0.661, 0.736),
    "best F1 3 px": (0.440, 0.530), "best F1 5 px": (0.612, 0.702), "best F1 7 px": (0.656, 0.737),
    "FP per tile at recall 0.7, 5 px": (288.0, 80.0), "FP per tile at recall 0.7, 7 px": (130.0, 58.0),
    "confidence Spearman": (0.240, 0.419), "confidence ECE": (0.710, 0.240), "confidence Brier": (0.532, 0.117),
}  # fmt: skip

log = logging.getLogger("cfos_study")


def prepare(data: Path, work: Path) -> tuple[Tiles, GroundTruth]:
    """Tiles and ground truth of the sections."""
    folder = data / "sections" / "cfos"
    if not (work / "tiles").exists():
        images = sorted((folder / "images").glob("*.png"))
        import_tiles(images, work / "tiles", voxel_um=(4.0, 1.0, 1.0), cell_diameter_um=CELL_UM)
    if not (work / "gt" / "gt.json").exists():
        aggregate(folder / "expert_clicks.csv", work / "gt", tiles=work / "tiles")
    return Tiles.open(work / "tiles"), GroundTruth.open(work / "gt")


class Study:
    """All trainings of the study, each done once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.work: Path = args.work
        self.tiles, self.truth = prepare(args.data, args.work)
        self.start, self.n_folds, self.steps = args.start, args.folds, args.steps
        network, _ = load_network(args.start)
        weights = [value.cpu().numpy().tobytes() for value in network.state_dict().values()]
        made = {
            "start": fingerprint(b"".join(weights)), "folds": args.folds,
            "finetune": to_jsonable(self._config(0)),
        }  # fmt: skip
        if (args.work / "study.json").exists() and read_json(args.work / "study.json") != made:
            raise UsageError(
                f"{args.work} holds results of another network, folds or settings; choose another folder"
            )
        write_json(args.work / "study.json", made)

    def _config(self, seed: int) -> FinetuneConfig:
        warm_up = max(1, self.steps // 10)
        return FinetuneConfig(CELL_UM, self.steps, warm_up=warm_up, validation=0.0, rehearsal=0.0, seed=seed)

    def folds(self, seed: int) -> list[np.ndarray]:
        """Sections of every fold; no section, which is a slice of its own, is in two."""
        order = np.random.default_rng(seed).permutation(len(self.tiles))
        return [np.sort(order[i :: self.n_folds]) for i in range(self.n_folds)]

    def found(self, kind: str, seed: int) -> tuple[TilePoints, np.ndarray]:
        """Detections of a kind on all sections, and the fold of each section."""
        fold_of = np.zeros(len(self.tiles), np.int64)
        parts = []
        for number, members in enumerate(self.folds(seed)):
            fold_of[members] = number
            parts.append(self._detect(kind, seed, number, members))
        columns = [np.concatenate(c) for c in zip(*parts, strict=True)]
        order = np.lexsort((columns[1], columns[2], columns[0]))
        return TilePoints(*(c[order] for c in columns)), fold_of

    def _detect(self, kind: str, seed: int, number: int, members: np.ndarray) -> list[np.ndarray]:
        path = self.work / "results" / f"{kind}-seed{seed}-fold{number}.npz"
        if not path.exists():
            network, grid = load_network(self.start)
            if kind != "P":
                network = self._train(kind, seed, number, members, network, grid)
            found = predict_tiles(network, self.tiles.take(members), grid, CELL_UM)
            columns = [members[found.image], found.x, found.y, found.logit, found.score]
            with atomic_path(path) as part, part.open("wb") as file:
                np.savez(file, *columns)
            log.info("%s seed %d fold %d: done", kind, seed, number)
        with np.load(path) as record:
            return [record[name] for name in record.files]

    def _train(
        self, kind: str, seed: int, number: int, members: np.ndarray, network: CenterNet, grid: GridSettings
    ) -> CenterNet:
        others = np.setdiff1d(np.arange(len(self.tiles)), members)
        # The smaller sets are parts of the larger ones.
        chosen = np.random.default_rng([seed, number]).permutation(others)[: int(kind[1:])]
        config = self._config(seed)
        if kind.startswith("R"):
            torch.manual_seed(seed)
            network = CenterNet(network.config)
            record = {"steps": SCRATCH_STEPS * self.steps, "learning_rate": SCRATCH_RATE}
            config = FinetuneConfig.from_dict(config.to_dict() | record)
        work = self.work / "trainings" / f"{kind}-seed{seed}-fold{number}"
        path = finetune_network(config, work, self.tiles.take(chosen), self.truth, network, grid)
        return load_network(path)[0]


def judge(study: Study, found: TilePoints, fold_of: np.ndarray) -> dict[str, float]:
    """The figures of methods 7 that the study gives, and what goes beyond."""
    record = evaluate_points(found, study.tiles, study.truth, settings=SETTINGS).record
    result: dict[str, float] = {}
    for name in ("3", "5", "7"):
        at = record["tolerances"][name]
        result[f"AUPRC {name} px"] = at["auprc"]
        result[f"best F1 {name} px"] = at["best"]["f1"]
        result[f"median error, pairs within {name} px"] = at["localisation"]["median_px"]
        rates = at["froc"]["false_positives_at_recall"]
        lowest = rates[SETTINGS.recalls.index(0.7)]
        result[f"FP per tile at recall 0.7, {name} px"] = float("nan") if lowest is None else lowest
        for rate, recall in zip(
            SETTINGS.false_positives, at["froc"]["recall_at_false_positives"], strict=True
        ):
            result[f"recall at {rate:g} FP per tile, {name} px"] = recall
    for key in ("spearman", "ece", "brier"):
        label = {"spearman": "Spearman", "ece": "ECE", "brier": "Brier"}[key]
        result[f"confidence {label}"] = record["confidence"][key]
    score, correct = calibrate(study, found, fold_of)
    for label, use in (("all detections", score >= 0), ("score >= 0.05", score >= 0.05)):
        result[f"probability ECE, {label}"] = reliability(score[use], correct[use]).ece
    return result


def calibrate(study: Study, found: TilePoints, fold_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores calibrated on the sections of the other folds, and which detections are right."""
    truth = true_points(study.tiles, study.truth, SETTINGS)
    scored = Scored(found.image, found.xy, found.score)
    correct = np.zeros(len(found), bool)
    correct[match_truth(scored, truth, SETTINGS.main_px).index_a] = True
    score = np.zeros(len(found))
    fold_found = fold_of[found.image]
    for number in range(study.n_folds):
        rest = fold_found != number
        fitted = tile_calibration(
            found.logit[rest], correct[rest], found.image[rest], int((fold_of[truth.image] != number).sum())
        )
        score[~rest] = found.take(~rest).calibrated(fitted.knots).score
    return score, correct


def report(results: dict[str, list[dict[str, float]]]) -> str:
    """Tables in Markdown: P and T beside the study's, then the curve of sections."""

    def cell(kind: str, name: str) -> str:
        values = [one[name] for one in results[kind]]
        spread = f" ± {np.ptp(values) / 2:.3f}" if len(values) > 1 else ""
        return f"{np.mean(values):.3f}{spread}"

    best = f"T{SECTIONS[0]}"
    lines = ["| | study P | study T | P | T |", "|---|---|---|---|---|"]
    names = [n for n in results["P"][0] if "recall at" not in n]
    for name in names:
        theirs = [f"{v:g}" for v in STUDY[name]] if name in STUDY else ["", ""]
        lines.append(f"| {name} | {' | '.join(theirs)} | {cell('P', name)} | {cell(best, name)} |")
    better = [
        one[name] >= other[name]
        for one, other in zip(results[best], results["P"], strict=True)
        for name in one
        if "recall at" in name
    ]
    lines.append(f"\nFROC: T at or above P at {sum(better)} of {len(better)} rates.")
    kinds = [kind for kind in results if kind != "P"]
    shown = ["AUPRC 3 px", "AUPRC 5 px", "AUPRC 7 px", "best F1 3 px", "best F1 5 px", "best F1 7 px"]
    lines += ["", "| sections | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for kind in ["P", *sorted(kinds, key=lambda k: (k[0] != "T", int(k[1:])))]:
        title = {"P": "none (P)", "T": f"{kind[1:]}, pre-trained", "R": f"{kind[1:]}, from random weights"}
        row = " | ".join(cell(kind, name) for name in shown)
        lines.append(f"| {title[kind[0]]} | {row} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--start", type=Path, required=True, help="model P: checkpoint or detector folder")
    parser.add_argument("--work", type=Path, default=Path("cfos_study"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--curve-seeds", type=int, default=2, help="for the curve of sections")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    log.setLevel(logging.INFO)
    torch.set_num_threads(args.threads)
    study = Study(args)
    main_kinds = ("P", f"T{SECTIONS[0]}")
    curve = [f"{start}{n}" for n in SECTIONS for start in "TR"]
    results: dict[str, list[dict[str, float]]] = {}
    for kind in [*main_kinds, *(kind for kind in curve if kind not in main_kinds)]:
        seeds = args.seeds if kind in main_kinds else args.curve_seeds
        results[kind] = [judge(study, *study.found(kind, seed)) for seed in range(seeds)]
        if args.json:
            write_json(args.json, {"steps": args.steps, "folds": args.folds, "results": results})
    print(report(results))


if __name__ == "__main__":
    main()
