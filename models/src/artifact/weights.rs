//! `model.safetensors`: the tensors of a network and of its normalization.

use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};
use schemas::FeatureLayout;

use super::{Artifact, NetworkConfig};
use crate::{
    network::{Dense, layer_shapes},
    normalize::Normalization,
};

/// Logits up to here leave room for every sum on the way; only damaged weights reach it.
const LOGIT_BOUND: f64 = 1e30;

pub(super) fn encode(artifact: &Artifact) -> Result<Vec<u8>, SafeTensorError> {
    let bytes = |numbers: &[f32]| -> Vec<u8> { numbers.iter().flat_map(|number| number.to_le_bytes()).collect() };
    let width = artifact.layout.width();
    let mut tensors = vec![
        ("normalization.mean".to_string(), vec![width], bytes(&artifact.normalization.mean)),
        ("normalization.scale".to_string(), vec![width], bytes(&artifact.normalization.scale)),
    ];
    for (index, layer) in artifact.layers.iter().enumerate() {
        tensors.push((format!("layers.{index}.weight"), vec![layer.outputs, layer.inputs], bytes(&layer.weight)));
        tensors.push((format!("layers.{index}.bias"), vec![layer.outputs], bytes(&layer.bias)));
    }
    let views: Result<Vec<_>, SafeTensorError> = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect();
    safetensors::serialize(views?, None)
}

/// The tensors, checked against the shapes that layout and configuration ask for.
pub(super) fn decode(
    bytes: &[u8],
    layout: &FeatureLayout,
    network: &NetworkConfig,
) -> Result<(Normalization, Vec<Dense>), String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| format!("is no safetensors file ({error})"))?;
    let read = |name: &str, shape: &[usize]| -> Result<Vec<f32>, String> {
        let tensor = file.tensor(name).map_err(|_| format!("lacks the tensor `{name}`"))?;
        if tensor.dtype() != Dtype::F32 {
            return Err(format!("has `{name}` as {:?}, not F32", tensor.dtype()));
        }
        if tensor.shape() != shape {
            return Err(format!("has `{name}` of shape {:?}, not {shape:?}", tensor.shape()));
        }
        let numbers = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let numbers: Vec<f32> = numbers.collect();
        match numbers.iter().all(|number| number.is_finite()) {
            true => Ok(numbers),
            false => Err(format!("has a number in `{name}` that is not finite")),
        }
    };
    let width = [layout.width()];
    let (mean, scale) = (read("normalization.mean", &width)?, read("normalization.scale", &width)?);
    let normalization = Normalization::new(layout, mean, scale).ok_or("has no usable normalization")?;

    let NetworkConfig::Mlp { hidden } = network;
    let mut layers = Vec::new();
    for (index, (inputs, outputs)) in layer_shapes(normalization.inputs(), hidden).into_iter().enumerate() {
        let weight = read(&format!("layers.{index}.weight"), &[outputs, inputs])?;
        let bias = read(&format!("layers.{index}.bias"), &[outputs])?;
        layers.push(Dense { inputs, outputs, weight, bias });
    }
    let expected = 2 + 2 * layers.len();
    if file.len() != expected {
        return Err(format!("has {} tensors, not {expected}", file.len()));
    }
    // Inputs are bounded, so this proves that no row can make a sum overflow.
    let bound = layers.iter().fold(f64::from(normalization.bound()), |bound, layer| layer.output_bound(bound));
    if bound > LOGIT_BOUND {
        return Err("has weights so large that a score could overflow".into());
    }
    Ok((normalization, layers))
}
