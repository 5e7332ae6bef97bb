//! Where a training stands after an epoch, in a file, so that it can go on after an interruption as if there had been none.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Dataset, Epoch, ModelError, TrainOptions,
    files::{hex, write},
};

const FORMAT_VERSION: u32 = 1;

/// Where to keep the state of a training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoints {
    /// Written anew after each epoch: all of it or nothing.
    pub file: PathBuf,
    /// Go on from the file, if there is one. Without this a file that is there is refused: somebody may want to go on from it.
    pub resume: bool,
}

/// What training goes on with.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct State {
    /// Every epoch so far.
    pub(crate) curve: Vec<Epoch>,
    /// The network after the last of them, and its optimizer: burn's records, as bytes.
    pub(crate) network: Vec<u8>,
    pub(crate) optimizer: Vec<u8>,
    /// The network of the epoch that is kept so far, and its logits of the validation rows.
    pub(crate) kept: Vec<u8>,
    pub(crate) kept_logits: Vec<f32>,
}

/// The first line of the file, in JSON. The sections follow it, in this order.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format_version: u32,
    /// Of rows, labels and options.
    fingerprint: String,
    /// Bytes of each section.
    curve: usize,
    network: usize,
    optimizer: usize,
    kept: usize,
    kept_logits: usize,
    /// SHA-256 of all sections.
    sha256: String,
}

/// The checkpoints of one training.
pub(crate) struct Keeper<'a> {
    checkpoints: &'a Checkpoints,
    fingerprint: String,
}

impl<'a> Keeper<'a> {
    /// `None` where no state is to be kept.
    pub(crate) fn of(options: &'a TrainOptions, training: &Dataset, validation: &Dataset) -> Option<Keeper<'a>> {
        let checkpoints = options.checkpoints.as_ref()?;
        Some(Keeper { checkpoints, fingerprint: fingerprint(options, training, validation) })
    }

    /// The state to go on from; `None` to begin at the first epoch.
    ///
    /// Fails if there is one that was not to be gone on from, that is damaged, or that is of other rows or options.
    pub(crate) fn state(&self) -> Result<Option<State>, ModelError> {
        let file = &self.checkpoints.file;
        let bytes = match fs::read(file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(self.refuse(format!("can't be read ({error})"), "check the path and its permissions"));
            }
        };
        if !self.checkpoints.resume {
            let problem = "is of a training that was interrupted".into();
            return Err(self.refuse(problem, "go on from it (`--resume`), or remove the file"));
        }
        const REMOVE: &str = "remove the file and train from the start";
        let (header, state) = decode(&bytes).ok_or_else(|| self.refuse("is damaged".into(), REMOVE))?;
        if header.format_version != FORMAT_VERSION {
            let found = header.format_version;
            let problem = format!("has format version {found}, and this program reads {FORMAT_VERSION}");
            return Err(self.refuse(problem, REMOVE));
        }
        match header.fingerprint == self.fingerprint {
            true => Ok(Some(state)),
            false => {
                let problem = "is of a training with other transactions, features or options".into();
                Err(self.refuse(problem, "give those it was begun with, or remove the file"))
            }
        }
    }

    /// Writes the state beside the file, then renames it.
    pub(crate) fn keep(&self, state: &State) -> Result<(), ModelError> {
        let file = &self.checkpoints.file;
        let mut name = file.file_name().unwrap_or_default().to_os_string();
        name.push(".partial");
        let partial = file.with_file_name(name);
        let bytes = encode(state, &self.fingerprint);
        let written = bytes.map_err(io::Error::from).and_then(|bytes| {
            let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::create_dir_all(parent)?;
            write(&partial, &bytes)?;
            fs::rename(&partial, file)
        });
        written.map_err(|error| {
            self.refuse(format!("can't be written ({error})"), "check the path, its permissions and the space left")
        })
    }

    /// For a section that burn refuses.
    pub(crate) fn refuse(&self, problem: String, remedy: &'static str) -> ModelError {
        ModelError::Artifact { file: self.checkpoints.file.clone(), problem, remedy }
    }
}

/// SHA-256 over all that the weights depend on.
fn fingerprint(options: &TrainOptions, training: &Dataset, validation: &Dataset) -> String {
    let mut hash = Sha256::new();
    // Where checkpoints are makes no difference.
    hash.update(format!("{:?}", TrainOptions { checkpoints: None, ..options.clone() }));
    for data in [training, validation] {
        hash.update((data.width as u64).to_le_bytes());
        hash.update((data.labels.len() as u64).to_le_bytes());
        for row in data.rows.chunks(data.width.max(1)) {
            hash.update(floats(row));
        }
        hash.update(data.labels.iter().map(|label| u8::from(*label)).collect::<Vec<u8>>());
    }
    hex(&hash.finalize())
}

