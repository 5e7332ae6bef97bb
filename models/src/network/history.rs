//! A network that reads the entity's transactions before this one, one by one, beside the features of this one.
//!
//! Of each step of a sequence the channels are encoded as a tabular network's inputs are, by the same edges wherever in the sequence the
//! step stands. What a member makes of step s is `h_s = ReLU(W encode(s) + p_s + q)`: p is learned for each position, and q, the query, is
//! linear in the encoding of the transaction at hand, so that a step can be held against it. The member attends to the steps by the
//! scores `e_s = v·h_s + b` (additive attention: D. Bahdanau, K. Cho, Y. Bengio, "Neural machine translation by jointly learning to align and
//! translate", 2015), and reads `Σ exp(e_s) h_s / (1 + Σ exp(e_s))` over the steps there are. The 1 is a step that is always there and tells
//! nothing: a softmax alone would forget how many steps are alike, and be undefined where there is none. What is read stands beside the
//! member's first hidden layer, before the layers behind it.

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{
        Int, Tensor, TensorData,
        activation::{relu, softmax},
        backend::Backend,
    },
};
use rand::rngs::StdRng;
use schemas::FeatureLayout;

use super::{Dense, Tabular, TabularNetwork, dense, host, linear, through};
use crate::{encode::Encoding, normalize::nullable_columns};

/// A missing value is moved down by this, below every edge, as inputs are within 8 standard deviations: all of its components are 0.
pub(crate) const BELOW: f32 = 64.0;
/// An input above this, of those that are 0 or 1, says that a value is missing.
const MISSING: f32 = 0.5;
/// What the score of a missing step is lowered by: it has no weight then, whatever it holds.
const UNREAD: f32 = 1e9;

/// [`Tabular`] over the inputs that are of no sequence, and what its members read in the sequences.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct History {
    pub(crate) places: Places,
    /// The first layer has for each member its first hidden layer, then its query into each sequence. What is read there takes the
    /// query's place before the member's layers.
    pub(crate) tabular: Tabular,
    /// Outputs of a member's first hidden layer.
    pub(crate) hidden: usize,
    pub(crate) sequences: Vec<Attention>,
}

/// How the steps of a sequence are read, by all members, side by side.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attention {
    /// Of the channels.
    pub(crate) encoding: Encoding,
    /// Components of a step to members × width.
    pub(crate) step: Dense,
    /// Steps × members × width.
    pub(crate) positions: Vec<f32>,
    /// Width to members: each member's score reads its own part.
    pub(crate) score: Dense,
}

/// Which of the network's inputs tell of the steps of sequences, and which of the transaction itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Places {
    pub(crate) others: Vec<usize>,
    pub(crate) sequences: Vec<Grid>,
}

/// The inputs of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Grid {
    pub(crate) steps: usize,
    pub(crate) channels: usize,
    /// Of each step, newest first, the input of each channel, and the one that is 1 where that is missing, if it can be.
    ///
    /// A step is missing if all of its channels are.
    pub(crate) inputs: Vec<(usize, Option<usize>)>,
}

/// The shape of a history network.
#[derive(Clone, Copy)]
pub(crate) struct Shape<'a> {
    pub(crate) pieces: usize,
    pub(crate) members: usize,
    /// Widths of each member's hidden layers.
    pub(crate) hidden: &'a [usize],
    /// What a member makes of a step has so many numbers.
    pub(crate) width: usize,
}

