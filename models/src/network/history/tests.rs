use burn::backend::Flex;
use rand::{RngExt, SeedableRng};
use schemas::{FeatureSpec, SequencePlace};

use super::*;
use crate::network::{Network, Weights, layer_shapes};

/// Every second input has fewer edges than there is room for.
pub(crate) fn encoding(inputs: usize, pieces: usize, random: &mut StdRng) -> Encoding {
    let edges = (0..inputs).flat_map(|input| {
        let mut own: Vec<f32> = (0..=pieces).map(|_| random.random_range(-3.0..3.0)).collect();
        own.sort_unstable_by(f32::total_cmp);
        if input % 2 == 1 {
            let last = own[pieces / 2];
            own[pieces / 2..].fill(last);
        }
        own
    });
    Encoding::new(inputs, pieces, edges.collect()).unwrap()
}

pub(crate) fn any(shape: (usize, usize), random: &mut StdRng) -> Dense {
    let mut dense = Dense::random(shape, random);
    dense.bias.iter_mut().for_each(|bias| *bias = random.random_range(-0.5..0.5));
    dense
}

/// Sequences of (steps, channels) behind `others` columns, of which every second can be missing. Of the second sequence the last channel
/// never is, so no step of it.
fn layout(others: usize, sequences: &[(usize, usize)]) -> FeatureLayout {
    let column = |name: String, nullable, place| FeatureSpec { definition: name.clone(), name, nullable, place };
    let mut features: Vec<FeatureSpec> =
        (0..others).map(|index| column(format!("other {index}"), index % 2 == 1, None)).collect();
    for (sequence, (steps, channels)) in sequences.iter().enumerate() {
        for channel in 0..*channels {
            for position in 1..=*steps as u16 {
                let nullable = sequence != 1 || channel + 1 < *channels;
                let place =
                    SequencePlace { sequence: format!("last {sequence}"), channel: channel.to_string(), position };
                features.push(column(format!("{sequence} {channel} {position}"), nullable, Some(place)));
            }
        }
    }
    FeatureLayout::new(features)
}

/// A network of random weights over [`layout`].
pub(crate) fn history(others: usize, sequences: &[(usize, usize)], shape: Shape<'_>, random: &mut StdRng) -> History {
    let places = Places::of(&layout(others, sequences)).unwrap();
    let Shape { pieces, members, hidden, width } = shape;
    let own = hidden[0] + sequences.len() * width;
    let tabular = Tabular {
        encoding: encoding(places.others.len(), pieces, random),
        first: any((places.others.len() * pieces * 2, members * own), random),
        members: (0..members)
            .map(|_| layer_shapes(own, &hidden[1..]).into_iter().map(|shape| any(shape, random)).collect())
            .collect(),
    };
    let attention = |grid: &Grid| Attention {
        encoding: encoding(grid.channels, pieces, random),
        step: any((grid.channels * pieces * 2, members * width), random),
        positions: (0..grid.steps * members * width).map(|_| random.random_range(-1.0..1.0)).collect(),
        score: any((width, members), random),
    };
    History { sequences: places.sequences.iter().map(attention).collect(), hidden: hidden[0], tabular, places }
}

/// Inputs of rows, with missing values and steps. The first row has no step.
pub(crate) fn rows(history: &History, count: usize, random: &mut StdRng) -> Vec<f32> {
    let inputs = history.places.inputs();
    let mut rows: Vec<f32> = (0..count * inputs).map(|_| random.random_range(-4.0..4.0)).collect();
    for (index, row) in rows.chunks_exact_mut(inputs).enumerate() {
        for grid in &history.places.sequences {
            for step in 0..grid.steps {
                let gone = index == 0 || random.random_bool(0.4);
                for (value, missing) in grid.step(step) {
                    if let Some(missing) = missing {
                        row[*missing] = f32::from(u8::from(gone || random.random_bool(0.2)));
                        row[*value] *= 1.0 - row[*missing];
                    }
                }
            }
        }
    }
    rows
}

/// The formula, as it stands in the module's documentation.
struct Oracle<'a> {
    history: &'a History,
    /// The largest absolute value on the way.
    most: f64,
}

