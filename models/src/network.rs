//! The network: a multilayer perceptron, generic over the backend, and its weights on the host.

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{Tensor, TensorData, activation::relu, backend::Backend},
};
use rand::{RngExt, rngs::StdRng};

/// One layer's weights: `weight` is outputs × inputs, row-major, as PyTorch stores it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dense {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

/// Inputs and outputs of each layer of a network with these hidden widths and one output.
pub(crate) fn layer_shapes(inputs: usize, hidden: &[usize]) -> Vec<(usize, usize)> {
    let from = std::iter::once(inputs).chain(hidden.iter().copied());
    from.zip(hidden.iter().copied().chain([1])).collect()
}

impl Dense {
    /// He's uniform initialization: `U(−√(6/inputs), √(6/inputs))`, biases 0.
    pub(crate) fn random((inputs, outputs): (usize, usize), random: &mut StdRng) -> Dense {
        let limit = (6.0 / inputs as f32).sqrt();
        let weight = (0..inputs * outputs).map(|_| random.random_range(-limit..limit)).collect();
        Dense { inputs, outputs, weight, bias: vec![0.0; outputs] }
    }

    /// A bound on the absolute outputs, given one on the inputs.
    pub(crate) fn output_bound(&self, input_bound: f64) -> f64 {
        let rows = self.weight.chunks_exact(self.inputs).zip(&self.bias);
        let bounds = rows.map(|(row, bias)| {
            let sum: f64 = row.iter().map(|weight| f64::from(weight.abs())).sum();
            sum * input_bound + f64::from(bias.abs())
        });
        bounds.fold(0.0, f64::max)
    }
}

/// Fully connected layers with ReLU between them. burn's derive asks for `pub`; the module is private.
#[derive(Module, Debug)]
pub(crate) struct Network<B: Backend> {
    layers: Vec<Linear<B>>,
}

impl<B: Backend> Network<B> {
    pub(crate) fn new(layers: &[Dense], device: &B::Device) -> Network<B> {
        let layers = layers.iter().map(|dense| {
            // burn holds inputs × outputs.
            let weight = transposed(&dense.weight, dense.outputs, dense.inputs);
            let weight = TensorData::new(weight, [dense.inputs, dense.outputs]);
            let bias = TensorData::new(dense.bias.clone(), [dense.outputs]);
            Linear { weight: Param::from_data(weight, device), bias: Some(Param::from_data(bias, device)) }
        });
        Network { layers: layers.collect() }
    }

    /// The weights, back on the host.
    pub(crate) fn weights(&self) -> Vec<Dense> {
        let layers = self.layers.iter().map(|layer| {
            let [inputs, outputs] = layer.weight.shape().dims();
            let weight = transposed(&host(layer.weight.val()), inputs, outputs);
            let bias = layer.bias.as_ref().map(|bias| host(bias.val())).unwrap_or_default();
            Dense { inputs, outputs, weight, bias }
        });
        layers.collect()
    }

    /// Logits (rows) of `inputs` (rows × inputs).
    pub(crate) fn forward(&self, inputs: Tensor<B, 2>) -> Tensor<B, 1> {
        let last = self.layers.len() - 1;
        let outputs = self.layers.iter().enumerate().fold(inputs, |values, (index, layer)| {
            let values = layer.forward(values);
            if index < last { relu(values) } else { values }
        });
        outputs.flatten(0, 1)
    }
}

/// The values of a tensor, row-major.
pub(crate) fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().expect("the data were just converted to f32")
}

fn transposed(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|index| matrix[index % rows * columns + index / rows]).collect()
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn the_forward_pass_is_the_formula_and_weights_round_trip() {
        let mut random = StdRng::seed_from_u64(1);
        let shapes = layer_shapes(5, &[7, 3]);
        assert_eq!(shapes, [(5, 7), (7, 3), (3, 1)]);
        let layers: Vec<Dense> = shapes
            .into_iter()
            .map(|shape| {
                let mut dense = Dense::random(shape, &mut random);
                dense.bias.iter_mut().for_each(|bias| *bias = random.random_range(-1.0..1.0));
                dense
            })
            .collect();
        let network = Network::<Flex>::new(&layers, &Default::default());
        assert_eq!(network.weights(), layers);

        let rows: Vec<f32> = (0..4 * 5).map(|_| random.random_range(-3.0..3.0)).collect();
        let logits =
            host(network.forward(Tensor::from_data(TensorData::new(rows.clone(), [4, 5]), &Default::default())));
        for (row, logit) in rows.chunks_exact(5).zip(logits) {
            let mut values: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
            let mut bound = 3.0;
            for (index, dense) in layers.iter().enumerate() {
                values = dense
                    .weight
                    .chunks_exact(dense.inputs)
                    .zip(&dense.bias)
                    .map(|(weights, bias)| {
                        let sum: f64 = weights.iter().zip(&values).map(|(w, v)| f64::from(*w) * v).sum();
                        let sum = sum + f64::from(*bias);
                        if index + 1 < layers.len() { sum.max(0.0) } else { sum }
                    })
                    .collect();
                bound = dense.output_bound(bound);
                assert!(values.iter().all(|value| value.abs() <= bound));
            }
            assert!((f64::from(logit) - values[0]).abs() < 1e-5, "{logit} {values:?}");
        }
    }
}
