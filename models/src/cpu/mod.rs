//! The network on the CPU, written for it: rows go through in chunks whose values stay in the cache.
//!
//! burn's network ([`crate::network`]) is what is trained; the tests hold the logits of both against each other.

mod attention;
mod dense;
mod piecewise;
mod vectors;

use std::time::Instant;

use crate::{
    Artifact, ModelError,
    network::{Dense, History, Tabular, Weights},
    score::{DeviceStages, Engine},
};
use attention::Reader;
use dense::{Activations, Head, Panels, Rows};
use piecewise::Piecewise;
use vectors::Vectors;

/// Rows that go through the network together. Their values between two layers of 256 take 100 kB, which leaves most of a
/// second-level cache to the weights; with more rows weights are read less often, which shows where they don't fit.
const CHUNK_ROWS: usize = 96;

/// The layers of a network, packed for the processor it runs on.
pub(crate) struct CpuNetwork {
    vectors: Vectors,
    inputs: usize,
    /// The layer over the encoding, of all members side by side; a multilayer perceptron has none.
    first: Option<Piecewise>,
    /// Of a history network: which inputs that layer reads, and what is read in the sequences.
    history: Option<Readers>,
    /// Of whose logits the mean is taken.
    members: Vec<Member>,
    encoded: Activations,
    /// Each layer reads the one and writes the other.
    activations: [Activations; 2],
    /// Of one member, and a chunk.
    member_logits: Vec<f32>,
    logits: Vec<f32>,
}

struct Readers {
    others: Vec<usize>,
    sequences: Vec<Reader>,
    /// The others of a chunk.
    chosen: Vec<f32>,
}

impl Readers {
    fn pack(history: &History) -> Readers {
        let (members, stride) = (history.tabular.members.len(), history.own());
        let mut from = history.hidden;
        let grids = history.sequences.iter().zip(&history.places.sequences);
        let reader = grids.map(|(sequence, grid)| {
            let reader = Reader::pack(sequence, grid, members, from, stride);
            from += sequence.score.inputs;
            reader
        });
        Readers { sequences: reader.collect(), others: history.places.others.clone(), chosen: Vec::new() }
    }
}

struct Member {
    /// Where its inputs begin.
    from: usize,
    hidden: Vec<Panels>,
    head: Head,
}

impl Member {
    /// The last of `layers` has one output.
    fn pack(from: usize, layers: &[Dense]) -> Member {
        let (head, hidden) = layers.split_last().expect("a network has an output");
        Member { from, hidden: hidden.iter().map(Panels::pack).collect(), head: Head::pack(head) }
    }
}

impl CpuNetwork {
    /// With the widest vectors that the processor has.
    pub(crate) fn new(artifact: &Artifact) -> CpuNetwork {
        CpuNetwork::pack(Vectors::widest(), artifact.weights())
    }

    fn pack(vectors: Vectors, weights: &Weights) -> CpuNetwork {
        let (inputs, first, encoded, layers) = match weights {
            Weights::Mlp(layers) => (layers[0].inputs, None, 0, std::slice::from_ref(layers)),
            Weights::Tabular(Tabular { encoding, first, members }) => {
                let packed = Piecewise::pack(encoding, first, |_| false);
                (encoding.inputs(), Some(packed), first.outputs, &members[..])
            }
            Weights::History(history) => {
                let Tabular { encoding, first, members } = &history.tabular;
                // Queries are linear.
                let packed = Piecewise::pack(encoding, first, |output| output % history.own() >= history.hidden);
                (history.places.inputs(), Some(packed), first.outputs, &members[..])
            }
        };
        let history = match weights {
            Weights::History(history) => Some(Readers::pack(history)),
            Weights::Mlp(_) | Weights::Tabular(_) => None,
        };
        let members = layers.iter().enumerate().map(|(index, layers)| Member::pack(index * layers[0].inputs, layers));
        let hidden = layers.iter().flat_map(|layers| &layers[..layers.len() - 1]);
        let width = hidden.map(|layer| layer.outputs).max().unwrap_or(0);
        CpuNetwork {
            vectors,
            inputs,
            first,
            history,
            members: members.collect(),
            encoded: Activations::new(CHUNK_ROWS, encoded),
            activations: [Activations::new(CHUNK_ROWS, width), Activations::new(CHUNK_ROWS, width)],
            member_logits: Vec::with_capacity(CHUNK_ROWS),
            logits: Vec::new(),
        }
    }

