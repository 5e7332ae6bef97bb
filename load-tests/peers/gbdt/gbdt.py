"""XGBoost and LightGBM on the Fraud Detection Handbook's protocol, as services/fraudline/src/evaluate/protocol.rs has it.

A week of training (or all days), a week of delay, a week of test; on four folds for the figures, and on four before them to choose
what is to be chosen. Cards known to be defrauded when a day of the test begins are left out of it.
"""

import argparse
import itertools
import json
import os
import sys
import time

import lightgbm
import numpy
import pandas
import xgboost
from sklearn.metrics import average_precision_score, roc_auc_score

TEST_FOLDS = ["2018-08-15", "2018-08-08", "2018-08-01", "2018-07-25"]
VALIDATION_FOLDS = ["2018-07-11", "2018-07-04", "2018-06-27", "2018-06-20"]
WEEK, CARDS = 7, 100
FIGURES = ["auc", "average_precision", "card_precision_100"]


def grid(**choices):
    return [dict(zip(choices, values)) for values in itertools.product(*choices.values())]


def xgboost_model(seed, threads, **chosen):
    return xgboost.XGBClassifier(
        tree_method="hist", max_bin=512, subsample=0.8, min_child_weight=3, base_score=0.5,
        random_state=seed, n_jobs=threads, **chosen)


def lightgbm_model(seed, threads, **chosen):
    return lightgbm.LGBMClassifier(
        max_bin=511, subsample=0.8, subsample_freq=1, min_child_samples=30,
        random_state=seed, n_jobs=threads, verbose=-1, **chosen)


MODELS = {
    "XGBoost": (xgboost_model, grid(
        n_estimators=[300], learning_rate=[0.02, 0.04, 0.08], max_depth=[3, 4, 6], colsample_bytree=[0.4, 0.6])),
    "LightGBM": (lightgbm_model, grid(
        n_estimators=[300], learning_rate=[0.02, 0.04, 0.08], num_leaves=[7, 15, 31], colsample_bytree=[0.4, 0.6])),
}


class Data:
    def __init__(self, transactions, features):
        raw = pandas.read_parquet(
            transactions, columns=["TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TX_FRAUD"])
        vectors = pandas.read_parquet(features)
        names = [name for name in vectors.columns
                 if name not in raw.columns and not name.endswith("__status") and vectors[name].dtype.kind == "f"]
        merged = raw.merge(vectors[["TRANSACTION_ID", *names]], on="TRANSACTION_ID", validate="one_to_one")
        merged = merged.sort_values(["TX_DATETIME", "TRANSACTION_ID"])
        self.names = names
        self.rows = merged[names].to_numpy(numpy.float32)
        self.fraud = merged["TX_FRAUD"].to_numpy() == 1
        self.card = merged["CUSTOMER_ID"].to_numpy()
        self.day = merged["TX_DATETIME"].to_numpy().astype("datetime64[D]").astype(int)

    def fold(self, start, train_days):
        """Indices of the training rows and of the test rows."""
        start = int(numpy.datetime64(start, "D").astype(int))
        first = self.day.min() if train_days is None else start + WEEK - train_days
        training = numpy.flatnonzero((self.day >= first) & (self.day < start + WEEK))
        known = set(self.card[(self.day >= start) & (self.day < start + WEEK) & self.fraud])
        test = []
        for day in range(start + 2 * WEEK, start + 3 * WEEK):
            known |= set(self.card[(self.day == day - WEEK - 1) & self.fraud])
            rows = numpy.flatnonzero(self.day == day)
            test.append(rows[~numpy.isin(self.card[rows], list(known))])
        return training, numpy.concatenate(test)

    def figures(self, test, scores):
        fraud = self.fraud[test]
        return [roc_auc_score(fraud, scores), average_precision_score(fraud, scores), self.card_precision(test, scores)]

    def card_precision(self, test, scores):
        """Of the cards with the highest scores of each day, those not found before, how many are defrauded that day."""
        rows = pandas.DataFrame(
            {"day": self.day[test], "card": self.card[test], "score": scores, "fraud": self.fraud[test]})
        found, shares = set(), []
        for _, of_day in rows.groupby("day"):
            cards = of_day.groupby("card")[["score", "fraud"]].max()
            cards = cards[~cards.index.isin(found)].sort_values("score", ascending=False).head(CARDS)
            hits = cards.index[cards["fraud"]]
            found |= set(hits)
            shares.append(len(hits) / CARDS)
        return float(numpy.mean(shares))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("transactions")
    parser.add_argument("features")
    parser.add_argument("--train-days", default="7", help="days of training, or `all`")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fraudline", metavar="REPORT.json", help="of `fraudline evaluate --protocol handbook`")
    parser.add_argument("--report", metavar="FILE.json")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--candidates", type=int, help="try only so many of each library's, drawn by chance")
    args = parser.parse_args()
    train_days = None if args.train_days == "all" else int(args.train_days)

    data = Data(args.transactions, args.features)
    print(f"{len(data.names)} features, {len(data.day)} transactions", flush=True)

    def evaluate(make, chosen, starts, seeds):
        folds = []
        for start in starts:
            training, test = data.fold(start, train_days)
            of_seeds = []
            for seed in range(seeds):
                model = make(seed, args.threads, **chosen)
                model.fit(data.rows[training], data.fraud[training])
                of_seeds.append(data.figures(test, model.predict_proba(data.rows[test])[:, 1]))
            folds.append(numpy.mean(of_seeds, 0))
        return numpy.array(folds)

    report = {}
    for name, (make, candidates) in MODELS.items():
        if args.candidates:
            picked = numpy.random.default_rng(0).permutation(len(candidates))[: args.candidates]
            candidates = [candidates[index] for index in sorted(picked)]
        best, best_precision = None, -1.0
        for number, chosen in enumerate(candidates, 1):
            began = time.monotonic()
            precision = evaluate(make, chosen, VALIDATION_FOLDS, 1).mean(0)[1]
            print(f"{name} {number} of {len(candidates)}: {chosen}: average precision {precision:.4f}"
                  f" on the validation folds, {time.monotonic() - began:.0f} s", flush=True)
            if precision > best_precision:
                best, best_precision = chosen, precision
        folds = evaluate(make, best, TEST_FOLDS, args.seeds)
        report[name] = {
            "mean": dict(zip(FIGURES, folds.mean(0).tolist())),
            "folds": [{"training": start, **dict(zip(FIGURES, of_fold.tolist()))} for start, of_fold in zip(TEST_FOLDS, folds)],
            "chosen": best, "validation_average_precision": best_precision, "seeds": args.seeds,
        }
    if args.fraudline:
        with open(args.fraudline) as file:
            report["fraudline"] = json.load(file)

    print(f"\n| trained on {args.train_days} days | AUC | average precision | card precision@{CARDS} |\n|---|---|---|---|")
    for name, of_model in report.items():
        print(f"| {name} | " + " | ".join(f"{of_model['mean'][figure]:.4f}" for figure in FIGURES) + " |")
    if args.report:
        with open(args.report, "w") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    sys.exit(main())
