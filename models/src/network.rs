//! The networks, generic over the backend, and their weights on the host.

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{Tensor, TensorData, activation::relu, backend::Backend},
};
use rand::{RngExt, rngs::StdRng};

mod history;
use history::HistoryNetwork;
#[cfg(test)]
pub(crate) use history::tests as history_tests;
pub(crate) use history::{Attention, BELOW, Grid, History, Places, Shape, is_missing};

use crate::encode::Encoding;

/// One layer's weights: `weight` is outputs × inputs, row-major, as PyTorch stores it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dense {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

/// The weights of a network with one output, the logit.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Weights {
    /// Fully connected layers, with ReLU between them.
    Mlp(Vec<Dense>),
    Tabular(Tabular),
    History(History),
}

/// Several small networks over one encoding, of whose logits the mean is taken: each errs in its own way.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tabular {
    pub(crate) encoding: Encoding,
    /// Components to the first hidden layers of all members, side by side.
    pub(crate) first: Dense,
    /// For each member the layers behind its first hidden one, with ReLU before each; the last has one output.
    pub(crate) members: Vec<Vec<Dense>>,
}

/// Inputs and outputs of each layer of a network with these hidden widths and one output.
pub(crate) fn layer_shapes(inputs: usize, hidden: &[usize]) -> Vec<(usize, usize)> {
    let from = std::iter::once(inputs).chain(hidden.iter().copied());
    from.zip(hidden.iter().copied().chain([1])).collect()
}

impl Dense {
    /// He's uniform initialization: `U(−√(6/inputs), √(6/inputs))`, biases 0.
    pub(crate) fn random((inputs, outputs): (usize, usize), random: &mut StdRng) -> Dense {
        Dense::uniform((inputs, outputs), (6.0 / inputs as f32).sqrt(), random)
    }

    fn uniform((inputs, outputs): (usize, usize), limit: f32, random: &mut StdRng) -> Dense {
        let weight = (0..inputs * outputs).map(|_| random.random_range(-limit..limit)).collect();
        Dense { inputs, outputs, weight, bias: vec![0.0; outputs] }
    }

    /// A bound on the absolute outputs, given one on the inputs.
    fn output_bound(&self, input_bound: f64) -> f64 {
        let rows = self.weight.chunks_exact(self.inputs).zip(&self.bias);
        let bounds = rows.map(|(row, bias)| {
            let sum: f64 = row.iter().map(|weight| f64::from(weight.abs())).sum();
            sum * input_bound + f64::from(bias.abs())
        });
        bounds.fold(0.0, f64::max)
    }
}

impl Weights {
    /// How many numbers were trained.
    pub(crate) fn parameters(&self) -> usize {
        let layers: Box<dyn Iterator<Item = &Dense>> = match self {
            Weights::Mlp(layers) => Box::new(layers.iter()),
            Weights::Tabular(tabular) => Box::new(tabular.layers()),
            Weights::History(history) => return history.parameters(),
        };
        layers.map(|layer| layer.weight.len() + layer.bias.len()).sum()
    }

    /// A bound on every sum on the way to the logit, given one on the absolute inputs.
    pub(crate) fn bound(&self, inputs: f64) -> f64 {
        match self {
            Weights::Mlp(layers) => through(layers, inputs).0,
            Weights::Tabular(Tabular { first, members, .. }) => {
                let hidden = first.output_bound(1.0);
                let members = members.iter().map(|layers| through(layers, hidden).0);
                members.fold(hidden, f64::max)
            }
            Weights::History(history) => history.bound(),
        }
    }
}

/// Bounds on every sum in layers and on their outputs, given one on the absolute inputs.
fn through(layers: &[Dense], bound: f64) -> (f64, f64) {
    layers.iter().fold((bound, bound), |(most, bound), layer| {
        let bound = layer.output_bound(bound);
        (most.max(bound), bound)
    })
}

impl Tabular {
    fn layers(&self) -> impl Iterator<Item = &Dense> {
        std::iter::once(&self.first).chain(self.members.iter().flatten())
    }