impl Places {
    /// Fails, saying what to do, unless there are a sequence and a feature beside it.
    pub(crate) fn of(layout: &FeatureLayout) -> Result<Places, String> {
        let nullable = nullable_columns(layout);
        let missing_input = |column: usize| nullable.binary_search(&column).ok().map(|index| layout.width() + index);
        let found = layout.sequences().into_iter().filter(|sequence| !sequence.columns.is_empty());
        let grids = found.map(|sequence| Grid {
            steps: sequence.columns.len(),
            channels: sequence.channels.len(),
            inputs: sequence.columns.iter().flatten().map(|column| (*column, missing_input(*column))).collect(),
        });
        let sequences: Vec<Grid> = grids.collect();
        let is_taken = |input: usize| {
            let mut inputs = sequences.iter().flat_map(|grid| &grid.inputs);
            inputs.any(|(value, missing)| *value == input || *missing == Some(input))
        };
        let others: Vec<usize> = (0..layout.width() + nullable.len()).filter(|input| !is_taken(*input)).collect();
        if sequences.is_empty() {
            return Err("a history network reads an entity's transactions one by one, and the features have no sequence of them: \
                 declare `previous`, `time_since_previous` or `same_as_previous` with `back`, as history.yaml does, or take a \
                 tabular network"
                .into());
        }
        match others.is_empty() {
            true => Err(
                "a history network needs features of the transaction itself beside its sequences: declare some, as \
                 `{ name: AMOUNT, value: amount }` under `request`"
                    .into(),
            ),
            false => Ok(Places { others, sequences }),
        }
    }

    /// Inputs of the network.
    pub(crate) fn inputs(&self) -> usize {
        let of_sequences = self.sequences.iter().flat_map(|grid| &grid.inputs);
        self.others.len() + of_sequences.map(|(_, missing)| 1 + usize::from(missing.is_some())).sum::<usize>()
    }
}

/// Whether a value is missing from the inputs of a row, by the one that tells.
pub(crate) fn is_missing(inputs: &[f32], missing: Option<usize>) -> bool {
    missing.is_some_and(|missing| inputs[missing] > MISSING)
}

impl Grid {
    /// The inputs of a step.
    pub(crate) fn step(&self, step: usize) -> &[(usize, Option<usize>)] {
        &self.inputs[step * self.channels..][..self.channels]
    }

    /// The edges of each channel, over the values that all steps of the rows have of it.
    fn encoding(&self, rows: &[f32], inputs: usize, labels: &[bool], pieces: usize) -> Encoding {
        let mut edges = Vec::with_capacity(self.channels * (pieces + 1));
        let (mut values, mut of_values) = (Vec::new(), Vec::new());
        for channel in 0..self.channels {
            values.clear();
            of_values.clear();
            for (row, label) in rows.chunks_exact(inputs).zip(labels) {
                for (value, missing) in self.inputs.iter().skip(channel).step_by(self.channels) {
                    if !is_missing(row, *missing) {
                        values.push(row[*value]);
                        of_values.push(*label);
                    }
                }
            }
            edges.extend_from_slice(Encoding::fit_spread(&values, 1, &of_values, pieces).edges());
        }
        Encoding::new(self.channels, pieces, edges).expect("edges that were fitted rise")
    }
}

impl Attention {
    /// Outputs of all members.
    fn outputs(&self) -> usize {
        self.step.outputs
    }

    fn random(encoding: Encoding, steps: usize, shape: Shape<'_>, random: &mut StdRng) -> Attention {
        let outputs = shape.members * shape.width;
        let layer = Tabular::random(encoding, shape.members, &[shape.width], random);
        Attention {
            encoding: layer.encoding,
            step: layer.first,
            positions: vec![0.0; steps * outputs],
            score: Dense::random((shape.width, shape.members), random),
        }
    }
}

impl History {
    /// What training begins with: `rows` (rows × `inputs`) say where the edges are.
    pub(crate) fn random(
        places: Places,
        (rows, inputs): (&[f32], usize),
        labels: &[bool],
        shape: Shape<'_>,
        random: &mut StdRng,
    ) -> History {
        let others: Vec<f32> =
            rows.chunks_exact(inputs).flat_map(|row| places.others.iter().map(|input| row[*input])).collect();
        let encoding = Encoding::fit_spread(&others, places.others.len(), labels, shape.pieces);
        let sequences: Vec<Attention> = places
            .sequences
            .iter()
            .map(|grid| Attention::random(grid.encoding(rows, inputs, labels, shape.pieces), grid.steps, shape, random))
            .collect();
        let hidden = shape.hidden.first().copied().unwrap_or(1);
        // Hidden layer and queries begin alike, and what is read takes the queries' place.
        let widths: Vec<usize> = std::iter::once(hidden + sequences.len() * shape.width)
            .chain(shape.hidden.iter().skip(1).copied())
            .collect();
        History { tabular: Tabular::random(encoding, shape.members, &widths, random), places, hidden, sequences }
    }

