//! `model.safetensors`: the tensors of a network and of its normalization.

use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};
use schemas::FeatureLayout;

use super::{Artifact, NetworkConfig};
use crate::{
    encode::Encoding,
    network::{Dense, Tabular, Weights, layer_shapes},
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
    let mut dense = |name: &str, layer: &Dense| {
        tensors.push((format!("{name}.weight"), vec![layer.outputs, layer.inputs], bytes(&layer.weight)));
        tensors.push((format!("{name}.bias"), vec![layer.outputs], bytes(&layer.bias)));
    };
    match &artifact.weights {
        Weights::Mlp(layers) => {
            layers.iter().enumerate().for_each(|(index, layer)| dense(&format!("layers.{index}"), layer));
        }
        Weights::Tabular(Tabular { encoding, first, members }) => {
            dense("first", first);
            for (member, layers) in members.iter().enumerate() {
                let name = |index| format!("members.{member}.layers.{index}");
                layers.iter().enumerate().for_each(|(index, layer)| dense(&name(index), layer));
            }
            let shape = vec![encoding.inputs(), encoding.pieces() + 1];
            tensors.push(("encoding.edges".to_string(), shape, bytes(encoding.edges())));
        }
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
) -> Result<(Normalization, Weights), String> {
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

    let dense = |name: &str, (inputs, outputs): (usize, usize)| -> Result<Dense, String> {
        let weight = read(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = read(&format!("{name}.bias"), &[outputs])?;
        Ok(Dense { inputs, outputs, weight, bias })
    };
    let layers = |name: &str, inputs: usize, hidden: &[usize]| -> Result<Vec<Dense>, String> {
        let shapes = layer_shapes(inputs, hidden).into_iter().enumerate();
        shapes.map(|(index, shape)| dense(&format!("{name}layers.{index}"), shape)).collect()
    };
    let inputs = normalization.inputs();
    let (weights, tensors) = match network {
        NetworkConfig::Mlp { hidden } => (Weights::Mlp(layers("", inputs, hidden)?), 2 * (hidden.len() + 1)),
        NetworkConfig::Tabular { pieces, members, hidden } => {
            let edges = read("encoding.edges", &[inputs, pieces + 1])?;
            let encoding = Encoding::new(inputs, *pieces, edges).ok_or("has `encoding.edges` that do not rise")?;
            let (width, behind) = hidden.split_first().ok_or("is of a network without a hidden layer")?;
            let member = |member: usize| layers(&format!("members.{member}."), *width, behind);
            let tabular = Tabular {
                first: dense("first", (encoding.components(), members * width))?,
                members: (0..*members).map(member).collect::<Result<_, String>>()?,
                encoding,
            };
            (Weights::Tabular(tabular), 1 + 2 + members * 2 * hidden.len())
        }
    };
    let expected = 2 + tensors;
    if file.len() != expected {
        return Err(format!("has {} tensors, not {expected}", file.len()));
    }
    // Inputs are bounded, so this proves that no row can make a sum overflow.
    let bound = weights.bound(f64::from(normalization.bound()));
    if bound > LOGIT_BOUND {
        return Err("has weights so large that a score could overflow".into());
    }
    Ok((normalization, weights))
}