    /// Members with these hidden widths, of which there is at least one.
    pub(crate) fn random(encoding: Encoding, members: usize, hidden: &[usize], random: &mut StdRng) -> Tabular {
        let components = encoding.components();
        let width = hidden.first().copied().unwrap_or(1);
        // About a quarter of the components are 1: half of each row's ramps and steps, of half of the pieces.
        let limit = 0.5 * (2.0 / encoding.inputs() as f32).sqrt();
        // On a device ramps and steps begin with weights of one size.
        let first = Dense::uniform((components, members * width), limit / STEP_SCALE, random);
        let first = scaled_steps(&first, encoding.pieces(), STEP_SCALE);
        let shapes = layer_shapes(width, hidden.get(1..).unwrap_or_default());
        let member = |_| shapes.iter().map(|shape| Dense::random(*shape, random)).collect();
        Tabular { encoding, first, members: (0..members).map(member).collect() }
    }
}

/// A network on a device. burn's derive asks for `pub`; the module is private.
#[allow(clippy::large_enum_variant, reason = "there is one of them, or two")]
#[derive(Module, Debug)]
pub(crate) enum Network<B: Backend> {
    Mlp(Layers<B>),
    Tabular(TabularNetwork<B>),
    History(HistoryNetwork<B>),
}

/// Fully connected layers with ReLU between them.
#[derive(Module, Debug)]
pub(crate) struct Layers<B: Backend> {
    layers: Vec<Linear<B>>,
}

/// [`Tabular`] on a device.
#[derive(Module, Debug)]
pub(crate) struct TabularNetwork<B: Backend> {
    /// 1 × inputs × pieces: lower edges, and one over the widths.
    lower: Tensor<B, 3>,
    inverse_width: Tensor<B, 3>,
    first: Linear<B>,
    members: Vec<Layers<B>>,
}

impl<B: Backend> Layers<B> {
    fn new(layers: &[Dense], device: &B::Device) -> Layers<B> {
        Layers { layers: layers.iter().map(|dense| linear(dense, device)).collect() }
    }

    fn weights(&self) -> Vec<Dense> {
        self.layers.iter().map(dense).collect()
    }

    /// Rows × 1.
    fn forward(&self, inputs: Tensor<B, 2>) -> Tensor<B, 2> {
        let last = self.layers.len() - 1;
        self.layers.iter().enumerate().fold(inputs, |values, (index, layer)| {
            let values = layer.forward(values);
            if index < last { relu(values) } else { values }
        })
    }
}

impl<B: Backend> Network<B> {
    pub(crate) fn new(weights: &Weights, device: &B::Device) -> Network<B> {
        match weights {
            Weights::Mlp(layers) => Network::Mlp(Layers::new(layers, device)),
            Weights::Tabular(tabular) => Network::Tabular(TabularNetwork::new(tabular, device)),
            Weights::History(history) => Network::History(HistoryNetwork::new(history, device)),
        }
    }

    /// The weights, back on the host; `like` is what the network was made of.
    pub(crate) fn weights(&self, like: &Weights) -> Weights {
        match (self, like) {
            (Network::Tabular(network), Weights::Tabular(like)) => Weights::Tabular(network.weights(&like.encoding)),
            (Network::History(network), Weights::History(like)) => Weights::History(network.weights(like)),
            (Network::Tabular(_) | Network::History(_), _) => unreachable!("a network keeps its kind"),
            (Network::Mlp(layers), _) => Weights::Mlp(layers.weights()),
        }
    }

    /// Logits (rows) of `inputs` (rows × inputs).
    pub(crate) fn forward(&self, inputs: Tensor<B, 2>) -> Tensor<B, 1> {
        let logits = self.members(inputs, None);
        match logits.dims()[1] {
            1 => logits.flatten(0, 1),
            _ => logits.mean_dim(1).flatten(0, 1),
        }
    }

    /// Logits of each member (rows × members), for training: each learns for itself.
    ///
    /// `dropout`: rows × [`Network::dropped`], by which the first hidden layers are multiplied.
    pub(crate) fn members(&self, inputs: Tensor<B, 2>, dropout: Option<Tensor<B, 2>>) -> Tensor<B, 2> {
        match self {
            Network::Mlp(layers) => layers.forward(inputs),
            Network::Tabular(network) => network.members(inputs, dropout),
            Network::History(network) => network.members(inputs, dropout),
        }
    }

    /// Outputs that dropout can be applied to.
    pub(crate) fn dropped(&self) -> usize {
        match self {
            Network::Mlp(_) => 0,
            Network::Tabular(network) => network.first.weight.dims()[1],
            Network::History(network) => network.dropped(),
        }
    }
}