    pub(crate) fn layers(&self) -> impl Iterator<Item = &Dense> {
        self.tabular.layers().chain(self.sequences.iter().flat_map(|sequence| [&sequence.step, &sequence.score]))
    }

    /// How many numbers were trained.
    pub(crate) fn parameters(&self) -> usize {
        let layers = self.layers().map(|layer| layer.weight.len() + layer.bias.len());
        layers.chain(self.sequences.iter().map(|sequence| sequence.positions.len())).sum()
    }

    /// A bound on every sum on the way to the logit.
    pub(crate) fn bound(&self) -> f64 {
        let first = self.tabular.first.output_bound(1.0);
        let (mut read, mut most) = (0.0f64, first);
        for sequence in &self.sequences {
            let position = sequence.positions.iter().fold(0.0, |most: f64, value| most.max(f64::from(value.abs())));
            let step = sequence.step.output_bound(1.0) + position + first;
            read = read.max(step);
            most = most.max(step).max(sequence.score.output_bound(step));
        }
        // What is read is a mean of steps, so no larger than they are.
        let members = self.tabular.members.iter().map(|layers| through(layers, first.max(read)).0);
        members.fold(most, f64::max)
    }

    /// Outputs of the first layer that are of a member.
    pub(crate) fn own(&self) -> usize {
        self.tabular.first.outputs / self.tabular.members.len()
    }
}

/// [`History`] on a device.
#[derive(Module, Debug)]
pub(crate) struct HistoryNetwork<B: Backend> {
    others: Tensor<B, 1, Int>,
    tabular: TabularNetwork<B>,
    sequences: Vec<AttentionNetwork<B>>,
}

/// [`Attention`] on a device.
#[derive(Module, Debug)]
struct AttentionNetwork<B: Backend> {
    /// Steps × channels: the inputs of values, and of what says that they are missing.
    values: Tensor<B, 1, Int>,
    missing: Tensor<B, 1, Int>,
    /// 1 × steps · channels: 0 for values that are never missing.
    nullable: Tensor<B, 2>,
    /// The layer over the encoding, without members.
    steps: TabularNetwork<B>,
    /// 1 × steps × members · width.
    positions: Param<Tensor<B, 3>>,
    score: Linear<B>,
}

impl<B: Backend> HistoryNetwork<B> {
    pub(super) fn new(history: &History, device: &B::Device) -> HistoryNetwork<B> {
        let grids = history.sequences.iter().zip(&history.places.sequences);
        HistoryNetwork {
            others: indices(&history.places.others, device),
            tabular: TabularNetwork::new(&history.tabular, device),
            sequences: grids.map(|(sequence, grid)| AttentionNetwork::new(sequence, grid, device)).collect(),
        }
    }

    pub(super) fn weights(&self, like: &History) -> History {
        let sequences = self.sequences.iter().zip(&like.sequences);
        History {
            places: like.places.clone(),
            tabular: self.tabular.weights(&like.tabular.encoding),
            hidden: like.hidden,
            sequences: sequences.map(|(sequence, like)| sequence.weights(&like.encoding)).collect(),
        }
    }

    /// A member's outputs of the first layer: its hidden layer, and its queries.
    fn own(&self) -> (usize, usize) {
        let own = self.tabular.first.weight.dims()[1] / self.tabular.members.len();
        let queries: usize = self.sequences.iter().map(AttentionNetwork::width).sum();
        (own - queries, own)
    }

    /// Outputs that dropout can be applied to.
    pub(super) fn dropped(&self) -> usize {
        self.own().0 * self.tabular.members.len()
    }

