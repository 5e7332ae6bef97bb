"""The numbers of scikit_learn.rs: `pip install scikit-learn`, then `python scikit_learn.py`."""

import numpy as np
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, precision_score, recall_score, roc_auc_score

state = 11


def below(bound):
    global state
    state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
    return (state >> 33) % bound


scores, labels = [], []
for row in range(4000):
    # Every fourth score is one of few, so that there are ties.
    score = below(16777216) / 16777216 if row % 4 else below(20) / 32
    scores.append(score)
    labels.append(below(1000) < 5 + 700 * score**3)
scores, labels = np.array(scores), np.array(labels)
print("frauds", labels.sum())
print("roc_auc_score", repr(roc_auc_score(labels, scores)))
print("average_precision_score", repr(average_precision_score(labels, scores)))
alerts = scores >= 0.75
print("precision_score", repr(precision_score(labels, alerts)))
print("recall_score", repr(recall_score(labels, alerts)))

# Bins of equally many rows want scores without ties.
single = np.array([s for row, s in enumerate(scores) if row % 4])
single_labels = np.array([l for row, l in enumerate(labels) if row % 4])
share, mean = calibration_curve(single_labels, single, n_bins=20, strategy="quantile")
print("calibration error", repr(np.mean(np.abs(share - mean))))

# The population stability index of the second half of these against the first.
first, second = single[:1500], single[1500:] ** 2
edges = np.quantile(first, np.arange(1, 10) / 10, method="inverted_cdf")
shares = [np.bincount(np.searchsorted(edges, part, side="left"), minlength=10) / len(part) for part in (first, second)]
q, p = [np.maximum(s, 1e-4) for s in shares]
print("psi", repr(np.sum((p - q) * np.log(p / q))))