fn encode(state: &State, fingerprint: &str) -> serde_json::Result<Vec<u8>> {
    let curve: Vec<u8> = state.curve.iter().flat_map(epoch_bytes).collect();
    let logits = floats(&state.kept_logits);
    let sections = [&curve, &state.network, &state.optimizer, &state.kept, &logits];
    let mut hash = Sha256::new();
    sections.iter().for_each(|section| hash.update(section));
    let mut bytes = serde_json::to_vec(&Header {
        format_version: FORMAT_VERSION,
        fingerprint: fingerprint.into(),
        curve: curve.len(),
        network: state.network.len(),
        optimizer: state.optimizer.len(),
        kept: state.kept.len(),
        kept_logits: logits.len(),
        sha256: hex(&hash.finalize()),
    })?;
    bytes.push(b'\n');
    sections.iter().for_each(|section| bytes.extend_from_slice(section));
    Ok(bytes)
}

/// `None` if a byte is another than was written.
fn decode(bytes: &[u8]) -> Option<(Header, State)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let header: Header = serde_json::from_slice(&bytes[..end]).ok()?;
    let mut rest = &bytes[end + 1..];
    if hex(&Sha256::digest(rest)) != header.sha256 {
        return None;
    }
    let mut section = |length: usize| {
        let (section, after) = rest.split_at_checked(length)?;
        rest = after;
        Some(section)
    };
    let curve = section(header.curve)?.as_chunks::<EPOCH_BYTES>().0.iter().map(epoch_of).collect();
    let (network, optimizer, kept) =
        (section(header.network)?.to_vec(), section(header.optimizer)?.to_vec(), section(header.kept)?.to_vec());
    let logits = section(header.kept_logits)?.as_chunks().0.iter();
    let kept_logits = logits.map(|bytes| f32::from_le_bytes(*bytes)).collect();
    Some((header, State { curve, network, optimizer, kept, kept_logits }))
}

/// An epoch's number, its three figures, and whether it was the best so far, eight bytes each: bit for bit, which JSON is not.
const EPOCH_BYTES: usize = 40;

fn epoch_bytes(epoch: &Epoch) -> [u8; EPOCH_BYTES] {
    let Epoch { epoch, train_loss, validation_loss, validation_ap, best } = epoch;
    let words =
        [*epoch as u64, train_loss.to_bits(), validation_loss.to_bits(), validation_ap.to_bits(), u64::from(*best)];
    let mut bytes = [0; EPOCH_BYTES];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn epoch_of(bytes: &[u8; EPOCH_BYTES]) -> Epoch {
    let words = bytes.as_chunks().0;
    let word = |index: usize| u64::from_le_bytes(words[index]);
    Epoch {
        epoch: word(0) as usize,
        train_loss: f64::from_bits(word(1)),
        validation_loss: f64::from_bits(word(2)),
        validation_ap: f64::from_bits(word(3)),
        best: word(4) != 0,
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let epoch = |epoch: usize| Epoch {
            epoch,
            train_loss: 0.1 / epoch as f64,
            validation_loss: f64::MIN_POSITIVE,
            validation_ap: 0.7 + 0.1f64.powi(17),
            best: epoch == 2,
        };
        State {
            curve: (1..4).map(epoch).collect(),
            network: vec![1, b'\n', 3],
            optimizer: vec![4; 100],
            kept: vec![],
            kept_logits: vec![f32::MIN, -0.0, 1.5],
        }
    }

    #[test]
    fn a_state_round_trips_bit_for_bit_and_damage_is_seen() {
        let bytes = encode(&state(), "of these").unwrap();
        let (header, read) = decode(&bytes).unwrap();
        assert_eq!((header.fingerprint.as_str(), read), ("of these", state()));
        for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            assert!(decode(&bytes[..length]).is_none(), "{length} bytes");
        }
        let body = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for place in [body, body + 50, bytes.len() - 1] {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            assert!(decode(&changed).is_none(), "byte {place}");
        }
    }

    #[test]
    fn only_the_same_training_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("models").join("run.checkpoint");
        let data = Dataset { rows: vec![1.0, 2.0], width: 1, labels: vec![true, false] };
        let options = |resume, seed| {
            let checkpoints = Some(Checkpoints { file: file.clone(), resume });
            TrainOptions { checkpoints, seed, ..TrainOptions::default() }
        };
        let state_of = |options: &TrainOptions, data: &Dataset| Keeper::of(options, data, data).unwrap().state();
        assert!(Keeper::of(&TrainOptions::default(), &data, &data).is_none());
        assert_eq!(state_of(&options(true, 1), &data).unwrap(), None);
        Keeper::of(&options(false, 1), &data, &data).unwrap().keep(&state()).unwrap();
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "no partial file is left");
        assert_eq!(state_of(&options(true, 1), &data).unwrap(), Some(state()));

        let refusal = |options: &TrainOptions, data: &Dataset| state_of(options, data).unwrap_err().to_string();
        let error = refusal(&options(false, 1), &data);
        assert!(error.contains("run.checkpoint: is of a training that was interrupted; go on"), "{error}");
        let other = Dataset { labels: vec![false, true], ..data.clone() };
        for error in [refusal(&options(true, 2), &data), refusal(&options(true, 1), &other)] {
            assert!(error.contains("other transactions, features or options"), "{error}");
        }
        fs::write(&file, "no checkpoint").unwrap();
        assert!(refusal(&options(true, 1), &data).contains("is damaged; remove the file"));
    }
}