    pub(super) fn members(&self, inputs: Tensor<B, 2>, dropout: Option<Tensor<B, 2>>) -> Tensor<B, 2> {
        let ((hidden, own), members) = (self.own(), self.tabular.members.len());
        let first = self.tabular.first(inputs.clone().select(1, self.others.clone()));
        let rows = first.dims()[0];
        let first = first.reshape([rows, members, own]);
        let mut at = hidden;
        let read: Vec<Tensor<B, 3>> = self
            .sequences
            .iter()
            .map(|sequence| {
                let width = sequence.width();
                at += width;
                sequence.read(inputs.clone(), first.clone().slice([0..rows, 0..members, at - width..at]))
            })
            .collect();
        let mut hidden = relu(first.slice([0..rows, 0..members, 0..hidden]));
        if let Some(dropout) = dropout {
            let shape = hidden.dims();
            hidden = hidden * dropout.reshape(shape);
        }
        let behind = Tensor::cat(std::iter::once(hidden).chain(read).collect(), 2);
        let of_member = |(index, layers): (usize, &super::Layers<B>)| {
            layers.forward(behind.clone().slice([0..rows, index..index + 1, 0..own]).reshape([rows, own]))
        };
        Tensor::cat(self.tabular.members.iter().enumerate().map(of_member).collect(), 1)
    }
}

impl<B: Backend> AttentionNetwork<B> {
    fn new(sequence: &Attention, grid: &Grid, device: &B::Device) -> AttentionNetwork<B> {
        let values: Vec<usize> = grid.inputs.iter().map(|(value, _)| *value).collect();
        // Any input, where `nullable` says that nothing comes of it.
        let missing: Vec<usize> = grid.inputs.iter().map(|(_, missing)| missing.unwrap_or(0)).collect();
        let nullable: Vec<f32> =
            grid.inputs.iter().map(|(_, missing)| f32::from(u8::from(missing.is_some()))).collect();
        let nullable = TensorData::new(nullable, [1, grid.inputs.len()]);
        let layer = Tabular { encoding: sequence.encoding.clone(), first: sequence.step.clone(), members: Vec::new() };
        let positions = TensorData::new(sequence.positions.clone(), [1, grid.steps, sequence.outputs()]);
        AttentionNetwork {
            values: indices(&values, device),
            missing: indices(&missing, device),
            nullable: Tensor::from_data(nullable, device),
            steps: TabularNetwork::new(&layer, device),
            positions: Param::from_data(positions, device),
            score: linear(&sequence.score, device),
        }
    }

    fn weights(&self, encoding: &Encoding) -> Attention {
        let Tabular { encoding, first, .. } = self.steps.weights(encoding);
        Attention { encoding, step: first, positions: host(self.positions.val()), score: dense(&self.score) }
    }

    /// Of what a member makes of a step.
    fn width(&self) -> usize {
        self.score.weight.dims()[0]
    }

    /// What each member reads (rows × members × width), by its query (of the same shape).
    fn read(&self, inputs: Tensor<B, 2>, query: Tensor<B, 3>) -> Tensor<B, 3> {
        let [rows, members, width] = query.dims();
        let [_, steps, outputs] = self.positions.dims();
        let channels = self.nullable.dims()[1] / steps;
        let missing =
            inputs.clone().select(1, self.missing.clone()).greater_elem(MISSING).float() * self.nullable.clone();
        let values = inputs.select(1, self.values.clone()) - missing.clone() * BELOW;
        let encoded = self.steps.first(values.reshape([rows * steps, channels])).reshape([rows, steps, outputs]);
        let made = relu(encoded + self.positions.val() + query.reshape([rows, 1, outputs]));
        let made = made.reshape([rows, steps, members, width]);

        let weight = self.score.weight.val().transpose().reshape([1, 1, members, width]);
        let scores = (made.clone() * weight).sum_dim(3).reshape([rows, steps, members]);
        let scores = match &self.score.bias {
            Some(bias) => scores + bias.val().reshape([1, 1, members]),
            None => scores,
        };
        let unread = missing.reshape([rows, steps, channels]).min_dim(2) * UNREAD;
        let always = Tensor::zeros([rows, 1, members], &scores.device());
        let shares = softmax(Tensor::cat(vec![scores - unread, always], 1), 1);
        let shares = shares.slice([0..rows, 0..steps, 0..members]).reshape([rows, steps, members, 1]);
        (made * shares).sum_dim(1).reshape([rows, members, width])
    }
}

fn indices<B: Backend>(inputs: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let indices: Vec<i32> = inputs.iter().map(|input| *input as i32).collect();
    Tensor::from_data(TensorData::new(indices, [inputs.len()]), device)
}

#[cfg(test)]
pub(crate) mod tests;