    /// Appends the logits of at most [`CHUNK_ROWS`] rows.
    fn chunk(&mut self, chunk: &[f32]) {
        let CpuNetwork { vectors, inputs, first, history, members, encoded, activations: [from, to], .. } = self;
        let (mut input, count) = (Rows { values: chunk, stride: *inputs }, chunk.len() / *inputs);
        if let Some(Readers { others, chosen, .. }) = history {
            chosen.clear();
            chosen.extend(chunk.chunks_exact(*inputs).flat_map(|row| others.iter().map(|input| row[*input])));
            input = Rows { values: chosen, stride: others.len() };
        }
        if let Some(first) = first {
            first.run(*vectors, input, count, encoded);
            for reader in history.iter_mut().flat_map(|readers| &mut readers.sequences) {
                for (index, row) in chunk.chunks_exact(*inputs).enumerate() {
                    reader.run(*vectors, row, encoded.row_mut(index));
                }
            }
            input = encoded.rows();
        }
        let begin = self.logits.len();
        self.logits.resize(begin + count, 0.0);
        for Member { from: own, hidden, head } in members.iter() {
            let own = Rows { values: &input.values[*own..], ..input };
            for (index, layer) in hidden.iter().enumerate() {
                let input = if index == 0 { own } else { from.rows() };
                layer.run(*vectors, input, count, to);
                std::mem::swap(from, to);
            }
            let last = if hidden.is_empty() { own } else { from.rows() };
            self.member_logits.clear();
            head.run(*vectors, last, count, &mut self.member_logits);
            let sums = self.logits[begin..].iter_mut().zip(&self.member_logits);
            sums.for_each(|(sum, logit)| *sum += logit);
        }
        let members = members.len() as f32;
        self.logits[begin..].iter_mut().for_each(|sum| *sum /= members);
    }
}

impl Engine for CpuNetwork {
    fn rows_at_once(&self) -> usize {
        CHUNK_ROWS
    }

    fn push(&mut self, inputs: &[f32]) {
        inputs.chunks(CHUNK_ROWS * self.inputs).for_each(|chunk| self.chunk(chunk));
    }

    fn take(&mut self, logits: &mut Vec<f32>) -> Result<(), ModelError> {
        logits.append(&mut self.logits);
        Ok(())
    }

    fn stages(&mut self, inputs: &[f32]) -> Result<DeviceStages, ModelError> {
        let begun = Instant::now();
        self.push(inputs);
        self.logits.clear();
        Ok(DeviceStages { compute: begun.elapsed(), ..DeviceStages::default() })
    }
}

#[cfg(test)]
mod tests {
    use burn::{
        backend::Flex,
        tensor::{Tensor, TensorData},
    };
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::network::{
        Network, Shape,
        history_tests::{self, any, encoding},
        host, layer_shapes,
    };

    fn mlp(inputs: usize, hidden: &[usize], random: &mut StdRng) -> Weights {
        Weights::Mlp(layer_shapes(inputs, hidden).into_iter().map(|shape| any(shape, random)).collect())
    }

    fn tabular(inputs: usize, pieces: usize, members: usize, hidden: &[usize], random: &mut StdRng) -> Weights {
        let encoding = encoding(inputs, pieces, random);
        let mut tabular = Tabular::random(encoding, members, hidden, random);
        tabular.first.bias.iter_mut().for_each(|bias| *bias = random.random_range(-0.5..0.5));
        Weights::Tabular(tabular)
    }

    /// Inputs, and weights over them.
    fn networks(random: &mut StdRng) -> Vec<(usize, Weights)> {
        let mlps: [(usize, &[usize]); 8] = [
            (64, &[256, 256]),
            (20, &[64, 32]),
            (31, &[64, 32]),
            (3, &[]),
            (16, &[]),
            (1, &[4]),
            (7, &[1, 5]),
            (13, &[100, 50, 9]),
        ];
        let tabulars: [(usize, usize, usize, &[usize]); 5] =
            [(33, 16, 4, &[64, 32]), (1, 1, 1, &[1]), (5, 8, 3, &[5]), (20, 24, 2, &[17, 40, 3]), (50, 3, 8, &[16])];
        let histories = [
            (9, &[(16, 4)][..], Shape { pieces: 16, members: 4, hidden: &[64, 32], width: 16 }),
            (3, &[(5, 2), (3, 3)], Shape { pieces: 4, members: 3, hidden: &[9], width: 5 }),
            (1, &[(1, 1)], Shape { pieces: 1, members: 1, hidden: &[1, 3], width: 1 }),
            (5, &[(30, 2)], Shape { pieces: 7, members: 2, hidden: &[17, 8], width: 33 }),
        ];
        let histories = histories.map(|(others, sequences, shape)| {
            let history = history_tests::history(others, sequences, shape, random);
            (history.places.inputs(), Weights::History(history))
        });
        let mlps = mlps.map(|(inputs, hidden)| (inputs, mlp(inputs, hidden, random)));
        let tabulars = tabulars
            .map(|(inputs, pieces, members, hidden)| (inputs, tabular(inputs, pieces, members, hidden, random)));
        mlps.into_iter().chain(tabulars).chain(histories).collect()
    }