impl Oracle<'_> {
    fn components(encoding: &Encoding, values: impl Iterator<Item = Option<f32>>) -> Vec<f64> {
        let mut components = Vec::new();
        for (value, edges) in values.zip(encoding.edges().chunks_exact(encoding.pieces() + 1)) {
            let pieces = || edges.windows(2).map(|piece| (f64::from(piece[0]), f64::from(piece[1])));
            let of = |component: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
                let value = value.map(f64::from);
                let known = |(from, to): (f64, f64)| match value {
                    Some(value) if to > from => component(value, from, to),
                    _ => 0.0,
                };
                pieces().map(known).collect()
            };
            components.extend(of(&|value, from, to| ((value - from) / (to - from)).clamp(0.0, 1.0)));
            components.extend(of(&|value, from, _| f64::from(u8::from(value >= from))));
        }
        components
    }

    fn layer(&mut self, layer: &Dense, values: &[f64]) -> Vec<f64> {
        let rows = layer.weight.chunks_exact(layer.inputs).zip(&layer.bias);
        let sums = rows.map(|(weights, bias)| {
            weights.iter().zip(values).map(|(weight, value)| f64::from(*weight) * value).sum::<f64>() + f64::from(*bias)
        });
        let sums: Vec<f64> = sums.collect();
        self.most = sums.iter().fold(self.most, |most, sum| most.max(sum.abs()));
        sums
    }

    fn logit(&mut self, row: &[f32]) -> f64 {
        let History { places, tabular, hidden, sequences } = self.history;
        let others = places.others.iter().map(|input| Some(row[*input]));
        let first = self.layer(&tabular.first, &Oracle::components(&tabular.encoding, others));
        let own = first.len() / tabular.members.len();
        let mut logits = 0.0;
        for (member, layers) in tabular.members.iter().enumerate() {
            let first = &first[member * own..][..own];
            let mut values: Vec<f64> = first[..*hidden].iter().map(|value| value.max(0.0)).collect();
            for (index, (sequence, grid)) in sequences.iter().zip(&places.sequences).enumerate() {
                let width = sequence.score.inputs;
                let query = &first[hidden + index * width..][..width];
                values.extend(self.read(sequence, grid, member, row, query));
            }
            for (index, layer) in layers.iter().enumerate() {
                if index > 0 {
                    values.iter_mut().for_each(|value| *value = value.max(0.0));
                }
                values = self.layer(layer, &values);
            }
            logits += values[0];
        }
        logits / tabular.members.len() as f64
    }

    fn read(&mut self, sequence: &Attention, grid: &Grid, member: usize, row: &[f32], query: &[f64]) -> Vec<f64> {
        let width = query.len();
        let (mut sum, mut read) = (1.0, vec![0.0; width]);
        for step in 0..grid.steps {
            let known = |(value, missing): &(usize, Option<usize>)| match missing {
                Some(missing) if row[*missing] == 1.0 => None,
                _ => Some(row[*value]),
            };
            let channels: Vec<Option<f32>> = grid.step(step).iter().map(known).collect();
            if channels.iter().all(Option::is_none) {
                continue;
            }
            let encoded = self.layer(&sequence.step, &Oracle::components(&sequence.encoding, channels.into_iter()));
            let place = member * width;
            let made: Vec<f64> = (0..width)
                .map(|at| {
                    let position = sequence.positions[step * sequence.step.outputs + place + at];
                    (encoded[place + at] + f64::from(position) + query[at]).max(0.0)
                })
                .collect();
            let weights = &sequence.score.weight[place..][..width];
            let score = weights.iter().zip(&made).map(|(weight, made)| f64::from(*weight) * made).sum::<f64>()
                + f64::from(sequence.score.bias[member]);
            self.most = made.iter().fold(self.most.max(score.abs()), |most, made| most.max(*made));
            sum += score.exp();
            read.iter_mut().zip(&made).for_each(|(read, made)| *read += score.exp() * made);
        }
        read.iter().map(|read| read / sum).collect()
    }
}

fn logits(history: &History, rows: &[f32]) -> Vec<f32> {
    let (weights, device) = (Weights::History(history.clone()), Default::default());
    let network = Network::<Flex>::new(&weights, &device);
    assert_eq!(network.weights(&weights), weights, "weights round trip");
    let shape = [rows.len() / history.places.inputs(), history.places.inputs()];
    host(network.forward(Tensor::from_data(TensorData::new(rows.to_vec(), shape), &device)))
}

