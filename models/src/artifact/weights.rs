//! `model.safetensors`: the tensors of a network and of its normalization.

use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};
use schemas::FeatureLayout;

use super::{Artifact, NetworkConfig};
use crate::{
    encode::Encoding,
    network::{Attention, Dense, Grid, History, Places, Tabular, Weights, layer_shapes},
    normalize::Normalization,
};

/// Logits up to here leave room for every sum on the way; only damaged weights reach it.
const LOGIT_BOUND: f64 = 1e30;

pub(super) fn encode(artifact: &Artifact) -> Result<Vec<u8>, SafeTensorError> {
    let bytes = |numbers: &[f32]| -> Vec<u8> { numbers.iter().flat_map(|number| number.to_le_bytes()).collect() };
    let tensor = |name: &str, shape: &[usize], numbers: &[f32]| (name.to_string(), shape.to_vec(), bytes(numbers));
    let dense = |name: &str, layer: &Dense| {
        [
            tensor(&format!("{name}.weight"), &[layer.outputs, layer.inputs], &layer.weight),
            tensor(&format!("{name}.bias"), &[layer.outputs], &layer.bias),
        ]
    };
    let edges =
        |name: &str, encoding: &Encoding| tensor(name, &[encoding.inputs(), encoding.pieces() + 1], encoding.edges());
    let width = artifact.layout.width();
    let mut tensors = vec![
        tensor("normalization.mean", &[width], &artifact.normalization.mean),
        tensor("normalization.scale", &[width], &artifact.normalization.scale),
    ];
    let (tabular, sequences) = match &artifact.weights {
        Weights::Mlp(layers) => {
            let layers = layers.iter().enumerate();
            tensors.extend(layers.flat_map(|(index, layer)| dense(&format!("layers.{index}"), layer)));
            (None, &[][..])
        }
        Weights::Tabular(tabular) => (Some(tabular), &[][..]),
        Weights::History(history) => (Some(&history.tabular), &history.sequences[..]),
    };
    if let Some(Tabular { encoding, first, members }) = tabular {
        tensors.extend(dense("first", first));
        for (member, layers) in members.iter().enumerate() {
            let name = |index| format!("members.{member}.layers.{index}");
            tensors.extend(layers.iter().enumerate().flat_map(|(index, layer)| dense(&name(index), layer)));
        }
        tensors.push(edges("encoding.edges", encoding));
    }
    for (index, Attention { encoding, step, positions, score }) in sequences.iter().enumerate() {
        let name = |part: &str| format!("sequences.{index}.{part}");
        tensors.extend(dense(&name("step"), step));
        tensors.extend(dense(&name("score"), score));
        tensors.push(tensor(&name("positions"), &[positions.len() / step.outputs, step.outputs], positions));
        tensors.push(edges(&name("encoding.edges"), encoding));
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
    let encoding = |name: String, inputs: usize, pieces: usize| -> Result<Encoding, String> {
        let edges = read(&name, &[inputs, pieces + 1])?;
        Encoding::new(inputs, pieces, edges).ok_or(format!("has `{name}` that do not rise"))
    };
    // Of members whose first layers have `width` outputs each.
    let tabular = |inputs: usize, pieces: usize, members: usize, width: usize, behind: &[usize]| {
        let encoding = encoding("encoding.edges".into(), inputs, pieces)?;
        let member = |member: usize| layers(&format!("members.{member}."), width, behind);
        Ok::<Tabular, String>(Tabular {
            first: dense("first", (encoding.components(), members * width))?,
            members: (0..members).map(member).collect::<Result<_, String>>()?,
            encoding,
        })
    };
    let inputs = normalization.inputs();
    const NO_HIDDEN: &str = "is of a network without a hidden layer";
    let (weights, tensors) = match network {
        NetworkConfig::Mlp { hidden } => (Weights::Mlp(layers("", inputs, hidden)?), 2 * (hidden.len() + 1)),
        NetworkConfig::Tabular { pieces, members, hidden } => {
            let (width, behind) = hidden.split_first().ok_or(NO_HIDDEN)?;
            let tabular = tabular(inputs, *pieces, *members, *width, behind)?;
            (Weights::Tabular(tabular), 1 + 2 + members * 2 * hidden.len())
        }
        NetworkConfig::History { pieces, members, hidden, width } => {
            let places = Places::of(layout)?;
            let (first, behind) = hidden.split_first().ok_or(NO_HIDDEN)?;
            let own = first + places.sequences.len() * width;
            let outputs = members * width;
            let attention = |(index, grid): (usize, &Grid)| {
                let name = |part: &str| format!("sequences.{index}.{part}");
                let encoding = encoding(name("encoding.edges"), grid.channels, *pieces)?;
                Ok::<Attention, String>(Attention {
                    step: dense(&name("step"), (encoding.components(), outputs))?,
                    positions: read(&name("positions"), &[grid.steps, outputs])?,
                    score: dense(&name("score"), (*width, *members))?,
                    encoding,
                })
            };
            let history = History {
                tabular: tabular(places.others.len(), *pieces, *members, own, behind)?,
                sequences: places.sequences.iter().enumerate().map(attention).collect::<Result<_, _>>()?,
                hidden: *first,
                places,
            };
            let tensors = 1 + 2 + members * 2 * hidden.len() + 6 * history.sequences.len();
            (Weights::History(history), tensors)
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