impl<B: Backend> TabularNetwork<B> {
    fn new(weights: &Tabular, device: &B::Device) -> TabularNetwork<B> {
        let Tabular { encoding, first, members } = weights;
        let (lower, inverse_width) = encoding.bounds();
        let constant = |values: Vec<f32>| {
            Tensor::from_data(TensorData::new(values, [1, encoding.inputs(), encoding.pieces()]), device)
        };
        TabularNetwork {
            lower: constant(lower),
            inverse_width: constant(inverse_width),
            first: linear(&scaled_steps(first, encoding.pieces(), 1.0 / STEP_SCALE), device),
            members: members.iter().map(|layers| Layers::new(layers, device)).collect(),
        }
    }

    fn weights(&self, encoding: &Encoding) -> Tabular {
        Tabular {
            encoding: encoding.clone(),
            first: scaled_steps(&dense(&self.first), encoding.pieces(), STEP_SCALE),
            members: self.members.iter().map(Layers::weights).collect(),
        }
    }

    /// Rows × components.
    fn encode(&self, inputs: Tensor<B, 2>) -> Tensor<B, 2> {
        let [rows, columns] = inputs.dims();
        let [_, _, pieces] = self.lower.dims();
        let values = inputs.reshape([rows, columns, 1]).expand([rows, columns, pieces]);
        let ramps = (values.clone() - self.lower.clone()).mul(self.inverse_width.clone()).clamp(0.0, 1.0);
        let steps =
            values.greater_equal(self.lower.clone().expand([rows, columns, pieces])).float().mul_scalar(STEP_SCALE);
        Tensor::cat(vec![ramps, steps], 2).reshape([rows, columns * pieces * 2])
    }

    /// The first layer, before its activation: rows × its outputs.
    fn first(&self, inputs: Tensor<B, 2>) -> Tensor<B, 2> {
        self.first.forward(self.encode(inputs))
    }

    fn members(&self, inputs: Tensor<B, 2>, dropout: Option<Tensor<B, 2>>) -> Tensor<B, 2> {
        let mut hidden = relu(self.first(inputs));
        if let Some(dropout) = dropout {
            hidden = hidden * dropout;
        }
        let [rows, outputs] = hidden.dims();
        let width = outputs / self.members.len();
        let of_member = |(index, layers): (usize, &Layers<B>)| {
            let own = hidden.clone().slice([0..rows, index * width..(index + 1) * width]);
            layers.forward(own)
        };
        let logits = self.members.iter().enumerate().map(of_member).collect();
        Tensor::cat(logits, 1)
    }
}

/// By how much steps are larger on a device than 1, and their weights smaller; a power of two, so that no bit changes.
///
/// A bound that few frauds tell of, as that of an amount, asks for large weights, which Adam reaches a learning rate at a time. With
/// steps of 1, of the frauds that are large amounts many had chances below a half after twelve epochs.
const STEP_SCALE: f32 = 8.0;

/// The weights of steps times `scale`; an input's components are the ramps of its pieces, then their steps.
fn scaled_steps(first: &Dense, pieces: usize, scale: f32) -> Dense {
    let mut scaled = first.clone();
    for (component, weight) in
        scaled.weight.iter_mut().enumerate().map(|(index, weight)| (index % first.inputs, weight))
    {
        if component / pieces % 2 == 1 {
            *weight *= scale;
        }
    }
    scaled
}

/// The values of a tensor, row-major.
pub(crate) fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().expect("the data were just converted to f32")
}

fn linear<B: Backend>(dense: &Dense, device: &B::Device) -> Linear<B> {
    // burn holds inputs × outputs.
    let weight = transposed(&dense.weight, dense.outputs, dense.inputs);
    let weight = TensorData::new(weight, [dense.inputs, dense.outputs]);
    let bias = TensorData::new(dense.bias.clone(), [dense.outputs]);
    Linear { weight: Param::from_data(weight, device), bias: Some(Param::from_data(bias, device)) }
}

fn dense<B: Backend>(layer: &Linear<B>) -> Dense {
    let [inputs, outputs] = layer.weight.shape().dims();
    let weight = transposed(&host(layer.weight.val()), inputs, outputs);
    let bias = layer.bias.as_ref().map(|bias| host(bias.val())).unwrap_or_default();
    Dense { inputs, outputs, weight, bias }
}