#[test]
fn a_history_network_is_the_formula_and_its_weights_round_trip() {
    let mut random = StdRng::seed_from_u64(5);
    for (others, sequences) in [(3, &[(4, 2)][..]), (1, &[(1, 1)]), (6, &[(16, 4), (3, 2), (2, 1)])] {
        for (members, hidden, width) in [(3, &[7, 5][..], 6), (1, &[4], 1), (2, &[1, 3, 2], 16)] {
            let history = history(others, sequences, Shape { pieces: 5, members, hidden, width }, &mut random);
            let rows = rows(&history, 60, &mut random);
            let mut oracle = Oracle { history: &history, most: 0.0 };
            for (row, logit) in rows.chunks_exact(history.places.inputs()).zip(logits(&history, &rows)) {
                let expected = oracle.logit(row);
                assert!((f64::from(logit) - expected).abs() < 2e-5, "{logit} {expected}, {sequences:?}, {width}");
            }
            let (most, bound) = (oracle.most, history.bound());
            assert!(most > 0.0 && most <= bound, "{most} {bound}");
        }
    }
}

#[test]
fn what_a_missing_step_holds_makes_no_difference_and_a_step_that_is_there_does() {
    let mut random = StdRng::seed_from_u64(6);
    let shape = Shape { pieces: 5, members: 3, hidden: &[7, 5], width: 6 };
    let history = history(4, &[(8, 3)], shape, &mut random);
    let (grid, inputs) = (&history.places.sequences[0], history.places.inputs());
    let rows = rows(&history, 40, &mut random);
    let (mut held, mut moved) = (rows.clone(), rows.clone());
    let (mut gone, mut there) = (0, vec![0; 40]);
    for (index, row) in rows.chunks_exact(inputs).enumerate() {
        for step in 0..grid.steps {
            let values = |rows: &mut [f32], random: &mut StdRng| {
                for (value, missing) in grid.step(step).iter().filter(|(_, missing)| !is_missing(row, *missing)) {
                    assert!(missing.is_some());
                    rows[index * inputs + value] = random.random_range(-4.0..4.0);
                }
            };
            if grid.step(step).iter().all(|(_, missing)| is_missing(row, *missing)) {
                grid.step(step)
                    .iter()
                    .for_each(|(value, _)| held[index * inputs + value] = random.random_range(-8.0..8.0));
                gone += 1;
            } else {
                values(&mut moved, &mut random);
                there[index] += 1;
            }
        }
    }
    assert!(gone > 80, "{gone}");
    let bits = |rows: &[f32]| logits(&history, rows).into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let expected = bits(&rows);
    assert_eq!(bits(&held), expected);
    let moved = bits(&moved);
    for (index, there) in there.iter().enumerate() {
        assert_eq!(moved[index] == expected[index], *there == 0, "row {index} with {there} steps");
    }
}

#[test]
fn the_edges_of_a_channel_are_those_of_all_its_steps_without_what_is_missing() {
    let layout = layout(1, &[(3, 1)]);
    let places = Places::of(&layout).unwrap();
    // The transaction's own input, three steps, and whether each is missing. Frauds have a step above 0.5, wherever.
    let mut random = StdRng::seed_from_u64(7);
    let (mut rows, mut labels) = (Vec::new(), Vec::new());
    for index in 0..600 {
        let mut row = [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0];
        (1..=3).for_each(|step| row[step] = random.random_range(0.0..0.5));
        // What a missing step holds is no value.
        row[2] = -5.0;
        let fraud = index % 4 == 0;
        if fraud {
            row[if index % 8 == 0 { 1 } else { 3 }] = random.random_range(0.6..1.0);
        }
        rows.extend(row);
        labels.push(fraud);
    }
    let encoding = places.sequences[0].encoding(&rows, 7, &labels, 8);
    let edges = encoding.edges();
    assert!(edges[0] >= 0.0 && edges.iter().any(|edge| (0.49..0.61).contains(edge)), "{edges:?}");
}

#[test]
fn layouts_without_a_sequence_or_without_anything_else_are_refused() {
    for (layout, says) in [
        (layout(2, &[]), "the features have no sequence of them: declare `previous`"),
        (layout(0, &[(2, 2)]), "needs features of the transaction itself beside its sequences: declare some"),
    ] {
        let error = Places::of(&layout).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn every_input_has_its_place() {
    let layout = layout(3, &[(2, 2), (3, 2)]);
    let places = Places::of(&layout).unwrap();
    // 3 + 4 + 6 columns, of which one of the others, all of the first sequence and half of the second can be missing.
    assert_eq!((places.inputs(), &places.others[..]), (13 + 1 + 4 + 3, &[0, 1, 2, 13][..]));
    let grid = &places.sequences[0];
    assert_eq!((grid.steps, grid.channels), (2, 2));
    assert_eq!(grid.inputs, [(3, Some(14)), (5, Some(16)), (4, Some(15)), (6, Some(17))]);
    assert_eq!(places.sequences[1].step(2), [(9, Some(20)), (12, None)]);
}