    /// Rows anywhere, and with every value upon an edge where there are edges.
    fn rows(count: usize, inputs: usize, weights: &Weights, random: &mut StdRng) -> Vec<f32> {
        if let Weights::History(history) = weights {
            return history_tests::rows(history, count, random);
        }
        let mut rows: Vec<f32> = (0..count * inputs).map(|_| random.random_range(-4.0..4.0)).collect();
        if let (Weights::Tabular(Tabular { encoding, .. }), 5..) = (weights, count) {
            let edges = encoding.edges().chunks_exact(encoding.pieces() + 1);
            let upon = edges.map(|edges| edges[random.random_range(0..edges.len())]);
            rows.iter_mut().skip(2 * inputs).zip(upon).for_each(|(value, edge)| *value = edge);
        }
        rows
    }

    fn logits(network: &mut CpuNetwork, inputs: &[f32]) -> Vec<f32> {
        let mut logits = Vec::new();
        network.push(inputs);
        network.take(&mut logits).unwrap();
        logits
    }

    #[test]
    fn logits_are_those_of_burns_network_and_the_same_bits_with_every_kind_of_vector() {
        let mut random = StdRng::seed_from_u64(3);
        for (inputs, weights) in networks(&mut random) {
            let burn = Network::<Flex>::new(&weights, &Default::default());
            let mut networks =
                Vectors::all().into_iter().map(|vectors| CpuNetwork::pack(vectors, &weights)).collect::<Vec<_>>();
            for count in [1, 2, 3, 4, 5, 7, 8, 11, 13, 25, 96, 97, 200] {
                let rows = rows(count, inputs, &weights, &mut random);
                let data = TensorData::new(rows.clone(), [count, inputs]);
                let expected = host(burn.forward(Tensor::from_data(data, &Default::default())));
                let mut bits = Vec::new();
                for network in &mut networks {
                    let found = logits(network, &rows);
                    assert_eq!(found.len(), count);
                    for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
                        let (far, vectors) = ((found - expected).abs(), network.vectors);
                        assert!(far < 1e-5, "{inputs} inputs, row {row} of {count}, {vectors:?}: {found} {expected}");
                    }
                    bits.push(found.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>());
                }
                bits.dedup();
                assert_eq!(bits.len(), 1, "{inputs} inputs, {count} rows: bits differ between {:?}", Vectors::all());
            }
        }
    }

    #[test]
    fn a_rows_bits_depend_on_the_row_alone() {
        let mut random = StdRng::seed_from_u64(1);
        let shape = Shape { pieces: 6, members: 3, hidden: &[20, 7], width: 9 };
        let history = history_tests::history(5, &[(8, 3)], shape, &mut random);
        let weights = [
            (17, mlp(17, &[50, 33], &mut random)),
            (17, tabular(17, 6, 3, &[20, 7], &mut random)),
            (history.places.inputs(), Weights::History(history)),
        ];
        for ((inputs, weights), vectors) in
            weights.iter().flat_map(|weights| Vectors::all().into_iter().map(move |v| (weights, v)))
        {
            let inputs = *inputs;
            let rows = rows(300, inputs, weights, &mut random);
            let mut network = CpuNetwork::pack(vectors, weights);
            let expected = logits(&mut network, &rows);
            for count in 1..=100 {
                let begin = random.random_range(0..=300 - count);
                let found = logits(&mut network, &rows[begin * inputs..(begin + count) * inputs]);
                assert_eq!(found, expected[begin..begin + count], "{count} rows, {vectors:?}");
            }
        }
    }
}