fn transposed(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|index| matrix[index % rows * columns + index / rows]).collect()
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use rand::SeedableRng;

    use super::*;

    fn any(shape: (usize, usize), random: &mut StdRng) -> Dense {
        let mut dense = Dense::random(shape, random);
        dense.bias.iter_mut().for_each(|bias| *bias = random.random_range(-1.0..1.0));
        dense
    }

    /// The formula, and the largest absolute value on the way.
    fn through(layers: &[Dense], values: Vec<f64>) -> (f64, f64) {
        let (mut values, mut most) = (values, 0.0f64);
        for (index, dense) in layers.iter().enumerate() {
            if index > 0 {
                values.iter_mut().for_each(|value| *value = value.max(0.0));
            }
            let rows = dense.weight.chunks_exact(dense.inputs).zip(&dense.bias);
            let sums = rows.map(|(weights, bias)| {
                let sum: f64 = weights.iter().zip(&values).map(|(w, v)| f64::from(*w) * v).sum();
                sum + f64::from(*bias)
            });
            values = sums.collect();
            most = values.iter().fold(most, |most, value| most.max(value.abs()));
        }
        (values[0], most)
    }

    fn logits(weights: &Weights, rows: &[f32], inputs: usize) -> Vec<f32> {
        let device = Default::default();
        let network = Network::<Flex>::new(weights, &device);
        assert_eq!(&network.weights(weights), weights);
        let shape = [rows.len() / inputs, inputs];
        host(network.forward(Tensor::from_data(TensorData::new(rows.to_vec(), shape), &device)))
    }

    #[test]
    fn a_multilayer_perceptron_is_the_formula_and_its_weights_round_trip() {
        let mut random = StdRng::seed_from_u64(1);
        let shapes = layer_shapes(5, &[7, 3]);
        assert_eq!(shapes, [(5, 7), (7, 3), (3, 1)]);
        let layers: Vec<Dense> = shapes.into_iter().map(|shape| any(shape, &mut random)).collect();
        let weights = Weights::Mlp(layers.clone());
        let rows: Vec<f32> = (0..4 * 5).map(|_| random.random_range(-3.0..3.0)).collect();
        for (row, logit) in rows.chunks_exact(5).zip(logits(&weights, &rows, 5)) {
            let (expected, most) = through(&layers, row.iter().map(|value| f64::from(*value)).collect());
            assert!((f64::from(logit) - expected).abs() < 1e-5, "{logit} {expected}");
            assert!(most <= weights.bound(3.0));
        }
    }

    #[test]
    fn a_tabular_network_is_the_formula_and_its_weights_round_trip() {
        let mut random = StdRng::seed_from_u64(2);
        // The second input has one piece less.
        let edges = vec![-1.0, 0.0, 0.5, 2.0, -2.0, 0.25, 1.0, 1.0];
        let encoding = Encoding::new(2, 3, edges.clone()).unwrap();
        let mut tabular = Tabular::random(encoding, 3, &[4, 5], &mut random);
        tabular.first = any((12, 12), &mut random);
        tabular.members = (0..3).map(|_| vec![any((4, 5), &mut random), any((5, 1), &mut random)]).collect();
        let weights = Weights::Tabular(tabular.clone());

        let mut rows: Vec<f32> = (0..40).map(|_| random.random_range(-3.0..3.0)).collect();
        rows.extend(edges);
        for (row, logit) in rows.chunks_exact(2).zip(logits(&weights, &rows, 2)) {
            let mut components = Vec::new();
            for (value, edges) in row.iter().zip(tabular.encoding.edges().chunks_exact(4)) {
                let pieces = || edges.windows(2).map(|piece| (f64::from(piece[0]), f64::from(piece[1])));
                let value = f64::from(*value);
                let ramp = |(from, to): (f64, f64)| {
                    if to > from { ((value - from) / (to - from)).clamp(0.0, 1.0) } else { 0.0 }
                };
                components.extend(pieces().map(ramp));
                components.extend(pieces().map(|(from, to)| if to > from && value >= from { 1.0 } else { 0.0 }));
            }
            let member = |index: usize| {
                let rows = index * 4..(index + 1) * 4;
                let first = Dense {
                    inputs: 12,
                    outputs: 4,
                    weight: tabular.first.weight[rows.start * 12..rows.end * 12].to_vec(),
                    bias: tabular.first.bias[rows].to_vec(),
                };
                let layers: Vec<Dense> = std::iter::once(first).chain(tabular.members[index].clone()).collect();
                through(&layers, components.clone())
            };
            let expected = (0..3).map(|index| member(index).0).sum::<f64>() / 3.0;
            assert!((f64::from(logit) - expected).abs() < 1e-5, "{logit} {expected}");
            assert!((0..3).all(|index| member(index).1 <= weights.bound(3.0)));
        }
    }
}
