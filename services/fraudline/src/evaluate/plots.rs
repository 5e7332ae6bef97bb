//! The figures as charts.

use std::path::Path;

use anyhow::Context;
use models::plot::{Axis, Chart, Legend, Series, Shape, svg};
use models::{calibration_bins, operating_points};

use super::model::{CALIBRATION_BINS, Report, Scored};

/// Points of a curve closer together than this are one, in recall and in false positive rate.
const SPACING: f64 = 0.002;
/// Scores below this are shown as this.
const SCORE_MIN: f64 = 1e-6;
/// Bins of the histogram of scores in each power of ten.
const BINS_PER_DECADE: usize = 5;

/// Writes a chart of each kind to `dir`, which is made if need be.
pub(super) fn write(dir: &Path, scored: &Scored, report: &Report) -> anyhow::Result<()> {
    let charts = [
        ("precision_recall.svg", precision_recall(scored, report)),
        ("roc.svg", roc(scored, report)),
        ("calibration.svg", calibration(scored)),
        ("scores.svg", scores(scored, report)),
        ("scenarios.svg", scenarios(report)),
    ];
    std::fs::create_dir_all(dir).with_context(|| format!("making the folder {}", dir.display()))?;
    for (name, chart) in charts {
        if let Some(chart) = chart {
            let path = dir.join(name);
            std::fs::write(&path, svg(&[chart])?).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(())
}

fn series(name: impl Into<String>, points: Vec<(f64, f64)>, shape: Shape) -> Series {
    Series { name: name.into(), points, shape }
}

fn precision_recall(scored: &Scored, report: &Report) -> Option<Chart> {
    let figures = &report.evaluation;
    let curve = operating_points(&scored.scores, scored.labels(), SPACING)?;
    let share = figures.positives as f64 / figures.count as f64;
    Some(Chart {
        title: format!("Precision and recall (average precision {:.4})", figures.average_precision),
        x: Axis::linear("recall: share of the frauds that are found", 0.0, 1.0),
        y: Axis::linear("precision: share of the alerts that are frauds", 0.0, 1.02),
        series: vec![
            series("by threshold", curve.iter().map(|point| (point.recall, point.precision)).collect(), Shape::Line),
            series(
                format!("at the threshold {:.4}", report.threshold),
                vec![(figures.recall, figures.precision)],
                Shape::Points,
            ),
            series("by chance", vec![(0.0, share), (1.0, share)], Shape::Guide),
        ],
        legend: Legend::LowerLeft,
    })
}

fn roc(scored: &Scored, report: &Report) -> Option<Chart> {
    let curve = operating_points(&scored.scores, scored.labels(), SPACING)?;
    let from_zero = [(0.0, 0.0)].into_iter();
    let points = from_zero.chain(curve.iter().map(|point| (point.false_positive_rate, point.recall)));
    Some(Chart {
        title: format!("ROC curve (AUC {:.4})", report.evaluation.auc),
        x: Axis::linear("share of the legitimate transactions alerted", 0.0, 1.0),
        y: Axis::linear("share of the frauds found", 0.0, 1.02),
        series: vec![
            series("by threshold", points.collect(), Shape::Line),
            series("by chance", vec![(0.0, 0.0), (1.0, 1.0)], Shape::Guide),
        ],
        legend: Legend::LowerRight,
    })
}

/// Scores and shares on logarithmic axes: most are far below one in a hundred.
fn calibration(scored: &Scored) -> Option<Chart> {
    let bins = calibration_bins(&scored.scores, scored.labels(), CALIBRATION_BINS)?;
    let points: Vec<(f64, f64)> = bins.iter().map(|bin| (bin.mean_score, bin.fraud_share)).collect();
    // A bin without frauds has no place on a logarithmic axis but its lower end.
    let above_zero = points.iter().flat_map(|point| [point.0, point.1]).filter(|value| *value > 0.0);
    let lowest = 10f64.powf(above_zero.fold(0.1, f64::min).log10().floor()).max(SCORE_MIN);
    Some(Chart {
        title: "Calibration".into(),
        x: Axis::log("mean score", lowest, 1.0),
        y: Axis::log("share of frauds", lowest, 1.0),
        series: vec![
            series("scores that can be taken at their word", vec![(lowest, lowest), (1.0, 1.0)], Shape::Guide),
            series(format!("{} bins of equally many transactions", bins.len()), points, Shape::Points),
        ],
        legend: Legend::UpperLeft,
    })
}

/// The scores of each class, as shares of the class.
fn scores(scored: &Scored, report: &Report) -> Option<Chart> {
    let decades = -SCORE_MIN.log10();
    let bins = BINS_PER_DECADE * decades as usize;
    let of_class = |fraud: bool| {
        let mut counts = vec![0u64; bins];
        for (score, _) in scored.scores.iter().zip(scored.labels()).filter(|(_, label)| **label == fraud) {
            let place = (f64::from(*score).max(SCORE_MIN).log10() + decades) * BINS_PER_DECADE as f64;
            counts[(place as usize).min(bins - 1)] += 1;
        }
        let rows = counts.iter().sum::<u64>().max(1) as f64;
        // Steps: each bin's share, at both its ends.
        let edge = |bin: usize| 10f64.powf(bin as f64 / BINS_PER_DECADE as f64 - decades);
        let steps = counts.iter().enumerate().flat_map(|(bin, count)| {
            let share = *count as f64 / rows;
            [(edge(bin), share), (edge(bin + 1), share)]
        });
        steps.collect::<Vec<(f64, f64)>>()
    };
    let (legitimate, frauds) = (of_class(false), of_class(true));
    let highest = legitimate.iter().chain(&frauds).map(|point| point.1).fold(0.0, f64::max);
    let threshold = f64::from(report.threshold);
    Some(Chart {
        title: "Scores".into(),
        x: Axis::log("score", SCORE_MIN, 1.0),
        y: Axis::linear("share of the class in a fifth of a power of ten", 0.0, 1.1 * highest),
        series: vec![
            series("legitimate", legitimate, Shape::Line),
            series("frauds", frauds, Shape::Line),
            series("threshold", vec![(threshold, 0.0), (threshold, 1.1 * highest)], Shape::Guide),
        ],
        legend: Legend::UpperRight,
    })
}

fn scenarios(report: &Report) -> Option<Chart> {
    let scenarios = &report.scenarios;
    let names = scenarios.iter().map(|of| format!("{} {}", of.scenario, of.name)).collect();
    let recall = scenarios.iter().enumerate().map(|(place, of)| (place as f64, of.recall)).collect();
    (!scenarios.is_empty()).then(|| Chart {
        title: format!("Recall by scenario, at the threshold {:.4}", report.threshold),
        x: Axis::names("kind of fraud", names),
        y: Axis::linear("share of these frauds that are found", 0.0, 1.05),
        series: vec![series("recall", recall, Shape::Bars)],
        legend: Legend::UpperRight,
    })
}
